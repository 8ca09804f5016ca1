//! The Python module `common._kernel`: arrays in, arrays out, errors as Python's; no logic of its own.

// PyO3 hands arguments over by value.
#![allow(clippy::needless_pass_by_value)]

use std::sync::{Mutex, MutexGuard, PoisonError};

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::batch::{self, READINGS_PER_CALL_MAX, Request};
use crate::bits::Section;
use crate::block::{Block, Choice, MAX_READINGS, Readings, VERSION};
use crate::error::Error;
use crate::rounding::Precision;
use crate::values::{self, Plan};

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

/// What suited the last block of each series; see common/codec.py.
#[pyclass(frozen)]
struct Sticky {
    plans: Mutex<Vec<Plan>>,
}

#[pymethods]
impl Sticky {
    #[new]
    fn new(series: usize) -> Self {
        Self { plans: Mutex::new(vec![Plan::default(); series]) }
    }

    fn __len__(&self) -> usize {
        self.lock().len()
    }
}

impl Sticky {
    fn lock(&self) -> MutexGuard<'_, Vec<Plan>> {
        // Plans are hints: whatever a panic left behind is as good as any.
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Blocks of readings to bytes; see common/codec.py.
#[pyfunction]
#[pyo3(signature = (ts, values, statuses, offsets, codec, groups, sticky, series, max_error, resolution))]
#[allow(clippy::too_many_arguments)] // common/codec.py names them
fn encode_blocks<'py>(
    py: Python<'py>,
    ts: PyReadonlyArray1<'py, i64>,
    values: PyReadonlyArray1<'py, f64>,
    statuses: PyReadonlyArray1<'py, i32>,
    offsets: PyReadonlyArray1<'py, i64>,
    codec: &str,
    groups: Option<PyReadonlyArray1<'py, i64>>,
    sticky: Option<Bound<'py, Sticky>>,
    series: Option<PyReadonlyArray1<'py, i64>>,
    max_error: Option<PyReadonlyArray1<'py, f64>>,
    resolution: Option<PyReadonlyArray1<'py, f64>>,
) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyArray1<i64>>)> {
    let choice = Choice::from_name(codec)?;
    let (ts, values, statuses, offsets) =
        (ts.as_slice()?, values.as_slice()?, statuses.as_slice()?, offsets.as_slice()?);
    let groups = groups.as_ref().map(PyReadonlyArray1::as_slice).transpose()?;
    let series = series.as_ref().map(PyReadonlyArray1::as_slice).transpose()?;
    let max_error = max_error.as_ref().map(PyReadonlyArray1::as_slice).transpose()?;
    let resolution = resolution.as_ref().map(PyReadonlyArray1::as_slice).transpose()?;
    let precisions = precisions(max_error, resolution)?;
    let sticky = sticky.as_ref().map(Bound::get);
    let (data, sizes) = py.detach(|| {
        let mut plans = sticky.map(Sticky::lock);
        let plans = plans.as_mut().map(|plans| (plans.as_mut_slice(), series.unwrap_or_default()));
        let request = Request { groups, precisions: &precisions, plans };
        batch::encode(Readings::new(ts, values, statuses)?, offsets, choice, request)
    })?;
    Ok((PyBytes::new(py, &data), sizes.into_pyarray(py)))
}

fn precisions(max_error: Option<&[f64]>, resolution: Option<&[f64]>) -> Result<Vec<Precision>, Error> {
    let blocks = max_error.or(resolution).map_or(0, <[f64]>::len);
    if [max_error, resolution].iter().flatten().any(|column| column.len() != blocks) {
        return Err(Error::Input("max_error and resolution must have one number for each block".to_owned()));
    }
    let at = |column: Option<&[f64]>, k: usize| column.map_or(0.0, |column| column[k]);
    (0..blocks).map(|k| Precision::declared(at(max_error, k), at(resolution, k)).map_err(|e| e.in_block(k))).collect()
}

/// Bytes to the readings of their blocks; see common/codec.py.
#[pyfunction]
#[pyo3(signature = (data, sizes, readings_max = READINGS_PER_CALL_MAX))]
fn decode_blocks<'py>(
    py: Python<'py>,
    data: &Bound<'py, PyAny>,
    sizes: PyReadonlyArray1<'py, i64>,
    readings_max: usize,
) -> PyResult<Decoded<'py>> {
    let sizes = sizes.as_slice()?;
    let columns = with_bytes(data, |data| py.detach(|| batch::decode(data, sizes, readings_max)))??;
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
        description.set_item("timestamp_codec", block.timestamps.codec().name())?;
        description.set_item("status_codec", block.statuses.0.name())?;
        description.set_item("value_codec", block.values.0.name())?;
        description.set_item("timestamp_bytes", block.timestamps.bytes())?;
        description.set_item("status_bytes", block.statuses.1.bytes().len())?;
        description.set_item("value_bytes", block.values.1.bytes().len())?;
        description.set_item("total_bytes", data.len())?;
        let (detail, bound) = values::describe(block.values.0, block.values.1, block.count)?;
        description.set_item("value_detail", detail)?;
        description.set_item("max_error", f64::from(bound))?;
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
    module.add("READINGS_PER_CALL_MAX", READINGS_PER_CALL_MAX)?;
    module.add_class::<Sticky>()?;
    module.add_function(wrap_pyfunction!(encode_blocks, module)?)?;
    module.add_function(wrap_pyfunction!(decode_blocks, module)?)?;
    module.add_function(wrap_pyfunction!(describe_block, module)?)
}
