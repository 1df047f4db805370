//! What one accelerator can do: the numbers of its data sheet.

use std::path::Path;

use modelprofile_api::FieldError;
use serde::Deserialize;

use crate::fields::{self, Described, DescriptionError, above_zero};

/// One accelerator, and its links to its neighbours and to the host.
///
/// All figures are nominal; what a program reaches of them is the roofline's business.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hardware {
    /// Name for reports.
    pub name: String,
    /// Device memory, in bytes.
    pub memory_bytes: u64,
    /// Bandwidth of the device memory, in bytes per second.
    pub memory_bandwidth: f64,
    /// Dense matrix throughput by number format.
    pub flops: Flops,
    /// Link between accelerators of one worker.
    pub interconnect: Interconnect,
    /// Bandwidth from pinned host memory to the device, in bytes per second.
    pub host_link: f64,
    /// Streaming multiprocessors: how finely kernels divide their work follows from them.
    pub multiprocessors: u32,
    /// The least time of a kernel within a recorded step, in seconds: from the end of the one before to its own, when it has
    /// next to nothing to do.
    pub launch_seconds: f64,
}

/// Dense matrix throughput, in operations per second (a multiplication and an addition are two).
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Flops {
    /// BF16 and FP16 with FP32 accumulation.
    pub bf16: f64,
    /// FP8 E4M3. Left out: not supported natively, weights are computed in BF16.
    pub fp8: Option<f64>,
    /// INT8. Left out: not supported natively, weights are computed in BF16.
    pub int8: Option<f64>,
}

/// Link between the accelerators that share one model.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Interconnect {
    /// Bandwidth of one accelerator in one direction, in bytes per second.
    pub bandwidth: f64,
    /// Time of an all-reduce of nothing, in seconds.
    pub latency_seconds: f64,
}

impl Hardware {
    /// Reads a file of `deploy/hardware`, or one of the same form.
    ///
    /// # Errors
    /// The file can not be read, has unknown or missing fields, or holds numbers that are not above zero; every such
    /// field is named.
    pub fn load(path: &Path) -> Result<Self, DescriptionError> {
        fields::load(path)
    }

    /// Reads `text`; `name` stands in errors.
    ///
    /// # Errors
    /// As [`Hardware::load`].
    pub fn parse(text: &str, name: &str) -> Result<Self, DescriptionError> {
        fields::parse(text, name)
    }
}

impl Described for Hardware {
    fn faults(&self) -> Vec<FieldError> {
        let mut numbers = vec![
            ("memoryBytes", self.memory_bytes as f64),
            ("memoryBandwidth", self.memory_bandwidth),
            ("flops.bf16", self.flops.bf16),
        ];
        numbers.extend(self.flops.fp8.map(|flops| ("flops.fp8", flops)));
        numbers.extend(self.flops.int8.map(|flops| ("flops.int8", flops)));
        numbers.push(("interconnect.bandwidth", self.interconnect.bandwidth));
        numbers.push(("interconnect.latencySeconds", self.interconnect.latency_seconds));
        numbers.push(("hostLink", self.host_link));
        numbers.push(("multiprocessors", self.multiprocessors.into()));
        numbers.push(("launchSeconds", self.launch_seconds));
        above_zero(&numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/hardware");

    #[test]
    fn every_file_that_ships_can_be_read() {
        let mut names: Vec<_> =
            std::fs::read_dir(DIR).unwrap().map(|entry| Hardware::load(&entry.unwrap().path()).unwrap().name).collect();
        names.sort();
        assert_eq!(names, ["A100 80GB", "H100 80GB", "H200", "L40S"]);
    }

    #[test]
    fn all_numbers_that_make_no_sense_are_named_at_once() {
        let text = "{name: x, memoryBytes: 0, memoryBandwidth: 0, flops: {bf16: 1, fp8: -1}, \
                    interconnect: {bandwidth: .nan, latencySeconds: 1}, hostLink: 1, multiprocessors: 0, launchSeconds: 1}";
        let error = Hardware::parse(text, "h.yaml").unwrap_err().to_string();
        let fields: Vec<_> = error.lines().map(|line| line.split(':').nth(1).unwrap().trim()).collect();
        assert_eq!(
            fields,
            ["memoryBytes", "memoryBandwidth", "flops.fp8", "interconnect.bandwidth", "multiprocessors"]
        );
        assert!(error.lines().all(|line| line.starts_with("h.yaml: ")), "{error}");
    }

    #[test]
    fn a_misspelt_field_is_named() {
        let error = Hardware::parse("{name: x, memoryBytse: 1}", "h.yaml").unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(error.to_string().contains("h.yaml") && source.contains("memoryBytse"), "{error}: {source}");
    }
}
