//! A binary range coder with adaptive probabilities: each yes-or-no takes as many bits as it was unexpected.
//!
//! Martin, "Range encoding: an algorithm for removing redundancy from a digitised message", 1979, in the carryless form
//! of Mahoney's lpaq (two bounds of 32 bits; their common leading bytes are written as soon as they are known).

/// Learns how likely a yes is in one place of the model.
#[derive(Debug, Clone, Copy)]
pub struct Chance {
    /// Probability of a yes, in 1/65536.
    yes: u16,
    /// How many answers it stands for: the more, the less the next one changes it.
    seen: u8,
}

/// Answers that a guess made in advance counts for.
const SEEN_AT_FIRST: u8 = 3;
/// A chance never counts more answers than this, so that it follows a signal that changes.
const SEEN_MAX: u8 = 127;
/// No answer is ever taken for granted: 1/2048, or more than 11 bits for one that comes as a surprise.
const CHANCE_MIN: i32 = 32;
/// How much of the error goes into the chance after so many answers: 65536 / (n + 1.5).
const RATES: [i32; SEEN_MAX as usize + 1] = {
    let mut rates = [0; SEEN_MAX as usize + 1];
    let mut seen = 0;
    while seen <= SEEN_MAX as usize {
        rates[seen] = (131_072 / (2 * seen + 3)) as i32;
        seen += 1;
    }
    rates
};

impl Chance {
    /// A chance of `yes`/65536 until answers say otherwise.
    #[must_use]
    pub const fn new(yes: u16) -> Self {
        Self { yes, seen: SEEN_AT_FIRST }
    }

    #[inline(always)]
    fn learn(&mut self, answer: bool) {
        let target = if answer { 65_536 - CHANCE_MIN } else { CHANCE_MIN };
        let yes = i32::from(self.yes);
        self.yes = (yes + (((target - yes) * (RATES[usize::from(self.seen & SEEN_MAX)] >> 2)) >> 14)) as u16;
        self.seen += u8::from(self.seen < SEEN_MAX);
    }
}

/// Where between two bounds an answer divides: a yes is below or at it.
#[inline(always)]
fn divide(low: u32, high: u32, chance: Chance) -> u32 {
    low + ((u64::from(high - low) * u64::from(chance.yes)) >> 16) as u32
}

/// Writes answers.
pub struct RangeEncoder<'a> {
    out: &'a mut Vec<u8>,
    low: u32,
    high: u32,
}

impl<'a> RangeEncoder<'a> {
    /// Answers to be appended to `out`.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, low: 0, high: u32::MAX }
    }

    /// Append one answer, and learn from it.
    #[inline(always)]
    pub fn put(&mut self, chance: &mut Chance, answer: bool) {
        let middle = divide(self.low, self.high, *chance);
        if answer {
            self.high = middle;
        } else {
            self.low = middle + 1;
        }
        chance.learn(answer);
        while (self.low ^ self.high) >> 24 == 0 {
            self.out.push((self.high >> 24) as u8);
            self.low <<= 8;
            self.high = self.high << 8 | 0xFF;
        }
    }

    /// Append the fewest bytes that, with zeros behind them, lie between the bounds.
    pub fn finish(self) {
        let start = self.out.len();
        for keep in [0, 8, 16, 24, 32] {
            // Round the upper bound down to so many leading bits.
            let point = if keep == 0 { 0 } else { self.high >> (32 - keep) << (32 - keep) };
            if point >= self.low {
                self.out.extend_from_slice(&point.to_be_bytes()[..keep / 8]);
                break;
            }
        }
        debug_assert!(self.out.len() - start <= 4);
    }
}

/// Reads answers. Behind the last byte it reads zeros, for as long as it is asked.
pub struct RangeDecoder<'a> {
    bytes: &'a [u8],
    at: usize,
    low: u32,
    high: u32,
    code: u32,
}

impl<'a> RangeDecoder<'a> {
    /// Answers from `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        let mut decoder = Self { bytes, at: 0, low: 0, high: u32::MAX, code: 0 };
        for _ in 0..4 {
            decoder.shift();
        }
        decoder.low = 0;
        decoder.high = u32::MAX;
        decoder
    }

    #[inline(always)]
    fn shift(&mut self) {
        self.low <<= 8;
        self.high = self.high << 8 | 0xFF;
        self.code = self.code << 8 | u32::from(self.bytes.get(self.at).copied().unwrap_or(0));
        self.at += 1;
    }

    /// Take one answer, and learn from it.
    #[inline(always)]
    pub fn take(&mut self, chance: &mut Chance) -> bool {
        let middle = divide(self.low, self.high, *chance);
        let answer = self.code <= middle;
        if answer {
            self.high = middle;
        } else {
            self.low = middle + 1;
        }
        chance.learn(answer);
        while (self.low ^ self.high) >> 24 == 0 {
            self.shift();
        }
        answer
    }

    /// Whether the answers taken so far need every byte: none was left over.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(answers: &[bool], chances: usize) -> usize {
        let mut bytes = Vec::new();
        let mut model = vec![Chance::new(32_768); chances];
        let mut encoder = RangeEncoder::new(&mut bytes);
        for (k, answer) in answers.iter().enumerate() {
            encoder.put(&mut model[k % chances], *answer);
        }
        encoder.finish();
        let mut model = vec![Chance::new(32_768); chances];
        let mut decoder = RangeDecoder::new(&bytes);
        for (k, answer) in answers.iter().enumerate() {
            assert_eq!(decoder.take(&mut model[k % chances]), *answer, "answer {k}");
        }
        assert!(decoder.is_at_end());
        bytes.len()
    }

    #[test]
    fn answers_come_back() {
        let mut state = 1_u64;
        for count in [0, 1, 2, 7, 100, 5000] {
            for likely in [1, 8, 50, 99] {
                let answers: Vec<bool> = (0..count)
                    .map(|_| {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        (state >> 33) % 100 < likely
                    })
                    .collect();
                round_trip(&answers, 1);
                round_trip(&answers, 3);
            }
        }
    }

    #[test]
    fn what_is_expected_costs_next_to_nothing() {
        assert!(round_trip(&[true; 4096], 1) < 16);
        assert!(round_trip(&[false; 4096], 1) < 16);
    }
}
