//! Status codes: one column of i32 as a section. Almost always every status is good, which costs nothing.

use crate::bits::Section;
use crate::error::{Error, Result, damaged};
use crate::{raw, varint};

/// How a section holds status codes; the number is the block's nibble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusCodec {
    /// Every status is good (0); the section is empty.
    Good = 0,
    /// Runs of equal statuses: length and status, as varints.
    Runs = 1,
    /// Four bytes each, little-endian.
    Raw = 2,
}

impl StatusCodec {
    /// The codec with this number.
    ///
    /// # Errors
    /// No codec of this version has it.
    pub fn from_number(number: u8) -> Result<Self> {
        match number {
            0 => Ok(Self::Good),
            1 => Ok(Self::Runs),
            2 => Ok(Self::Raw),
            _ => Err(Error::Block(format!("status codec {number} is not known"))),
        }
    }

    /// The name people see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Runs => "runs",
            Self::Raw => "raw",
        }
    }

    /// How many bytes the section of `count` statuses has that begins at the head of `bytes`.
    ///
    /// # Errors
    /// It is not one: runs that are empty, too long or do not end.
    pub fn section_bytes(self, count: usize, bytes: &[u8]) -> Result<usize> {
        match self {
            Self::Good => Ok(0),
            Self::Raw => Ok(4 * count),
            Self::Runs => {
                let mut rest = bytes;
                let mut left = count;
                while left > 0 {
                    left -= take_run(&mut rest, left)?.0;
                }
                match bytes.len() - rest.len() {
                    taken if taken <= 4 * count => Ok(taken),
                    _ => damaged("the status section is larger than plain numbers"),
                }
            }
        }
    }
}

/// Append the shortest section to `out`.
pub fn encode(statuses: &[i32], out: &mut Vec<u8>) -> StatusCodec {
    if is_good(statuses) {
        return StatusCodec::Good;
    }
    let start = out.len();
    let limit = start + 4 * statuses.len();
    for run in statuses.chunk_by(i32::eq) {
        // A run is at most 4096 readings.
        varint::put(out, run.len() as u64);
        varint::put_signed(out, i64::from(run[0]));
        if out.len() > limit {
            out.truncate(start);
            raw::put(statuses, i32::to_le_bytes, out);
            return StatusCodec::Raw;
        }
    }
    StatusCodec::Runs
}

fn is_good(statuses: &[i32]) -> bool {
    // No early exit: the compiler makes this a handful of vector instructions.
    statuses.iter().fold(0, |any, status| any | status) == 0
}

/// Append `count` statuses to `out`, from a section.
///
/// # Errors
/// The section does not hold exactly `count` statuses.
pub fn decode((codec, section): (StatusCodec, Section), count: usize, out: &mut Vec<i32>) -> Result<()> {
    let end = out.len() + count;
    let mut section = section.bytes();
    match codec {
        StatusCodec::Good => out.resize(end, 0),
        StatusCodec::Runs => {
            while !section.is_empty() {
                let (run, status) = take_run(&mut section, end - out.len())?;
                out.resize(out.len() + run, status);
            }
        }
        StatusCodec::Raw => {
            let start = out.len();
            out.resize(end, 0);
            raw::take(section, i32::from_le_bytes, &mut out[start..])?;
        }
    }
    if out.len() != end || (codec == StatusCodec::Good && !section.is_empty()) {
        return damaged("the status section does not hold one status for each reading");
    }
    Ok(())
}

/// Take the length and the status of a run of at most `left`.
fn take_run(section: &mut &[u8], left: usize) -> Result<(usize, i32)> {
    let run = varint::take(section)?;
    let status = varint::take_signed(section)?;
    match i32::try_from(status) {
        Ok(status) if run > 0 && run <= left as u64 => Ok((run as usize, status)),
        Ok(_) => damaged("a run of statuses is empty or longer than the block"),
        Err(_) => damaged("a status has more than 32 bits"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(statuses: &[i32]) -> (StatusCodec, usize) {
        let mut section = Vec::new();
        let codec = encode(statuses, &mut section);
        assert_eq!(codec.section_bytes(statuses.len(), &section), Ok(section.len()));
        let mut decoded = Vec::new();
        decode((codec, Section::new(&section, section.len())), statuses.len(), &mut decoded).unwrap();
        assert_eq!(decoded, statuses);
        for cut in 0..section.len() {
            assert!(decode((codec, Section::new(&section, cut)), statuses.len(), &mut Vec::new()).is_err());
        }
        (codec, section.len())
    }

    #[test]
    fn good_statuses_cost_nothing() {
        assert_eq!(round_trip(&[]), (StatusCodec::Good, 0));
        assert_eq!(round_trip(&[0; 4096]), (StatusCodec::Good, 0));
    }

    #[test]
    fn runs_come_back() {
        let bad = 0x8000_0000_u32.cast_signed();
        let mut statuses = vec![0; 300];
        statuses[7] = bad;
        statuses[200..].fill(0x4000_0000);
        assert_eq!(round_trip(&statuses), (StatusCodec::Runs, 2 + 6 + 3 + 6));
        assert_eq!(round_trip(&[bad]), (StatusCodec::Raw, 4));
        assert_eq!(round_trip(&[i32::MAX, i32::MIN, i32::MAX, i32::MIN]), (StatusCodec::Raw, 16));
    }

    #[test]
    fn impossible_runs_are_errors() {
        for section in [
            &[0, 0][..],
            &[0, 0, 2, 0],
            &[2, 0, 0, 0],
            &[3, 0],
            &[2, 0, 1, 0],
            &[1, 0],
            &[2],
            &[0xFF, 0xFF, 0xFF, 0xFF, 0x0F, 0],
        ] {
            let runs = (StatusCodec::Runs, Section::new(section, section.len()));
            assert!(decode(runs, 2, &mut Vec::new()).is_err(), "{section:?}");
        }
    }
}
