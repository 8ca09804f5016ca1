//! The one error type of the kernel.

use std::fmt;

/// What went wrong, in words for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The caller's arrays do not describe blocks (lengths, offsets, codec names). A bug of the caller.
    Input(String),
    /// Bytes are not a valid block: damaged, truncated, hostile, or written by a newer version.
    Block(String),
}

/// Short for a result of the kernel.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The same error, naming the block of a batch in which it happened.
    #[must_use]
    pub fn in_block(self, index: usize) -> Self {
        match self {
            Self::Input(message) => Self::Input(format!("block {index}: {message}")),
            Self::Block(message) => Self::Block(format!("block {index}: {message}")),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(message) | Self::Block(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Error {}

/// A block error; a function of its own so that hot loops carry only a call to it.
#[cold]
#[inline(never)]
pub(crate) fn damaged<T>(message: &str) -> Result<T> {
    Err(Error::Block(message.to_owned()))
}
