//! One block: header, timestamp section, status section, value section, checksum (docs/wire-format.md).

use crate::bits::Section;
use crate::error::{Error, Result, damaged};
use crate::integers::{self, Effort};
use crate::rounding::Precision;
use crate::statuses::{self, StatusCodec};
use crate::timestamps::{self, Source, TimestampCodec};
use crate::values::{self, Level, Plan, ValueCodec};
use crate::{raw, varint};

/// Readings a block may hold.
pub const MAX_READINGS: usize = 4096;
/// The format this kernel writes, and the newest it reads.
pub const VERSION: u8 = 1;

const CHECKSUM_BYTES: usize = 4;
/// The smallest block: version, two bytes of codecs, the count, checksum.
pub const BYTES_MIN: usize = 3 + 1 + CHECKSUM_BYTES;
/// Bits of the second byte: the timestamp codec, then the status codec, then this mark for a block of one reading,
/// which spares the count.
const STATUS_SHIFT: u32 = 4;
const ONE_READING: u8 = 0x40;

/// What the caller asks of the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Every section as plain little-endian numbers (statuses: as short as they get).
    Raw,
    /// Delta of delta and Gorilla XOR; a section that would be larger than raw is raw.
    Gorilla,
    /// Whatever is smallest of what this level looks at.
    Adaptive(Level),
}

impl Choice {
    /// The choice people call `name`.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "raw" => Ok(Self::Raw),
            "gorilla" => Ok(Self::Gorilla),
            "fast" => Ok(Self::Adaptive(Level::Fast)),
            "balanced" => Ok(Self::Adaptive(Level::Balanced)),
            "small" => Ok(Self::Adaptive(Level::Small)),
            _ => {
                let names = "\"fast\", \"balanced\", \"small\", \"gorilla\" and \"raw\"";
                Err(Error::Input(format!("codec {name:?} is not known; the codecs are {names}")))
            }
        }
    }
}

/// The readings of one series, or of several blocks one after another.
#[derive(Debug, Clone, Copy)]
pub struct Readings<'a> {
    timestamps: &'a [i64],
    values: &'a [f64],
    statuses: &'a [i32],
}

impl<'a> Readings<'a> {
    /// Readings of these columns: microseconds since the epoch, values, status codes.
    ///
    /// # Errors
    /// The columns differ in length.
    pub fn new(timestamps: &'a [i64], values: &'a [f64], statuses: &'a [i32]) -> Result<Self> {
        if timestamps.len() != values.len() || timestamps.len() != statuses.len() {
            return Err(Error::Input(format!(
                "{} timestamps, {} values and {} statuses: there must be as many of each",
                timestamps.len(),
                values.len(),
                statuses.len()
            )));
        }
        Ok(Self { timestamps, values, statuses })
    }

    /// How many they are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.timestamps.len()
    }

    /// Their timestamps.
    #[must_use]
    pub fn timestamps(&self) -> &'a [i64] {
        self.timestamps
    }

    /// Those of one block. Panics if there are not so many.
    #[must_use]
    pub fn part(&self, from: usize, to: usize) -> Self {
        Self {
            timestamps: &self.timestamps[from..to],
            values: &self.values[from..to],
            statuses: &self.statuses[from..to],
        }
    }
}

/// Room for one section while its size is not known; made once and used for every block of a call.
#[derive(Default)]
pub struct Scratch {
    section: Vec<u8>,
    steps: integers::Scratch,
    values: values::Scratch,
}

/// Append one block to `out`. `shared` says how many blocks before this one there is one with the same timestamps;
/// `plan` is what suited the last block of the series. Precision is for adaptive choices only.
///
/// # Errors
/// There are more than [`MAX_READINGS`].
pub fn encode(
    readings: Readings,
    choice: Choice,
    precision: Precision,
    shared: Option<usize>,
    plan: &mut Plan,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Result<()> {
    let count = readings.count();
    if count > MAX_READINGS {
        return Err(Error::Input(format!("{count} readings, at most {MAX_READINGS} fit into a block")));
    }
    let start = out.len();
    out.extend([VERSION, 0, 0]);
    if count != 1 {
        varint::put(out, count as u64);
    }
    let timestamp_codec = match shared {
        Some(distance) => {
            varint::put(out, distance as u64);
            TimestampCodec::Shared
        }
        None => put_timestamps(readings.timestamps, choice, scratch, out),
    };
    let status_codec = statuses::encode(readings.statuses, out);
    let value_codec = match choice {
        Choice::Raw => values::encode_raw(readings.values, out),
        Choice::Gorilla => values::encode_gorilla(readings.values, &mut scratch.values, out),
        Choice::Adaptive(level) => values::encode(readings.values, level, precision, plan, &mut scratch.values, out),
    };
    let one = if count == 1 { ONE_READING } else { 0 };
    out[start + 1] = timestamp_codec as u8 | (status_codec as u8) << STATUS_SHIFT | one;
    out[start + 2] = value_codec as u8;
    let checksum = crc32c::crc32c(&out[start..]);
    out.extend(checksum.to_le_bytes());
    Ok(())
}

fn put_timestamps(column: &[i64], choice: Choice, scratch: &mut Scratch, out: &mut Vec<u8>) -> TimestampCodec {
    let start = out.len();
    let codec = match choice {
        Choice::Raw => None,
        _ => timestamps::encode_regular(column, out).or_else(|| match choice {
            Choice::Adaptive(level) if column.len() > 1 => {
                let effort = if level == Level::Small { Effort::CodeSteps } else { Effort::Pack };
                timestamps::encode_steps(column, effort, &mut scratch.steps, out);
                Some(TimestampCodec::Steps)
            }
            _ => {
                scratch.section.resize(timestamps::bytes_max(column.len()).max(scratch.section.len()), 0);
                let bytes = timestamps::encode(column, &mut scratch.section);
                varint::put(out, bytes as u64);
                out.extend_from_slice(&scratch.section[..bytes]);
                Some(TimestampCodec::DeltaOfDelta)
            }
        }),
    };
    // A single timestamp may be longer as a varint than it is.
    match codec {
        Some(codec) if out.len() - start <= 8 * column.len() => codec,
        _ => {
            out.truncate(start);
            raw::put(column, i64::to_le_bytes, out);
            TimestampCodec::Raw
        }
    }
}

/// A block whose frame is valid: its codecs and its three sections.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// Number of readings, at most [`MAX_READINGS`].
    pub count: usize,
    /// How the timestamps are held, and where.
    pub timestamps: Source<'a>,
    /// How the statuses are held, and where.
    pub statuses: (StatusCodec, Section<'a>),
    /// How the values are held, and where.
    pub values: (ValueCodec, Section<'a>),
}

impl<'a> Block<'a> {
    /// Read the frame of the block that is exactly `block`: its checksum, and all else that is cheap to check, so
    /// that the caller knows that `count` readings can be in there before making room for them.
    ///
    /// # Errors
    /// The bytes have changed since they were written, never were a block, or are one of a newer version.
    pub fn parse(block: Section<'a>) -> Result<Self> {
        let bytes = block.bytes();
        if let Some(&version) = bytes.first()
            && version != VERSION
        {
            return Err(Error::Block(format!("version {version} is not known, this kernel reads version {VERSION}")));
        }
        if bytes.len() < BYTES_MIN {
            return Err(Error::Block(format!("{} bytes are too few for a block", bytes.len())));
        }
        let (covered, checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
        if crc32c::crc32c(covered).to_le_bytes() != checksum {
            return damaged("the checksum does not match");
        }
        let timestamp_codec = TimestampCodec::from_number(covered[1] & 15)?;
        let status_codec = StatusCodec::from_number((covered[1] >> STATUS_SHIFT) & 3)?;
        let value_codec = ValueCodec::from_number(covered[2])?;
        if covered[1] & 0x80 != 0 {
            return damaged("a reserved bit is set");
        }
        let mut rest = &covered[3..];
        let count = if covered[1] & ONE_READING != 0 {
            1
        } else {
            match varint::take(&mut rest)? {
                1 => return damaged("the count of a single reading is a mark, not a number"),
                count if count > MAX_READINGS as u64 => {
                    return Err(Error::Block(format!("it claims {count} readings, at most {MAX_READINGS} fit")));
                }
                count => count as usize,
            }
        };
        let mut at = covered.len() - rest.len();
        let body = block.part(0, covered.len());
        let timestamps = timestamps::take_section(timestamp_codec, count, body, &mut at)?;
        let status_bytes = status_codec.section_bytes(count, &covered[at..])?;
        let Some(value_bytes) = (covered.len() - at).checked_sub(status_bytes) else {
            return damaged("its sections do not fit into it");
        };
        if !value_codec.fits(count, value_bytes) {
            return Err(Error::Block(format!("its sections cannot hold {count} readings")));
        }
        Ok(Self {
            count,
            timestamps,
            statuses: (status_codec, block.part(at, status_bytes)),
            values: (value_codec, block.part(at + status_bytes, value_bytes)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHOICES: [Choice; 5] = [
        Choice::Raw,
        Choice::Gorilla,
        Choice::Adaptive(Level::Fast),
        Choice::Adaptive(Level::Balanced),
        Choice::Adaptive(Level::Small),
    ];

    fn encoded(timestamps: &[i64], values: &[f64], statuses: &[i32], choice: Choice) -> Vec<u8> {
        let readings = Readings::new(timestamps, values, statuses).unwrap();
        let mut out = Vec::new();
        let (precision, mut plan) = (Precision::Exact, Plan::default());
        encode(readings, choice, precision, None, &mut plan, &mut Scratch::default(), &mut out).unwrap();
        out
    }

    fn parsed(bytes: &[u8]) -> Result<Block<'_>> {
        Block::parse(Section::new(bytes, bytes.len()))
    }

    #[test]
    fn an_empty_block_is_eight_bytes() {
        let block = encoded(&[], &[], &[], Choice::Gorilla);
        assert_eq!(block[..4], [1, 0, 0, 0]);
        assert_eq!(block.len(), BYTES_MIN);
        assert_eq!(parsed(&block).unwrap().count, 0);
    }

    #[test]
    fn a_block_is_never_much_larger_than_raw() {
        // What neither codec can do anything with.
        let noise =
            |k: u64| (k + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (k + 1).wrapping_mul(0xD1B5_4A32_D192_ED03) << 7;
        for count in [0, 1, 2, 127, 128, 1024, 4096] {
            let timestamps: Vec<i64> = (0..count).map(|k| noise(k).cast_signed()).collect();
            let values: Vec<f64> = (0..count).map(|k| f64::from_bits(noise(k).rotate_left(9))).collect();
            let statuses: Vec<i32> = (0..count).map(|k| noise(k) as i32).collect();
            let good = vec![0; statuses.len()];
            for choice in CHOICES {
                let raw = 16 * values.len();
                assert!(encoded(&timestamps, &values, &good, choice).len() <= raw + 16);
                assert!(encoded(&timestamps, &values, &statuses, choice).len() <= raw + 4 * values.len() + 16);
            }
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let block = encoded(&[1, 2, 3, 5], &[1.0, 2.0, f64::NAN, 0.1], &[0, 0, 7, 0], Choice::Gorilla);
        for bit in 0..8 * block.len() {
            let mut flipped = block.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(parsed(&flipped).is_err(), "bit {bit}");
        }
        for cut in 0..block.len() {
            assert!(parsed(&block[..cut]).is_err(), "cut to {cut}");
        }
    }

    #[test]
    fn a_hostile_frame_with_a_right_checksum_is_refused() {
        let refuse = |frame: &[u8], why: &str| {
            let mut block = frame.to_vec();
            block.extend(crc32c::crc32c(frame).to_le_bytes());
            let error = parsed(&block).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        };
        refuse(&[2, 0, 0, 0], "version 2");
        refuse(&[1, 0x0F, 0, 0], "timestamp codec 15");
        refuse(&[1, 0x30, 0, 0], "status codec 3");
        refuse(&[1, 0x80, 0, 0], "reserved bit");
        refuse(&[1, 0, 0xFF, 0], "value codec 255");
        refuse(&[1, 0, 0, 0x80, 0x80, 0x80], "varint");
        refuse(&[1, 0, 0, 1], "single reading");
        refuse(&[1, 1, 1, 0x81, 0x20, 0, 0], "4097 readings");
        refuse(&[1, 1, 1, 0x80, 0x20, 0, 0], "cannot hold 4096");
        refuse(&[1, 2, 1, 0x80, 0x20, 0, 0], "cannot hold 4096");
        refuse(&[1, 1, 1, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F], "too large");
        refuse(&[1, 0, 1, 2, 0], "do not fit");
        refuse(&[1, 0x20, 0, 0x80, 0x20, 0, 0], "do not fit");
        refuse(&[1, 0, 0, 0, 9], "cannot hold 0");
    }
}
