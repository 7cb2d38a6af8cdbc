//! What templates may call besides minijinja's own, each bounded by the fuel that the template has left.

use std::fmt::Write as _;
use std::io::{Error as IoError, Result as IoResult, Write};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use serde::Serialize;

/// Adds the functions, filters and methods that templates for Hugging Face transformers count on.
pub(super) fn add(environment: &mut Environment<'_>) {
    environment.set_unknown_method_callback(method);
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", to_json);
}

/// Bytes that a unit of fuel pays for, as minijinja counts them.
const BYTES_PER_FUEL: u64 = 64;

/// How many times dearer a byte is that takes a walk over a value to write, as minijinja counts it.
const SERIALIZED: usize = 16;

/// Bytes that a template may still make.
fn bytes_left(state: &State<'_, '_>) -> usize {
    let left = state.fuel_levels().map_or(u64::MAX, |(_, left)| left.saturating_mul(BYTES_PER_FUEL));
    usize::try_from(left).unwrap_or(usize::MAX)
}

fn out_of_fuel() -> Error {
    Error::from(ErrorKind::OutOfFuel)
}

/// The local time as `strftime` writes it.
fn strftime_now(format: &str) -> Result<String, Error> {
    let mut text = String::new();
    let failed = |_| Error::new(ErrorKind::InvalidOperation, format!("strftime_now cannot write {format:?}"));
    write!(text, "{}", chrono::Local::now().format(format)).map_err(failed)?;
    Ok(text)
}

/// Python's methods of strings, maps and lists. The results of some are not bounded by their arguments: these are made by
/// filters that look at the fuel first.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.kind(), name, args) {
        (ValueKind::String, "replace", _) => {
            let mut all = vec![value.clone()];
            all.extend_from_slice(args);
            state.apply_filter("replace", &all)
        }
        (ValueKind::String, "join", [items]) => state.apply_filter("join", &[items.clone(), value.clone()]),
        (ValueKind::String, "format", _) if longest_format(value, args) > bytes_left(state) => {
            Err(out_of_fuel())
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// Bytes that `str.format` makes at most: each place may hold the longest argument, or be as wide as its number says.
fn longest_format(format: &Value, args: &[Value]) -> usize {
    let format = format.as_str().unwrap_or_default();
    let places = format.matches('{').count();
    let numbers = format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let widest = numbers.map(|digits| digits.parse().unwrap_or(usize::MAX)).max().unwrap_or(0);
    let length = |arg: &Value| match arg.kind() {
        ValueKind::String => arg.as_str().map_or(0, str::len),
        ValueKind::Undefined | ValueKind::None | ValueKind::Bool | ValueKind::Number => 64,
        // What a container looks like is not known before it is written.
        _ => usize::MAX,
    };
    let longest = args.iter().map(length).max().unwrap_or(0);
    places.saturating_mul(longest.max(widest)).saturating_add(format.len())
}

/// JSON as Python's `json.dumps(ensure_ascii=False)` writes it, which models were trained on.
#[expect(clippy::needless_pass_by_value, reason = "filters take their options by value")]
fn to_json(state: &State<'_, '_>, value: &Value, options: Kwargs) -> Result<String, Error> {
    let failed = |e: serde_json::Error| match e.is_io() {
        true => out_of_fuel(),
        false => Error::new(ErrorKind::InvalidOperation, e.to_string()),
    };
    let indent: Option<usize> = options.get("indent")?;
    let mut out = Bounded { bytes: Vec::new(), most: bytes_left(state) / SERIALIZED };
    match indent {
        Some(indent) => {
            let indent = " ".repeat(indent.min(16));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, pretty)).map_err(failed)?;
        }
        None => {
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)).map_err(failed)?;
        }
    }
    String::from_utf8(out.bytes).map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))
}

/// Bytes up to a number of them.
struct Bounded {
    bytes: Vec<u8>,
    most: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> IoResult<usize> {
        if bytes.len() > self.most - self.bytes.len() {
            return Err(IoError::other("the text is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> IoResult<()> {
        Ok(())
    }
}

/// A space after each comma and colon.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> IoResult<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> IoResult<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> IoResult<()> {
        out.write_all(b": ")
    }
}
