//! Block codecs of Forebay.
//!
//! One block holds up to [`block::MAX_READINGS`] readings of one series: timestamps (i64 microseconds), values
//! (f64) and status codes (i32), each in a section of its own. The format is specified to the bit in
//! `docs/wire-format.md`.
//!
//! The modules stack bottom-up and each reads alone: `bits`, `varint` and `raw` move bits and numbers; `pack`, `range`,
//! `residuals`, `symbols` and `predict` are ways to hold integers, of which `integers` picks one. `forms` sees values as
//! integers, `exceptions` holds those it cannot, `numbers` puts the two together; `gorilla` and `dictionary` are the other
//! ways to hold values, `rounding` prepares them where a precision is declared, `probe` and `values` choose. `timestamps`
//! and `statuses` each turn their column into a section, `block` frames the three sections, `batch` moves many blocks
//! per call. `python` is a thin shell; nothing below it knows Python.
#![forbid(unsafe_code)]

pub mod batch;
pub mod bits;
pub mod block;
pub mod dictionary;
pub mod error;
pub mod exceptions;
pub mod forms;
pub mod gorilla;
pub mod integers;
pub mod numbers;
pub mod pack;
pub mod predict;
pub mod probe;
#[cfg(feature = "python")]
mod python;
pub mod range;
pub mod raw;
pub mod residuals;
pub mod rounding;
pub mod statuses;
pub mod symbols;
pub mod timestamps;
pub mod values;
pub mod varint;
