//! Which form suits a column: what each would cost, by a few values of it.

use crate::forms::{self, Form};
use crate::integers;

/// Runs of neighbouring values that are looked at, and how long each is.
const RUNS: usize = 4;
const RUN: usize = 24;
const FEW: usize = 8;
/// About the bits of an exception, and of one that is only a few units in the last place away.
const EXCEPTION_BITS: f64 = 72.0;
const NEAR_BITS: f64 = 14.0;
const NEAR_BITS_32: f64 = 44.0;
/// Units in the last place that count as near.
const NEAR: u64 = 1 << 8;
/// How far a binary32 or a binary64 may be off the number it stands for, relative to it.
const ERROR_32: f64 = 6.0e-8;
const ERROR_64: f64 = 1.2e-16;

/// A few values of a column.
pub struct Sample {
    values: Vec<f64>,
    /// A few of the few.
    few: [f64; FEW],
}

impl Sample {
    /// Of `values`, which are not empty.
    #[must_use]
    pub fn new(values: &[f64]) -> Self {
        let mut sample = Vec::with_capacity(RUNS * RUN);
        if values.len() <= RUNS * RUN {
            sample.extend_from_slice(values);
        } else {
            let last = values.len() - RUN;
            (0..RUNS).for_each(|k| sample.extend_from_slice(&values[k * last / (RUNS - 1)..][..RUN]));
        }
        let few = std::array::from_fn(|k| sample[k * sample.len() / FEW]);
        Self { values: sample, few }
    }

    /// Bits that a value would take as an integer of `form`, about.
    #[must_use]
    pub fn cost(&self, form: Form) -> f64 {
        let mut integers = vec![0; self.values.len()];
        let mut joined = vec![0.0; self.values.len()];
        let mut bits = 0.0;
        if !form.split(&self.values, &mut integers) {
            form.join(&integers, &mut joined);
            for at in 0..integers.len() {
                let distance = self.values[at].to_bits().wrapping_sub(joined[at].to_bits()).cast_signed();
                if distance != 0 {
                    let near = distance.unsigned_abs() < if form.is_32() { NEAR << 29 } else { NEAR };
                    bits += match (near, form.is_32()) {
                        (false, _) => EXCEPTION_BITS,
                        (true, false) => NEAR_BITS,
                        (true, true) => NEAR_BITS_32,
                    };
                    if !near {
                        integers[at] = if at > 0 { integers[at - 1] } else { 0 };
                    }
                }
            }
        }
        let mut steps = 0.0;
        let mut levels = 0.0;
        for run in integers.chunks(RUN) {
            let mean = run.iter().map(|number| *number as f64).sum::<f64>() / run.len() as f64;
            let middle = mean as i64;
            steps += integers::cost(run.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])));
            levels += integers::cost(run[1..].iter().map(|number| number.wrapping_sub(middle)));
        }
        let extra = match form {
            Form::Product(_) | Form::Product32(_) => 40.0,
            _ => 0.0,
        };
        (bits + steps.min(levels) + extra) / integers.len() as f64
    }

    /// The form of the fewest bits. `thorough` looks for scales too.
    #[must_use]
    pub fn best(&self, thorough: bool) -> Form {
        let mut best = (self.cost(Form::Bits), Form::Bits);
        let mut consider = |form: Form| {
            let cost = self.cost(form);
            if cost < best.0 {
                best = (cost, form);
            }
        };
        // Decimal fractions: once nothing is an exception, more digits only cost more.
        let mut limit = f64::INFINITY;
        for form in (0..16).map(forms::decimal).filter(|form| self.is_promising(*form)) {
            consider(form);
            if form.split(&self.values, &mut vec![0; self.values.len()]) {
                limit = form.divisor();
                break;
            }
        }
        let binary32 =
            self.values.iter().filter(|value| f64::from(**value as f32).to_bits() == value.to_bits()).count();
        let mostly_32 = binary32 * 10 >= self.values.len() * 9;
        if mostly_32 {
            consider(Form::Bits32);
            forms::quotients_32().filter(|form| self.is_promising(*form)).for_each(&mut consider);
        }
        if thorough {
            let products = (1..=6).map(|power| Form::Product(10_f64.powi(-power)));
            // Only a smaller divisor than that of exact decimals makes smaller integers.
            let others = forms::quotients().skip(16).filter(|form| form.divisor() < limit);
            others.chain(products).filter(|form| self.is_promising(*form)).for_each(&mut consider);
            let error = if mostly_32 { ERROR_32 } else { ERROR_64 };
            for scale in forms::find_scales(&self.values, error) {
                consider(if mostly_32 { Form::Product32(scale) } else { Form::Product(scale) });
            }
        }
        best.1
    }

    /// Whether a few values come back: most forms can be ruled out by that.
    fn is_promising(&self, form: Form) -> bool {
        let mut integers = [0; FEW];
        if form.split(&self.few, &mut integers) {
            return true;
        }
        let mut joined = [0.0; FEW];
        form.join(&integers, &mut joined);
        let exact = self.few.iter().zip(joined).filter(|(one, back)| one.to_bits() == back.to_bits()).count();
        2 * exact >= FEW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best(values: impl Iterator<Item = f64>) -> Form {
        Sample::new(&values.collect::<Vec<f64>>()).best(true)
    }

    #[test]
    fn the_form_of_a_signal_is_found() {
        let wave = |k: i32| (1000.0 * (f64::from(k) / 7.0).sin()).round();
        assert_eq!(best((0..1000).map(wave)), forms::decimal(0));
        assert_eq!(best((0..1000).map(|k| wave(k) / 100.0)), forms::decimal(2));
        assert_eq!(best((0..1000).map(|k| f64::from((wave(k) / 100.0) as f32))), Form::Quotient32(2));
        assert_eq!(best((0..1000).map(|k| (f64::from(k) / 7.0).sin())), Form::Bits);
        let noisy = (0..1000).map(|k| f64::from((f64::from(k * k) / 7.0).sin() as f32 * 1000.0));
        assert!(best(noisy).is_32());
        assert_eq!(best((0..1000).map(|k| wave(k) * 0.1)), Form::Product(0.1));
        assert_eq!(forms::decimal(2).join_one(5), best((0..1000).map(|k| wave(k) / 20.0)).join_one(1));
        assert_eq!(best((0..9).map(|_| f64::NAN)), Form::Bits);
    }
}
