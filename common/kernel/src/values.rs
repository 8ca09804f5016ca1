//! Values: one column of f64 as a section. Each codec has its module; this one names, picks and nests them.

use crate::bits::Section;
use crate::error::{Error, Result, damaged};
use crate::forms::Form;
use crate::integers::{Effort, Scheme, keep_smaller};
use crate::numbers::{self, Scratch as NumberScratch};
use crate::probe::Sample;
use crate::rounding::{Grid, Precision};
use crate::{dictionary, exceptions, forms, gorilla, raw, varint};

/// How a section holds values; the number is the block's byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueCodec {
    /// Eight bytes each, little-endian.
    Raw = 0,
    /// XOR with the value before.
    Gorilla = 1,
    /// All have the same bits.
    Constant = 2,
    /// Integers of a form, and exceptions.
    Numbers = 3,
    /// Places in a dictionary.
    Dictionary = 4,
    /// Values that were rounded, with the bound of that, in another codec.
    Rounded = 5,
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
            2 => Ok(Self::Constant),
            3 => Ok(Self::Numbers),
            4 => Ok(Self::Dictionary),
            5 => Ok(Self::Rounded),
            _ => Err(Error::Block(format!("value codec {number} is not known"))),
        }
    }

    /// The name people see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Gorilla => "gorilla",
            Self::Constant => "constant",
            Self::Numbers => "numbers",
            Self::Dictionary => "dictionary",
            Self::Rounded => "rounded",
        }
    }

    /// Whether `count` values can be in a section of `bytes`: what is cheap to know before room is made for them.
    #[must_use]
    pub const fn fits(self, count: usize, bytes: usize) -> bool {
        match self {
            Self::Raw => bytes == 8 * count,
            Self::Gorilla => gorilla::fits(count, bytes),
            Self::Constant => bytes == 8 && count > 0,
            Self::Numbers | Self::Dictionary | Self::Rounded => bytes > 1 && count > 0,
        }
    }
}

/// How hard to look for a small block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Decimal fractions and Gorilla, bit-packed.
    Fast,
    /// Every form, bit-packed.
    Balanced,
    /// Every form, entropy-coded where that is smaller.
    Small,
}

impl Level {
    /// How the integers are held.
    #[must_use]
    pub const fn effort(self) -> Effort {
        match self {
            Self::Fast | Self::Balanced => Effort::Pack,
            Self::Small => Effort::Code,
        }
    }
}

/// What suited the last block of a series, and so most likely suits the next.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plan {
    form: Option<Form>,
    /// Exceptions of a hundred readings that are usual.
    exceptions: u8,
    /// Whether a dictionary was smaller when it was tried.
    dictionary: bool,
    /// A value so usual that it is left out of the integers.
    common: Option<u64>,
    /// Whether values are better left as they are, though they may be rounded.
    keep_exact: bool,
    gorilla: bool,
    /// Blocks since the choice was made.
    age: u8,
}

/// A choice is made anew after so many blocks, for a signal may change without becoming larger.
const AGE_MAX: u8 = 32;
/// Blocks with fewer readings do not say much about the next.
const PROBE_MIN: usize = 16;
/// A dictionary has at most one entry for so many readings, and no more than so many.
const DICTIONARY_SHARE: usize = 4;
const DICTIONARY_MAX: usize = 1024;
/// Bits by which rounding must be better than leaving a value as it is.
const ROUNDING_GAIN: f64 = 0.1;

/// Room for one section while its size is not known; made once and used for every block of a call.
#[derive(Default)]
pub struct Scratch {
    gorilla: Vec<u8>,
    rounded: Vec<f64>,
    numbers: NumberScratch,
}

/// Append the values as plain numbers.
pub fn encode_raw(values: &[f64], out: &mut Vec<u8>) -> ValueCodec {
    raw::put(values, f64::to_le_bytes, out);
    ValueCodec::Raw
}

/// Append what Gorilla makes of the values, if that is smaller than plain numbers, else those.
pub fn encode_gorilla(values: &[f64], scratch: &mut Scratch, out: &mut Vec<u8>) -> ValueCodec {
    let room = gorilla::bytes_max(values.len());
    if scratch.gorilla.len() < room {
        scratch.gorilla.resize(room, 0);
    }
    let bytes = gorilla::encode(values, &mut scratch.gorilla);
    if bytes >= 8 * values.len() {
        return encode_raw(values, out);
    }
    out.extend_from_slice(&scratch.gorilla[..bytes]);
    ValueCodec::Gorilla
}

/// Append the smallest section that `level` finds; `plan` remembers what it was.
pub fn encode(
    values: &[f64],
    level: Level,
    precision: Precision,
    plan: &mut Plan,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> ValueCodec {
    if values.is_empty() {
        return encode_raw(values, out);
    }
    if values.len() >= PROBE_MIN {
        plan.age += 1;
        if plan.age > AGE_MAX {
            *plan = Plan { form: None, ..Plan::default() };
        }
    }
    let start = out.len();
    let codec = match precision.grid() {
        Some(grid) => encode_rounded(values, level, &grid, plan, scratch, out),
        None => encode_exact(values, level, plan, scratch, out),
    };
    if out.len() - start > 8 * values.len() {
        out.truncate(start);
        return encode_raw(values, out);
    }
    codec
}

fn encode_rounded(
    values: &[f64],
    level: Level,
    grid: &Grid,
    plan: &mut Plan,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> ValueCodec {
    let mut rounded = std::mem::take(&mut scratch.rounded);
    grid.round(values, &mut rounded);
    if plan.form.is_none() {
        // A signal may already be coarser than it may become.
        let sample = Sample::new(values);
        let exact = sample.best(level > Level::Fast);
        let grid_cost = Sample::new(&rounded).cost(grid.form);
        plan.keep_exact = sample.cost(exact) <= grid_cost + ROUNDING_GAIN;
        plan.form = Some(if plan.keep_exact { exact } else { grid.form });
    }
    let codec = if plan.keep_exact {
        encode_exact(values, level, plan, scratch, out)
    } else {
        plan.form = Some(grid.form);
        let start = out.len();
        out.extend(grid.bound.to_le_bytes());
        out.push(0);
        let inner = encode_exact(&rounded, level, plan, scratch, out);
        out[start + 4] = inner as u8;
        ValueCodec::Rounded
    };
    scratch.rounded = rounded;
    codec
}

fn encode_exact(values: &[f64], level: Level, plan: &mut Plan, scratch: &mut Scratch, out: &mut Vec<u8>) -> ValueCodec {
    let start = out.len();
    let first = values[0].to_bits();
    if values.iter().fold(0, |differs, value| differs | (value.to_bits() ^ first)) == 0 {
        return encode_constant(values, plan, scratch, out);
    }
    let probing = plan.form.is_none();
    let form = plan.form.unwrap_or_else(|| Sample::new(values).best(level > Level::Fast && values.len() >= PROBE_MIN));
    let mut exceptions = numbers::encode(values, form, plan.common, level.effort(), &mut scratch.numbers, out);
    let mut chosen = form;
    let usual = usize::from(plan.exceptions) * values.len() / 100;
    if !probing && exceptions > 2 * usual + values.len() / 16 + 1 {
        // The last choice fails: look again, and take what is found if it is another.
        chosen = Sample::new(values).best(level > Level::Fast && values.len() >= PROBE_MIN);
        *plan = Plan { keep_exact: plan.keep_exact, ..Plan::default() };
        if chosen != form {
            out.truncate(start);
            exceptions = numbers::encode(values, chosen, None, level.effort(), &mut scratch.numbers, out);
        }
    }
    let mut length = out.len() - start;
    let mut codec = ValueCodec::Numbers;
    let fresh = plan.form.is_none();
    if (fresh || plan.gorilla) && chosen == Form::Bits {
        let mut other = codec;
        let smaller = keep_smaller(start, length, out, |out| other = encode_gorilla(values, scratch, out));
        if smaller < length {
            (length, codec) = (smaller, other);
        }
    }
    if level > Level::Fast && values.len() >= PROBE_MIN {
        if fresh {
            (plan.common, length) = try_common(values, chosen, level, length, start, scratch, out);
            codec = if plan.common.is_some() { ValueCodec::Numbers } else { codec };
        }
        if (fresh || plan.dictionary || level == Level::Small)
            && let Some(entries) = dictionary::find(values, (values.len() / DICTIONARY_SHARE).min(DICTIONARY_MAX))
        {
            let smaller = keep_smaller(start, length, out, |out| put_dictionary(values, &entries, level, scratch, out));
            plan.dictionary = smaller < length;
            if plan.dictionary {
                codec = ValueCodec::Dictionary;
            }
        }
    }
    if values.len() >= PROBE_MIN || fresh {
        plan.gorilla = codec == ValueCodec::Gorilla;
        if fresh {
            plan.form = Some(chosen);
            plan.exceptions = (exceptions * 100 / values.len()) as u8;
        }
    }
    codec
}

fn encode_constant(values: &[f64], plan: &mut Plan, scratch: &mut Scratch, out: &mut Vec<u8>) -> ValueCodec {
    let start = out.len();
    let exact = |form: &Form| form.split(&values[..1], &mut [0]);
    let sticky = plan.form.filter(exact);
    let form = sticky.or_else(|| (0..10).map(forms::decimal).find(exact)).unwrap_or(Form::Bits);
    numbers::encode(values, form, None, Effort::Pack, &mut scratch.numbers, out);
    if out.len() - start < 8 {
        return ValueCodec::Numbers;
    }
    out.truncate(start);
    out.extend(values[0].to_le_bytes());
    ValueCodec::Constant
}

/// Append the values without the one that is most usual, if there is one, and keep that if it is smaller.
fn try_common(
    values: &[f64],
    form: Form,
    level: Level,
    length: usize,
    start: usize,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> (Option<u64>, usize) {
    let Some(common) = find_common(values) else {
        return (None, length);
    };
    let smaller = keep_smaller(start, length, out, |out| {
        numbers::encode(values, form, Some(common), level.effort(), &mut scratch.numbers, out);
    });
    ((smaller < length).then_some(common), smaller)
}

/// The bits of a value that is at least a twentieth of all, in runs of eight on average.
fn find_common(values: &[f64]) -> Option<u64> {
    let mut longest = (0, 0);
    for run in values.chunk_by(|one, next| one.to_bits() == next.to_bits()) {
        longest = longest.max((run.len(), run[0].to_bits()));
    }
    let (mut count, mut runs) = (0, 0);
    for run in values.chunk_by(|one, next| one.to_bits() == next.to_bits()) {
        if run[0].to_bits() == longest.1 {
            (count, runs) = (count + run.len(), runs + 1);
        }
    }
    (count * 20 >= values.len() && count >= 8 * runs).then_some(longest.1)
}

fn put_dictionary(values: &[f64], entries: &[f64], level: Level, scratch: &mut Scratch, out: &mut Vec<u8>) {
    let mut section = Vec::new();
    let form = Sample::new(entries).best(true);
    numbers::encode(entries, form, None, level.effort(), &mut scratch.numbers, &mut section);
    varint::put(out, entries.len() as u64);
    varint::put(out, section.len() as u64);
    out.extend_from_slice(&section);
    dictionary::encode_places(values, entries, level.effort(), &mut scratch.numbers, out);
}

/// Fill `out` from a section.
///
/// # Errors
/// The section does not hold exactly `out.len()` values.
pub fn decode((codec, section): (ValueCodec, Section), scratch: &mut NumberScratch, out: &mut [f64]) -> Result<()> {
    match codec {
        ValueCodec::Raw => raw::take(section.bytes(), f64::from_le_bytes, out),
        ValueCodec::Gorilla => gorilla::decode(section, out),
        ValueCodec::Constant => match section.bytes().first_chunk() {
            Some(bytes) if section.bytes().len() == bytes.len() => {
                out.fill(f64::from_le_bytes(*bytes));
                Ok(())
            }
            _ => damaged("a constant does not have eight bytes"),
        },
        ValueCodec::Numbers => numbers::decode(section, scratch, out),
        ValueCodec::Dictionary => {
            let (count, entries_at, places) = dictionary::take(section, out.len())?;
            let mut entries = vec![0.0; count];
            numbers::decode(entries_at, scratch, &mut entries)?;
            dictionary::decode_places(places, &entries, scratch, out)
        }
        ValueCodec::Rounded => {
            let (_, codec, inner) = take_rounded(section)?;
            if !codec.fits(out.len(), inner.bytes().len()) {
                return damaged("the section of rounded values cannot hold so many");
            }
            decode((codec, inner), scratch, out)
        }
    }
}

/// The bound, the codec and the section of values that were rounded.
fn take_rounded(section: Section) -> Result<(f32, ValueCodec, Section)> {
    let bytes = section.bytes();
    let (Some(bound), Some(&number)) = (bytes.first_chunk(), bytes.get(4)) else {
        return damaged("a section ends in its header");
    };
    let bound = f32::from_le_bytes(*bound);
    let codec = ValueCodec::from_number(number)?;
    if codec == ValueCodec::Rounded || !bound.is_finite() || bound < 0.0 {
        return damaged("the bound of rounded values is impossible");
    }
    Ok((bound, codec, section.part(5, bytes.len() - 5)))
}

/// Fill two columns from two sections; faster than one after the other where both have a codec that gains by it.
pub fn decode_two(
    sections: [(ValueCodec, Section); 2],
    scratch: &mut NumberScratch,
    outs: [&mut [f64]; 2],
) -> [Result<()>; 2] {
    match sections {
        [(ValueCodec::Gorilla, first), (ValueCodec::Gorilla, second)] => gorilla::decode_two([first, second], outs),
        [first, second] => {
            let [first_out, second_out] = outs;
            [decode(first, scratch, first_out), decode(second, scratch, second_out)]
        }
    }
}

/// What a section says of itself: how the values became integers, how those are held, and how far off they may be.
///
/// # Errors
/// Its header is damaged.
pub fn describe(codec: ValueCodec, section: Section, count: usize) -> Result<(String, f32)> {
    match codec {
        ValueCodec::Numbers => {
            let mut rest = section.bytes();
            let (form, excepted) = Form::take(&mut rest)?;
            let exceptions = if excepted { exceptions::skip(&mut rest, count)? } else { 0 };
            let number = if count == 1 { Scheme::Constant as u8 } else { rest.first().copied().unwrap_or(u8::MAX) };
            let (form, scheme) = (form.name(), Scheme::from_number(number)?.name());
            let few = if exceptions > 0 { format!(", {exceptions} exceptions") } else { String::new() };
            Ok((format!("{form}, {scheme}{few}"), 0.0))
        }
        ValueCodec::Dictionary => {
            let (entries, _, places) = dictionary::take(section, count)?;
            let number = places.bytes().first().copied().filter(|_| count > 1).unwrap_or(0);
            Ok((format!("dictionary of {entries}, {}", Scheme::from_number(number)?.name()), 0.0))
        }
        ValueCodec::Rounded => {
            let (bound, inner, values) = take_rounded(section)?;
            Ok((describe(inner, values, count)?.0, bound))
        }
        _ => Ok((codec.name().to_owned(), 0.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(values: &[f64], level: Level, plan: &mut Plan) -> (ValueCodec, usize) {
        let mut scratch = Scratch::default();
        let mut section = vec![0xEE; 3];
        let codec = encode(values, level, Precision::Exact, plan, &mut scratch, &mut section);
        let bytes = section.len() - 3;
        assert!(codec.fits(values.len(), bytes) && bytes <= 8 * values.len(), "{codec:?} in {bytes}");
        let mut decoded = vec![7.0; values.len()];
        let whole = Section::new(&section[3..], bytes);
        decode((codec, whole), &mut scratch.numbers, &mut decoded).unwrap();
        assert!(decoded.iter().zip(values).all(|(one, other)| one.to_bits() == other.to_bits()), "{codec:?}");
        describe(codec, whole, values.len()).unwrap();
        (codec, bytes)
    }

    fn signals() -> Vec<Vec<f64>> {
        let noise =
            |k: u64| (k + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (k + 1).wrapping_mul(0xD1B5_4A32_D192_ED03) << 7;
        let steps = [0.054_711, 0.382_638, -0.273_216];
        vec![
            (0..1000).map(|k| f64::from(k * k % 700) / 10.0).collect(),
            (0..1000).map(|k| f64::from_bits(noise(k))).collect(),
            (0..1000).map(|k| steps[(noise(k) % 3) as usize]).collect(),
            (0..1000).map(|k| if k % 100 < 60 { 0.0 } else { f64::from((k as f32).sqrt()) }).collect(),
            (0..1000).map(|k| if k == 500 { f64::NAN } else { f64::from(k) }).collect(),
            vec![f64::NAN; 1000],
            vec![21.5; 1000],
            vec![-0.0; 1000],
            (0..1000).map(|k| (f64::from(k) / 7.0).sin()).collect(),
        ]
    }

    #[test]
    fn every_signal_comes_back_at_every_level() {
        for level in [Level::Fast, Level::Balanced, Level::Small] {
            for signal in signals() {
                for count in [0, 1, 2, 3, 10, 64, 1000] {
                    round_trip(&signal[..count], level, &mut Plan::default());
                }
            }
        }
    }

    #[test]
    fn a_plan_that_fails_is_given_up() {
        for level in [Level::Fast, Level::Balanced, Level::Small] {
            let mut plan = Plan::default();
            for signal in signals().iter().cycle().take(100) {
                round_trip(signal, level, &mut plan);
            }
        }
    }

    #[test]
    fn the_codec_that_suits_is_taken() {
        let codecs: Vec<(ValueCodec, usize)> =
            signals().iter().map(|signal| round_trip(signal, Level::Small, &mut Plan::default())).collect();
        assert!(codecs[1].1 <= 8000, "{codecs:?}");
        assert!(codecs[2].1 < 260, "{codecs:?}");
        assert!(codecs[7].1 <= 8, "{codecs:?}");
        assert_eq!(codecs[6], (ValueCodec::Numbers, 4));
        assert_eq!(round_trip(&[21.5], Level::Fast, &mut Plan::default()), (ValueCodec::Numbers, 3));
    }

    #[test]
    fn rounded_values_are_smaller_and_within_the_bound() {
        let values: Vec<f64> = (0..1000).map(|k| 50.0 * (f64::from(k) / 70.0).sin()).collect();
        for level in [Level::Fast, Level::Balanced, Level::Small] {
            let mut section = Vec::new();
            let mut scratch = Scratch::default();
            let precision = Precision::MaxError(0.1);
            let codec = encode(&values, level, precision, &mut Plan::default(), &mut scratch, &mut section);
            assert_eq!(codec, ValueCodec::Rounded);
            assert!(section.len() < 1200, "{}", section.len());
            let mut decoded = vec![7.0; values.len()];
            let whole = Section::new(&section, section.len());
            decode((codec, whole), &mut scratch.numbers, &mut decoded).unwrap();
            assert!(decoded.iter().zip(&values).all(|(one, other)| (one - other).abs() <= 0.1));
            let (_, bound) = describe(codec, whole, values.len()).unwrap();
            assert!((0.1..0.100_001).contains(&f64::from(bound)));
        }
        // What is coarser than the bound anyway stays as it is.
        let coarse: Vec<f64> = (0..1000).map(|k| f64::from(k % 40)).collect();
        let mut section = Vec::new();
        let precision = Precision::MaxError(0.1);
        let mut scratch = Scratch::default();
        let codec = encode(&coarse, Level::Small, precision, &mut Plan::default(), &mut scratch, &mut section);
        assert_ne!(codec, ValueCodec::Rounded);
    }
}
