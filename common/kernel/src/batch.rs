//! Many blocks per call: one buffer of blocks one after another, and columns of all their readings one after another.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::bits::Section;
use crate::block::{self, Block, Choice, MAX_READINGS, Readings, Scratch};
use crate::error::{Error, Result, damaged};
use crate::rounding::Precision;
use crate::timestamps::Source;
use crate::values::Plan;
use crate::{numbers, statuses, timestamps, values};

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

/// Readings that one call decodes unless the caller sets another limit: 336 MB of columns. A block of a constant takes a
/// dozen bytes, so the bytes alone do not bound the memory as a network's message would have to.
pub const READINGS_PER_CALL_MAX: usize = 1 << 24;

/// What a call asks for, beside the readings.
#[derive(Default)]
pub struct Request<'a> {
    /// Cuts the blocks into those that stay together, `groups[g]..groups[g + 1]`: within a group, timestamps that several
    /// blocks share are stored once.
    pub groups: Option<&'a [i64]>,
    /// How exact each block has to be; empty if all are exact.
    pub precisions: &'a [Precision],
    /// What suited the last block of each series, and which series each block is of.
    pub plans: Option<(&'a mut [Plan], &'a [i64])>,
}

/// Encode the readings `offsets[k]..offsets[k + 1]` as block `k`; returns all blocks and the size of each.
///
/// # Errors
/// `offsets` does not ascend from 0 to the number of readings, or groups not from 0 to the number of blocks; there are
/// other than as many precisions or series as blocks, or a series that has no plan; a block has too many readings.
pub fn encode(readings: Readings, offsets: &[i64], choice: Choice, request: Request) -> Result<(Vec<u8>, Vec<i64>)> {
    check_offsets(offsets, readings.count())?;
    let blocks = offsets.len() - 1;
    let shared = match request.groups {
        Some(groups) => find_shared(readings, offsets, groups)?,
        None => Vec::new(),
    };
    if !request.precisions.is_empty() && request.precisions.len() != blocks {
        return Err(Error::Input(format!("{} precisions for {blocks} blocks", request.precisions.len())));
    }
    let (plans, series) = request.plans.unwrap_or_default();
    if let Some(row) = series.iter().find(|row| !(0..plans.len() as i64).contains(*row)) {
        return Err(Error::Input(format!("there is no series {row}, there are {}", plans.len())));
    }
    if !plans.is_empty() && series.len() != blocks {
        return Err(Error::Input(format!("{} series for {blocks} blocks", series.len())));
    }
    let mut scratch = Scratch::default();
    // What most signals need; the buffer grows if this is one of the others.
    let mut out = Vec::with_capacity(6 * readings.count() + 32 * offsets.len());
    let mut sizes = Vec::with_capacity(blocks);
    for (index, pair) in offsets.windows(2).enumerate() {
        let start = out.len();
        let part = readings.part(pair[0] as usize, pair[1] as usize);
        let precision = request.precisions.get(index).copied().unwrap_or_default();
        let mut fresh = Plan::default();
        let plan = series.get(index).map_or(&mut fresh, |row| &mut plans[*row as usize]);
        block::encode(part, choice, precision, shared.get(index).copied().flatten(), plan, &mut scratch, &mut out)?;
        sizes.push((out.len() - start) as i64);
    }
    Ok((out, sizes))
}

/// For each block, how many blocks before it in its group there is one with the same timestamps, which are its own.
fn find_shared(readings: Readings, offsets: &[i64], groups: &[i64]) -> Result<Vec<Option<usize>>> {
    let blocks = offsets.len() - 1;
    if groups.first() != Some(&0) || groups.last() != Some(&(blocks as i64)) || !groups.is_sorted() {
        return Err(Error::Input(format!("groups must ascend from 0 to the number of blocks, {blocks}")));
    }
    let timestamps = |block: usize| readings.part(offsets[block] as usize, offsets[block + 1] as usize).timestamps();
    let mut shared = vec![None; blocks];
    let mut owners = HashMap::new();
    for group in groups.windows(2) {
        owners.clear();
        for (block, distance) in (0..blocks).zip(&mut shared).take(group[1] as usize).skip(group[0] as usize) {
            let own = timestamps(block);
            let (Some(first), Some(last)) = (own.first(), own.last()) else {
                continue;
            };
            // One owner for each key: were all that have it compared, hostile timestamps would take quadratic time.
            match owners.entry((own.len(), first, last, &own[own.len() / 2])) {
                Entry::Occupied(owner) if timestamps(*owner.get()) == own => *distance = Some(block - *owner.get()),
                Entry::Occupied(mut owner) => {
                    owner.insert(block);
                }
                Entry::Vacant(vacant) => {
                    vacant.insert(block);
                }
            }
        }
    }
    Ok(shared)
}

fn check_offsets(offsets: &[i64], count: usize) -> Result<()> {
    if offsets.first() != Some(&0) || offsets.last() != Some(&(count as i64)) {
        return Err(Error::Input(format!("offsets must start at 0 and end at the number of readings, {count}")));
    }
    for (index, pair) in offsets.windows(2).enumerate() {
        if pair[1] < pair[0] || pair[1] > count as i64 {
            return Err(Error::Input("offsets must ascend".to_owned()).in_block(index));
        }
        let readings = (pair[1] - pair[0]) as usize;
        if readings > MAX_READINGS {
            let message = format!("{readings} readings, at most {MAX_READINGS} fit into a block");
            return Err(Error::Input(message).in_block(index));
        }
    }
    Ok(())
}

/// Decode the blocks in `data`, of `sizes[k]` bytes each and `readings_max` readings together.
///
/// # Errors
/// `sizes` does not add up to `data`, a block is not valid, or there are more readings.
pub fn decode(data: &[u8], sizes: &[i64], readings_max: usize) -> Result<Columns> {
    let blocks = parse(data, sizes)?;
    // Only now, when every count has been checked against the bytes it claims to be in.
    let count = blocks.iter().map(|block| block.count).sum();
    if count > readings_max {
        return Err(Error::Block(format!("the blocks hold {count} readings, at most {readings_max} are allowed")));
    }
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
        numbers: numbers::Scratch::default(),
    };
    columns.append_timestamps(&blocks, &mut scratch)?;
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
    numbers: numbers::Scratch,
}

impl Columns {
    /// Append the timestamps of all blocks, in order, so that those that are shared are there when they are needed.
    fn append_timestamps(&mut self, blocks: &[Block], scratch: &mut DecodeScratch) -> Result<()> {
        let mut starts = Vec::with_capacity(blocks.len());
        for (index, block) in blocks.iter().enumerate() {
            starts.push(self.timestamps.len());
            match block.timestamps {
                Source::Section(codec, section) => {
                    let timestamps = &mut scratch.timestamps[..block.count];
                    let steps = scratch.numbers.packing();
                    timestamps::decode(codec, section, steps, timestamps).map_err(|error| error.in_block(index))?;
                    self.timestamps.extend_from_slice(timestamps);
                }
                Source::Shared(distance) => {
                    let owner = find_owner(blocks, index, distance).map_err(|error| error.in_block(index))?;
                    self.timestamps.extend_from_within(starts[owner]..starts[owner] + block.count);
                }
            }
        }
        Ok(())
    }

    /// Append the readings of one block or, faster, of two. An error comes with the block of these that has it.
    fn append(&mut self, blocks: &[Block], scratch: &mut DecodeScratch) -> std::result::Result<(), (usize, Error)> {
        for (k, block) in blocks.iter().enumerate() {
            statuses::decode(block.statuses, block.count, &mut self.statuses).map_err(|error| (k, error))?;
        }
        let [first, second] = &mut scratch.values;
        let results = match blocks {
            [a, b] => values::decode_two(
                [a.values, b.values],
                &mut scratch.numbers,
                [&mut first[..a.count], &mut second[..b.count]],
            ),
            _ => [values::decode(blocks[0].values, &mut scratch.numbers, &mut first[..blocks[0].count]), Ok(())],
        };
        for (k, (block, result)) in blocks.iter().zip(results).enumerate() {
            result.map_err(|error| (k, error))?;
            self.values.extend_from_slice(&scratch.values[k][..block.count]);
        }
        Ok(())
    }
}

/// The block that has the timestamps of block `index`, `distance` blocks before it.
fn find_owner(blocks: &[Block], index: usize, distance: usize) -> Result<usize> {
    if distance == 0 || distance > index {
        return damaged("it shares the timestamps of a block that is not there");
    }
    let owner = &blocks[index - distance];
    if matches!(owner.timestamps, Source::Shared(_)) {
        return damaged("it shares the timestamps of a block that has none of its own");
    }
    if owner.count != blocks[index].count {
        return damaged("it shares the timestamps of a block with another number of readings");
    }
    Ok(index - distance)
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
        for name in ["raw", "gorilla", "fast", "balanced", "small"] {
            let choice = Choice::from_name(name).unwrap();
            let (data, sizes) = encode(readings, &offsets, choice, Request::default()).unwrap();
            assert_eq!(decode(&data, &sizes, READINGS_PER_CALL_MAX).unwrap(), columns);
        }
        assert_eq!(decode(&[], &[], 0).unwrap(), Columns::default());
    }

    fn grouped(groups: &[i64]) -> Request<'_> {
        Request { groups: Some(groups), ..Request::default() }
    }

    #[test]
    fn shared_timestamps_are_stored_once_in_a_group() {
        let timestamps: Vec<i64> = (0..40).map(|k| k % 10 * (k % 10)).collect();
        let (values, statuses) = (vec![1.5; 40], vec![0; 40]);
        let readings = Readings::new(&timestamps, &values, &statuses).unwrap();
        let offsets = [0, 10, 20, 20, 30, 40];
        let (alone, alone_sizes) = encode(readings, &offsets, Choice::Gorilla, Request::default()).unwrap();
        let (data, sizes) = encode(readings, &offsets, Choice::Gorilla, grouped(&[0, 4, 5])).unwrap();
        assert_eq!([sizes[0], sizes[2], sizes[4]], [alone_sizes[0], alone_sizes[2], alone_sizes[4]]);
        assert!(sizes[1] == sizes[3] && sizes[1] < sizes[0]);
        let expected = decode(&alone, &alone_sizes, 40).unwrap();
        assert_eq!(decode(&data, &sizes, 40).unwrap(), expected);
        assert!(decode(&data, &sizes, 39).unwrap_err().to_string().contains("40 readings, at most 39"));
        // Whole groups, one after another, still decode; a part of one does not.
        let twice = decode(&[data.clone(), data.clone()].concat(), &[sizes.clone(), sizes.clone()].concat(), 80);
        assert_eq!(twice.unwrap().timestamps, timestamps.repeat(2));
        let cut = decode(&data[sizes[0] as usize..], &sizes[1..], 40).unwrap_err().to_string();
        assert!(cut.contains("not there"), "{cut}");
        for groups in [&[][..], &[0], &[0, 4], &[0, 3, 2, 5], &[1, 5], &[0, -1, 5]] {
            assert!(matches!(encode(readings, &offsets, Choice::Raw, grouped(groups)), Err(Error::Input(_))));
        }
    }

    #[test]
    fn sizes_must_add_up() {
        let (columns, offsets) = columns();
        let readings = Readings::new(&columns.timestamps, &columns.values, &columns.statuses).unwrap();
        let (data, sizes) = encode(readings, &offsets, Choice::Gorilla, Request::default()).unwrap();
        let refused = |sizes: &[i64]| decode(&data, sizes, READINGS_PER_CALL_MAX).unwrap_err().to_string();
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
            assert!(
                matches!(encode(readings, wrong, Choice::Raw, Request::default()), Err(Error::Input(_))),
                "{wrong:?}"
            );
        }
        let many = vec![0; MAX_READINGS + 1];
        let values = vec![0.0; MAX_READINGS + 1];
        let timestamps = vec![0; MAX_READINGS + 1];
        let readings = Readings::new(&timestamps, &values, &many).unwrap();
        let error = encode(readings, &[0, 4097], Choice::Gorilla, Request::default()).unwrap_err().to_string();
        assert!(error.contains("4097 readings"), "{error}");
    }
}
