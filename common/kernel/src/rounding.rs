//! Declared precision: values are moved by no more than the user allows, so that they take fewer bits.

use crate::error::{Error, Result};
use crate::forms::{self, Form};

/// How exact the values of a block have to be.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Precision {
    /// Bit for bit.
    #[default]
    Exact,
    /// Off by no more than this.
    MaxError(f64),
    /// The nearest multiple of this.
    Resolution(f64),
}

/// How much of the allowed error is left to the rounding of the arithmetic, and so that a value half-way between two
/// steps is not beyond the bound of both.
const RESERVE: f64 = 1.0 / 4096.0;

impl Precision {
    /// The precision with these two numbers, of which zero and not-a-number stand for nothing declared.
    ///
    /// # Errors
    /// One is negative or infinite, or both are declared.
    pub fn declared(max_error: f64, resolution: f64) -> Result<Self> {
        let given = |number: f64| !(number.is_nan() || number == 0.0);
        for (name, number) in [("max_error", max_error), ("resolution", resolution)] {
            if given(number) && !(number > 0.0 && number.is_finite()) {
                return Err(Error::Input(format!("{name} must be a positive number, not {number}")));
            }
        }
        match (given(max_error), given(resolution)) {
            (false, false) => Ok(Self::Exact),
            (true, false) => Ok(Self::MaxError(max_error)),
            (false, true) => Ok(Self::Resolution(resolution)),
            (true, true) => Err(Error::Input("max_error and resolution exclude each other".to_owned())),
        }
    }

    /// The form in which rounded values are integers, and how far off they may be; none if nothing is to be rounded or
    /// the numbers are too small or large to compute with.
    #[must_use]
    pub fn grid(self) -> Option<Grid> {
        let (form, allowed) = match self {
            Self::Exact => return None,
            Self::MaxError(error) => {
                let scale = round_down(2.0 * error * (1.0 - RESERVE));
                (Form::Product(f64::from(scale)), error)
            }
            Self::Resolution(step) => {
                let quotient = forms::quotients().find(|form| form.join_one(1).to_bits() == step.to_bits());
                (quotient.unwrap_or(Form::Product(step)), f64::from(round_up(step / 2.0 * (1.0 + f64::EPSILON))))
            }
        };
        let step = form.join_one(1);
        let bound = round_up(allowed);
        (step >= f64::from(f32::MIN_POSITIVE) && bound.is_finite()).then_some(Grid { form, allowed, bound })
    }
}

/// Where rounded values may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    /// In which they are integers.
    pub form: Form,
    allowed: f64,
    /// What the block says: no value is off by more.
    pub bound: f32,
}

impl Grid {
    /// Move `values` to the grid. What cannot be moved within the bound stays as it is: not-a-number, infinities, and
    /// numbers too large for their neighbours to be within it.
    pub fn round(&self, values: &[f64], rounded: &mut Vec<f64>) {
        let mut integers = vec![0; values.len()];
        // What comes back exactly or not does not matter here.
        let _ = self.form.split(values, &mut integers);
        rounded.resize(values.len(), 0.0);
        self.form.join(&integers, rounded);
        for (value, round) in values.iter().zip(rounded) {
            if !is_within(*value, *round, self.allowed) {
                *round = *value;
            }
        }
    }
}

/// Whether two numbers are no further apart, even before the difference is rounded.
fn is_within(one: f64, other: f64, allowed: f64) -> bool {
    let difference = (one - other).abs();
    // A difference that rounds to less than the number below `allowed` is itself less than `allowed`.
    difference <= allowed.next_down()
}

fn round_down(number: f64) -> f32 {
    let near = number as f32;
    if f64::from(near) > number { near.next_down() } else { near }
}

fn round_up(number: f64) -> f32 {
    let near = number as f32;
    if f64::from(near) < number { near.next_up() } else { near }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_is_off_by_more_than_allowed() {
        let hostile =
            [0.0, -0.0, 5e-324, 1e300, -1e300, f64::INFINITY, f64::NAN, f64::MAX, 0.05, 0.15, 1e15, 3e8 + 0.05];
        let wave = (0..1000).map(|k| 100.0 * (f64::from(k) / 9.0).sin());
        let decimals = (0..1000).map(|k| f64::from(k) / 100.0);
        let values: Vec<f64> = hostile.into_iter().chain(wave).chain(decimals).collect();
        for size in [1e-30, 1e-9, 0.001, 0.05, 0.1, 0.5, 1.0, 7.0, 1e9] {
            for (precision, bound) in [
                (Precision::MaxError(size), size),
                (Precision::Resolution(2.0 * size), f64::from(round_up(size * (1.0 + f64::EPSILON)))),
            ] {
                let grid = precision.grid().unwrap();
                let mut rounded = Vec::new();
                grid.round(&values, &mut rounded);
                for (value, round) in values.iter().zip(&rounded) {
                    let same = value.to_bits() == round.to_bits();
                    assert!(same || (value - round).abs() <= bound, "{precision:?}: {value} became {round}");
                    assert!(f64::from(grid.bound) >= bound);
                }
            }
        }
    }

    #[test]
    fn ties_are_not_exceptions() {
        let grid = Precision::MaxError(0.05).grid().unwrap();
        let values: Vec<f64> = (0..2000).map(|k| f64::from(k) / 100.0).collect();
        let mut rounded = Vec::new();
        grid.round(&values, &mut rounded);
        assert!(grid.form.split(&rounded, &mut vec![0; 2000]));
    }

    #[test]
    fn a_decimal_resolution_gives_decimals() {
        let mut rounded = Vec::new();
        Precision::Resolution(0.1).grid().unwrap().round(&[0.31, 20.26, -7.04], &mut rounded);
        assert_eq!(rounded, [0.3, 20.3, -7.0]);
        Precision::Resolution(0.05).grid().unwrap().round(&[0.31, 20.26], &mut rounded);
        assert_eq!(rounded, [0.3, 20.25]);
        Precision::Resolution(5.0).grid().unwrap().round(&[31.0, -42.6], &mut rounded);
        assert_eq!(rounded, [30.0, -45.0]);
    }

    #[test]
    fn what_was_declared_is_checked() {
        assert_eq!(Precision::declared(0.0, f64::NAN), Ok(Precision::Exact));
        assert_eq!(Precision::declared(0.5, 0.0), Ok(Precision::MaxError(0.5)));
        for (max_error, resolution) in [(-1.0, 0.0), (0.0, f64::INFINITY), (1.0, 1.0)] {
            assert!(Precision::declared(max_error, resolution).is_err());
        }
        assert_eq!(Precision::MaxError(5e-324).grid(), None);
        assert_eq!(Precision::MaxError(1e300).grid(), None);
    }
}
