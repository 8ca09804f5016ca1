//! Bit packing with patches: groups of up to 128 numbers, each as many bits wide as most of its numbers need.
//!
//! Zukowski et al., "Super-Scalar RAM-CPU Cache Compression", ICDE 2006 (PFOR): the few that need more keep their low
//! bits in place, and their high bits follow the group.
//!
//! A group is a byte with the width (0 to 64) and, in its top bit, whether patches follow; the numbers, as a bit
//! stream; and the patches: their number, the width of their high bits, the position of each, the high bits as a
//! bit stream.

use crate::bits::{BitReader, BitWriter, Section, WRITER_SLACK};
use crate::error::{Result, damaged};

/// Numbers of a group.
pub const GROUP: usize = 128;
const PATCHED: u8 = 0x80;

/// Append groups with `numbers`.
pub fn encode(numbers: &[u64], out: &mut Vec<u8>) {
    for group in numbers.chunks(GROUP) {
        put_group(group, out);
    }
}

fn put_group(group: &[u64], out: &mut Vec<u8>) {
    let (width, patches, widest) = choose_width(group);
    let start = out.len();
    // Room for the longest group there is; what is not needed is cut off again.
    out.resize(start + 3 + 8 * group.len() + WRITER_SLACK, 0);
    out[start] = width as u8 | if patches > 0 { PATCHED } else { 0 };
    let mut end = start + 1 + put_bits(group, width, &mut out[start + 1..]);
    if patches > 0 {
        let high = widest - width;
        out.truncate(end);
        out.extend([patches as u8, high as u8]);
        let mut positions = [0; GROUP];
        let mut highs = [0; GROUP];
        let mut found = 0;
        for (position, number) in (0_u8..).zip(group) {
            // Without a branch: whether a number is patched is as good as random.
            positions[found] = position;
            highs[found] = number >> width;
            found += usize::from(number >> width != 0);
        }
        out.extend_from_slice(&positions[..patches]);
        end = out.len();
        out.resize(end + 8 * patches + WRITER_SLACK, 0);
        end += put_bits(&highs[..patches], high, &mut out[end..]);
    }
    out.truncate(end);
}

/// The width that makes the group smallest, how many numbers do not fit into it, and the width of the widest.
fn choose_width(group: &[u64]) -> (u32, usize, u32) {
    let any = group.iter().fold(0, |any, number| any | number);
    let widest = 64 - any.leading_zeros();
    // Counted in four tables, for a processor waits when it counts in the same place twice in a row.
    let mut counts = [[0_u16; 65]; 4];
    let (fours, rest) = group.as_chunks::<4>();
    for four in fours {
        for (table, number) in counts.iter_mut().zip(four) {
            table[(64 - number.leading_zeros()) as usize] += 1;
        }
    }
    for number in rest {
        counts[0][(64 - number.leading_zeros()) as usize] += 1;
    }
    let mut best = (widest, 0, group.len() * widest as usize);
    let mut patches = 0;
    for width in (0..widest).rev() {
        let above = width as usize + 1;
        patches += counts.iter().map(|table| usize::from(table[above])).sum::<usize>();
        let bits = group.len() * width as usize + 16 + patches * (8 + (widest - width) as usize);
        if patches >= group.len() {
            break;
        }
        if bits < best.2 {
            best = (width, patches, bits);
        }
    }
    (best.0, best.1, widest)
}

/// Why it is fast: words are put together from as many numbers as fit, and stored once.
fn put_bits(numbers: &[u64], width: u32, out: &mut [u8]) -> usize {
    if width == 0 {
        return 0;
    }
    let mask = u64::MAX >> (64 - width);
    if width > 56 {
        let mut writer = BitWriter::new(out);
        for number in numbers {
            writer.put(number & mask, width);
        }
        return writer.finish();
    }
    let mut word = 0_u64;
    let mut filled = 0_u32;
    let mut at = 0;
    for number in numbers {
        let number = number & mask;
        word |= number << filled;
        filled += width;
        if filled >= 64 {
            out[at..at + 8].copy_from_slice(&word.to_le_bytes());
            at += 8;
            filled -= 64;
            // Of this number what did not fit; no shift by 64, since at least a bit was left and width is below 57.
            word = (number >> (width - filled - 1)) >> 1;
        }
    }
    out[at..at + 8].copy_from_slice(&word.to_le_bytes());
    at + filled.div_ceil(8) as usize
}

/// Fill `out` from the groups at the head of `section`, and step over them.
///
/// # Errors
/// They do not hold so many numbers, or a group is impossible.
pub fn decode(section: Section, at: &mut usize, out: &mut [u64]) -> Result<()> {
    for group in out.chunks_mut(GROUP) {
        take_group(section, at, group)?;
    }
    Ok(())
}

fn take_group(section: Section, at: &mut usize, group: &mut [u64]) -> Result<()> {
    let head = take_byte(section, at)?;
    let width = u32::from(head & !PATCHED);
    if width > 64 {
        return damaged("a group of numbers is wider than 64 bits");
    }
    take_bits(section, at, width, group)?;
    if head & PATCHED == 0 {
        return Ok(());
    }
    let patches = usize::from(take_byte(section, at)?);
    let high = u32::from(take_byte(section, at)?);
    if patches == 0 || patches >= group.len() || high == 0 || width + high > 64 {
        return damaged("the patches of a group are impossible");
    }
    let Some(positions) = section.bytes().get(*at..*at + patches) else {
        return damaged("a section ends in the middle of a group");
    };
    *at += patches;
    if usize::from(positions[patches - 1]) >= group.len() || !positions.is_sorted_by(|one, next| one < next) {
        return damaged("the patches of a group are out of order");
    }
    let mut highs = [0; GROUP];
    take_bits(section, at, high, &mut highs[..patches])?;
    for (position, number) in positions.iter().zip(highs) {
        group[usize::from(*position)] |= number << width;
    }
    Ok(())
}

fn take_byte(section: Section, at: &mut usize) -> Result<u8> {
    match section.bytes().get(*at) {
        Some(&byte) => {
            *at += 1;
            Ok(byte)
        }
        None => damaged("a section ends in the middle of a group"),
    }
}

fn take_bits(section: Section, at: &mut usize, width: u32, out: &mut [u64]) -> Result<()> {
    let bits = width as usize * out.len();
    let bytes = bits.div_ceil(8);
    if section.bytes().len() - *at < bytes {
        return damaged("a section ends in the middle of a group");
    }
    let stream = section.part(*at, bytes);
    *at += bytes;
    if width == 0 {
        out.fill(0);
        return Ok(());
    }
    let mask = u64::MAX >> (64 - width);
    if let Some(words) = stream.ahead(8).filter(|_| width <= 57) {
        // Why it is fast: each number is one load, one shift and one mask, and none waits for another.
        let mut bit = 0_usize;
        for number in out.iter_mut() {
            let from = bit >> 3;
            let word =
                words.get(from..from + 8).and_then(|word| word.first_chunk()).map_or(0, |w| u64::from_le_bytes(*w));
            *number = (word >> (bit & 7)) & mask;
            bit += width as usize;
        }
    } else {
        let mut reader = BitReader::new(stream);
        for number in out.iter_mut() {
            *number = reader.look().behind(0) & mask;
            reader.skip(width);
        }
    }
    let used = bits & 7;
    if used != 0 && stream.bytes()[bytes - 1] >> used != 0 {
        return damaged("the unused bits of a group are not zero");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(numbers: &[u64]) -> usize {
        let mut bytes = Vec::new();
        encode(numbers, &mut bytes);
        for behind in [0, 40] {
            let mut padded = bytes.clone();
            padded.resize(bytes.len() + behind, 0xAA);
            let mut decoded = vec![7; numbers.len()];
            let mut at = 0;
            decode(Section::new(&padded, bytes.len()), &mut at, &mut decoded).unwrap();
            assert_eq!((at, decoded.as_slice()), (bytes.len(), numbers));
        }
        for cut in 0..bytes.len() {
            assert!(decode(Section::new(&bytes, cut), &mut 0, &mut vec![0; numbers.len()]).is_err());
        }
        bytes.len()
    }

    #[test]
    fn numbers_of_every_width_come_back() {
        round_trip(&[]);
        for width in 0..=64 {
            for count in [1, 2, 63, 128, 129, 300] {
                let numbers: Vec<u64> = (0..count)
                    .map(|k: u64| {
                        let noise = k.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(k as u32);
                        if width == 0 { 0 } else { noise >> (64 - width) }
                    })
                    .collect();
                round_trip(&numbers);
            }
        }
    }

    #[test]
    fn the_few_that_are_wide_are_patched() {
        let mut numbers = vec![3; 128];
        (numbers[5], numbers[100]) = (u64::MAX, 900);
        assert_eq!(round_trip(&numbers), 1 + 32 + 2 + 2 + 16);
        assert_eq!(round_trip(&[0; 1024]), 8);
    }

    #[test]
    fn impossible_groups_are_errors() {
        for section in [
            &[65_u8][..],
            &[0x80, 0, 1],
            &[0x80, 2, 1, 0, 1, 3],
            &[0x80, 1, 0, 0],
            &[0x80, 1, 65, 0],
            &[0x80, 1, 1, 2, 1],
            &[1, 0xFF],
        ] {
            assert!(decode(Section::new(section, section.len()), &mut 0, &mut [0, 0]).is_err(), "{section:?}");
        }
    }
}
