//! What divides bytes and operations into seconds: nominal figures times the share of them that is reached.
//!
//! A kernel's time is the larger of what its bytes and its operations take, behind the least time that any kernel has
//! (Williams, Waterman and Patterson 2009, "Roofline"). Every time is modelled.

use crate::Hardware;

/// What the data sheet does not say. Three numbers, fitted to published throughput (`modelprofile simulate --check`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constants {
    /// Share of the nominal memory bandwidth that is reached.
    pub bandwidth_efficiency: f64,
    /// Share of the nominal matrix throughput that is reached.
    pub compute_efficiency: f64,
    /// Time of a layer that neither bytes nor operations of its matrices and attention explain, in seconds: launches,
    /// norms, quantization of activations, the tail of uneven work. Of whole steps only: where kernels are looked at one
    /// by one, they have these times themselves.
    pub layer_overhead_seconds: f64,
}

impl Default for Constants {
    /// What the fit gives; a test holds it against the fit.
    fn default() -> Self {
        Self { bandwidth_efficiency: 0.9, compute_efficiency: 0.53, layer_overhead_seconds: 100e-6 }
    }
}

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Tensor cores with 16-bit operands.
    Bf16,
    /// Tensor cores with FP8 operands; BF16 on hardware without.
    Fp8,
    /// Tensor cores with INT8 operands; BF16 on hardware without.
    Int8,
}

/// What a kernel waits for most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Bytes of the device's memory.
    Memory,
    /// Operations of the tensor cores.
    TensorCores,
    /// Nothing of the two: it is over before it has begun.
    Launch,
    /// The link between accelerators.
    Link,
    /// The link to the host.
    Host,
}

impl Bound {
    /// Its name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::TensorCores => "tensor cores",
            Self::Launch => "launch",
            Self::Link => "NVLink",
            Self::Host => "PCIe",
        }
    }
}

/// A modelled time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// How long, in seconds.
    pub seconds: f64,
    /// What for.
    pub bound: Bound,
}

/// What one accelerator reaches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Bytes per second of its memory.
    pub memory: f64,
    /// The least time of a kernel, in seconds.
    pub launch: f64,
    /// Bytes per second from and to page-locked memory of the host.
    pub host: f64,
    bf16: f64,
    fp8: Option<f64>,
    int8: Option<f64>,
    link: f64,
    link_latency: f64,
}

impl Ceilings {
    /// What of `hardware` is reached.
    pub fn new(hardware: &Hardware, constants: Constants) -> Self {
        let share = constants.compute_efficiency;
        Self {
            memory: hardware.memory_bandwidth * constants.bandwidth_efficiency,
            launch: hardware.launch_seconds,
            host: hardware.host_link,
            bf16: hardware.flops.bf16 * share,
            fp8: hardware.flops.fp8.map(|flops| flops * share),
            int8: hardware.flops.int8.map(|flops| flops * share),
            link: hardware.interconnect.bandwidth,
            link_latency: hardware.interconnect.latency_seconds,
        }
    }

    /// Operations per second of matrices; a multiplication and an addition are two.
    pub fn operations(&self, unit: Unit) -> f64 {
        match unit {
            Unit::Bf16 => None,
            Unit::Fp8 => self.fp8,
            Unit::Int8 => self.int8,
        }
        .unwrap_or(self.bf16)
    }

    /// A kernel that moves `bytes` and multiplies on `unit`, of whose ceiling its instructions reach `share`.
    pub fn kernel(&self, bytes: f64, operations: f64, unit: Unit, share: f64) -> Cost {
        let (memory, compute) = (bytes / self.memory, operations / (self.operations(unit) * share));
        let work = memory.max(compute);
        let bound = match () {
            () if self.launch > work => Bound::Launch,
            () if compute > memory => Bound::TensorCores,
            () => Bound::Memory,
        };
        Cost { seconds: self.launch + work, bound }
    }

    /// An all-reduce of `bytes` over `accelerators`, a ring: each sends and receives all but its own part twice.
    pub fn all_reduce(&self, bytes: f64, accelerators: u32) -> Cost {
        let all = f64::from(accelerators);
        let exchanged = 2.0 * bytes * (all - 1.0) / all;
        let seconds = if accelerators > 1 { self.link_latency + exchanged / self.link } else { 0.0 };
        Cost { seconds, bound: Bound::Link }
    }

    /// A copy from or to page-locked memory of the host.
    pub fn host_copy(&self, bytes: f64) -> Cost {
        Cost { seconds: self.launch + bytes / self.host, bound: Bound::Host }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::published::h100;

    fn ceilings() -> Ceilings {
        let constants = Constants { bandwidth_efficiency: 0.5, compute_efficiency: 0.25, ..Constants::default() };
        let mut hardware = h100();
        hardware.memory_bandwidth = 2e12;
        hardware.flops.bf16 = 4e14;
        hardware.flops.fp8 = Some(8e14);
        hardware.flops.int8 = None;
        hardware.launch_seconds = 2e-6;
        hardware.interconnect.bandwidth = 1e11;
        hardware.interconnect.latency_seconds = 1e-5;
        hardware.host_link = 1e10;
        Ceilings::new(&hardware, constants)
    }

    #[test]
    fn the_larger_of_bytes_and_operations_counts() {
        let ceilings = ceilings();
        let near = |cost: Cost, seconds: f64, bound| {
            assert!((cost.seconds / seconds - 1.0).abs() < 1e-12 && cost.bound == bound, "{cost:?} {seconds}");
        };
        // 1e12 bytes/s; 1e14 operations/s in BF16, 2e14 in FP8, and in INT8 those of BF16.
        near(ceilings.kernel(1e8, 1e9, Unit::Bf16, 1.0), 102e-6, Bound::Memory);
        near(ceilings.kernel(1e8, 2e10, Unit::Bf16, 1.0), 202e-6, Bound::TensorCores);
        near(ceilings.kernel(1e8, 2e10, Unit::Bf16, 0.5), 402e-6, Bound::TensorCores);
        near(ceilings.kernel(0.0, 2e10, Unit::Fp8, 1.0), 102e-6, Bound::TensorCores);
        near(ceilings.kernel(0.0, 2e10, Unit::Int8, 1.0), 202e-6, Bound::TensorCores);
        near(ceilings.kernel(1e6, 0.0, Unit::Bf16, 1.0), 3e-6, Bound::Launch);
    }

    #[test]
    fn a_ring_sends_all_but_its_own_part() {
        let ceilings = ceilings();
        let nanoseconds = |cost: Cost| (cost.seconds * 1e9).round() as u64;
        assert_eq!(nanoseconds(ceilings.all_reduce(1e6, 1)), 0);
        assert_eq!(nanoseconds(ceilings.all_reduce(1e6, 2)), 20_000);
        assert_eq!(nanoseconds(ceilings.all_reduce(1e6, 4)), 25_000);
        assert_eq!(nanoseconds(ceilings.host_copy(1e6)), 102_000);
    }
}
