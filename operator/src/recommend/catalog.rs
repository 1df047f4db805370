//! The models and the hardware that are known by name.

use modelprofile_roofline::DescriptionError;

use super::{Compute, Machine};
use crate::simulate::ModelShape;

/// Memory of a machine without an accelerator, in bytes, when nothing else is said.
const CPU_MEMORY_BYTES: u64 = 16 << 30;

/// The model of that name, or of that file.
///
/// # Errors
/// There is neither, or the file is not valid; the names that are known are listed.
pub fn model(name: &str) -> anyhow::Result<ModelShape> {
    Ok(modelprofile_roofline::model(name)?)
}

/// The hardware of that name (`cpu` for a machine without a data-centre GPU), or of that file.
///
/// # Errors
/// As [`model`].
pub fn hardware(name: &str) -> anyhow::Result<Machine> {
    if name.eq_ignore_ascii_case("cpu") {
        return Ok(Machine { name: "CPU".to_owned(), memory_bytes: CPU_MEMORY_BYTES, compute: Compute::Cpu });
    }
    match modelprofile_roofline::hardware(name) {
        Ok(hardware) => Ok(Machine::from(&hardware)),
        Err(DescriptionError::Unknown(sentence)) => anyhow::bail!("{sentence}; or cpu"),
        Err(error) => Err(error.into()),
    }
}
