//! A small hub on loopback that answers as it is told to, also badly.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::json;

/// What a hub does with its next requests, first come first served; when none is left, it answers well.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Answers with this status and these headers.
    Status(u16, &'static [(&'static str, &'static str)]),
    /// Says the whole length, sends so many bytes of the body and closes.
    Cut(usize),
    /// Sends nothing for so long.
    Slow(Duration),
    /// Closes without an answer.
    Close,
    /// Sends all files from the start, whatever is asked for.
    NoRanges,
    /// Sends bytes that are others, as many as wanted.
    Damaged,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

/// A hub with one model, `org/name` at the commit of forty `a`.
pub(crate) struct Hub {
    pub(crate) address: String,
    state: Arc<State>,
}

struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// Where files with a SHA-256 are, if not here.
    storage: Option<String>,
    faults: Mutex<Vec<(&'static str, Fault)>>,
    asked: Mutex<Vec<Asked>>,
}

pub(crate) const COMMIT: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

impl Hub {
    /// Serves `files`; those that end in `.safetensors` from `storage`, another host, if there is one.
    pub(crate) fn start(files: BTreeMap<String, Vec<u8>>, storage: Option<&Self>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // Another name of loopback is another host.
        let address = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
        let storage = storage.map(|hub| hub.address.replace("127.0.0.1", "localhost"));
        let state = Arc::new(State { files, storage, faults: Mutex::default(), asked: Mutex::default() });
        let served = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = served.clone();
                thread::spawn(move || while state.answer(&stream).unwrap_or(false) {});
            }
        });
        Self { address, state }
    }

    /// Lets the next requests whose path contains `place` go wrong, one fault each.
    pub(crate) fn fail(&self, place: &'static str, faults: impl IntoIterator<Item = Fault>) {
        let faults = faults.into_iter().map(|fault| (place, fault));
        self.state.faults.lock().unwrap().extend(faults);
    }

    /// What was asked for since this was called last.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.asked.lock().unwrap())
    }
}

impl State {
    /// Reads a request and answers it; false where the connection ends.
    fn answer(&self, stream: &TcpStream) -> std::io::Result<bool> {
        let Some(asked) = read_request(stream)? else { return Ok(false) };
        self.asked.lock().unwrap().push(asked.clone());
        let fault = {
            let mut faults = self.faults.lock().unwrap();
            let place =
                faults.iter().position(|(place, _)| asked.path.contains(place) && asked.method == "GET");
            place.map(|place| faults.remove(place).1)
        };
        match fault {
            Some(Fault::Close) => return Ok(false),
            Some(Fault::Slow(pause)) => thread::sleep(pause),
            Some(Fault::Status(status, headers)) => {
                let headers: Vec<_> =
                    headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
                return respond(stream, &asked, status, &headers, b"<html>no</html>", usize::MAX);
            }
            _ => {}
        }
        let Some(file) = asked.path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/")) else {
            return self.answer_other(stream, &asked);
        };
        let Some(bytes) = self.files.get(file) else {
            let headers = [("x-error-code", "EntryNotFound".to_owned())];
            return respond(stream, &asked, 404, &headers, b"", usize::MAX);
        };
        let etag =
            if file.ends_with(".safetensors") { sha256(bytes) } else { format!("{:040x}", bytes.len()) };
        if let Some(storage) = self.storage.as_ref().filter(|_| file.ends_with(".safetensors")) {
            let headers = [
                ("location", format!("{storage}{}?signed=1", asked.path)),
                ("x-linked-etag", format!("\"{etag}\"")),
                ("x-linked-size", bytes.len().to_string()),
            ];
            return respond(stream, &asked, 302, &headers, b"Found", usize::MAX);
        }
        send_file(stream, &asked, bytes, &etag, fault.as_ref())
    }

    fn answer_other(&self, stream: &TcpStream, asked: &Asked) -> std::io::Result<bool> {
        if let Some(rest) = asked.path.strip_prefix("/org/renamed/resolve") {
            let headers = [("location", format!("/org/name/resolve{rest}"))];
            return respond(stream, asked, 307, &headers, b"", usize::MAX);
        }
        let known = ["main", "v1", "refs%2Fpr%2F1"];
        let is_known = known.iter().any(|rev| asked.path.ends_with(&format!("/revision/{rev}")));
        if asked.path.starts_with("/api/models/org/") && is_known {
            let siblings: Vec<_> = self.files.keys().map(|name| json!({ "rfilename": name })).collect();
            let listing = json!({ "sha": COMMIT, "siblings": siblings, "gated": false }).to_string();
            return respond(stream, asked, 200, &[], listing.as_bytes(), usize::MAX);
        }
        let headers = [("x-error-code", "RevisionNotFound".to_owned())];
        respond(stream, asked, 404, &headers, b"{}", usize::MAX)
    }
}

fn read_request(stream: &TcpStream) -> std::io::Result<Option<Asked>> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let path = path.split('?').next().unwrap().to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.to_owned()),
            None => return Ok(Some(Asked { method, path, headers })),
        };
    }
}

/// Sends a file or the range of it that is asked for.
fn send_file(
    stream: &TcpStream,
    asked: &Asked,
    bytes: &[u8],
    etag: &str,
    fault: Option<&Fault>,
) -> std::io::Result<bool> {
    let from = asked.headers.get("range").filter(|_| !matches!(fault, Some(Fault::NoRanges)));
    let from =
        from.map(|range| range.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().unwrap());
    let mut headers = vec![("etag", format!("\"{etag}\""))];
    let most = if let Some(Fault::Cut(most)) = fault { *most } else { usize::MAX };
    let damaged: Vec<u8>;
    let bytes = match fault {
        Some(Fault::Damaged) => {
            damaged = bytes.iter().map(|byte| !byte).collect();
            &damaged
        }
        _ => bytes,
    };
    match from {
        Some(from) => {
            headers.push(("content-range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())));
            respond(stream, asked, 206, &headers, &bytes[from..], most)
        }
        None => respond(stream, asked, 200, &headers, bytes, most),
    }
}

/// Sends at most `most` bytes of the body, then closes if that is not all.
fn respond(
    mut stream: &TcpStream,
    asked: &Asked,
    status: u16,
    headers: &[(&str, String)],
    body: &[u8],
    most: usize,
) -> std::io::Result<bool> {
    let mut head = format!("HTTP/1.1 {status} Answer\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    if asked.method != "HEAD" {
        stream.write_all(&body[..body.len().min(most)])?;
    }
    stream.flush()?;
    if body.len() > most {
        // What was sent arrives before the connection breaks.
        thread::sleep(Duration::from_millis(50));
        stream.shutdown(std::net::Shutdown::Both)?;
        return Ok(false);
    }
    Ok(true)
}

/// SHA-256 in hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
