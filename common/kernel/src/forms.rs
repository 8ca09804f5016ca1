//! Forms: ways to see a column of f64 as integers, from which the very same bits can be made again.
//!
//! Decimal fractions come back because a division rounds correctly: the quotient of the two integers of a decimal text is
//! the double that the text is read as (Afroozeh et al., "ALP: Adaptive Lossless floating-Point Compression", SIGMOD
//! 2024, multiplies instead and has more exceptions). A converter's counts times a scale come back by multiplying, as a
//! driver does (the `FloatMult` mode of pcodec).

use crate::bits::Section;
use crate::error::{Error, Result, damaged};

/// How integers become values; the number is the low seven bits of a section's first byte.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Form {
    /// Divided by a whole number, by its place among [`DIVISORS`].
    Quotient(u8),
    /// The same, rounded to binary32: a decimal fraction from a device that computes in 32 bits. The power of ten.
    Quotient32(u8),
    /// The 64 bits as an ordered integer.
    Bits,
    /// The 32 bits of a binary32 as an ordered integer.
    Bits32,
    /// Times a scale.
    Product(f64),
    /// Times a scale, rounded to binary32.
    Product32(f64),
}

/// Powers of ten times 1, 2, 4, 5 and 3 (16 each, as far as an f64 holds them exactly), then 8 to 2^18: a step of a half
/// is a division by two, a mean of three readings one by three.
const DIVISORS: [f64; 96] = {
    let mut divisors = [0.0; 96];
    let factors = [1_u64, 2, 4, 5, 3];
    let mut place = 0;
    while place < 96 {
        let (kind, power) = (place / 16, place % 16);
        if kind == 5 {
            divisors[place] = (8_u64 << power) as f64;
        } else {
            let mut divisor = factors[kind];
            let mut times = 0;
            while times < power {
                divisor *= 10;
                times += 1;
            }
            // Larger than 2^53 there is no such form.
            divisors[place] = if divisor <= 1 << 53 { divisor as f64 } else { 0.0 };
        }
        place += 1;
    }
    divisors
};
const QUOTIENT_32: u8 = 96;
const POWERS_32: u8 = 11;
const BITS: u8 = 112;
const BITS_32: u8 = 113;
/// With the scale in 8 bytes or, if it is one, as a binary32 in 4; then the same rounded to binary32.
const PRODUCT: u8 = 114;
const PRODUCT_SHORT: u8 = 115;
const PRODUCT_32: u8 = 116;
const PRODUCT_32_SHORT: u8 = 117;

/// Adding and taking away again rounds to an integer, which then is in the low bits: 1.5 * 2^52.
const MAGIC: f64 = 6_755_399_441_055_744.0;
/// The NaN that takes the place of a binary32 NaN, whose bits a conversion might change.
pub const NAN: u64 = 0x7FF8_0000_0000_0000;
/// Values that are checked together.
const CHUNK: usize = 32;

/// Every quotient that there is.
pub fn quotients() -> impl Iterator<Item = Form> {
    (0_u8..96).filter(|place| DIVISORS[usize::from(*place)] > 0.0).map(Form::Quotient)
}

/// The decimal fractions with so many digits behind the point.
#[must_use]
pub const fn decimal(power: u8) -> Form {
    Form::Quotient(power)
}

/// The same in 32 bits.
pub fn quotients_32() -> impl Iterator<Item = Form> {
    (0..POWERS_32).map(Form::Quotient32)
}

/// Signed bits in the order of the numbers they stand for.
#[inline(always)]
const fn ordered(bits: u64) -> i64 {
    let bits = bits.cast_signed();
    bits ^ ((bits >> 63).cast_unsigned() >> 1).cast_signed()
}

#[inline(always)]
const fn ordered_32(bits: u32) -> i32 {
    let bits = bits.cast_signed();
    bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed()
}

impl Form {
    /// Append the form to a section; `exceptions` says whether some follow.
    pub fn put(self, exceptions: bool, out: &mut Vec<u8>) {
        let mark = u8::from(exceptions) << 7;
        let short = |scale: f64| f64::from(scale as f32) == scale;
        match self {
            Self::Quotient(place) => out.push(place | mark),
            Self::Quotient32(power) => out.push((QUOTIENT_32 + power) | mark),
            Self::Bits => out.push(BITS | mark),
            Self::Bits32 => out.push(BITS_32 | mark),
            Self::Product(scale) | Self::Product32(scale) => {
                let rounded = matches!(self, Self::Product32(_));
                let number = if rounded { PRODUCT_32 } else { PRODUCT };
                out.push((number + u8::from(short(scale))) | mark);
                if short(scale) {
                    out.extend((scale as f32).to_le_bytes());
                } else {
                    out.extend(scale.to_le_bytes());
                }
            }
        }
    }

    /// Take a form off the head of a section; tells whether exceptions follow.
    ///
    /// # Errors
    /// There is none, or not one of this version.
    pub fn take(section: &mut &[u8]) -> Result<(Self, bool)> {
        let Some((&head, mut rest)) = section.split_first() else {
            return damaged("a section ends in its header");
        };
        let number = head & 0x7F;
        let form = match number {
            place if usize::from(place) < DIVISORS.len() && DIVISORS[usize::from(place)] > 0.0 => Self::Quotient(place),
            QUOTIENT_32.. if number < QUOTIENT_32 + POWERS_32 => Self::Quotient32(number - QUOTIENT_32),
            BITS => Self::Bits,
            BITS_32 => Self::Bits32,
            PRODUCT | PRODUCT_32 => Self::scaled(number, f64::from_le_bytes(take_bytes(&mut rest)?))?,
            PRODUCT_SHORT | PRODUCT_32_SHORT => {
                Self::scaled(number - 1, f64::from(f32::from_le_bytes(take_bytes(&mut rest)?)))?
            }
            _ => return Err(Error::Block(format!("form {number} is not known"))),
        };
        *section = rest;
        Ok((form, head & 0x80 != 0))
    }

    fn scaled(number: u8, scale: f64) -> Result<Self> {
        if !scale.is_finite() || scale <= 0.0 {
            return damaged("a scale is not a positive number");
        }
        Ok(if number == PRODUCT { Self::Product(scale) } else { Self::Product32(scale) })
    }

    /// Fill `integers` as near to `values` as may be; returns whether every value comes back with the same bits.
    #[must_use]
    pub fn split(self, values: &[f64], integers: &mut [i64]) -> bool {
        match self {
            Self::Quotient(place) => {
                let divisor = DIVISORS[usize::from(place)];
                convert(values, integers, |value| nearest(value * divisor), |integer| integer as f64 / divisor)
            }
            Self::Quotient32(power) => {
                let divisor = DIVISORS[usize::from(power)];
                let join = |integer| f64::from((integer as f64 / divisor) as f32);
                convert(values, integers, |value| nearest(value * divisor), join)
            }
            Self::Bits => convert(values, integers, |value| ordered(value.to_bits()), join_bits),
            Self::Bits32 => {
                convert(values, integers, |value| i64::from(ordered_32((value as f32).to_bits())), join_bits_32)
            }
            Self::Product(scale) => {
                convert(values, integers, |value| nearest(value / scale), |integer| integer as f64 * scale)
            }
            Self::Product32(scale) => {
                let join = |integer| f64::from((integer as f64 * scale) as f32);
                convert(values, integers, |value| nearest(value / scale), join)
            }
        }
    }

    /// What a quotient divides by; 1 for other forms.
    #[must_use]
    pub const fn divisor(self) -> f64 {
        match self {
            Self::Quotient(place) => DIVISORS[place as usize],
            _ => 1.0,
        }
    }

    /// Whether a value comes back in 32 bits, of which a unit in the last place is many of those of a double.
    #[must_use]
    pub const fn is_32(self) -> bool {
        matches!(self, Self::Quotient32(_) | Self::Bits32 | Self::Product32(_))
    }

    /// The value of one integer.
    #[must_use]
    pub fn join_one(self, integer: i64) -> f64 {
        let mut value = [0.0];
        self.join(&[integer], &mut value);
        value[0]
    }

    /// Fill `values` from `integers`, of which there are as many.
    pub fn join(self, integers: &[i64], values: &mut [f64]) {
        match self {
            Self::Quotient(place) => {
                let divisor = DIVISORS[usize::from(place)];
                for (value, integer) in values.iter_mut().zip(integers) {
                    *value = *integer as f64 / divisor;
                }
            }
            Self::Quotient32(power) => {
                let divisor = DIVISORS[usize::from(power)];
                for (value, integer) in values.iter_mut().zip(integers) {
                    *value = f64::from((*integer as f64 / divisor) as f32);
                }
            }
            Self::Bits => {
                for (value, integer) in values.iter_mut().zip(integers) {
                    *value = join_bits(*integer);
                }
            }
            Self::Bits32 => {
                for (value, integer) in values.iter_mut().zip(integers) {
                    *value = join_bits_32(*integer);
                }
            }
            Self::Product(scale) => {
                for (value, integer) in values.iter_mut().zip(integers) {
                    *value = *integer as f64 * scale;
                }
            }
            Self::Product32(scale) => {
                for (value, integer) in values.iter_mut().zip(integers) {
                    *value = f64::from((*integer as f64 * scale) as f32);
                }
            }
        }
    }

    /// The name people see.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Quotient(place) => format!("integer/{}", DIVISORS[usize::from(place)]),
            Self::Quotient32(power) => format!("integer/{} (float32)", DIVISORS[usize::from(power)]),
            Self::Bits => "float64 bits".to_owned(),
            Self::Bits32 => "float32 bits".to_owned(),
            Self::Product(scale) => format!("integer*{scale}"),
            Self::Product32(scale) => format!("integer*{scale} (float32)"),
        }
    }
}

#[inline(always)]
fn join_bits(integer: i64) -> f64 {
    // The map is its own inverse.
    f64::from_bits(ordered(integer.cast_unsigned()).cast_unsigned())
}

#[inline(always)]
fn join_bits_32(integer: i64) -> f64 {
    let value = f32::from_bits(ordered_32(integer as u32).cast_unsigned());
    if value.is_nan() { f64::from_bits(NAN) } else { f64::from(value) }
}

/// The nearest integer, the even one of two, in few instructions; of what has none below 2^51, anything.
#[inline(always)]
pub(crate) fn nearest(value: f64) -> i64 {
    (value + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()).cast_signed()
}

#[inline(always)]
fn convert(values: &[f64], integers: &mut [i64], split: impl Fn(f64) -> i64, join: impl Fn(i64) -> f64) -> bool {
    let mut differs = 0;
    for (integers, values) in integers.chunks_mut(CHUNK).zip(values.chunks(CHUNK)) {
        for (integer, value) in integers.iter_mut().zip(values) {
            *integer = split(*value);
            differs |= join(*integer).to_bits() ^ value.to_bits();
        }
    }
    differs == 0
}

fn take_bytes<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N]> {
    let Some((taken, rest)) = bytes.split_first_chunk() else {
        return damaged("a section ends in its header");
    };
    *bytes = rest;
    Ok(*taken)
}

/// Scales of which all values may be multiples: the common divisor by Euclid with a tolerance, then narrowed by each
/// value. `error` is how far a value may be off, relative to itself.
#[must_use]
pub fn find_scales(values: &[f64], error: f64) -> Vec<f64> {
    let sizes = values.iter().map(|value| value.abs()).filter(|size| *size > 0.0 && size.is_finite());
    let mut sizes: Vec<f64> = sizes.collect();
    sizes.sort_unstable_by(f64::total_cmp);
    let Some((low, high)) = scale_bounds(&sizes, error) else {
        return Vec::new();
    };
    let middle = f64::midpoint(low, high);
    let mut scales = vec![low, middle, high];
    // A scale that people wrote is short; one that a device computed with is a binary32.
    let texts = (1..=9).filter_map(|digits| format!("{middle:.digits$e}").parse::<f64>().ok());
    scales.extend(texts.filter(|round| (low..=high).contains(round)).take(1));
    let mut short = (low as f32).next_down();
    for _ in 0..8 {
        if (low..=high).contains(&f64::from(short)) {
            scales.push(f64::from(short));
        }
        short = short.next_up();
    }
    scales
}

/// Differences of differences that are looked at, and numbers that may be the first guess at a scale.
const DEPTH: usize = 5;
const GUESSES: usize = 6;

/// Within which bounds the scale of ascending `sizes` is.
///
/// Euclid's division would multiply the errors of the values by its quotients; differences of neighbours only add them,
/// and so come down to a few steps while a step is still larger than the errors.
fn scale_bounds(sizes: &[f64], error: f64) -> Option<(f64, f64)> {
    let largest = *sizes.last()?;
    let mut noise = 2.0 * error * largest;
    // Multiples of the scale, and how far off each may be.
    let mut multiples: Vec<(f64, f64)> = sizes.iter().map(|size| (*size, 2.0 * error * size)).collect();
    let mut level = sizes.to_vec();
    for _ in 0..DEPTH {
        noise *= 2.0;
        level = level.windows(2).map(|pair| pair[1] - pair[0]).filter(|step| *step > 4.0 * noise).collect();
        level.sort_unstable_by(f64::total_cmp);
        multiples.extend(level.iter().take(64).map(|step| (*step, noise)));
    }
    multiples.retain(|(multiple, noise)| *multiple > 4.0 * noise);
    multiples.sort_unstable_by(|one, other| one.0.total_cmp(&other.0));
    let scale = (0..GUESSES.min(multiples.len())).find_map(|first| common_divisor(&multiples[first..]))?;
    if scale < largest * error * 16.0 {
        return None;
    }
    let (mut scale, mut low, mut high) = (scale, 0.0_f64, f64::INFINITY);
    for &size in sizes {
        // Each value says within which bounds the scale is; the larger the value, the narrower.
        let steps = (size / scale).round();
        (low, high) = (low.max(size * (1.0 - error) / steps), high.min(size * (1.0 + error) / steps));
        if low > high {
            return None;
        }
        scale = f64::midpoint(low, high);
    }
    Some((low, high))
}

/// Of what all are multiples, if they are; they ascend, so that each makes the divisor either smaller or more certain.
fn common_divisor(multiples: &[(f64, f64)]) -> Option<f64> {
    let (mut scale, mut doubt) = *multiples.first()?;
    for &(multiple, noise) in multiples {
        let rest = (multiple - (multiple / scale).round() * scale).abs();
        if rest > noise + (multiple / scale) * doubt {
            let parts = (scale / rest).round();
            if parts > 8.0 {
                return None;
            }
            (scale, doubt) = (scale / parts, doubt / parts);
        }
        let steps = (multiple / scale).round();
        if steps * doubt > scale / 4.0 {
            return None;
        }
        if noise / steps < doubt {
            (scale, doubt) = (multiple / steps, noise / steps);
        }
    }
    Some(scale)
}

/// What a form's parameters and the bytes behind them are; for those who show it to people.
///
/// # Errors
/// The section does not begin with a form.
pub fn describe(section: Section) -> Result<String> {
    Form::take(&mut section.bytes()).map(|(form, _)| form.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forms() -> Vec<Form> {
        let mut forms: Vec<Form> = quotients().chain(quotients_32()).collect();
        forms.extend([Form::Bits, Form::Bits32, Form::Product(0.1), Form::Product32(0.25), Form::Product32(0.1)]);
        forms
    }

    #[test]
    fn a_form_comes_back_from_its_bytes() {
        for form in forms() {
            for exceptions in [false, true] {
                let mut bytes = Vec::new();
                form.put(exceptions, &mut bytes);
                let mut rest = bytes.as_slice();
                assert_eq!(Form::take(&mut rest), Ok((form, exceptions)));
                assert!(rest.is_empty());
            }
        }
        for wrong in [&[][..], &[107], &[118], &[114, 0, 0, 0, 0, 0, 0, 0], &[115, 0, 0, 0, 0], &[114; 9][..8]] {
            assert!(Form::take(&mut &*wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn integers_come_back_from_their_values() {
        for form in forms() {
            let integers: Vec<i64> = (-300..300).map(|k| k * k * k / 7).collect();
            let mut values = vec![0.0; integers.len()];
            form.join(&integers, &mut values);
            let mut again = vec![0; integers.len()];
            // Minus zero alone may not come back as an integer, and is none of these values.
            assert!(form.split(&values, &mut again), "{form:?}");
        }
    }

    #[test]
    fn what_does_not_come_back_is_told() {
        let mut integers = [0; 2];
        for value in [-0.0, f64::NAN, f64::INFINITY, 1e300, 0.123_456_789_012, 5e-324] {
            assert!(!decimal(2).split(&[1.25, value], &mut integers), "{value}");
            assert!(Form::Bits.split(&[1.25, value], &mut integers));
        }
        assert!(decimal(2).split(&[1.25, -7.01], &mut integers));
        assert_eq!(integers, [125, -701]);
        assert_eq!(join_bits_32(0x7F80_0001).to_bits(), NAN);
    }

    #[test]
    fn a_scale_is_found() {
        let scale = 1.859_665e-5_f32;
        let counts = |k: i32| f64::from(k * k * 7 % 90_001 - 40_000);
        let values: Vec<f64> = (0..200).map(|k| f64::from((counts(k) * f64::from(scale)) as f32)).collect();
        let found = find_scales(&values, 6e-8);
        assert!(found.iter().any(|scale| Form::Product32(*scale).split(&values, &mut [0; 200])), "{found:?}");
        let values: Vec<f64> = (0..200).map(|k| counts(k) * 0.007).collect();
        assert!(find_scales(&values, 1.2e-16).contains(&0.007));
        assert!(find_scales(&[1.0, std::f64::consts::PI, std::f64::consts::E], 1e-15).is_empty());
        assert!(find_scales(&[], 1e-15).is_empty());
    }
}
