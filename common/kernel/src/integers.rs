//! Integers: one column of i64 as a section, by the scheme that its first byte names.
//!
//! A scheme is a guess for each integer (none, the one before, the line through the two before, or all that `predict`
//! knows) and a way to store what it missed: bit-packed, which is fast, or entropy-coded, which is small. All sums and
//! differences wrap, so every sequence is exact.

use crate::bits::Section;
use crate::error::{Error, Result, damaged};
use crate::predict::Predictor;
use crate::residuals::{self, Residuals};
use crate::varint::{self, unzigzag, zigzag};
use crate::{pack, symbols};

/// How a section holds integers; the number is its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// All are the same.
    Constant = 0,
    /// Distances from the smallest, packed.
    Packed = 1,
    /// Steps, packed.
    PackedDelta = 2,
    /// Changes of the step, packed.
    PackedDeltaOfDelta = 3,
    /// Distances from the middle, entropy-coded.
    Coded = 4,
    /// Steps, entropy-coded.
    CodedDelta = 5,
    /// Changes of the step, entropy-coded.
    CodedDeltaOfDelta = 6,
    /// What the predictor missed, entropy-coded.
    CodedPredicted = 7,
    /// Up to 32 different ones, each as the successor of the one before it, entropy-coded.
    CodedSymbols = 8,
}

impl Scheme {
    /// The scheme with this number.
    ///
    /// # Errors
    /// No scheme of this version has it.
    pub fn from_number(number: u8) -> Result<Self> {
        Ok(match number {
            0 => Self::Constant,
            1 => Self::Packed,
            2 => Self::PackedDelta,
            3 => Self::PackedDeltaOfDelta,
            4 => Self::Coded,
            5 => Self::CodedDelta,
            6 => Self::CodedDeltaOfDelta,
            7 => Self::CodedPredicted,
            8 => Self::CodedSymbols,
            _ => return Err(Error::Block(format!("integer scheme {number} is not known"))),
        })
    }

    /// The name people see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Packed => "packed",
            Self::PackedDelta => "packed_delta",
            Self::PackedDeltaOfDelta => "packed_delta_of_delta",
            Self::Coded => "coded",
            Self::CodedDelta => "coded_delta",
            Self::CodedDeltaOfDelta => "coded_delta_of_delta",
            Self::CodedPredicted => "coded_predicted",
            Self::CodedSymbols => "coded_symbols",
        }
    }
}

/// How much work to do for how few bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Bit-packing only.
    Pack,
    /// Entropy coding where it is smaller.
    Code,
    /// The same without the predictor, which finds nothing more in the steps of a clock.
    CodeSteps,
}

/// Room for what the guesses missed; made once and used for every section.
#[derive(Default)]
pub struct Scratch {
    unsigned: Vec<u64>,
    misses: Vec<i64>,
}

/// Below so many integers packing may be the smaller one, so both are tried.
const TRY_BOTH_BELOW: usize = 256;
/// Integers that are looked at to choose between packed schemes.
const SAMPLE: usize = 64;

/// Append a section with `column`, which is not empty, to `out`.
pub fn encode(column: &[i64], effort: Effort, scratch: &mut Scratch, out: &mut Vec<u8>) {
    let first = column[0];
    if column.len() == 1 {
        varint::put_signed(out, first);
    } else if column.iter().fold(0, |differs, number| differs | (number ^ first)) == 0 {
        out.push(Scheme::Constant as u8);
        varint::put_signed(out, first);
    } else if effort == Effort::Pack {
        put_packed(column, scratch, out);
    } else {
        let start = out.len();
        put_coded(column, effort == Effort::Code, scratch, out);
        let mut length = out.len() - start;
        if column.len() < TRY_BOTH_BELOW {
            length = keep_smaller(start, length, out, |out| put_packed(column, scratch, out));
        }
        let (low, high) = column.iter().fold((i64::MAX, i64::MIN), |(low, high), &x| (low.min(x), high.max(x)));
        let symbols = high.wrapping_sub(low).cast_unsigned().saturating_add(1);
        if symbols <= symbols::SYMBOLS_MAX as u64 {
            keep_smaller(start, length, out, |out| {
                out.push(Scheme::CodedSymbols as u8);
                varint::put_signed(out, low);
                symbols::encode(column, low, symbols as usize, out);
            });
        }
    }
}

/// Append another version of what takes `length` bytes from `start` on, and keep the smaller one; returns its length.
pub(crate) fn keep_smaller(start: usize, length: usize, out: &mut Vec<u8>, put: impl FnOnce(&mut Vec<u8>)) -> usize {
    debug_assert_eq!(start + length, out.len());
    put(out);
    let other = out.len() - start - length;
    if other < length {
        out.copy_within(start + length.., start);
    }
    out.truncate(start + length.min(other));
    length.min(other)
}

fn put_packed(column: &[i64], scratch: &mut Scratch, out: &mut Vec<u8>) {
    let numbers = &mut scratch.unsigned;
    numbers.clear();
    let (first, step) = (column[0], column[1].wrapping_sub(column[0]));
    match choose_packed(column) {
        Scheme::Packed => {
            let low = column.iter().copied().fold(first, i64::min);
            out.push(Scheme::Packed as u8);
            varint::put_signed(out, low);
            numbers.extend(column.iter().map(|number| number.wrapping_sub(low).cast_unsigned()));
        }
        Scheme::PackedDelta => {
            let base = usual_step(column);
            out.push(Scheme::PackedDelta as u8);
            varint::put_signed(out, first);
            varint::put_signed(out, base);
            let steps = column.iter().zip(&column[1..]).map(|(from, to)| to.wrapping_sub(*from));
            numbers.extend(steps.map(|step| zigzag(step.wrapping_sub(base))));
        }
        _ => {
            out.push(Scheme::PackedDeltaOfDelta as u8);
            varint::put_signed(out, first);
            varint::put_signed(out, step);
            numbers.extend(changes(column).map(zigzag));
        }
    }
    pack::encode(numbers, out);
}

/// Changes of the step.
fn changes(column: &[i64]) -> impl Iterator<Item = i64> {
    let pairs = column.iter().zip(&column[1..]).zip(&column[2..]);
    pairs.map(|((a, b), c)| c.wrapping_sub(*b).wrapping_sub(b.wrapping_sub(*a)))
}

/// The step that is in the middle of a few: near zero for a measured value, the interval for a clock or a counter.
fn usual_step(column: &[i64]) -> i64 {
    let steps = column.len() - 1;
    let mut sample = [0; 15];
    let count = steps.min(sample.len());
    for (k, step) in sample[..count].iter_mut().enumerate() {
        let at = k * steps / count;
        *step = column[at + 1].wrapping_sub(column[at]);
    }
    sample[..count].sort_unstable();
    sample[count / 2]
}

/// Which packed scheme has the fewest bits, by a sample from the middle.
fn choose_packed(column: &[i64]) -> Scheme {
    if column.len() < 4 {
        return Scheme::Packed;
    }
    let begin = (column.len() / 2).saturating_sub(SAMPLE / 2);
    let sample = &column[begin..(begin + SAMPLE).min(column.len())];
    let bits = |number: u64| u64::from(64 - number.leading_zeros());
    let low = sample.iter().copied().fold(sample[0], i64::min);
    let base = usual_step(column);
    let mut costs = [0, 0, 0];
    for three in sample.windows(3) {
        let step = three[2].wrapping_sub(three[1]);
        costs[0] += bits(three[2].wrapping_sub(low).cast_unsigned());
        costs[1] += bits(zigzag(step.wrapping_sub(base)));
        costs[2] += bits(zigzag(step.wrapping_sub(three[1].wrapping_sub(three[0]))));
    }
    if costs[0] <= costs[1] && costs[0] <= costs[2] {
        Scheme::Packed
    } else if costs[1] <= costs[2] {
        Scheme::PackedDelta
    } else {
        Scheme::PackedDeltaOfDelta
    }
}

fn put_coded(column: &[i64], predict: bool, scratch: &mut Scratch, out: &mut Vec<u8>) {
    let misses = &mut scratch.misses;
    let (first, step) = (column[0], column[1].wrapping_sub(column[0]));
    let mut sorted = column.to_vec();
    let middle = *sorted.select_nth_unstable(column.len() / 2).1;
    let mut predicted = f64::INFINITY;
    if predict {
        let mut predictor = Predictor::new(first);
        misses.clear();
        misses.extend(column[1..].iter().map(|&number| {
            let miss = number.wrapping_sub(predictor.predict());
            predictor.learn(number);
            miss
        }));
        predicted = cost(misses.iter().copied());
    }
    let level = cost(column.iter().map(|number| number.wrapping_sub(middle)));
    let delta = cost(column.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])));
    let delta_of_delta = cost(changes(column));
    let best = predicted.min(level).min(delta).min(delta_of_delta);
    if predicted <= best {
        out.push(Scheme::CodedPredicted as u8);
        varint::put_signed(out, first);
    } else if delta <= best {
        out.push(Scheme::CodedDelta as u8);
        varint::put_signed(out, first);
        misses.clear();
        misses.extend(column.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])));
    } else if level <= best {
        out.push(Scheme::Coded as u8);
        varint::put_signed(out, middle);
        misses.clear();
        misses.extend(column.iter().map(|number| number.wrapping_sub(middle)));
    } else {
        out.push(Scheme::CodedDeltaOfDelta as u8);
        varint::put_signed(out, first);
        varint::put_signed(out, step);
        misses.clear();
        misses.extend(changes(column));
    }
    residuals::encode(misses, out);
}

/// About the bits that residuals will take, up to what is the same for all: 16 at a time, the logarithm of their mean.
pub(crate) fn cost(residuals: impl Iterator<Item = i64>) -> f64 {
    let mut total = 0.0;
    let mut sum = 0.0;
    let mut count = 0.0;
    for residual in residuals {
        sum += residual.unsigned_abs() as f64;
        count += 1.0;
        if count == 16.0 {
            total += 16.0 * (sum / 16.0 + 0.3).log2();
            (sum, count) = (0.0, 0.0);
        }
    }
    if count > 0.0 { total + count * (sum / count + 0.3).log2() } else { total }
}

/// Fill `out`, which is not empty, from the section that is all of `section`; tells the scheme it has.
///
/// # Errors
/// The section does not hold exactly so many integers.
pub fn decode(section: Section, scratch: &mut Scratch, out: &mut [i64]) -> Result<()> {
    let bytes = section.bytes();
    let mut rest = bytes;
    if let [only] = out {
        *only = varint::take_signed(&mut rest)?;
        return if rest.is_empty() { Ok(()) } else { damaged("a section goes on after its last reading") };
    }
    let Some((&number, after)) = rest.split_first() else {
        return damaged("a section ends in its header");
    };
    rest = after;
    let scheme = Scheme::from_number(number)?;
    let first = varint::take_signed(&mut rest)?;
    if scheme == Scheme::CodedSymbols {
        return symbols::decode(rest, first, out);
    }
    let second = match scheme {
        Scheme::PackedDelta | Scheme::PackedDeltaOfDelta | Scheme::CodedDeltaOfDelta => varint::take_signed(&mut rest)?,
        _ => 0,
    };
    let at = bytes.len() - rest.len();
    match scheme {
        Scheme::Constant => {
            out.fill(first);
            if rest.is_empty() { Ok(()) } else { damaged("a section goes on after its last reading") }
        }
        Scheme::Packed | Scheme::PackedDelta | Scheme::PackedDeltaOfDelta => {
            take_packed(scheme, (first, second), section, at, scratch, out)
        }
        _ => take_coded(scheme, (first, second), section.part(at, bytes.len() - at), out),
    }
}

fn take_packed(
    scheme: Scheme,
    (first, second): (i64, i64),
    section: Section,
    at: usize,
    scratch: &mut Scratch,
    out: &mut [i64],
) -> Result<()> {
    let mut at = at;
    let known = match scheme {
        Scheme::Packed => 0,
        Scheme::PackedDelta => 1,
        _ => 2,
    };
    let numbers = &mut scratch.unsigned;
    numbers.resize(out.len() - known, 0);
    pack::decode(section, &mut at, numbers)?;
    if at != section.bytes().len() {
        return damaged("a section goes on after its last reading");
    }
    let mut last = first;
    match scheme {
        Scheme::Packed => {
            for (number, distance) in out.iter_mut().zip(numbers) {
                *number = first.wrapping_add(distance.cast_signed());
            }
        }
        Scheme::PackedDelta => {
            out[0] = first;
            for (number, step) in out[1..].iter_mut().zip(numbers) {
                last = last.wrapping_add(second).wrapping_add(unzigzag(*step));
                *number = last;
            }
        }
        _ => {
            let mut step = second;
            last = first.wrapping_add(second);
            (out[0], out[1]) = (first, last);
            for (number, change) in out[2..].iter_mut().zip(numbers) {
                step = step.wrapping_add(unzigzag(*change));
                last = last.wrapping_add(step);
                *number = last;
            }
        }
    }
    Ok(())
}

fn take_coded(scheme: Scheme, (first, second): (i64, i64), section: Section, out: &mut [i64]) -> Result<()> {
    let mut misses = Residuals::new(section)?;
    let mut last = first;
    match scheme {
        Scheme::Coded => {
            for number in out {
                *number = first.wrapping_add(misses.take());
            }
        }
        Scheme::CodedDelta => {
            out[0] = first;
            for number in &mut out[1..] {
                last = last.wrapping_add(misses.take());
                *number = last;
            }
        }
        Scheme::CodedDeltaOfDelta => {
            let mut step = second;
            last = first.wrapping_add(second);
            (out[0], out[1]) = (first, last);
            for number in &mut out[2..] {
                step = step.wrapping_add(misses.take());
                last = last.wrapping_add(step);
                *number = last;
            }
        }
        _ => {
            let mut predictor = Predictor::new(first);
            out[0] = first;
            for number in &mut out[1..] {
                *number = predictor.predict().wrapping_add(misses.take());
                predictor.learn(*number);
            }
        }
    }
    misses.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(column: &[i64]) {
        for effort in [Effort::Pack, Effort::Code] {
            let mut scratch = Scratch::default();
            let mut section = Vec::new();
            encode(column, effort, &mut scratch, &mut section);
            let mut decoded = vec![7; column.len()];
            decode(Section::new(&section, section.len()), &mut scratch, &mut decoded).unwrap();
            assert_eq!(decoded, column);
        }
        let mut scratch = Scratch::default();
        for way in 0..3 {
            if column.len() > 1 {
                let mut section = Vec::new();
                match way {
                    0 => put_packed(column, &mut scratch, &mut section),
                    _ => put_coded(column, way == 1, &mut scratch, &mut section),
                }
                let mut decoded = vec![7; column.len()];
                decode(Section::new(&section, section.len()), &mut scratch, &mut decoded).unwrap();
                assert_eq!(decoded, column);
            }
        }
    }

    #[test]
    fn every_shape_comes_back() {
        for count in [1, 2, 3, 4, 5, 127, 128, 129, 130, 131, 1000] {
            let noise = |k: i64| k.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64.cast_signed()) >> 40;
            round_trip(&(0..count).map(|_| -5).collect::<Vec<i64>>());
            round_trip(&(0..count).map(|k| k % 7).collect::<Vec<i64>>());
            round_trip(&(0..count).map(noise).collect::<Vec<i64>>());
            round_trip(&(0..count).map(|k| 1000 * k + (noise(k) & 3)).collect::<Vec<i64>>());
            round_trip(&(0..count).map(|k| k * k * k).collect::<Vec<i64>>());
            round_trip(&(0..count).map(|k| if k % 2 == 0 { i64::MIN } else { i64::MAX - k }).collect::<Vec<i64>>());
            round_trip(&(0..count).map(|k| (1e15 * (k as f64 / 9.0).sin()) as i64).collect::<Vec<i64>>());
        }
    }

    #[test]
    fn damaged_sections_are_errors() {
        let mut scratch = Scratch::default();
        let mut refuse = |section: &[u8], count: usize| {
            let result = decode(Section::new(section, section.len()), &mut scratch, &mut vec![0; count]);
            assert!(result.is_err(), "{section:?}");
        };
        refuse(&[], 1);
        refuse(&[1, 0], 1);
        refuse(&[], 2);
        refuse(&[9, 0], 2);
        refuse(&[0, 0, 0], 2);
        refuse(&[1, 0], 2);
        refuse(&[1, 0, 0, 0], 2);
        refuse(&[2, 0], 2);
        refuse(&[3, 0, 0, 0], 2);
        refuse(&[4, 0], 2);
        refuse(&[4, 0, 120, 0], 2);
        refuse(&[4, 0, 0, 9], 2);
        refuse(&[7, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 2);
    }
}
