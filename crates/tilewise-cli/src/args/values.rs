//! Values of arguments.

use tilewise::DType;

/// Parses `N` or `FROM,TO`.
pub(super) fn range(text: &str) -> Result<(usize, usize), String> {
    let number = |text: &str| text.trim().parse().map_err(|_| format!("{text:?} is no number"));
    match text.split_once(',') {
        Some((from, to)) => Ok((number(from)?, number(to)?)),
        None => number(text).map(|n| (n, n)),
    }
}

/// Parses a number of bytes, in units of 1, K, M, G or T, each 1024 of the one before.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let (digits, power) = match text.char_indices().last().map(|(at, c)| (at, c.to_ascii_uppercase())) {
        Some((at, unit @ ('K' | 'M' | 'G' | 'T'))) => (&text[..at], 1 + "KMGT".find(unit).unwrap_or(0)),
        _ => (text, 0),
    };
    let number: Option<u64> = digits.trim().parse().ok();
    let bytes = number.and_then(|number| number.checked_mul(1 << (10 * power)));
    bytes.ok_or_else(|| format!("{text:?} is no size, such as 512M or 16G"))
}

/// Parses a number of tokens to draw among; -1, as clients of servers send it, is all.
pub(super) fn top_k(text: &str) -> Result<usize, String> {
    match text {
        "-1" => Ok(0),
        _ => text.parse().map_err(|_| "must be a number of tokens, or -1 for all".to_owned()),
    }
}

/// Parses permissions of files in octal digits, which their owner must have.
pub(super) fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| mode & 0o600 == 0o600 && mode & !0o666 == 0);
    mode.ok_or_else(|| "must be permissions such as 600 or 660".to_owned())
}

/// Parses a number of tokens to generate at most; -1, as clients of servers send it, is no limit.
pub(super) fn most_tokens(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("one token at least is generated".to_owned()),
        Ok(most) => Ok(most),
        Err(_) if text == "-1" => Ok(usize::MAX),
        Err(_) => Err("must be a number of tokens, or -1 for as many as there is room for".to_owned()),
    }
}

/// An element type of weights, or that of the file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WeightDType(pub(crate) Option<DType>);

pub(super) fn weight_dtype(name: &str) -> Result<WeightDType, String> {
    if name == "auto" { Ok(WeightDType(None)) } else { dtype(name).map(|dtype| WeightDType(Some(dtype))) }
}

/// Parses one of [`TYPES`].
pub(super) fn dtype(name: &str) -> Result<DType, String> {
    name.parse().map_err(|error: tilewise::Error| error.to_string())
}

/// How much slower a step may be for prompts beside it, if they are held back at all.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Slowdown(pub(crate) Option<f64>);

/// Parses a number above 1, or off.
pub(super) fn slowdown(text: &str) -> Result<Slowdown, String> {
    match text.parse::<f64>() {
        _ if text == "off" => Ok(Slowdown(None)),
        Ok(value) if value > 1.0 && value.is_finite() => Ok(Slowdown(Some(value))),
        _ => Err(format!("{text:?} is no number above 1, and not off")),
    }
}

/// An object of variables.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct JsonObject(pub(crate) serde_json::Map<String, serde_json::Value>);

/// Reads a JSON object.
pub(crate) fn json_object(text: &str) -> Result<JsonObject, String> {
    serde_json::from_str(text).map(JsonObject).map_err(|error| format!("must be a JSON object: {error}"))
}

/// Reads an address of this machine; `localhost` is the one of the loopback interface.
pub(crate) fn address(text: &str) -> Result<std::net::IpAddr, String> {
    match text {
        "localhost" => Ok(std::net::Ipv4Addr::LOCALHOST.into()),
        other => other.parse().map_err(|_| "must be an IP address, such as 127.0.0.1 or 0.0.0.0".to_owned()),
    }
}
