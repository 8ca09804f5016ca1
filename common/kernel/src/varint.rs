//! LEB128: seven bits a byte, lowest first, the top bit set on every byte but the last.

use crate::error::{Result, damaged};

/// Bytes of the longest u64.
pub const MAX_BYTES: usize = 10;

/// Append `number`.
pub fn put(out: &mut Vec<u8>, number: u64) {
    let mut number = number;
    while number >= 0x80 {
        out.push((number & 0x7F) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Append a number with a sign, see [`zigzag`].
pub fn put_signed(out: &mut Vec<u8>, number: i64) {
    put(out, zigzag(number));
}

/// Bytes that [`put`] takes.
#[must_use]
pub const fn bytes(number: u64) -> usize {
    ((64 - (number | 1).leading_zeros()) as usize).div_ceil(7)
}

/// Take a number off the front of `bytes`.
///
/// # Errors
/// The bytes end within the number, it exceeds 64 bits, or it is longer than it must be (one number has one spelling).
pub fn take(bytes: &mut &[u8]) -> Result<u64> {
    let mut number = 0_u64;
    for (index, &byte) in bytes.iter().enumerate().take(MAX_BYTES) {
        if index == MAX_BYTES - 1 && byte > 1 {
            return damaged("a varint exceeds 64 bits");
        }
        number |= u64::from(byte & 0x7F) << (7 * index);
        if byte < 0x80 {
            if byte == 0 && index > 0 {
                return damaged("a varint is longer than it must be");
            }
            *bytes = &bytes[index + 1..];
            return Ok(number);
        }
    }
    damaged("a varint does not end")
}

/// Take a number of at most `max`.
///
/// # Errors
/// As [`take`], or the number is larger.
pub fn take_max(bytes: &mut &[u8], max: u64) -> Result<usize> {
    match take(bytes)? {
        number if number <= max => Ok(number as usize),
        _ => damaged("a number in its header is too large"),
    }
}

/// Take a number with a sign.
///
/// # Errors
/// As [`take`].
pub fn take_signed(bytes: &mut &[u8]) -> Result<i64> {
    Ok(unzigzag(take(bytes)?))
}

/// Signed to unsigned so that small magnitudes stay small: 0, -1, 1, -2 become 0, 1, 2, 3.
#[inline(always)]
#[must_use]
pub const fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

/// The inverse of [`zigzag`].
#[inline(always)]
#[must_use]
pub const fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        for number in [0, 1, 127, 128, 300, 4096, 16_383, 16_384, 1 << 35, 1 << 63, u64::MAX - 1, u64::MAX] {
            let mut written = Vec::new();
            put(&mut written, number);
            assert_eq!(written.len(), bytes(number));
            let mut rest = written.as_slice();
            assert_eq!(take(&mut rest), Ok(number));
            assert!(rest.is_empty());
        }
        let mut written = Vec::new();
        put(&mut written, 300);
        assert_eq!(written, [0xAC, 0x02]);
        assert_eq!(take_max(&mut &[5_u8][..], 5), Ok(5));
        assert!(take_max(&mut &[6_u8][..], 5).is_err());
    }

    #[test]
    fn a_number_has_one_spelling_and_ends() {
        let too_large = [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x02];
        for wrong in [&[][..], &[0x80], &[0x80, 0], &[0xFF; 10], &[0x80; 11], &too_large] {
            assert!(take(&mut &*wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn zigzag_is_a_bijection() {
        for number in [0, -1, 1, -2, i64::MIN, i64::MAX] {
            assert_eq!(unzigzag(zigzag(number)), number);
        }
        assert_eq!([zigzag(0), zigzag(-1), zigzag(1), zigzag(i64::MIN)], [0, 1, 2, u64::MAX]);
    }
}
