//! Numbers as they are in memory: little-endian, one after another. What every other codec falls back to.

use crate::error::{Result, damaged};

/// Append the `N` bytes of each number of `column`.
pub fn put<T: Copy, const N: usize>(column: &[T], to_bytes: impl Fn(T) -> [u8; N], out: &mut Vec<u8>) {
    let start = out.len();
    // Zeros first and then whole words: an iterator of bytes would be appended one by one.
    out.resize(start + N * column.len(), 0);
    let (words, _) = out[start..].as_chunks_mut::<N>();
    for (word, number) in words.iter_mut().zip(column) {
        *word = to_bytes(*number);
    }
}

/// Fill `out` from a section.
///
/// # Errors
/// The section does not have `N` bytes for each.
pub fn take<T, const N: usize>(section: &[u8], from_bytes: impl Fn([u8; N]) -> T, out: &mut [T]) -> Result<()> {
    let (words, rest) = section.as_chunks::<N>();
    if words.len() != out.len() || !rest.is_empty() {
        return damaged("a section of plain numbers has the wrong length");
    }
    for (number, word) in out.iter_mut().zip(words) {
        *number = from_bytes(*word);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        let column = [0, -1, i32::MAX];
        let mut out = vec![9];
        put(&column, i32::to_le_bytes, &mut out);
        assert_eq!(out, [9, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 127]);
        let mut back = [7; 3];
        take(&out[1..], i32::from_le_bytes, &mut back).unwrap();
        assert_eq!(back, column);
        assert!(take(&out, i32::from_le_bytes, &mut back).is_err());
        assert!(take(&out[5..], i32::from_le_bytes, &mut back).is_err());
    }
}
