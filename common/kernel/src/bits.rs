//! Bit streams, least significant bit first.
//!
//! Bit `k` of a stream is bit `k % 8` of byte `k / 8`, so a stream read as little-endian words needs no byte swap.
//! A number of `n` bits is stored with its least significant bit first. The last byte is padded with zero bits.

use crate::error::{Result, damaged};

/// Bits that [`Ahead::bits`] promises: a 64-bit load may lose up to seven of them to the start within a byte.
pub const LOOK_BITS: u32 = 57;

/// Bytes that hold them and the 64 bits behind any head.
const LOOK_BYTES: usize = 15;

/// Room that [`BitWriter`] needs behind the last bit, since it stores whole words.
pub const WRITER_SLACK: usize = 16;

/// Longest head that [`BitWriter::put_pair`] takes.
pub const HEAD_BITS_MAX: u32 = 49;

/// Writes numbers of 0 to 64 bits into a buffer that the caller has made large enough.
///
/// Why it is fast: whole words are stored, wherever the number ends, and the next one overwrites what is too much; so
/// there is no branch for the processor to guess, and no shift across two words.
pub struct BitWriter<'a> {
    out: &'a mut [u8],
    /// The byte that is being filled.
    at: usize,
    /// Its bits so far.
    byte: u64,
    /// How many they are, 0 to 7.
    filled: u32,
}

impl<'a> BitWriter<'a> {
    /// A writer at the start of `out`, which needs [`WRITER_SLACK`] bytes more than what will be written.
    pub fn new(out: &'a mut [u8]) -> Self {
        Self { out, at: 0, byte: 0, filled: 0 }
    }

    /// Append the low `width` bits of `bits`; the bits above them must be zero.
    #[inline(always)]
    pub fn put(&mut self, bits: u64, width: u32) {
        self.put_pair(0, 0, bits, width);
    }

    /// Append a head of 0 to [`HEAD_BITS_MAX`] bits and then a payload of 0 to 64; the bits above them must be zero.
    #[inline(always)]
    pub fn put_pair(&mut self, head: u64, head_width: u32, payload: u64, payload_width: u32) {
        debug_assert!(head_width <= HEAD_BITS_MAX && head >> head_width == 0);
        debug_assert!(payload_width <= 64 && (payload_width == 64 || payload >> payload_width == 0));
        let start = self.filled + head_width;
        // Eight bytes from here, and eight bytes from the last of these eight: head and start are at most 56 bits.
        let first = self.byte | head << self.filled | payload << start;
        let second = payload >> (56 - start);
        let room = &mut self.out[self.at..self.at + 15];
        room[..8].copy_from_slice(&first.to_le_bytes());
        room[7..].copy_from_slice(&second.to_le_bytes());
        let end = start + payload_width;
        let (word, word_start) = if end >= 56 { (second, 56) } else { (first, 0) };
        self.byte = word >> ((end & !7) - word_start);
        self.at += end as usize >> 3;
        self.filled = end & 7;
    }

    /// Store what is left and return the number of bytes written.
    #[must_use]
    pub fn finish(self) -> usize {
        self.out[self.at] = self.byte as u8;
        self.at + usize::from(self.filled > 0)
    }
}

/// The bytes of a section, with those behind it in the same buffer, so that whole words can be read at its end.
#[derive(Debug, Clone, Copy)]
pub struct Section<'a> {
    bytes: &'a [u8],
    length: usize,
}

impl<'a> Section<'a> {
    /// The first `length` bytes of `bytes`.
    ///
    /// # Panics
    /// There are not so many.
    #[must_use]
    pub fn new(bytes: &'a [u8], length: usize) -> Self {
        assert!(length <= bytes.len());
        Self { bytes, length }
    }

    /// The section of `length` bytes that begins `start` bytes into this one.
    #[must_use]
    pub fn part(self, start: usize, length: usize) -> Self {
        Self::new(&self.bytes[start..], length)
    }

    /// Its bytes and at least `more` behind them, if they are there.
    #[must_use]
    pub fn ahead(self, more: usize) -> Option<&'a [u8]> {
        self.bytes.get(..self.length + more)
    }

    /// Nothing but the section's own bytes.
    #[must_use]
    pub fn bytes(self) -> &'a [u8] {
        &self.bytes[..self.length]
    }
}

/// Reads a section's bits. Reading past its end gives meaningless bits and is found out by [`BitReader::finish`].
///
/// Why so late: one check behind the loop instead of one per number. A loop is bounded by the block's count.
#[derive(Clone, Copy)]
pub struct BitReader<'a> {
    section: Section<'a>,
    position: usize,
}

/// The bits that come next, see [`BitReader::look`].
#[derive(Clone, Copy)]
pub struct Ahead {
    /// Eight bytes from the one that holds the next bit.
    first: u64,
    /// Eight bytes from the last of these eight.
    second: u64,
    /// Bits of the first byte that have been read, 0 to 7.
    shift: u32,
}

impl<'a> BitReader<'a> {
    /// A reader at the first bit of `section`.
    #[must_use]
    pub fn new(section: Section<'a>) -> Self {
        Self { section, position: 0 }
    }

    /// Load the bits that come next, without stepping over them.
    #[inline(always)]
    #[must_use]
    pub fn look(&self) -> Ahead {
        let byte = self.position >> 3;
        let shift = (self.position & 7) as u32;
        match self.section.bytes.get(byte..byte + LOOK_BYTES) {
            Some(bytes) => Ahead::load(bytes, shift),
            None => load_end(self.section.bytes, byte, shift),
        }
    }

    /// Take a number of 64 bits.
    #[inline(always)]
    pub fn take_64(&mut self) -> u64 {
        let number = self.look().behind(0);
        self.skip(64);
        number
    }

    /// Step over `width` bits.
    #[inline(always)]
    pub fn skip(&mut self, width: u32) {
        self.position += width as usize;
    }

    /// Check that the section ends here: no bit too many or too few, and zero bits as padding.
    ///
    /// # Errors
    /// The section is truncated, has bytes left over, or is padded with something else than zeros.
    pub fn finish(self) -> Result<()> {
        let bytes = self.section.bytes();
        let needed = self.position.div_ceil(8);
        if needed > bytes.len() {
            return damaged("a section ends in the middle of a reading");
        }
        if needed < bytes.len() {
            return damaged("a section goes on after its last reading");
        }
        let used = self.position & 7;
        if used != 0 && bytes[needed - 1] >> used != 0 {
            return damaged("the unused bits of a section are not zero");
        }
        Ok(())
    }
}

impl Ahead {
    #[inline(always)]
    fn load(bytes: &[u8], shift: u32) -> Self {
        let word = |from: usize| {
            let word = bytes[from..from + 8].first_chunk();
            word.map_or(0, |word| u64::from_le_bytes(*word))
        };
        Self { first: word(0), second: word(7), shift }
    }

    /// The next bits, lowest first. The lowest [`LOOK_BITS`] are right; those above may be zero instead.
    #[inline(always)]
    #[must_use]
    pub fn bits(self) -> u64 {
        self.first >> self.shift
    }

    /// The 64 bits behind a head of 0 to [`HEAD_BITS_MAX`].
    #[inline(always)]
    #[must_use]
    pub fn behind(self, head: u32) -> u64 {
        // The two words share a byte, so no shift is by 64, and none is across two words, which is slow on some
        // processors.
        let shift = self.shift + head;
        (self.first >> shift) | (self.second << (56 - shift))
    }
}

#[cold]
#[inline(never)]
fn load_end(bytes: &[u8], from: usize, shift: u32) -> Ahead {
    let mut last = [0; LOOK_BYTES];
    let rest = bytes.get(from..).unwrap_or(&[]);
    last[..rest.len()].copy_from_slice(rest);
    Ahead::load(&last, shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_width_come_back() {
        let mut buffer = vec![0xAA; 64 * 65 / 16 + 8 * 65 + WRITER_SLACK];
        let mut writer = BitWriter::new(&mut buffer);
        let number =
            |width: u32| 0x9E37_79B9_7F4A_7C15_u64.rotate_left(width) & (u64::MAX.checked_shr(64 - width).unwrap_or(0));
        for width in 0..=64 {
            writer.put(number(width), width);
        }
        let length = writer.finish();
        assert_eq!(length, (64 * 65 / 2_usize).div_ceil(8));
        // With and without bytes behind the section, that is with and without whole words to load.
        for bytes in [&buffer[..length], &buffer] {
            let mut reader = BitReader::new(Section::new(bytes, length));
            for width in 0..=64 {
                let mask = u64::MAX.checked_shr(64 - width).unwrap_or(0);
                assert_eq!(reader.look().behind(0) & mask, number(width), "width {width}");
                if width <= LOOK_BITS {
                    assert_eq!(reader.look().bits() & mask, number(width), "width {width}");
                }
                reader.skip(width);
            }
            assert_eq!(reader.finish(), Ok(()));
        }
    }

    #[test]
    fn a_pair_is_two_numbers() {
        for head_width in 0..=HEAD_BITS_MAX {
            for width in 0..=64 {
                let payload = u64::MAX.checked_shr(64 - width).unwrap_or(0);
                let head = (1 << head_width) - 1;
                let (mut apart, mut paired) = ([0; 80], [0xFF; 80]);
                let mut writer = BitWriter::new(&mut apart);
                writer.put(5, 4);
                writer.put(head, head_width);
                writer.put(payload, width);
                writer.put(0, 3);
                let length = writer.finish();
                let mut writer = BitWriter::new(&mut paired);
                writer.put(5, 4);
                writer.put_pair(head, head_width, payload, width);
                writer.put(0, 3);
                assert_eq!(writer.finish(), length);
                assert_eq!(apart[..length], paired[..length], "{head_width} and {width}");
                let mut reader = BitReader::new(Section::new(&paired, length));
                reader.skip(4);
                assert_eq!(reader.look().behind(head_width) & payload, payload);
            }
        }
    }

    #[test]
    fn the_first_bit_is_the_lowest_bit_of_the_first_byte() {
        let mut buffer = [0; 32];
        let mut writer = BitWriter::new(&mut buffer);
        writer.put(1, 1);
        writer.put(0b10, 2);
        writer.put(0x1F, 7);
        assert_eq!(writer.finish(), 2);
        assert_eq!(buffer[..2], [0b1111_1101, 0b0]);
    }

    #[test]
    fn the_end_is_checked() {
        let reader = |bytes: &'static [u8]| BitReader::new(Section::new(bytes, bytes.len()));
        let mut long = reader(&[0b1000_0000, 0]);
        long.skip(7);
        assert!(long.finish().unwrap_err().to_string().contains("goes on"));
        let mut padded = reader(&[0b1000_0000]);
        padded.skip(7);
        assert!(padded.finish().unwrap_err().to_string().contains("unused bits"));
        padded.skip(2);
        assert_eq!(padded.look().bits(), 0);
        assert!(padded.finish().unwrap_err().to_string().contains("ends in the middle"));
    }
}
