//! Values on a server that speaks RESP, such as Redis or Valkey, which evicts by its own policy.

use std::time::Duration;

use redis::{Client, Cmd, Connection, FromRedisValue, RedisError};

use super::{CacheTier, Source, TierError, Value};
use crate::cache::keys::ChunkKey;
use crate::{Error, Result};

/// Bytes of a string that servers take unless told otherwise.
const MAX_BYTES: usize = 512 << 20;

/// A RESP server, connected to when it is first needed and again when it was lost.
pub struct RespTier {
    client: Client,
    connection: Option<Connection>,
    timeout: Duration,
}

impl RespTier {
    /// The server at `redis://[user:password@]host[:port][/database]`. Connecting and every read and write of the
    /// connection may take up to `timeout`.
    ///
    /// # Errors
    /// [`Error::Value`] for another address, and for no time at all.
    pub fn new(address: &str, timeout: Duration) -> Result<Self> {
        if timeout.is_zero() {
            return Err(Error::value("RESP timeout", "above 0", "0"));
        }
        // An address may hold a password: it is not repeated.
        let client = Client::open(address).map_err(|error| {
            Error::value("RESP address", "redis://[user:password@]host[:port][/database]", error)
        })?;
        Ok(Self { client, connection: None, timeout })
    }

    fn connect(&self) -> Result<Connection, RedisError> {
        let connection = self.client.get_connection_with_timeout(self.timeout)?;
        connection.set_read_timeout(Some(self.timeout))?;
        connection.set_write_timeout(Some(self.timeout))?;
        Ok(connection)
    }

    /// Asks the server; over a new connection, if the one that was open turns out to be closed.
    fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, TierError> {
        if let Some(mut connection) = self.connection.take() {
            match command.query(&mut connection) {
                Err(error) if error.is_connection_dropped() => {}
                answer => return self.answered(answer, connection),
            }
        }
        let mut connection = self.connect().map_err(|error| TierError::Unavailable(error.to_string()))?;
        let answer = command.query(&mut connection);
        self.answered(answer, connection)
    }

    /// Keeps the connection unless a late answer to this could be taken for one to the next.
    fn answered<T>(&mut self, answer: Result<T, RedisError>, connection: Connection) -> Result<T, TierError> {
        match answer {
            Ok(value) => {
                self.connection = Some(connection);
                Ok(value)
            }
            Err(error) if error.is_io_error() || error.is_unrecoverable_error() => {
                Err(TierError::Unavailable(error.to_string()))
            }
            Err(error) => {
                self.connection = Some(connection);
                Err(TierError::Refused(error.to_string()))
            }
        }
    }
}

/// A command about a key.
fn command(name: &str, key: &ChunkKey) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(key.to_string());
    command
}

impl CacheTier for RespTier {
    fn source(&self) -> Source {
        Source::Resp
    }

    fn store(&mut self, key: &ChunkKey, value: &Value) -> Result<(), TierError> {
        let bytes = value.as_bytes();
        if bytes.len() > MAX_BYTES {
            return Err(TierError::Refused(format!("{} bytes into {MAX_BYTES}", bytes.len())));
        }
        self.ask(command("SET", key).arg(bytes))
    }

    fn load(&mut self, key: &ChunkKey) -> Result<Option<Value>, TierError> {
        // One that is longer than it may be is read to where that shows; none is empty.
        let last = Value::sealed_len(key);
        let bytes: Vec<u8> = self.ask(command("GETRANGE", key).arg(0).arg(last))?;
        Ok((!bytes.is_empty()).then(|| Value::from_bytes(bytes)))
    }

    fn contains(&mut self, key: &ChunkKey) -> Result<bool, TierError> {
        // An empty one is as good as none.
        let length: usize = self.ask(&command("STRLEN", key))?;
        Ok(length > 0)
    }

    fn remove(&mut self, key: &ChunkKey) -> Result<(), TierError> {
        self.ask(&command("DEL", key))
    }
}
