//! `bench --trace`: what each kernel of a step took, as a table and as a file for a viewer.
//!
//! | module | what it holds |
//! |---|---|
//! | `table` | the table of a measurement |
//! | `events` | the file: Chrome's trace event format, which Perfetto opens |
//! | this one | which steps of a measurement are shown |

mod events;
mod table;
#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use modelprofile_engine::{WeightFormat, trace::Step};
use modelprofile_kernels::cpu::probe::Machine;

use super::Case;
use crate::commands::format_name;

/// Steps of a measurement that the file holds; the option's help says so, too. More of them look the same.
const KEPT: usize = 4;

/// Why a device cannot be traced, and what can.
pub(super) fn refusal(device: &str) -> String {
    format!(
        "--trace times kernels by the clock of the CPU, and {device} computes while the CPU goes on: run it with --device cpu. \
         What a GPU's kernels take is measured by `make gpu-check` and modelled by `bench --plan`"
    )
}

/// The measurements so far. Tables come behind all of them, so that the lines of `bench` stay one table.
pub(super) struct Trace {
    machine: Machine,
    /// Rows of a prefill step.
    chunk: usize,
    path: PathBuf,
    out: BufWriter<File>,
    measurements: Vec<Measurement>,
}

/// What is shown of a measurement.
struct Measurement {
    /// Such as `FP8 decode, 16 sequences`.
    name: String,
    table: String,
    /// The last steps.
    steps: Vec<Step>,
}

impl Trace {
    /// Opens the file before anything is measured: a path that cannot be written is no surprise at the end.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn create(path: &Path, machine: Machine, chunk: usize) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { machine, chunk, path: path.to_owned(), out: BufWriter::new(file), measurements: Vec::new() })
    }

    /// Takes the steps of a measurement.
    pub(super) fn add(&mut self, format: WeightFormat, case: Case, mut steps: Vec<Step>) {
        let name = name(format, case);
        let shown = match case {
            Case::Prefill(tokens) => fastest_pass(&steps, tokens.div_ceil(self.chunk)),
            Case::Decode(_) => middle_half(&steps),
        };
        let table = table::text(&name, &shown, steps.len(), &self.machine);
        steps.drain(..steps.len().saturating_sub(KEPT));
        self.measurements.push(Measurement { name, table, steps });
    }

    /// Prints the tables and writes the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        for measurement in &self.measurements {
            print!("\n{}", measurement.table);
        }
        println!("\n{}", table::LEGEND);
        events::write(&mut self.out, &self.measurements, &self.machine)
            .and_then(|()| self.out.flush())
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        println!("the last {KEPT} steps of each: open {} in https://ui.perfetto.dev", self.path.display());
        Ok(())
    }
}

fn name(format: WeightFormat, case: Case) -> String {
    let format = format_name(format);
    match case {
        Case::Prefill(tokens) => format!("{format} prefill, {tokens} tokens"),
        Case::Decode(1) => format!("{format} decode, 1 sequence"),
        Case::Decode(batch) => format!("{format} decode, {batch} sequences"),
    }
}

/// The steps of the pass over a prompt whose speed `bench` tells.
fn fastest_pass(steps: &[Step], steps_of_pass: usize) -> Vec<&Step> {
    let passes = steps.chunks(steps_of_pass.max(1));
    let fastest = passes.min_by_key(|pass| pass.iter().map(|step| step.duration).sum::<std::time::Duration>());
    fastest.unwrap_or_default().iter().collect()
}

/// The steps around the median, whose speed `bench` tells: the first ones find their weights in no cache, and some are disturbed.
fn middle_half(steps: &[Step]) -> Vec<&Step> {
    let mut sorted: Vec<&Step> = steps.iter().collect();
    sorted.sort_by_key(|step| step.duration);
    let quarter = sorted.len() / 4;
    sorted[quarter..sorted.len() - quarter].to_vec()
}
