//! Values: one column of f64 as a section. Each codec has its module; this one names and picks them.

use crate::bits::Section;
use crate::error::{Error, Result};
use crate::{gorilla, raw};

/// How a section holds values; the number is the block's byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueCodec {
    /// Eight bytes each, little-endian.
    Raw = 0,
    /// XOR with the value before.
    Gorilla = 1,
}

impl ValueCodec {
    /// The codec with this number.
    ///
    /// # Errors
    /// No codec of this version has it.
    pub fn from_number(number: u8) -> Result<Self> {
        match number {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Gorilla),
            _ => Err(Error::Block(format!("value codec {number} is not known"))),
        }
    }

    /// The name people see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Gorilla => "gorilla",
        }
    }

    /// Whether `count` values can be in a section of `bytes`: what is cheap to know before room is made for them.
    #[must_use]
    pub const fn fits(self, count: usize, bytes: usize) -> bool {
        match self {
            Self::Raw => bytes == 8 * count,
            Self::Gorilla => gorilla::fits(count, bytes),
        }
    }
}

/// Fill `out` from a section.
///
/// # Errors
/// The section does not hold exactly `out.len()` values.
pub fn decode((codec, section): (ValueCodec, Section), out: &mut [f64]) -> Result<()> {
    match codec {
        ValueCodec::Raw => raw::take(section.bytes(), f64::from_le_bytes, out),
        ValueCodec::Gorilla => gorilla::decode(section, out),
    }
}

/// Fill two columns from two sections; faster than one after the other where both have a codec that gains by it.
pub fn decode_two(sections: [(ValueCodec, Section); 2], outs: [&mut [f64]; 2]) -> [Result<()>; 2] {
    match sections {
        [(ValueCodec::Gorilla, first), (ValueCodec::Gorilla, second)] => gorilla::decode_two([first, second], outs),
        [first, second] => {
            let [first_out, second_out] = outs;
            [decode(first, first_out), decode(second, second_out)]
        }
    }
}
