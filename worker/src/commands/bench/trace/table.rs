//! The table of a measurement: where a step's time goes, and how near each kernel is to what bounds it.

use std::fmt::Write as _;

use modelprofile_engine::trace::{Step, Work};
use modelprofile_kernels::cpu::probe::Machine;

/// What stands below the tables.
pub(super) const LEGEND: &str = "\
GB/s and GOP/s: the bytes that a kernel reads and writes at the least, and the operations of products and attention.
Of bound: the time in which the machine reads as many bytes from memory, or computes as many operations, whichever is
longer, as a share of the time taken. Above 100%, bytes came from a cache, or the kernel's instructions do more than
those that the peak was measured with: without AVX-512 that is portable code. What norms and activations compute is
not counted.";

/// All calls of one kernel in the steps.
struct Row {
    kernel: String,
    calls: usize,
    seconds: f64,
    work: Work,
}

/// The table of these steps, of `all` that were measured, means of one step.
pub(super) fn text(name: &str, steps: &[&Step], all: usize, machine: &Machine) -> String {
    let count = steps.len().max(1) as f64;
    let whole: f64 = steps.iter().map(|step| step.duration.as_secs_f64()).sum();
    let rows = rows(steps);
    let kernels: f64 = rows.iter().map(|row| row.seconds).sum();
    let mut text = format!(
        "{name}: {:.3} ms a step, mean of {} of {all} steps\n  {:<34} {:>6} {:>10} {:>7} {:>8} {:>9}  {:<8} {:>9}\n",
        whole / count * 1e3,
        steps.len(),
        "kernel",
        "calls",
        "ms a step",
        "share",
        "GB/s",
        "GOP/s",
        "bound",
        "of bound"
    );
    let mut line = |kernel: &str, calls: &str, seconds: f64, done: Option<(Work, f64, &str)>| {
        let done = done.map_or(String::new(), |(work, least, bound)| {
            let rate = |of: u64| of as f64 / seconds / 1e9;
            let (moved, operations) = (rate(work.moved()), rate(work.operations()));
            format!(" {moved:>8.2} {operations:>9.2}  {bound:<8} {:>8.1}%", 100.0 * least / seconds)
        });
        let (each, share) = (seconds / count * 1e3, 100.0 * seconds / whole);
        // Writing to memory cannot fail.
        let _ = writeln!(text, "  {kernel:<34} {calls:>6} {each:>10.4} {share:>6.1}%{done}");
    };
    let (mut work, mut least) = (Work::default(), 0.0);
    for row in &rows {
        let done = row.work.bound(machine).map(|(least, bound)| (row.work, least, bound.name()));
        work += row.work;
        least += done.map_or(0.0, |(_, least, _)| least);
        line(&row.kernel, &(row.calls / steps.len()).to_string(), row.seconds, done);
    }
    line("rest of the step", "", whole - kernels, None);
    line("step", "", whole, Some((work, least, "")));
    text
}

/// Kernels by their name, those that take longest first.
fn rows(steps: &[&Step]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for step in steps {
        for call in &step.calls {
            let kernel = call.kernel.to_string();
            let index = rows.iter().position(|row| row.kernel == kernel).unwrap_or_else(|| {
                rows.push(Row { kernel, calls: 0, seconds: 0.0, work: Work::default() });
                rows.len() - 1
            });
            let row = &mut rows[index];
            row.calls += 1;
            row.seconds += call.duration.as_secs_f64();
            row.work += call.kernel.work(&step.plan);
        }
    }
    rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    rows
}
