//! LEB128: seven bits a byte, lowest first, the top bit set on every byte but the last.

use crate::error::{Result, damaged};

/// Bytes of the longest u32.
pub const MAX_BYTES: usize = 5;

/// Append `number`.
pub fn put(out: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        out.push((number & 0x7F) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Take a number off the front of `bytes`.
///
/// # Errors
/// The bytes end within the number, it exceeds 32 bits, or it is longer than it must be (one number has one spelling).
pub fn take(bytes: &mut &[u8]) -> Result<u32> {
    let mut number = 0_u64;
    for (index, &byte) in bytes.iter().enumerate().take(MAX_BYTES) {
        number |= u64::from(byte & 0x7F) << (7 * index);
        if byte < 0x80 {
            if byte == 0 && index > 0 {
                return damaged("a varint is longer than it must be");
            }
            *bytes = &bytes[index + 1..];
            return u32::try_from(number).or_else(|_| damaged("a varint exceeds 32 bits"));
        }
    }
    damaged("a varint does not end")
}

/// Signed to unsigned so that small magnitudes stay small: 0, -1, 1, -2 become 0, 1, 2, 3.
#[must_use]
pub const fn zigzag(number: i32) -> u32 {
    ((number << 1) ^ (number >> 31)).cast_unsigned()
}

/// The inverse of [`zigzag`].
#[must_use]
pub const fn unzigzag(number: u32) -> i32 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(number: u32) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, number);
        out
    }

    #[test]
    fn numbers_come_back() {
        for number in [0, 1, 127, 128, 300, 4096, 16_383, 16_384, u32::MAX - 1, u32::MAX] {
            let written = bytes(number);
            let mut rest = written.as_slice();
            assert_eq!(take(&mut rest), Ok(number));
            assert!(rest.is_empty());
        }
        assert_eq!(bytes(300), [0xAC, 0x02]);
    }

    #[test]
    fn a_number_has_one_spelling_and_ends() {
        for wrong in [&[][..], &[0x80], &[0x80, 0], &[0xFF; 5], &[0xFF, 0xFF, 0xFF, 0xFF, 0x10], &[0x80; 9]] {
            assert!(take(&mut &*wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn zigzag_is_a_bijection() {
        for number in [0, -1, 1, -2, i32::MIN, i32::MAX] {
            assert_eq!(unzigzag(zigzag(number)), number);
        }
        assert_eq!([zigzag(0), zigzag(-1), zigzag(1), zigzag(i32::MIN)], [0, 1, 2, u32::MAX]);
    }
}
