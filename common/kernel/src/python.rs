//! The Python module `common._kernel`: arrays in, arrays out, errors as Python's; no logic of its own.

// PyO3 hands arguments over by value.
#![allow(clippy::needless_pass_by_value)]

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::batch;
use crate::bits::Section;
use crate::block::{Block, Choice, MAX_READINGS, Readings, VERSION};
use crate::error::Error;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pyo3::import_exception!(common.errors, CodecError);

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match error {
            Error::Input(message) => PyValueError::new_err(message),
            Error::Block(message) => CodecError::new_err(message),
        }
    }
}

type Decoded<'py> =
    (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<i32>>, Bound<'py, PyArray1<i64>>);

/// Blocks of readings to bytes; see common/codec.py.
#[pyfunction]
#[pyo3(signature = (ts, values, statuses, offsets, codec = "gorilla"))]
fn encode_blocks<'py>(
    py: Python<'py>,
    ts: PyReadonlyArray1<'py, i64>,
    values: PyReadonlyArray1<'py, f64>,
    statuses: PyReadonlyArray1<'py, i32>,
    offsets: PyReadonlyArray1<'py, i64>,
    codec: &str,
) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyArray1<i64>>)> {
    let choice = Choice::from_name(codec)?;
    let (ts, values, statuses, offsets) =
        (ts.as_slice()?, values.as_slice()?, statuses.as_slice()?, offsets.as_slice()?);
    let (data, sizes) = py.detach(|| batch::encode(Readings::new(ts, values, statuses)?, offsets, choice))?;
    Ok((PyBytes::new(py, &data), sizes.into_pyarray(py)))
}

/// Bytes to the readings of their blocks; see common/codec.py.
#[pyfunction]
fn decode_blocks<'py>(
    py: Python<'py>,
    data: &Bound<'py, PyAny>,
    sizes: PyReadonlyArray1<'py, i64>,
) -> PyResult<Decoded<'py>> {
    let sizes = sizes.as_slice()?;
    let columns = with_bytes(data, |data| py.detach(|| batch::decode(data, sizes)))??;
    Ok((
        columns.timestamps.into_pyarray(py),
        columns.values.into_pyarray(py),
        columns.statuses.into_pyarray(py),
        columns.counts.into_pyarray(py),
    ))
}

/// What one block says of itself; see common/codec.py.
#[pyfunction]
fn describe_block<'py>(py: Python<'py>, data: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
    with_bytes(data, |data| {
        let block = Block::parse(Section::new(data, data.len()))?;
        let description = PyDict::new(py);
        description.set_item("version", VERSION)?;
        description.set_item("count", block.count)?;
        description.set_item("timestamp_codec", block.timestamps.0.name())?;
        description.set_item("status_codec", block.statuses.0.name())?;
        description.set_item("value_codec", block.values.0.name())?;
        description.set_item("timestamp_bytes", block.timestamps.1.bytes().len())?;
        description.set_item("status_bytes", block.statuses.1.bytes().len())?;
        description.set_item("value_bytes", block.values.1.bytes().len())?;
        description.set_item("total_bytes", data.len())?;
        Ok(description)
    })?
}

/// Lend the bytes of `data`. Only `bytes` cannot change while the GIL is released, so all else is copied first.
fn with_bytes<T>(data: &Bound<'_, PyAny>, use_bytes: impl FnOnce(&[u8]) -> T) -> PyResult<T> {
    if let Ok(bytes) = data.cast::<PyBytes>() {
        return Ok(use_bytes(bytes.as_bytes()));
    }
    Ok(use_bytes(&PyBuffer::<u8>::get(data)?.to_vec(data.py())?))
}

#[pymodule]
fn _kernel(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("MAX_READINGS", MAX_READINGS)?;
    module.add("BLOCK_VERSION", VERSION)?;
    module.add_function(wrap_pyfunction!(encode_blocks, module)?)?;
    module.add_function(wrap_pyfunction!(decode_blocks, module)?)?;
    module.add_function(wrap_pyfunction!(describe_block, module)?)
}
