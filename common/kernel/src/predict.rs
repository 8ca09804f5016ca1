//! What the next integer of a block will be, from those before it.
//!
//! Four simple guesses (the last one, the straight line through the last two, two moving means, the mean) and a linear
//! filter over the last 16 steps that learns by normalised least mean squares (Widrow and Hoff 1960; the use for
//! lossless coding follows Monkey's Audio and `OptimFROG`). Their average counts, each weighted by how little it has erred
//! of late. Noise around a level, slow drift, vibration and steps all find their guess within a few readings, and
//! nothing has to be sent.
//!
//! All is binary64 arithmetic in the order written here, which is the same on every machine.

use crate::forms::nearest;

/// Steps that the filter looks back.
const TAPS: usize = 16;
const ROOM: usize = 16 * TAPS;
const GUESSES: usize = 6;
/// How fast the filter learns.
const LEARN: f64 = 0.02;
/// A guess further away than 2^51 is none.
const GUESS_MAX: f64 = 2_251_799_813_685_248.0;
/// How fast the error of a guess is forgotten.
const FORGET: f64 = 0.06;

/// Predicts integers relative to the first of a block.
pub struct Predictor {
    first: i64,
    last: f64,
    before: f64,
    quick: f64,
    slow: f64,
    mean: f64,
    seen: f64,
    weights: [f64; TAPS],
    /// The last steps, the newest at `newest + TAPS - 1`; moved to the front now and then, so that they are in one piece.
    steps: [f64; ROOM],
    newest: usize,
    power: f64,
    guesses: [f64; GUESSES],
    errors: [f64; GUESSES],
}

impl Predictor {
    /// A predictor of what follows `first`.
    #[must_use]
    pub fn new(first: i64) -> Self {
        Self {
            first,
            last: 0.0,
            before: 0.0,
            quick: 0.0,
            slow: 0.0,
            mean: 0.0,
            seen: 1.0,
            weights: [0.0; TAPS],
            steps: [0.0; ROOM],
            newest: 0,
            power: 1.0,
            guesses: [0.0; GUESSES],
            errors: [1.0; GUESSES],
        }
    }

    #[inline(always)]
    fn steps(&self) -> [f64; TAPS] {
        *self.steps[self.newest..].first_chunk().unwrap_or(&[0.0; TAPS])
    }

    /// The next integer.
    #[inline(always)]
    pub fn predict(&mut self) -> i64 {
        // Four sums, so that the processor need not wait for one addition to begin the next.
        let mut sums = [0.0; 4];
        let steps = self.steps();
        for k in 0..TAPS {
            sums[k % 4] += self.weights[k] * steps[k];
        }
        let filtered = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        let last = self.last;
        self.guesses = [last, 2.0 * last - self.before, self.quick, self.slow, self.mean, last + filtered];
        let trusts = self.errors.map(|error| {
            let inverse = 1.0 / (error + 0.01);
            (inverse * inverse) * (inverse * inverse)
        });
        let (mut weight, mut sum) = (0.0, 0.0);
        for (guess, trust) in self.guesses.iter().zip(trusts) {
            weight += trust;
            sum += trust * guess;
        }
        let guess = sum / weight;
        // Not-a-number fails the comparison too; its bits are not the same on every machine.
        let near = if guess.abs() < GUESS_MAX { nearest(guess) } else { 0 };
        self.first.wrapping_add(near)
    }

    /// Learn what it was; after every [`Predictor::predict`].
    #[inline(always)]
    pub fn learn(&mut self, actual: i64) {
        let actual = actual.wrapping_sub(self.first) as f64;
        for (error, guess) in self.errors.iter_mut().zip(self.guesses) {
            let miss = actual - guess;
            *error += (miss * miss - *error) * FORGET;
        }
        let gain = LEARN / (self.power / TAPS as f64 + 1.0) * (actual - self.guesses[GUESSES - 1]);
        let steps = self.steps();
        let oldest = steps[0];
        for (weight, step) in self.weights.iter_mut().zip(steps) {
            *weight += gain * step;
        }
        let step = actual - self.last;
        self.power += step * step - oldest * oldest;
        if self.newest + TAPS == ROOM {
            self.steps.copy_within(ROOM - TAPS.., 0);
            self.newest = 0;
        }
        self.steps[self.newest + TAPS] = step;
        self.newest += 1;
        self.before = self.last;
        self.last = actual;
        self.quick += (actual - self.quick) * 0.5;
        self.slow += (actual - self.slow) * 0.15;
        self.seen += 1.0;
        self.mean += (actual - self.mean) / if self.seen < 200.0 { self.seen } else { 200.0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn misses(column: impl Iterator<Item = i64>) -> Vec<i64> {
        let mut predictor = Predictor::new(0);
        column
            .map(|actual| {
                let miss = actual.wrapping_sub(predictor.predict());
                predictor.learn(actual);
                miss
            })
            .collect()
    }

    #[test]
    fn a_line_a_level_and_a_wave_are_learnt() {
        assert!(misses((0..300).map(|k| 1000 * k)).iter().skip(100).all(|miss| miss.abs() < 20));
        assert!(misses((0..300).map(|_| 77)).iter().skip(50).all(|miss| *miss == 0));
        let wave = misses((0..2000).map(|k| (1e6 * (f64::from(k) * 0.7).sin()) as i64));
        assert!(wave.iter().skip(1500).all(|miss| miss.abs() < 50_000));
    }

    #[test]
    fn extremes_do_no_harm() {
        misses((0..300).map(|k| if k % 3 == 0 { i64::MIN } else { i64::MAX - k }));
    }
}
