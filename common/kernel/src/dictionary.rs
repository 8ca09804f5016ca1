//! A dictionary: the different values of a column in ascending order, and for each value its place among them.
//!
//! Where a converter or a state machine has few levels, and they are not evenly spaced.

use crate::bits::Section;
use crate::error::{Result, damaged};
use crate::integers::{self, Effort};
use crate::numbers::Scratch;
use crate::varint;

/// Bits in an order that is ascending for numbers, each different pattern being a different value.
fn order(value: f64) -> i64 {
    let bits = value.to_bits().cast_signed();
    bits ^ ((bits >> 63).cast_unsigned() >> 1).cast_signed()
}

/// The different values of `values`, ascending, if there are at most `max`.
#[must_use]
pub fn find(values: &[f64], max: usize) -> Option<Vec<f64>> {
    // Far apart, so that a signal with too many is found out early.
    let sample = 4 * max.min(32);
    if values.len() > 2 * sample {
        let stride = values.len() / sample;
        let mut some: Vec<u64> = values.iter().step_by(stride).map(|value| value.to_bits()).collect();
        let all = some.len();
        some.sort_unstable();
        some.dedup();
        if some.len() > max || 4 * some.len() > 3 * all {
            return None;
        }
    }
    let mut entries = values.to_vec();
    entries.sort_unstable_by_key(|value| order(*value));
    entries.dedup_by_key(|value| value.to_bits());
    (entries.len() <= max).then_some(entries)
}

/// Append the places of `values` among `entries`, which are ascending and hold them all.
pub fn encode_places(values: &[f64], entries: &[f64], effort: Effort, scratch: &mut Scratch, out: &mut Vec<u8>) {
    let mut last = 0;
    let places: Vec<i64> = values
        .iter()
        .map(|value| {
            if entries[last].to_bits() != value.to_bits() {
                last = entries.partition_point(|entry| order(*entry) < order(*value));
            }
            last as i64
        })
        .collect();
    integers::encode(&places, effort, scratch.packing(), out);
}

/// The parts of a section that hold a dictionary of at most `count` entries: how many they are, the section with them,
/// and the section with the places.
///
/// # Errors
/// They are not there.
pub fn take(section: Section<'_>, count: usize) -> Result<(usize, Section<'_>, Section<'_>)> {
    let bytes = section.bytes();
    let mut rest = bytes;
    let entries = varint::take_max(&mut rest, count as u64)?;
    let length = varint::take_max(&mut rest, bytes.len() as u64)?;
    if entries == 0 || length > rest.len() {
        return damaged("a dictionary does not fit into its section");
    }
    let at = bytes.len() - rest.len();
    Ok((entries, section.part(at, length), section.part(at + length, rest.len() - length)))
}

/// Fill `out` with the entries at the places that `section` holds.
///
/// # Errors
/// The section does not hold exactly so many places, or one at which there is no entry.
pub fn decode_places(section: Section, entries: &[f64], scratch: &mut Scratch, out: &mut [f64]) -> Result<()> {
    let mut places = vec![0; out.len()];
    integers::decode(section, scratch.packing(), &mut places)?;
    for (value, place) in out.iter_mut().zip(places) {
        match entries.get(place as usize) {
            Some(entry) if place >= 0 => *value = *entry,
            _ => return damaged("a value is not in its dictionary"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_in_order() {
        let nan = f64::from_bits(0xFFF8_0000_0000_0001);
        let found = find(&[1.0, -0.0, 0.0, nan, -5.0, 1.0, nan], 9).unwrap();
        let bits = |column: &[f64]| column.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found), bits(&[nan, -5.0, -0.0, 0.0, 1.0]));
        assert!(find(&[1.0, 2.0, 3.0], 2).is_none());
        let many: Vec<f64> = (0..4096).map(f64::from).collect();
        assert!(find(&many, 10).is_none());
    }

    #[test]
    fn places_come_back() {
        let mut scratch = Scratch::default();
        for effort in [Effort::Pack, Effort::Code] {
            let mut section = Vec::new();
            encode_places(&[0.5, 0.7, 0.5, 0.1], &[0.1, 0.5, 0.7], effort, &mut scratch, &mut section);
            let mut out = [0.0; 4];
            let section = Section::new(&section, section.len());
            decode_places(section, &[0.1, 0.5, 0.7], &mut scratch, &mut out).unwrap();
            assert_eq!(out, [0.5, 0.7, 0.5, 0.1]);
            assert!(decode_places(section, &[0.1, 0.5], &mut scratch, &mut out).is_err());
        }
    }
}
