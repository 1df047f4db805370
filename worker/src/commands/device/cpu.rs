//! The CPU.

use anyhow::Context;
use modelprofile_kernels::{
    GroupedActivations,
    cpu::{Cpu, CpuOptions, probe::Machine},
};

use super::{Devices, Serving};

/// The CPU, as the command line wants it.
#[derive(Clone, Copy, Debug)]
pub(in crate::commands) struct Cpus {
    pub(super) threads: usize,
    pub(super) activations: GroupedActivations,
    pub(super) budget: Option<u64>,
}

impl Cpus {
    pub(super) fn name(self) -> String {
        format!("the CPU, {} threads", self.threads)
    }
}

impl Devices for Cpus {
    type Device = Cpu;

    /// The CPU has no memory of its own: what is mapped and allocated keeps to the engine's plan.
    fn open(&self) -> anyhow::Result<Cpu> {
        Ok(Cpu::new(CpuOptions { threads: self.threads, isa: None, grouped_activations: self.activations })?)
    }

    /// The one that was given, else three quarters of the machine's memory.
    fn budget(&self, _: &Cpu) -> anyhow::Result<u64> {
        if let Some(budget) = self.budget {
            return Ok(budget);
        }
        let text = std::fs::read_to_string("/proc/meminfo").context("set placement.memoryBudget")?;
        let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:")).context("set placement.memoryBudget")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("set placement.memoryBudget")?;
        Ok(kib * 1024 / 4 * 3)
    }

    fn own_memory(&self, _: &Cpu) -> Option<u64> {
        None
    }

    fn activations(&self) -> GroupedActivations {
        self.activations
    }

    fn threads(&self) -> usize {
        self.threads
    }

    /// A step of 256 rows keeps every core in products; a longer one only keeps streams waiting.
    fn serving(&self) -> Serving {
        Serving { running: 64, batched_tokens: 256 }
    }

    fn limits(&self, cpu: &Cpu) -> Option<Machine> {
        Some(Machine::measure(cpu))
    }
}
