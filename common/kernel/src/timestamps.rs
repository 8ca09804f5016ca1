//! Timestamps: one column of i64 microseconds as a section.
//!
//! Delta of delta is the timestamp half of Gorilla (Pelkonen et al., "Gorilla: A Fast, Scalable, In-Memory Time Series
//! Database", VLDB 2015), with bucket sizes for microseconds. All arithmetic wraps, so every i64 sequence is exact.

use crate::bits::{Ahead, BitReader, BitWriter, Section, WRITER_SLACK};
use crate::block::MAX_READINGS;
use crate::error::{Error, Result, damaged};
use crate::integers::{self, Effort};
use crate::{raw, varint};

/// How a section holds timestamps; the number is the block's nibble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestampCodec {
    /// Eight bytes each, little-endian.
    Raw = 0,
    /// The first in 64 bits, then for each the change of the step in a bucket.
    DeltaOfDelta = 1,
    /// A constant step: the first timestamp and the step, in microseconds.
    Regular = 2,
    /// The same in milliseconds.
    RegularMs = 3,
    /// The same in seconds.
    RegularS = 4,
    /// Those of an earlier block: how many blocks before this one it is.
    Shared = 5,
    /// The steps as integers, in the largest unit of which all are multiples.
    Steps = 6,
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

/// Where the timestamps of a block are.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// In a section, without the length in front of it.
    Section(TimestampCodec, Section<'a>),
    /// In the block that is so many blocks before.
    Shared(usize),
}

impl Source<'_> {
    /// How they are held.
    #[must_use]
    pub const fn codec(&self) -> TimestampCodec {
        match self {
            Self::Section(codec, _) => *codec,
            Self::Shared(_) => TimestampCodec::Shared,
        }
    }

    /// Bytes of the section.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Section(_, section) => section.bytes().len(),
            Self::Shared(distance) => varint::bytes(*distance as u64),
        }
    }
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
            2 => Ok(Self::Regular),
            3 => Ok(Self::RegularMs),
            4 => Ok(Self::RegularS),
            5 => Ok(Self::Shared),
            6 => Ok(Self::Steps),
            _ => Err(Error::Block(format!("timestamp codec {number} is not known"))),
        }
    }

    /// The name people see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::DeltaOfDelta => "delta_of_delta",
            Self::Regular | Self::RegularMs | Self::RegularS => "regular",
            Self::Shared => "shared",
            Self::Steps => "steps",
        }
    }

    /// Microseconds of the unit of a constant step.
    const fn unit(self) -> i64 {
        match self {
            Self::RegularMs => 1000,
            Self::RegularS => 1_000_000,
            _ => 1,
        }
    }
}

/// Append the section of `timestamps` in which every one has the same distance to the one before it, if it is so.
pub fn encode_regular(timestamps: &[i64], out: &mut Vec<u8>) -> Option<TimestampCodec> {
    let (&first, rest) = timestamps.split_first()?;
    let step = rest.first().map_or(0, |second| second.wrapping_sub(first));
    if !timestamps.chunks(RUN).zip(rest.chunks(RUN)).all(|(chunk, next)| is_step(chunk, next, step)) {
        return None;
    }
    let codec = [TimestampCodec::RegularS, TimestampCodec::RegularMs, TimestampCodec::Regular]
        .into_iter()
        .find(|codec| first % codec.unit() == 0 && step % codec.unit() == 0)?;
    varint::put_signed(out, first / codec.unit());
    if !rest.is_empty() {
        varint::put_signed(out, step / codec.unit());
    }
    Some(codec)
}

/// Whether every timestamp of `next` is `step` after that of `chunk` in the same place.
fn is_step(chunk: &[i64], next: &[i64], step: i64) -> bool {
    // No early exit: the compiler makes this a handful of vector instructions.
    chunk.iter().zip(next).fold(0, |differs, (from, to)| differs | (to.wrapping_sub(*from) ^ step)) == 0
}

/// Append the section of the steps between `timestamps`, which are at least two.
pub fn encode_steps(timestamps: &[i64], effort: Effort, scratch: &mut integers::Scratch, out: &mut Vec<u8>) {
    let first = timestamps[0];
    let mut steps: Vec<i64> = timestamps.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
    let unit = unit_of(first, &steps, effort);
    match unit {
        // Divisions by a number that the compiler knows are fast.
        1000 => steps.iter_mut().for_each(|step| *step /= 1000),
        1_000_000 => steps.iter_mut().for_each(|step| *step /= 1_000_000),
        _ if unit > 1 => steps.iter_mut().for_each(|step| *step = step.wrapping_div(unit)),
        _ => (),
    }
    let mut section = Vec::with_capacity(2 * timestamps.len() + 32);
    varint::put(&mut section, unit as u64);
    varint::put_signed(&mut section, first / unit);
    integers::encode(&steps, effort, scratch, &mut section);
    varint::put(out, section.len() as u64);
    out.extend_from_slice(&section);
}

/// The unit of which all are multiples: the largest one where bytes count, else a second, a millisecond or nothing.
fn unit_of(first: i64, steps: &[i64], effort: Effort) -> i64 {
    if effort == Effort::Pack {
        let all = |unit: i64| first % unit == 0 && steps.iter().fold(0, |rest, step| rest | (step % unit)) == 0;
        // Named one by one, so that the compiler knows what it divides by.
        return if !all(1000) {
            1
        } else if all(1_000_000) {
            1_000_000
        } else {
            1000
        };
    }
    let mut unit = first.unsigned_abs();
    for step in steps {
        let (mut high, mut low) = (unit, step.unsigned_abs());
        while low != 0 {
            (high, low) = (low, high % low);
        }
        unit = high;
        if unit == 1 {
            break;
        }
    }
    i64::try_from(unit).unwrap_or(1).max(1)
}

fn take_steps(section: Section, scratch: &mut integers::Scratch, out: &mut [i64]) -> Result<()> {
    let bytes = section.bytes();
    let mut rest = bytes;
    let unit = varint::take(&mut rest)?.cast_signed();
    let first = varint::take_signed(&mut rest)?.wrapping_mul(unit);
    if unit < 1 || out.len() < 2 {
        return damaged("the unit of its timestamps is impossible");
    }
    out[0] = first;
    let at = bytes.len() - rest.len();
    integers::decode(section.part(at, rest.len()), scratch, &mut out[1..])?;
    let mut last = first;
    for timestamp in &mut out[1..] {
        last = last.wrapping_add(timestamp.wrapping_mul(unit));
        *timestamp = last;
    }
    Ok(())
}

/// Find the section of `count` timestamps at the head of `rest`, check that it can hold so many, and step over it.
///
/// # Errors
/// It cannot, or does not fit into `rest`.
pub fn take_section<'a>(codec: TimestampCodec, count: usize, block: Section<'a>, at: &mut usize) -> Result<Source<'a>> {
    let mut rest = &block.bytes()[*at..];
    let available = rest.len();
    let length = match codec {
        TimestampCodec::Raw => 8 * count,
        TimestampCodec::DeltaOfDelta => {
            let length = varint::take_max(&mut rest, bytes_max(MAX_READINGS) as u64)?;
            let enough = if count == 0 { length == 0 } else { length * 8 >= 63 + count && length < bytes_max(count) };
            if !enough {
                return Err(Error::Block(format!("its sections cannot hold {count} readings")));
            }
            length
        }
        TimestampCodec::Steps => varint::take_max(&mut rest, available as u64)?,
        TimestampCodec::Regular | TimestampCodec::RegularMs | TimestampCodec::RegularS => {
            let mut numbers = rest;
            for _ in 0..count.min(2) {
                varint::take(&mut numbers)?;
            }
            rest.len() - numbers.len()
        }
        TimestampCodec::Shared => {
            let distance = varint::take_max(&mut rest, u64::from(u32::MAX))?;
            *at += available - rest.len();
            return Ok(Source::Shared(distance));
        }
    };
    if length > rest.len() {
        return damaged("its sections do not fit into it");
    }
    let start = *at + available - rest.len();
    *at = start + length;
    Ok(Source::Section(codec, block.part(start, length)))
}

/// Fill `out` from a section.
///
/// # Errors
/// The section does not hold exactly `out.len()` timestamps.
pub fn decode(codec: TimestampCodec, section: Section, scratch: &mut integers::Scratch, out: &mut [i64]) -> Result<()> {
    match codec {
        TimestampCodec::Steps => take_steps(section, scratch, out),
        TimestampCodec::Raw => raw::take(section.bytes(), i64::from_le_bytes, out),
        TimestampCodec::DeltaOfDelta => take_delta_of_delta(section, out),
        TimestampCodec::Shared => damaged("shared timestamps are in another block"),
        _ => take_regular(codec, section.bytes(), out),
    }
}

fn take_regular(codec: TimestampCodec, mut section: &[u8], out: &mut [i64]) -> Result<()> {
    let mut take = |present: bool| {
        let number = if present { varint::take_signed(&mut section)? } else { 0 };
        number.checked_mul(codec.unit()).map_or_else(|| damaged("a timestamp has more than 64 bits"), Ok)
    };
    let first = take(!out.is_empty())?;
    let step = take(out.len() > 1)?;
    for (k, timestamp) in (0_i64..).zip(out.iter_mut()) {
        *timestamp = first.wrapping_add(step.wrapping_mul(k));
    }
    if section.is_empty() { Ok(()) } else { damaged("a section goes on after its last reading") }
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
    fn a_constant_step_costs_next_to_nothing() {
        let check = |first: i64, step: i64, count: i64, expected: (TimestampCodec, usize)| {
            let timestamps: Vec<i64> = (0..count).map(|k| first.wrapping_add(step.wrapping_mul(k))).collect();
            let mut section = Vec::new();
            let codec = encode_regular(&timestamps, &mut section).unwrap();
            assert_eq!((codec, section.len()), expected);
            let mut at = 0;
            let whole = Section::new(&section, section.len());
            assert!(matches!(take_section(codec, timestamps.len(), whole, &mut at), Ok(Source::Section(..))));
            assert_eq!(at, section.len());
            let mut decoded = vec![9; timestamps.len()];
            decode(codec, whole, &mut integers::Scratch::default(), &mut decoded).unwrap();
            assert_eq!(decoded, timestamps);
        };
        check(1_700_000_000_000_000, 1_000_000, 4096, (TimestampCodec::RegularS, 6));
        check(1_700_000_000_123_000, 0, 1, (TimestampCodec::RegularMs, 6));
        check(1_700_000_000_000_001, 39, 50, (TimestampCodec::Regular, 9));
        check(i64::MAX, i64::MIN, 50, (TimestampCodec::Regular, 20));
        check(-1_000_000, -1_000_000, 50, (TimestampCodec::RegularS, 2));
        assert_eq!(encode_regular(&[], &mut Vec::new()), None);
        assert_eq!(encode_regular(&[1, 2, 4], &mut Vec::new()), None);
        let far = [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01];
        let far = Section::new(&far, far.len());
        assert!(decode(TimestampCodec::RegularS, far, &mut integers::Scratch::default(), &mut [0]).is_err());
    }

    #[test]
    fn steps_come_back() {
        let check = |timestamps: &[i64]| {
            let mut scratch = integers::Scratch::default();
            let mut sizes = [Effort::Pack, Effort::Code].map(|effort| {
                let mut section = Vec::new();
                encode_steps(timestamps, effort, &mut scratch, &mut section);
                let whole = Section::new(&section, section.len());
                let mut at = 0;
                let taken = take_section(TimestampCodec::Steps, timestamps.len(), whole, &mut at).unwrap();
                assert_eq!(at, section.len());
                let Source::Section(codec, steps) = taken else { unreachable!() };
                let mut decoded = vec![9; timestamps.len()];
                decode(codec, steps, &mut scratch, &mut decoded).unwrap();
                assert_eq!(decoded, timestamps);
                section.len()
            });
            sizes.sort_unstable();
            sizes[1]
        };
        let jittery = |unit: i64| (0..1000).map(|k| unit * (1_700_000_000 + 60 * k + k * k % 3)).collect::<Vec<i64>>();
        assert!(check(&jittery(1_000_000)) < 1000 * 3 / 8 + 40);
        assert!(check(&jittery(1000)) < 1000 * 3 / 8 + 40);
        check(&jittery(7));
        check(&[i64::MIN, i64::MAX, i64::MIN, i64::MIN, 0, -1, i64::MAX, i64::MAX]);
        check(&[i64::MIN, 0]);
        check(&[0, 0, 0]);
        check(&[5, 5, 5, 4, 3, 9, 9, 1]);
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
