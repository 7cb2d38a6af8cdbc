//! The side of ZeroMQ's protocol that listens: ZMTP 3.0 (<https://rfc.zeromq.org/spec/23/>) without encryption.
//!
//! A peer may be anybody: what it announces takes no memory, and a frame of its own is a few bytes.

use std::io::{Error, ErrorKind, Result};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Bytes of a frame that a peer sends at most: a topic, or the number of a message.
const MAX_FRAME: usize = 4096;
/// Frames of a message that a peer sends at most.
const MAX_FRAMES: usize = 8;
/// Time that a peer has for its greeting and its first command.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time that a peer has to take a message.
const TAKEN: Duration = Duration::from_secs(30);

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// A peer that has said what it is.
pub(super) struct Peer {
    stream: TcpStream,
    /// What has come and is not read yet.
    received: Vec<u8>,
    /// Frames of the message that is coming.
    frames: Vec<Vec<u8>>,
}

/// What a peer says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    Message(Vec<Vec<u8>>),
    Subscribe(Vec<u8>),
    Cancel(Vec<u8>),
    /// It wants a [`Peer::pong`] with these bytes.
    Ping(Vec<u8>),
}

struct Frame {
    flags: u8,
    body: Vec<u8>,
}

impl Peer {
    /// Shakes hands as a socket of type `ours` with one of `theirs`.
    ///
    /// # Errors
    /// For a peer that speaks something else, or is slow to speak.
    pub(super) async fn greet(stream: TcpStream, ours: &str, theirs: &[&str]) -> Result<Self> {
        let mut peer = Self { stream, received: Vec::new(), frames: Vec::new() };
        within(HANDSHAKE, peer.shake_hands(ours, theirs)).await?;
        Ok(peer)
    }

    async fn shake_hands(&mut self, ours: &str, theirs: &[&str]) -> Result<()> {
        self.stream.set_nodelay(true)?;
        self.stream.write_all(&greeting()).await?;
        while self.received.len() < 64 {
            self.receive().await?;
        }
        let greeting: Vec<u8> = self.received.drain(..64).collect();
        let is_zmtp3 = greeting[0] == 0xff && greeting[9] == 0x7f && greeting[10] >= 3;
        if !is_zmtp3 || &greeting[12..32] != MECHANISM {
            return Err(strange("no greeting of ZMTP 3 without encryption"));
        }
        let mut ready = b"\x05READY\x0bSocket-Type".to_vec();
        ready.extend((ours.len() as u32).to_be_bytes());
        ready.extend(ours.as_bytes());
        self.write(&encode(COMMAND, &ready)).await?;
        let frame = self.frame().await?;
        let metadata = frame.body.strip_prefix(b"\x05READY").filter(|_| frame.flags & COMMAND != 0);
        let kind = socket_type(metadata.ok_or_else(|| strange("no READY"))?);
        match kind.filter(|kind| theirs.iter().any(|name| name.as_bytes() == *kind)) {
            Some(_) => Ok(()),
            None => Err(strange("a socket of a type that does not belong here")),
        }
    }

    /// What the peer says next. May be dropped and called again: nothing is lost.
    ///
    /// # Errors
    /// For a peer that is gone or says too much.
    pub(super) async fn next(&mut self) -> Result<Said> {
        loop {
            let Frame { flags, body } = self.frame().await?;
            if flags & COMMAND != 0 {
                match command(&body) {
                    // Behind two bytes of a time to live.
                    (b"PING", rest) => return Ok(Said::Ping(rest.get(2..).unwrap_or_default().to_vec())),
                    (b"SUBSCRIBE", topic) => return Ok(Said::Subscribe(topic.to_vec())),
                    (b"CANCEL", topic) => return Ok(Said::Cancel(topic.to_vec())),
                    (b"ERROR", _) => return Err(strange("an error")),
                    _ => {}
                }
                continue;
            }
            if self.frames.len() == MAX_FRAMES {
                return Err(strange("a message of too many frames"));
            }
            self.frames.push(body);
            if flags & MORE == 0 {
                return Ok(Said::Message(std::mem::take(&mut self.frames)));
            }
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// For a peer that is gone or does not read.
    pub(super) async fn send(&mut self, frames: &[&[u8]]) -> Result<()> {
        let last = frames.len().saturating_sub(1);
        let bytes: Vec<u8> = frames
            .iter()
            .enumerate()
            .flat_map(|(index, frame)| encode(if index < last { MORE } else { 0 }, frame))
            .collect();
        self.write(&bytes).await
    }

    /// Answers a ping.
    ///
    /// # Errors
    /// As [`Peer::send`].
    pub(super) async fn pong(&mut self, context: &[u8]) -> Result<()> {
        self.write(&encode(COMMAND, &[b"\x04PONG", context].concat())).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        within(TAKEN, self.stream.write_all(bytes)).await
    }

    async fn frame(&mut self) -> Result<Frame> {
        loop {
            if let Some((frame, taken)) = decode(&self.received)? {
                self.received.drain(..taken);
                return Ok(frame);
            }
            self.receive().await?;
        }
    }

    async fn receive(&mut self) -> Result<()> {
        self.received.reserve(MAX_FRAME);
        match self.stream.read_buf(&mut self.received).await? {
            0 => Err(Error::from(ErrorKind::UnexpectedEof)),
            _ => Ok(()),
        }
    }
}

/// The mechanism without encryption, in the twenty bytes of the greeting.
const MECHANISM: &[u8; 20] = b"NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn greeting() -> [u8; 64] {
    let mut greeting = [0; 64];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..32].copy_from_slice(MECHANISM);
    greeting
}

fn encode(flags: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = match u8::try_from(body.len()) {
        Ok(len) => vec![flags, len],
        Err(_) => [&[flags | LONG][..], &(body.len() as u64).to_be_bytes()].concat(),
    };
    bytes.extend(body);
    bytes
}

/// The first frame and its bytes; `None` while some are still to come.
fn decode(received: &[u8]) -> Result<Option<(Frame, usize)>> {
    let Some((&flags, rest)) = received.split_first() else { return Ok(None) };
    let (len, header) = if flags & LONG == 0 {
        let Some(&len) = rest.first() else { return Ok(None) };
        (u64::from(len), 2)
    } else {
        let Some(len) = rest.first_chunk() else { return Ok(None) };
        (u64::from_be_bytes(*len), 9)
    };
    // Before any memory is taken for it.
    let len = usize::try_from(len).ok().filter(|&len| len <= MAX_FRAME);
    let end = header + len.ok_or_else(|| strange("a frame that is too long"))?;
    Ok(received.get(header..end).map(|body| (Frame { flags, body: body.to_vec() }, end)))
}

/// The name of a command, and what follows it.
fn command(body: &[u8]) -> (&[u8], &[u8]) {
    let split = body.split_first().and_then(|(&len, rest)| rest.split_at_checked(len.into()));
    split.unwrap_or_default()
}

/// The type of a socket by the properties of its READY: names of up to 255 bytes, and values.
fn socket_type(mut properties: &[u8]) -> Option<&[u8]> {
    while !properties.is_empty() {
        let (name, rest) = command(properties);
        let (len, rest) = rest.split_first_chunk()?;
        let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            return Some(value);
        }
        properties = rest;
    }
    None
}

async fn within<T>(time: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(time, work).await.unwrap_or_else(|_| Err(Error::from(ErrorKind::TimedOut)))
}

fn strange(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_when_it_is_whole_and_refused_by_its_header() {
        for body in [&b""[..], b"x", &[7; 255], &[7; 256], &[7; MAX_FRAME]] {
            let bytes = encode(MORE, body);
            for len in 0..bytes.len() {
                assert!(decode(&bytes[..len]).unwrap().is_none());
            }
            let (frame, taken) = decode(&[&bytes[..], b"next"].concat()).unwrap().unwrap();
            assert_eq!((frame.flags & MORE, &frame.body[..], taken), (MORE, body, bytes.len()));
        }
        for len in [MAX_FRAME as u64 + 1, 1 << 62, u64::MAX] {
            assert!(decode(&[&[LONG][..], &len.to_be_bytes()].concat()).is_err(), "{len}");
        }
    }

    #[test]
    fn properties_that_break_off_have_no_type() {
        let ready = b"\x08Identity\0\0\0\x01a\x0bSocket-Type\0\0\0\x03SUB";
        assert_eq!(socket_type(ready), Some(&b"SUB"[..]));
        for len in 0..ready.len() {
            assert_eq!(socket_type(&ready[..len]), None, "{len}");
        }
        assert_eq!(socket_type(b"\x0bSocket-Type\xff\xff\xff\xffSUB"), None);
        assert_eq!(command(b"\x09PING"), (&b""[..], &b""[..]));
    }
}
