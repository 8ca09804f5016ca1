//! Many blocks per call: one buffer of blocks one after another, and columns of all their readings one after another.

use crate::bits::Section;
use crate::block::{self, Block, Choice, MAX_READINGS, Readings, Scratch};
use crate::error::{Error, Result};
use crate::{statuses, timestamps, values};

/// The readings of many blocks, and how many each block has.
#[derive(Debug, Default, PartialEq)]
pub struct Columns {
    /// Microseconds since the epoch.
    pub timestamps: Vec<i64>,
    /// Measured values.
    pub values: Vec<f64>,
    /// Status codes.
    pub statuses: Vec<i32>,
    /// Readings of each block.
    pub counts: Vec<i64>,
}

/// Encode the readings `offsets[k]..offsets[k + 1]` as block `k`; returns all blocks and the size of each.
///
/// # Errors
/// `offsets` does not ascend from 0 to the number of readings, or a block has too many of them.
pub fn encode(readings: Readings, offsets: &[i64], choice: Choice) -> Result<(Vec<u8>, Vec<i64>)> {
    let largest = check_offsets(offsets, readings.count())?;
    let mut scratch = Scratch::new(largest);
    // What most signals need; the buffer grows if this is one of the others.
    let mut out = Vec::with_capacity(6 * readings.count() + 32 * offsets.len());
    let mut sizes = Vec::with_capacity(offsets.len() - 1);
    for pair in offsets.windows(2) {
        let start = out.len();
        block::encode(readings.part(pair[0] as usize, pair[1] as usize), choice, &mut scratch, &mut out)?;
        sizes.push((out.len() - start) as i64);
    }
    Ok((out, sizes))
}

/// Returns the number of readings of the largest block.
fn check_offsets(offsets: &[i64], count: usize) -> Result<usize> {
    if offsets.first() != Some(&0) || offsets.last() != Some(&(count as i64)) {
        return Err(Error::Input(format!("offsets must start at 0 and end at the number of readings, {count}")));
    }
    let mut largest = 0;
    for (index, pair) in offsets.windows(2).enumerate() {
        if pair[1] < pair[0] || pair[1] > count as i64 {
            return Err(Error::Input("offsets must ascend".to_owned()).in_block(index));
        }
        let readings = (pair[1] - pair[0]) as usize;
        if readings > MAX_READINGS {
            let message = format!("{readings} readings, at most {MAX_READINGS} fit into a block");
            return Err(Error::Input(message).in_block(index));
        }
        largest = largest.max(readings);
    }
    Ok(largest)
}

/// Decode the blocks in `data`, of `sizes[k]` bytes each.
///
/// # Errors
/// `sizes` does not add up to `data`, or a block is not valid.
pub fn decode(data: &[u8], sizes: &[i64]) -> Result<Columns> {
    let blocks = parse(data, sizes)?;
    // Only now, when every count has been checked against the bytes it claims to be in.
    let count = blocks.iter().map(|block| block.count).sum();
    let mut columns = Columns {
        timestamps: Vec::with_capacity(count),
        values: Vec::with_capacity(count),
        statuses: Vec::with_capacity(count),
        counts: blocks.iter().map(|block| block.count as i64).collect(),
    };
    let largest = blocks.iter().map(|block| block.count).max().unwrap_or(0);
    let mut scratch = DecodeScratch {
        timestamps: vec![0; largest],
        values: [vec![0.0; largest], vec![0.0; if blocks.len() > 1 { largest } else { 0 }]],
    };
    for (pair, two) in blocks.chunks(2).enumerate() {
        columns.append(two, &mut scratch).map_err(|(k, error)| error.in_block(2 * pair + k))?;
    }
    Ok(columns)
}

/// Room for the columns of a block, from which they are appended to those of all.
///
/// Why not decode in place: a `Vec` would have to be filled with zeros first.
struct DecodeScratch {
    timestamps: Vec<i64>,
    values: [Vec<f64>; 2],
}

impl Columns {
    /// Append the readings of one block or, faster, of two. An error comes with the block of these that has it.
    fn append(&mut self, blocks: &[Block], scratch: &mut DecodeScratch) -> std::result::Result<(), (usize, Error)> {
        for (k, block) in blocks.iter().enumerate() {
            let timestamps = &mut scratch.timestamps[..block.count];
            timestamps::decode(block.timestamps, timestamps).map_err(|error| (k, error))?;
            self.timestamps.extend_from_slice(timestamps);
            statuses::decode(block.statuses, block.count, &mut self.statuses).map_err(|error| (k, error))?;
        }
        let [first, second] = &mut scratch.values;
        let results = match blocks {
            [a, b] => values::decode_two([a.values, b.values], [&mut first[..a.count], &mut second[..b.count]]),
            _ => [values::decode(blocks[0].values, &mut first[..blocks[0].count]), Ok(())],
        };
        for (k, (block, result)) in blocks.iter().zip(results).enumerate() {
            result.map_err(|error| (k, error))?;
            self.values.extend_from_slice(&scratch.values[k][..block.count]);
        }
        Ok(())
    }
}

/// Find the blocks and check their frames.
fn parse<'a>(data: &'a [u8], sizes: &[i64]) -> Result<Vec<Block<'a>>> {
    // No room for more blocks than can be there, however many sizes somebody sent.
    let mut blocks = Vec::with_capacity(sizes.len().min(data.len() / block::BYTES_MIN));
    let mut rest = data;
    for (index, &size) in sizes.iter().enumerate() {
        let Some(size) = usize::try_from(size).ok().filter(|size| *size <= rest.len()) else {
            let message = format!("its size is {size} bytes, of {} that are left", rest.len());
            return Err(Error::Block(message).in_block(index));
        };
        blocks.push(Block::parse(Section::new(rest, size)).map_err(|error| error.in_block(index))?);
        rest = &rest[size..];
    }
    if !rest.is_empty() {
        return Err(Error::Block(format!("{} bytes follow the last of {} blocks", rest.len(), sizes.len())));
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of 0 to 7 readings, of every kind.
    fn columns() -> (Columns, Vec<i64>) {
        let mut columns = Columns::default();
        let mut offsets = vec![0];
        for block in 0..40_i32 {
            for k in 0..block % 8 {
                columns.timestamps.push(i64::from(block * 1000 + k * k));
                columns.values.push(if block % 3 == 0 { 0.5 } else { f64::from(block + k) / 3.0 });
                columns.statuses.push(if block % 5 == 0 { k - 1 } else { 0 });
            }
            columns.counts.push(i64::from(block % 8));
            offsets.push(columns.timestamps.len() as i64);
        }
        (columns, offsets)
    }

    #[test]
    fn many_blocks_come_back() {
        let (columns, offsets) = columns();
        let readings = Readings::new(&columns.timestamps, &columns.values, &columns.statuses).unwrap();
        for choice in [Choice::Raw, Choice::Gorilla] {
            let (data, sizes) = encode(readings, &offsets, choice).unwrap();
            assert_eq!(decode(&data, &sizes).unwrap(), columns);
        }
        assert_eq!(decode(&[], &[]).unwrap(), Columns::default());
    }

    #[test]
    fn sizes_must_add_up() {
        let (columns, offsets) = columns();
        let readings = Readings::new(&columns.timestamps, &columns.values, &columns.statuses).unwrap();
        let (data, sizes) = encode(readings, &offsets, Choice::Gorilla).unwrap();
        let refused = |sizes: &[i64]| decode(&data, sizes).unwrap_err().to_string();
        assert!(refused(&sizes[..39]).contains("follow the last of 39 blocks"));
        assert!(refused(&[]).contains("follow the last of 0 blocks"));
        assert!(refused(&[-1]).contains("block 0"));
        assert!(refused(&[i64::MAX]).contains("block 0"));
        assert!(refused(&[sizes[0], sizes[1] + 1]).contains("block 1"));
    }

    #[test]
    fn offsets_must_describe_the_readings() {
        let readings = Readings::new(&[1, 2], &[1.0, 2.0], &[0, 0]).unwrap();
        for wrong in [&[][..], &[0], &[1, 2], &[0, 1], &[0, 3], &[0, 2, 1, 2], &[0, i64::MIN, 2], &[0, i64::MAX, 2]] {
            assert!(matches!(encode(readings, wrong, Choice::Raw), Err(Error::Input(_))), "{wrong:?}");
        }
        let many = vec![0; MAX_READINGS + 1];
        let values = vec![0.0; MAX_READINGS + 1];
        let timestamps = vec![0; MAX_READINGS + 1];
        let readings = Readings::new(&timestamps, &values, &many).unwrap();
        let error = encode(readings, &[0, 4097], Choice::Gorilla).unwrap_err().to_string();
        assert!(error.contains("4097 readings"), "{error}");
    }
}
