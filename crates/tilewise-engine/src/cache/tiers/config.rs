//! Tiers as a user names them.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::{CacheTier, DiskTier, HostTier, ObjectTier, RespTier, S3Bucket};
use crate::Result;

/// How long a server in the same building may take for an operation before computing is preferred to waiting.
const RESP_TIMEOUT: Duration = Duration::from_secs(2);

/// The same for an object store, whose first byte alone takes tenths of a second.
const OBJECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A place that keeps parts of the cache.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TierConfig {
    /// The host's memory, up to so many bytes.
    Host {
        /// The bound.
        bytes: u64,
    },
    /// A folder, which is made where it is missing.
    Disk {
        /// The folder, which processes may share.
        folder: PathBuf,
        /// The bound.
        bytes: u64,
        /// Permissions of its files, such as [`super::PRIVATE`] or, for a folder that users share, `0o660`.
        mode: u32,
    },
    /// A server that speaks RESP, at `redis://[user:password@]host[:port][/database]`.
    Resp {
        /// The address.
        address: String,
    },
    /// A bucket of S3 or of a store that speaks its protocol.
    S3(S3Bucket),
    /// Objects as files of a folder that others mount, which must exist.
    ObjectFolder(PathBuf),
}

impl TierConfig {
    /// The tier.
    ///
    /// # Errors
    /// [`crate::Error::Value`] for an address, a name or credentials that mean nothing, [`crate::Error::File`] for a
    /// folder that cannot be used. Servers are not asked.
    pub fn open(&self) -> Result<Box<dyn CacheTier>> {
        Ok(match self {
            Self::Host { bytes } => Box::new(HostTier::new(*bytes)),
            Self::Disk { folder, bytes, mode } => Box::new(DiskTier::with_mode(folder, *bytes, *mode)?),
            Self::Resp { address } => Box::new(RespTier::new(address, RESP_TIMEOUT)?),
            Self::S3(bucket) => Box::new(ObjectTier::s3(bucket, OBJECT_TIMEOUT)?),
            Self::ObjectFolder(folder) => Box::new(ObjectTier::folder(folder, OBJECT_TIMEOUT)?),
        })
    }
}

impl fmt::Debug for TierConfig {
    /// Without addresses, which may hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { bytes } => write!(f, "Host({bytes} bytes)"),
            Self::Disk { folder, bytes, .. } => write!(f, "Disk({}, {bytes} bytes)", folder.display()),
            Self::Resp { .. } => f.write_str("Resp"),
            Self::S3(bucket) => bucket.fmt(f),
            Self::ObjectFolder(folder) => write!(f, "ObjectFolder({})", folder.display()),
        }
    }
}
