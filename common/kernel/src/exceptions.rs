//! Exceptions: the few values of a column that its form does not bring back, in runs.
//!
//! A run is the number of values since the last one, its length less one, doubled, plus one if all its values have the
//! same bits; then the bits, once or for each: 0 for those of the exception before, else the distance from the bits that
//! the form brings back, in zigzag. So last-bit noise takes a byte, and an outage of NaN a few.

use crate::error::{Result, damaged};
use crate::forms::{Form, NAN};
use crate::varint::{self, unzigzag, zigzag};

/// A value whose bits are no further than this from what its integer brings back keeps that integer.
const NEAR: u64 = 1 << 20;
/// The same for a form of 32 bits, whose units in the last place are 2^29 times as large.
const NEAR_32: u64 = 1 << 36;

/// Find the values that `integers` do not bring back; give those that are not even near the integer before them, so that
/// they disturb no prediction; and append the exceptions to `out`. Returns how many there are.
pub fn put(values: &[f64], form: Form, integers: &mut [i64], joined: &mut [f64], out: &mut Vec<u8>) -> usize {
    form.join(integers, joined);
    let mut found: Vec<usize> = Vec::new();
    for (at, (value, back)) in values.iter().zip(joined.iter()).enumerate() {
        if value.to_bits() != back.to_bits() {
            found.push(at);
        }
    }
    // The first integer has none before it: it takes the first good one.
    let limit = if form.is_32() { NEAR_32 } else { NEAR };
    let near =
        |at: usize, back: f64| values[at].to_bits().wrapping_sub(back.to_bits()).cast_signed().unsigned_abs() < limit;
    let mut good = found.iter().enumerate().find(|(k, at)| *k != **at || near(**at, joined[**at])).map_or_else(
        || integers.get(found.len()).copied().unwrap_or(0),
        |(k, at)| integers[if k == *at { *at } else { k }],
    );
    let mut last = None;
    for &at in &found {
        if at > 0 && last != Some(at - 1) {
            good = integers[at - 1];
        }
        if near(at, joined[at]) {
            good = integers[at];
        } else {
            integers[at] = good;
            joined[at] = form.join_one(good);
        }
        last = Some(at);
    }
    put_runs(values, joined, &found, out);
    found.len()
}

fn put_runs(values: &[f64], joined: &[f64], found: &[usize], out: &mut Vec<u8>) {
    let mut runs = 0;
    let mut bytes = Vec::new();
    let mut end = 0;
    let mut before = NAN;
    for run in found.chunk_by(|one, next| one + 1 == *next) {
        // A run is cut where its values cease to be the same.
        for part in run.chunk_by(|one, next| values[*one].to_bits() == values[*next].to_bits()) {
            let bits = values[part[0]].to_bits();
            varint::put(&mut bytes, (part[0] - end) as u64);
            varint::put(&mut bytes, ((part.len() - 1) << 1 | 1) as u64);
            let distance = bits.wrapping_sub(joined[part[0]].to_bits()).cast_signed();
            varint::put(&mut bytes, if bits == before { 0 } else { zigzag(distance) });
            before = bits;
            end = part[part.len() - 1] + 1;
            runs += 1;
        }
    }
    varint::put(out, runs);
    out.extend_from_slice(&bytes);
}

/// Take the exceptions off the head of a section and put them in their places among `values`.
///
/// # Errors
/// They do not fit there.
pub fn take(section: &mut &[u8], values: &mut [f64]) -> Result<()> {
    let mut before = NAN;
    walk(section, values.len(), |at, distance| {
        if distance != 0 {
            before = values[at].to_bits().wrapping_add(unzigzag(distance).cast_unsigned());
        }
        values[at] = f64::from_bits(before);
    })?;
    Ok(())
}

/// Step over the exceptions at the head of the section of `count` values; tells how many they are.
///
/// # Errors
/// They do not fit there.
pub fn skip(section: &mut &[u8], count: usize) -> Result<usize> {
    walk(section, count, |_, _| ())
}

/// Go to each exception's place, with its distance, which is 0 where the bits are those of the one before.
fn walk(section: &mut &[u8], count: usize, mut visit: impl FnMut(usize, u64)) -> Result<usize> {
    let mut at = 0;
    let mut found = 0;
    for _ in 0..varint::take_max(section, count as u64)? {
        at += varint::take_max(section, count as u64)?;
        let length = varint::take_max(section, 2 * count as u64)?;
        let (length, same) = ((length >> 1) + 1, length & 1 == 1);
        if at + length > count {
            return damaged("an exception is behind the last reading");
        }
        for k in 0..length {
            let distance = if k == 0 || !same { varint::take(section)? } else { 0 };
            visit(at + k, distance);
        }
        at += length;
        found += length;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forms::decimal;

    fn round_trip(values: &[f64]) -> (usize, usize) {
        let mut integers = vec![0; values.len()];
        let mut joined = vec![0.0; values.len()];
        let _ = decimal(1).split(values, &mut integers);
        let mut bytes = Vec::new();
        let count = put(values, decimal(1), &mut integers, &mut joined, &mut bytes);
        let mut back = vec![0.0; values.len()];
        decimal(1).join(&integers, &mut back);
        let mut rest = bytes.as_slice();
        take(&mut rest, &mut back).unwrap();
        assert!(rest.is_empty());
        let bits = |column: &[f64]| column.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&back), bits(values));
        (count, bytes.len())
    }

    #[test]
    fn exceptions_come_back() {
        let next = 0.1_f64.next_up();
        let odd = f64::from_bits(0x7FF4_0000_0000_0009);
        assert_eq!(round_trip(&[]), (0, 1));
        assert_eq!(round_trip(&[0.5, 1.5]), (0, 1));
        assert_eq!(round_trip(&[0.5, f64::NAN, f64::NAN, f64::NAN, 1.5]), (3, 4));
        assert_eq!(round_trip(&[0.5, next, 0.2]), (1, 4));
        round_trip(&[f64::NAN]);
        round_trip(&[f64::NAN, f64::INFINITY, -0.0, -0.0, 1e300, 0.3, -0.0, odd, odd, f64::NAN, next]);
        round_trip(&[next, f64::NAN, next, 1e300]);
        round_trip(&[1e300, next, 0.1]);
    }

    #[test]
    fn integers_beside_exceptions_stay_where_they_were() {
        let values = [f64::NAN, f64::NAN, 0.5, 0.6, 1e300, f64::NAN, 0.7];
        let mut integers = [0; 7];
        let _ = decimal(1).split(&values, &mut integers);
        put(&values, decimal(1), &mut integers, &mut [0.0; 7], &mut Vec::new());
        assert_eq!(integers, [5, 5, 5, 6, 6, 6, 7]);
    }

    #[test]
    fn exceptions_elsewhere_are_errors() {
        for bytes in [&[][..], &[9], &[1], &[1, 3, 0, 2], &[1, 0, 8, 2], &[1, 0, 7, 2], &[2, 1, 2, 2, 2, 1, 0, 2]] {
            assert!(take(&mut &*bytes, &mut [0.0; 3]).is_err(), "{bytes:?}");
        }
    }
}
