//! Timestamps: one column of i64 microseconds as a section.
//!
//! Delta of delta is the timestamp half of Gorilla (Pelkonen et al., "Gorilla: A Fast, Scalable, In-Memory Time Series
//! Database", VLDB 2015), with bucket sizes for microseconds. All arithmetic wraps, so every i64 sequence is exact.

use crate::bits::{Ahead, BitReader, BitWriter, Section, WRITER_SLACK};
use crate::error::{Error, Result};
use crate::raw;

/// How a section holds timestamps; the number is the block's nibble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestampCodec {
    /// Eight bytes each, little-endian.
    Raw = 0,
    /// The first in 64 bits, then for each the change of the step in a bucket.
    DeltaOfDelta = 1,
}

/// Bits of the number in each bucket: an unchanged step; the jitter of a 25.6 kHz sampler; a step that is floored to
/// 1 ms; the jitter of a good poll (33 ms); that of a bad one, or a missing second; a missing reading of a slow
/// series (35 min); all else.
const WIDTHS: [u32; 7] = [0, 6, 12, 16, 22, 32, 64];
const LAST: u32 = 6;
/// The bucket is written first: as many one bits as its number, then a zero bit, which the last bucket does not need.
const PREFIXES: [u64; 7] = [0, 0b1, 0b11, 0b111, 0b1111, 0b1_1111, 0b11_1111];
const PREFIX_WIDTHS: [u32; 7] = [1, 2, 3, 4, 5, 6, 6];
/// The low bits of each width.
const MASKS: [u64; 7] = [0, 0x3F, 0xFFF, 0xFFFF, 0x3F_FFFF, 0xFFFF_FFFF, u64::MAX];
/// The first bucket that has room for so many bits.
const BUCKETS: [u8; 65] = {
    let mut buckets = [0; 65];
    let mut width = 0;
    while width <= 64 {
        while WIDTHS[buckets[width] as usize] < width as u32 {
            buckets[width] += 1;
        }
        width += 1;
    }
    buckets
};

/// Readings that are looked at together for an unchanged step, a zero bit each; at most `LOOK_BITS`.
const RUN: usize = 32;

/// Bytes a buffer for [`encode`] must have.
#[must_use]
pub const fn bytes_max(count: usize) -> usize {
    8 + (count * 70).div_ceil(8) + WRITER_SLACK
}

impl TimestampCodec {
    /// The codec with this number.
    ///
    /// # Errors
    /// No codec of this version has it.
    pub fn from_number(number: u8) -> Result<Self> {
        match number {
            0 => Ok(Self::Raw),
            1 => Ok(Self::DeltaOfDelta),
            _ => Err(Error::Block(format!("timestamp codec {number} is not known"))),
        }
    }

    /// The name people see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::DeltaOfDelta => "delta_of_delta",
        }
    }

    /// Whether `count` timestamps can be in a section of `bytes`: what is cheap to know before room is made for them.
    #[must_use]
    pub const fn fits(self, count: usize, bytes: usize) -> bool {
        match self {
            Self::Raw => bytes == 8 * count,
            Self::DeltaOfDelta if count == 0 => bytes == 0,
            Self::DeltaOfDelta => bytes * 8 >= 63 + count && bytes < bytes_max(count),
        }
    }
}

/// Fill `out` from a section.
///
/// # Errors
/// The section does not hold exactly `out.len()` timestamps.
pub fn decode((codec, section): (TimestampCodec, Section), out: &mut [i64]) -> Result<()> {
    match codec {
        TimestampCodec::Raw => raw::take(section.bytes(), i64::from_le_bytes, out),
        TimestampCodec::DeltaOfDelta => take_delta_of_delta(section, out),
    }
}

/// Delta of delta into `out` (of at least [`bytes_max`]); returns the bytes written.
pub fn encode(timestamps: &[i64], out: &mut [u8]) -> usize {
    let mut writer = BitWriter::new(out);
    let Some((&first, rest)) = timestamps.split_first() else {
        return 0;
    };
    writer.put(first.cast_unsigned(), 64);
    let mut previous = first;
    let mut step = 0_i64;
    for chunk in rest.chunks(RUN) {
        if chunk.len() == RUN && is_run(chunk, previous, step) {
            writer.put(0, RUN as u32);
            previous = chunk[RUN - 1];
            continue;
        }
        for &timestamp in chunk {
            let new_step = timestamp.wrapping_sub(previous);
            put_change(&mut writer, new_step.wrapping_sub(step));
            previous = timestamp;
            step = new_step;
        }
    }
    writer.finish()
}

/// Whether every timestamp of `chunk` is `step` after the one before it.
#[inline(always)]
fn is_run(chunk: &[i64], previous: i64, step: i64) -> bool {
    // No early exit: the compiler makes this a handful of vector instructions.
    let mut differs = chunk[0].wrapping_sub(previous) ^ step;
    for pair in chunk.windows(2) {
        differs |= pair[1].wrapping_sub(pair[0]) ^ step;
    }
    differs == 0
}

#[inline(always)]
fn put_change(writer: &mut BitWriter, change: i64) {
    // Bits of the smallest two's complement number that holds `change`; zero needs none.
    let magnitude_bits = 64 - (change ^ (change >> 63)).leading_zeros();
    let width = if change == 0 { 0 } else { magnitude_bits + 1 };
    let bucket = usize::from(BUCKETS[width as usize]);
    writer.put_pair(PREFIXES[bucket], PREFIX_WIDTHS[bucket], change.cast_unsigned() & MASKS[bucket], WIDTHS[bucket]);
}

fn take_delta_of_delta(section: Section, out: &mut [i64]) -> Result<()> {
    let mut reader = BitReader::new(section);
    let Some((first, mut rest)) = out.split_first_mut() else {
        return reader.finish();
    };
    let mut previous = reader.take_64().cast_signed();
    *first = previous;
    let mut step = 0_i64;
    while !rest.is_empty() {
        let ahead = reader.look();
        if ahead.bits() << (64 - RUN) == 0 && rest.len() >= RUN {
            let (run, after) = rest.split_at_mut(RUN);
            for (k, timestamp) in (1_i64..).zip(run.iter_mut()) {
                *timestamp = previous.wrapping_add(step.wrapping_mul(k));
            }
            previous = run[RUN - 1];
            reader.skip(RUN as u32);
            rest = after;
            continue;
        }
        let (timestamp, after) = rest.split_first_mut().unwrap_or_else(|| unreachable!());
        step = step.wrapping_add(take_change(&mut reader, ahead));
        previous = previous.wrapping_add(step);
        *timestamp = previous;
        rest = after;
    }
    reader.finish()
}

#[inline(always)]
fn take_change(reader: &mut BitReader, ahead: Ahead) -> i64 {
    let bucket = (!ahead.bits()).trailing_zeros().min(LAST) as usize;
    let number = ahead.behind(PREFIX_WIDTHS[bucket]) & MASKS[bucket];
    reader.skip(PREFIX_WIDTHS[bucket] + WIDTHS[bucket]);
    // The sign bit is worth minus what it would be worth in an unsigned number.
    let sign = MASKS[bucket] ^ (MASKS[bucket] >> 1);
    (number ^ sign).wrapping_sub(sign).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(timestamps: &[i64]) -> usize {
        let mut buffer = vec![0xAA; bytes_max(timestamps.len())];
        let length = encode(timestamps, &mut buffer);
        assert!(TimestampCodec::DeltaOfDelta.fits(timestamps.len(), length), "{length}");
        let mut decoded = vec![-1; timestamps.len()];
        take_delta_of_delta(Section::new(&buffer, length), &mut decoded).unwrap();
        assert_eq!(decoded, timestamps);
        for cut in 0..length {
            assert!(take_delta_of_delta(Section::new(&buffer, cut), &mut decoded).is_err());
        }
        length
    }

    #[test]
    fn every_bucket_and_its_limits_come_back() {
        let mut timestamps = vec![0_i64];
        let mut step = 0_i64;
        for width in 1..64 {
            let top = (1_i64 << (width - 1)) - 1;
            for change in [top, -top - 1, top.wrapping_add(1), (-top).wrapping_sub(2), 0] {
                step = step.wrapping_add(change);
                timestamps.push(timestamps[timestamps.len() - 1].wrapping_add(step));
            }
        }
        round_trip(&timestamps);
    }

    #[test]
    fn extremes_duplicates_and_backward_steps_come_back() {
        round_trip(&[]);
        round_trip(&[i64::MIN]);
        round_trip(&[i64::MIN, i64::MAX, i64::MIN, i64::MIN, 0, -1, i64::MAX, i64::MAX]);
        round_trip(&[5, 5, 5, 4, 3, 9, 9, 1]);
    }

    #[test]
    fn a_change_after_any_number_of_unchanged_steps_comes_back() {
        for unchanged in 0..100_i64 {
            for change in [-1, 1, 1 << 40] {
                let mut timestamps: Vec<i64> = (0..=unchanged).map(|k| 7 * k).collect();
                timestamps.extend([0, 1, 2].map(|k| 7 * unchanged + (7 + change) * (k + 1)));
                round_trip(&timestamps);
            }
        }
    }

    #[test]
    fn a_constant_step_costs_one_bit() {
        for count in [2, 32, 33, 34, 65, 66, 1000] {
            let timestamps: Vec<i64> = (0..count).map(|k| 1_700_000_000_000_000 + k * 1_000_000).collect();
            let bits = 64 + 5 + 22 + (count as usize - 2);
            assert_eq!(round_trip(&timestamps), bits.div_ceil(8));
        }
    }
}
