//! What a prediction missed, in as few bits as its magnitude was unexpected.
//!
//! Each residual is the number of bits of its magnitude, its sign and its two bits below the highest, which are guessed
//! from what came before and go through the range coder; the bits below those are noise and stay as they are. The guess
//! for the number of bits starts from the mean magnitude of late, as in the adaptive Golomb coding of lossless sound
//! (Robinson, "SHORTEN: simple lossless and near-lossless waveform compression", 1994); how far off that is, is learnt.

use crate::bits::{BitReader, BitWriter, Section, WRITER_SLACK};
use crate::error::{Result, damaged};
use crate::range::{Chance, RangeDecoder, RangeEncoder};
use crate::varint;

/// Steps away from the expected number of bits that have a chance of their own.
const STEPS: usize = 12;
/// Expectations: two for each number of bits of the mean.
const LEVELS: usize = 120;
/// Places of a number of bits relative to the expected one.
const PLACES: usize = 12;
/// The mean is kept in sixteenths, over sixteen residuals; it is capped so that the sum of sixteen fits.
const MEAN_SHIFT: u32 = 4;
const MAGNITUDE_CAP: u64 = 1 << 56;

/// Chances, before anything is learnt, that the number of bits is at least as expected, one more, two more ...
const UP: [u16; STEPS] =
    [36_000, 23_000, 16_000, 13_000, 13_000, 13_000, 13_000, 13_000, 13_000, 13_000, 13_000, 13_000];
/// ... and, below that, that it is less than one below, less than two below ...
const DOWN: [u16; STEPS] =
    [29_500, 32_000, 32_000, 32_000, 32_000, 32_000, 32_000, 32_000, 32_000, 32_000, 32_000, 32_000];
/// Of the two bits below the highest: the first, the second after a zero, the second after a one.
const BELOW: [u16; 3] = [27_500, 30_000, 30_000];

struct Model {
    up: Vec<[Chance; STEPS]>,
    down: Vec<[Chance; STEPS]>,
    below: [[Chance; 3]; PLACES],
    negative: [[Chance; 3]; 3],
    mean: u64,
    sign: usize,
}

/// What the model expects of the next residual.
struct Expected {
    level: usize,
    bits: u32,
}

impl Model {
    fn new(level: u8) -> Self {
        Self {
            up: vec![UP.map(Chance::new); LEVELS],
            down: vec![DOWN.map(Chance::new); LEVELS],
            below: [BELOW.map(Chance::new); PLACES],
            negative: [[Chance::new(32_768); 3]; 3],
            mean: mean_of(level),
            sign: 0,
        }
    }

    #[inline(always)]
    fn expected(&self) -> Expected {
        // A quarter more than the mean, and a little more than nothing.
        let mean = self.mean + (self.mean >> 2) + 5;
        let bits = 64 - mean.leading_zeros();
        let half = (mean >> (bits - 2)) & 1;
        Expected { level: (2 * bits - 6) as usize + half as usize, bits: bits.saturating_sub(MEAN_SHIFT) }
    }

    #[inline(always)]
    fn learn(&mut self, magnitude: u64, negative: bool) {
        self.mean = self.mean - (self.mean >> MEAN_SHIFT) + magnitude.min(MAGNITUDE_CAP);
        self.sign = if magnitude == 0 { 0 } else { 1 + usize::from(negative) };
    }
}

/// The place of a number of bits relative to the expected one.
#[inline(always)]
fn place(bits: u32, expected: u32) -> usize {
    (bits + 8).saturating_sub(expected).min(PLACES as u32 - 1) as usize
}

/// The mean that a section begins with: level 0 is 0, then two levels for each power of two.
fn mean_of(level: u8) -> u64 {
    let level = u32::from(level);
    if level < 2 { u64::from(level) } else { (2 + u64::from(level & 1)) << (level / 2 - 1).min(59) }
}

/// Highest level there is; its mean is not above the cap.
const LEVEL_MAX: u8 = 119;

/// The level to begin with: that of the first residuals.
fn first_level(residuals: &[i64]) -> u8 {
    let first = &residuals[..residuals.len().min(32)];
    let sum: u128 = first.iter().map(|residual| u128::from(residual.unsigned_abs().min(MAGNITUDE_CAP))).sum();
    let mean = ((sum << MEAN_SHIFT) / first.len().max(1) as u128) as u64;
    (0..=LEVEL_MAX).rev().find(|level| mean_of(*level) <= mean).unwrap_or(0)
}

/// Append a section with `residuals` to `out`.
pub fn encode(residuals: &[i64], out: &mut Vec<u8>) {
    let level = first_level(residuals);
    out.push(level);
    let mut model = Model::new(level);
    let mut answers = Vec::with_capacity(residuals.len());
    let mut noise = vec![0; 8 * residuals.len() + WRITER_SLACK];
    let mut writer = BitWriter::new(&mut noise);
    let mut coder = RangeEncoder::new(&mut answers);
    for &residual in residuals {
        let magnitude = residual.unsigned_abs();
        let bits = 64 - magnitude.leading_zeros();
        let expected = model.expected();
        put_bits(&mut coder, &mut model, &expected, bits);
        if bits > 0 {
            let negative = residual < 0;
            coder.put(&mut model.negative[model.sign][bits.min(3) as usize - 1], negative);
            let below = &mut model.below[place(bits, expected.bits)];
            if bits > 1 {
                let first = magnitude >> (bits - 2) & 1;
                coder.put(&mut below[0], first == 1);
                if bits > 2 {
                    coder.put(&mut below[1 + first as usize], magnitude >> (bits - 3) & 1 == 1);
                    writer.put(magnitude & ((1 << (bits - 3)) - 1), bits - 3);
                }
            }
        }
        model.learn(magnitude, residual < 0);
    }
    coder.finish();
    let length = writer.finish();
    varint::put(out, answers.len() as u64);
    out.extend_from_slice(&answers);
    out.extend_from_slice(&noise[..length]);
}

/// The number of bits, as steps up or down from the expected one.
#[inline(always)]
fn put_bits(coder: &mut RangeEncoder, model: &mut Model, expected: &Expected, bits: u32) {
    let up = &mut model.up[expected.level];
    let at_least = bits >= expected.bits;
    if expected.bits > 0 {
        coder.put(&mut up[0], at_least);
    }
    if at_least {
        for reached in expected.bits..=63 {
            let step = (reached - expected.bits + 1) as usize;
            let more = bits > reached;
            coder.put(&mut up[step.min(STEPS - 1)], more);
            if !more {
                break;
            }
        }
    } else {
        let down = &mut model.down[expected.level];
        for reached in (1..expected.bits).rev() {
            let less = bits < reached;
            coder.put(&mut down[((expected.bits - reached) as usize - 1).min(STEPS - 1)], less);
            if !less {
                break;
            }
        }
    }
}

#[inline(always)]
fn take_bits(coder: &mut RangeDecoder, model: &mut Model, expected: &Expected) -> u32 {
    let up = &mut model.up[expected.level];
    let mut bits = expected.bits;
    if bits == 0 || coder.take(&mut up[0]) {
        while bits < 64 && coder.take(&mut up[((bits - expected.bits + 1) as usize).min(STEPS - 1)]) {
            bits += 1;
        }
        return bits;
    }
    let down = &mut model.down[expected.level];
    bits -= 1;
    while bits > 0 && coder.take(&mut down[((expected.bits - bits) as usize - 1).min(STEPS - 1)]) {
        bits -= 1;
    }
    bits
}

/// Reads residuals one after another, so that each can be put to use before the next.
pub struct Residuals<'a> {
    coder: RangeDecoder<'a>,
    noise: BitReader<'a>,
    model: Model,
}

impl<'a> Residuals<'a> {
    /// Those of a section.
    ///
    /// # Errors
    /// It has no room for its own header.
    pub fn new(section: Section<'a>) -> Result<Self> {
        let bytes = section.bytes();
        let Some((&level, mut rest)) = bytes.split_first() else {
            return damaged("a section ends in its header");
        };
        if level > LEVEL_MAX {
            return damaged("a mean in a section's header is too large");
        }
        let length = varint::take_max(&mut rest, bytes.len() as u64)?;
        if length > rest.len() {
            return damaged("a section ends in its header");
        }
        let noise_at = bytes.len() - rest.len() + length;
        Ok(Self {
            coder: RangeDecoder::new(&rest[..length]),
            noise: BitReader::new(section.part(noise_at, bytes.len() - noise_at)),
            model: Model::new(level),
        })
    }

    /// The next one.
    #[inline(always)]
    pub fn take(&mut self) -> i64 {
        let expected = self.model.expected();
        let bits = take_bits(&mut self.coder, &mut self.model, &expected);
        let mut magnitude = u64::from(bits > 0);
        let mut negative = false;
        if bits > 0 {
            negative = self.coder.take(&mut self.model.negative[self.model.sign][bits.min(3) as usize - 1]);
            let below = &mut self.model.below[place(bits, expected.bits)];
            if bits > 1 {
                let first = u64::from(self.coder.take(&mut below[0]));
                magnitude = 2 | first;
                if bits > 2 {
                    magnitude = magnitude << 1 | u64::from(self.coder.take(&mut below[1 + first as usize]));
                    let width = bits - 3;
                    magnitude = magnitude << width | self.noise.look().behind(0) & ((1 << width) - 1);
                    self.noise.skip(width);
                }
            }
        }
        self.model.learn(magnitude, negative);
        if negative { magnitude.cast_signed().wrapping_neg() } else { magnitude.cast_signed() }
    }

    /// Check that the section ends here.
    ///
    /// # Errors
    /// It does not.
    pub fn finish(self) -> Result<()> {
        if !self.coder.is_at_end() {
            return damaged("a section goes on after its last reading");
        }
        self.noise.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(residuals: &[i64]) -> usize {
        let mut bytes = Vec::new();
        encode(residuals, &mut bytes);
        let mut reader = Residuals::new(Section::new(&bytes, bytes.len())).unwrap();
        for residual in residuals {
            assert_eq!(reader.take(), *residual);
        }
        reader.finish().unwrap();
        bytes.len()
    }

    #[test]
    fn residuals_of_every_size_come_back() {
        round_trip(&[]);
        round_trip(&[i64::MIN, i64::MAX, 0, -1, 1]);
        let every: Vec<i64> =
            (0..64).flat_map(|bit| [1 << bit, (1_i64 << bit).wrapping_neg(), (1_i64 << bit).wrapping_sub(1)]).collect();
        round_trip(&every);
        round_trip(&[i64::MIN; 100]);
    }

    #[test]
    fn what_was_expected_costs_little() {
        assert!(round_trip(&[0; 1024]) < 24);
        assert!(round_trip(&[1; 1024]) < 80);
        assert!(round_trip(&[-1_000_000; 1024]) < 1024 * 18 / 8 + 80);
    }

    #[test]
    fn the_mean_begins_where_the_first_residuals_are() {
        assert_eq!((mean_of(0), mean_of(1), mean_of(2), mean_of(3), mean_of(4), mean_of(5)), (0, 1, 2, 3, 4, 6));
        assert!(mean_of(LEVEL_MAX) <= MAGNITUDE_CAP << MEAN_SHIFT);
        assert_eq!(first_level(&[0; 10]), 0);
        assert_eq!(mean_of(first_level(&[1; 10])), 16);
    }
}
