//! One block: header, timestamp section, status section, value section, checksum (docs/wire-format.md).

use crate::bits::Section;
use crate::error::{Error, Result, damaged};
use crate::statuses::{self, StatusCodec};
use crate::timestamps::{self, TimestampCodec};
use crate::values::ValueCodec;
use crate::{gorilla, raw, varint};

/// Readings a block may hold.
pub const MAX_READINGS: usize = 4096;
/// The format this kernel writes, and the newest it reads.
pub const VERSION: u8 = 1;

const CHECKSUM_BYTES: usize = 4;
/// The smallest block: version, two bytes of codecs, three varints of one byte, checksum.
pub const BYTES_MIN: usize = 3 + 3 + CHECKSUM_BYTES;

/// What the caller asks of the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Every section as plain little-endian numbers (statuses: as short as they get).
    Raw,
    /// Delta of delta and Gorilla XOR; a section that would be larger than raw is raw.
    Gorilla,
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
            _ => Err(Error::Input(format!("codec {name:?} is not known; the codecs are \"raw\" and \"gorilla\""))),
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
pub struct Scratch {
    section: Vec<u8>,
}

impl Scratch {
    /// Room for blocks of up to `count` readings.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self { section: vec![0; timestamps::bytes_max(count).max(gorilla::bytes_max(count))] }
    }
}

/// Append one block to `out`. `scratch` has room for as many readings.
///
/// # Errors
/// There are more than [`MAX_READINGS`].
pub fn encode(readings: Readings, choice: Choice, scratch: &mut Scratch, out: &mut Vec<u8>) -> Result<()> {
    let count = readings.count();
    if count > MAX_READINGS {
        return Err(Error::Input(format!("{count} readings, at most {MAX_READINGS} fit into a block")));
    }
    let start = out.len();
    let raw_bytes = 8 * count;
    out.extend([VERSION, 0, 0]);
    varint::put(out, count as u32);

    let mut status_section = Vec::new();
    let status_codec = statuses::encode(readings.statuses, &mut status_section);
    let mut timestamp_codec = TimestampCodec::Raw;
    let mut timestamp_bytes = raw_bytes;
    if choice == Choice::Gorilla {
        let bytes = timestamps::encode(readings.timestamps, &mut scratch.section);
        if bytes < raw_bytes {
            (timestamp_codec, timestamp_bytes) = (TimestampCodec::DeltaOfDelta, bytes);
        }
    }
    varint::put(out, timestamp_bytes as u32);
    varint::put(out, status_section.len() as u32);
    match timestamp_codec {
        TimestampCodec::Raw => raw::put(readings.timestamps, i64::to_le_bytes, out),
        TimestampCodec::DeltaOfDelta => out.extend_from_slice(&scratch.section[..timestamp_bytes]),
    }
    out.extend_from_slice(&status_section);

    let mut value_codec = ValueCodec::Raw;
    if choice == Choice::Gorilla {
        let bytes = gorilla::encode(readings.values, &mut scratch.section);
        if bytes < raw_bytes {
            value_codec = ValueCodec::Gorilla;
            out.extend_from_slice(&scratch.section[..bytes]);
        }
    }
    if value_codec == ValueCodec::Raw {
        raw::put(readings.values, f64::to_le_bytes, out);
    }

    out[start + 1] = timestamp_codec as u8 | (status_codec as u8) << 4;
    out[start + 2] = value_codec as u8;
    let checksum = crc32c::crc32c(&out[start..]);
    out.extend(checksum.to_le_bytes());
    Ok(())
}

/// A block whose frame is valid: its codecs and its three sections.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// Number of readings, at most [`MAX_READINGS`].
    pub count: usize,
    /// How the timestamps are held, and where.
    pub timestamps: (TimestampCodec, Section<'a>),
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
        let status_codec = StatusCodec::from_number(covered[1] >> 4)?;
        let value_codec = ValueCodec::from_number(covered[2])?;
        let mut sections = &covered[3..];
        let count = varint::take(&mut sections)? as usize;
        let timestamp_bytes = varint::take(&mut sections)? as usize;
        let status_bytes = varint::take(&mut sections)? as usize;
        if count > MAX_READINGS {
            return Err(Error::Block(format!("it claims {count} readings, at most {MAX_READINGS} fit")));
        }
        // One after the other: the sum of two lengths from outside may not fit into a word.
        let value_bytes = sections.len().checked_sub(timestamp_bytes).and_then(|left| left.checked_sub(status_bytes));
        let Some(value_bytes) = value_bytes else {
            return damaged("its sections do not fit into it");
        };
        if !timestamp_codec.fits(count, timestamp_bytes)
            || !status_codec.fits(count, status_bytes)
            || !value_codec.fits(count, value_bytes)
        {
            return Err(Error::Block(format!("its sections cannot hold {count} readings")));
        }
        let statuses_at = covered.len() - sections.len() + timestamp_bytes;
        Ok(Self {
            count,
            timestamps: (timestamp_codec, block.part(statuses_at - timestamp_bytes, timestamp_bytes)),
            statuses: (status_codec, block.part(statuses_at, status_bytes)),
            values: (value_codec, block.part(statuses_at + status_bytes, value_bytes)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(timestamps: &[i64], values: &[f64], statuses: &[i32], choice: Choice) -> Vec<u8> {
        let readings = Readings::new(timestamps, values, statuses).unwrap();
        let mut out = Vec::new();
        encode(readings, choice, &mut Scratch::new(timestamps.len()), &mut out).unwrap();
        out
    }

    fn parsed(bytes: &[u8]) -> Result<Block<'_>> {
        Block::parse(Section::new(bytes, bytes.len()))
    }

    #[test]
    fn an_empty_block_is_ten_bytes() {
        let block = encoded(&[], &[], &[], Choice::Gorilla);
        assert_eq!(block[..6], [1, 0, 0, 0, 0, 0]);
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
            for choice in [Choice::Raw, Choice::Gorilla] {
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
        refuse(&[2, 0, 0, 0, 0, 0], "version 2");
        refuse(&[1, 0x0F, 0, 0, 0, 0], "timestamp codec 15");
        refuse(&[1, 0xF0, 0, 0, 0, 0], "status codec 15");
        refuse(&[1, 0, 0xFF, 0, 0, 0], "value codec 255");
        refuse(&[1, 0, 0, 0x80, 0x80, 0x80], "varint");
        refuse(&[1, 1, 1, 0x81, 0x20, 0, 0], "4097 readings");
        refuse(&[1, 1, 1, 0x80, 0x20, 0, 0], "cannot hold 4096");
        refuse(&[1, 1, 1, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F], "do not fit");
        refuse(&[1, 0, 0, 0, 0, 0, 9], "cannot hold 0");
    }
}
