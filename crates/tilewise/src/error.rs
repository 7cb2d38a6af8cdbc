//! The crate's one error type.

/// What went wrong, sorted by what the caller can do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request is meaningful but this path cannot honour it: choose another kernel, dtype or device.
    #[error("{op} does not support {why}")]
    Unsupported {
        /// The operation or kernel that refused.
        op: String,
        /// The feature it refused.
        why: String,
    },
    /// Shapes, strides, indices or dtypes contradict each other: a bug in the calling code or bad input data.
    #[error("{op}: {why}")]
    Shape {
        /// The operation that found the contradiction.
        op: &'static str,
        /// What contradicts what.
        why: String,
    },
    /// A value is outside the range in which it means something.
    #[error("{name} must be {expected}, got {got}")]
    Value {
        /// The parameter.
        name: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it was.
        got: String,
    },
    /// The allocation does not fit.
    #[error("out of memory: {bytes} bytes for {what}")]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// How much was asked for.
        bytes: usize,
    },
    /// The device is missing or failed.
    #[error("device {device}: {why}")]
    Device {
        /// Its name.
        device: String,
        /// What happened.
        why: String,
    },
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn shape(op: &'static str, why: impl Into<String>) -> Self {
        Self::Shape { op, why: why.into() }
    }

    pub(crate) fn unsupported(op: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Unsupported { op: op.into(), why: why.into() }
    }
}
