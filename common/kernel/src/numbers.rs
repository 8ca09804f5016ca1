//! Values as integers: a form, its exceptions, and the integers, in one section.

use crate::bits::Section;
use crate::error::Result;
use crate::exceptions;
use crate::forms::Form;
use crate::integers::{self, Effort};

/// Room for the columns on the way from values to bytes; made once and used for every block of a call.
#[derive(Default)]
pub struct Scratch {
    integers: Vec<i64>,
    joined: Vec<f64>,
    packing: integers::Scratch,
}

impl Scratch {
    pub(crate) fn packing(&mut self) -> &mut integers::Scratch {
        &mut self.packing
    }
}

/// Append a section with `values`, which are not empty; returns how many were exceptions. Those with the bits `common`
/// are made some, with the integer before them, so that the others follow one another.
pub fn encode(
    values: &[f64],
    form: Form,
    common: Option<u64>,
    effort: Effort,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> usize {
    let integers = &mut scratch.integers;
    integers.resize(values.len(), 0);
    let mut exact = form.split(values, integers);
    if let Some(common) = common
        && let Some(first) = values.iter().position(|value| value.to_bits() != common)
    {
        let mut last = integers[first];
        for (integer, value) in integers.iter_mut().zip(values) {
            if value.to_bits() == common {
                *integer = last;
                exact = false;
            }
            last = *integer;
        }
    }
    form.put(!exact, out);
    let mut count = 0;
    if !exact {
        scratch.joined.resize(values.len(), 0.0);
        count = exceptions::put(values, form, integers, &mut scratch.joined, out);
    }
    integers::encode(integers, effort, &mut scratch.packing, out);
    count
}

/// Fill `out`, which is not empty, from a section.
///
/// # Errors
/// The section does not hold exactly so many values.
pub fn decode(section: Section, scratch: &mut Scratch, out: &mut [f64]) -> Result<()> {
    let bytes = section.bytes();
    let mut rest = bytes;
    let (form, excepted) = Form::take(&mut rest)?;
    let exceptions_at = bytes.len() - rest.len();
    if excepted {
        // They are put in place when the values are there; until then only their end matters.
        exceptions::skip(&mut rest, out.len())?;
    }
    let integers = &mut scratch.integers;
    integers.resize(out.len(), 0);
    let at = bytes.len() - rest.len();
    integers::decode(section.part(at, rest.len()), &mut scratch.packing, integers)?;
    form.join(integers, out);
    if excepted {
        exceptions::take(&mut &bytes[exceptions_at..], out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forms::decimal;

    #[test]
    fn values_come_back() {
        let mut values: Vec<f64> = (0..500).map(|k| f64::from(k * k % 301) / 10.0).collect();
        values[3] = f64::NAN;
        values[499] = -0.0;
        for count in [1, 2, 10, 500] {
            for form in [decimal(0), decimal(1), decimal(9), Form::Bits, Form::Bits32, Form::Product(0.1)] {
                for effort in [Effort::Pack, Effort::Code] {
                    let mut section = Vec::new();
                    let mut scratch = Scratch::default();
                    encode(&values[..count], form, None, effort, &mut scratch, &mut section);
                    let mut decoded = vec![7.0; count];
                    decode(Section::new(&section, section.len()), &mut scratch, &mut decoded).unwrap();
                    assert!(decoded.iter().zip(&values).all(|(one, other)| one.to_bits() == other.to_bits()));
                }
            }
        }
    }
}
