//! What `bench --plan` prints: a table of 120 columns, or JSON.

use std::fmt::{self, Write as _};

use modelprofile_engine::ModelConfig;
use modelprofile_kernels::cuda::{Planned, What};
use serde_json::{Value, json};

use super::{Outcome, Sizes};
use crate::{
    commands::format_name,
    plan::{Entry, Step},
};

/// As text, every time called modelled.
///
/// # Errors
/// None; writing to memory cannot fail.
pub(super) fn text(outcome: &Outcome, config: &ModelConfig, sizes: &Sizes<'_>) -> Result<String, fmt::Error> {
    let mut text = String::new();
    let hardware = &outcome.hardware;
    writeln!(
        text,
        "{} on {}: modelled from bytes and operations; nothing was computed.\n\
         {:.2} TB/s, {:.0} TFLOP/s BF16, {:.0} multiprocessors, PCIe {:.0} GB/s; shares reached as in docs/simulator.md.",
        outcome.model,
        hardware.name,
        hardware.memory_bandwidth / 1e12,
        hardware.flops.bf16 / 1e12,
        hardware.multiprocessors,
        hardware.host_link / 1e9,
    )?;
    for planned in &outcome.profiles {
        for step in &planned.steps {
            let profile = &planned.profile;
            write!(text, "\n{} ({}), KV {:?}, ", profile.name, format_name(profile.weights), profile.kv)?;
            if profile.devices > 1 {
                write!(text, "{} GPUs, ", profile.devices)?;
            }
            table(&mut text, step)?;
        }
    }
    switches(&mut text, outcome)?;
    crossovers(&mut text, outcome)?;
    if sizes.batch.is_empty() && sizes.prefill.is_empty() {
        writeln!(text, "\nNo step was asked for: --batch and --prefill are empty ({} layers).", config.layers)?;
    }
    Ok(text)
}

/// One step.
fn table(text: &mut String, step: &Step) -> fmt::Result {
    match step.kind {
        "decode" => writeln!(text, "decode of {} sequences, {} tokens each", step.batch, step.context)?,
        _ => writeln!(text, "prefill of tokens {} to {} of a prompt", step.context, step.context + step.rows)?,
    }
    writeln!(
        text,
        "  {:<18} {:<27} {:>14} {:>5} {:>10} {:>9} {:>9} {:<12} {:>6}",
        "part", "kernel", "blocks", "count", "MB", "GFLOP", "us each", "bound", "share"
    )?;
    let seconds = step.seconds();
    for entry in &step.entries {
        let Planned { name, part, grid, work, .. } = &entry.planned;
        let grid = if *grid == [0; 3] { "-".to_owned() } else { format!("{}x{}x{}", grid[0], grid[1], grid[2]) };
        writeln!(
            text,
            "  {part:<18} {name:<27} {grid:>14} {:>5} {:>10.3} {:>9.3} {:>9.2} {:<12} {:>5.1}%",
            entry.count,
            work.moved() as f64 / 1e6,
            work.operations as f64 / 1e9,
            entry.cost.seconds * 1e6,
            entry.cost.bound.name(),
            100.0 * entry.seconds() / seconds,
        )?;
    }
    let of = if step.tokens == step.rows * step.batch { "this step" } else { "all chunks" };
    writeln!(
        text,
        "  modelled: {:.3} ms a step, {:.0} tokens/s by {of}, without the host's work between steps;\n  \
         the simulator's step, with an overhead fitted at full batches: {:.3} ms",
        seconds * 1e3,
        step.tokens_per_second(),
        step.simulated_seconds * 1e3,
    )
}

/// How long it takes to bring the weights to a GPU.
fn switches(text: &mut String, outcome: &Outcome) -> fmt::Result {
    writeln!(text, "\nswitching to a profile: its bytes on one GPU, and the modelled time of them over PCIe")?;
    writeln!(
        text,
        "  {:<24} {:<14} {:>5} {:>12} {:>14}  fits",
        "profile", "weights", "GPUs", "GB each", "modelled ms"
    )?;
    for planned in &outcome.profiles {
        let fits = planned.weight_bytes < outcome.hardware.memory_bytes;
        writeln!(
            text,
            "  {:<24} {:<14} {:>5} {:>12.3} {:>14.0}  {}",
            planned.profile.name,
            format_name(planned.profile.weights),
            planned.profile.devices,
            planned.weight_bytes as f64 / 1e9,
            planned.switch.seconds * 1e3,
            if fits { "yes" } else { "no: more GPUs or a denser format" },
        )?;
    }
    Ok(())
}

/// Where INT4 goes from the own kernel to unpacking.
fn crossovers(text: &mut String, outcome: &Outcome) -> fmt::Result {
    if outcome.crossovers.is_empty() {
        return Ok(());
    }
    writeln!(text, "\nrows from which a weight in groups is unpacked to BF16 and multiplied by cuBLASLt")?;
    writeln!(
        text,
        "  {:<18} {:<12} {:>14} {:>9} {:>15} {:>14} {:>19}",
        "weight", "format", "n x k", "backend", "modelled best", "own us there", "unpacked us there"
    )?;
    let rows = |rows: Option<usize>| rows.map_or("never".to_owned(), |rows| rows.to_string());
    for crossover in &outcome.crossovers {
        writeln!(
            text,
            "  {:<18} {:<12} {:>14} {:>9} {:>15} {:>14.1} {:>19.1}",
            crossover.part,
            format_name(crossover.format),
            format!("{}x{}", crossover.n, crossover.k),
            rows(crossover.backend),
            rows(crossover.modelled),
            crossover.own_seconds * 1e6,
            crossover.unpacked_seconds * 1e6,
        )?;
    }
    Ok(())
}

/// As JSON. Seconds and bytes; nothing in it was measured.
pub(super) fn json(outcome: &Outcome, config: &ModelConfig, sizes: &Sizes<'_>) -> Value {
    let profiles: Vec<Value> = outcome
        .profiles
        .iter()
        .map(|planned| {
            json!({
                "name": planned.profile.name,
                "weights": format_name(planned.profile.weights),
                "kvCache": format!("{:?}", planned.profile.kv),
                "tensorParallel": planned.profile.devices,
                "weightBytesPerGpu": planned.weight_bytes,
                "switchSeconds": planned.switch.seconds,
                "fits": planned.weight_bytes < outcome.hardware.memory_bytes,
                "steps": planned.steps.iter().map(step).collect::<Vec<_>>(),
            })
        })
        .collect();
    let crossovers: Vec<Value> = outcome
        .crossovers
        .iter()
        .map(|crossover| {
            json!({
                "weight": crossover.part,
                "format": format_name(crossover.format),
                "n": crossover.n,
                "k": crossover.k,
                "backendRows": crossover.backend,
                "modelledRows": crossover.modelled,
                "ownSeconds": crossover.own_seconds,
                "unpackedSeconds": crossover.unpacked_seconds,
            })
        })
        .collect();
    json!({
        "modelled": true,
        "model": outcome.model,
        "layers": config.layers,
        "hardware": outcome.hardware.name,
        "chunk": sizes.chunk,
        "profiles": profiles,
        "crossovers": crossovers,
    })
}

fn step(step: &Step) -> Value {
    json!({
        "kind": step.kind,
        "batch": step.batch,
        "context": step.context,
        "rows": step.rows,
        "seconds": step.seconds(),
        "tokens": step.tokens,
        "allSeconds": step.all_seconds,
        "tokensPerSecond": step.tokens_per_second(),
        "simulatedSeconds": step.simulated_seconds,
        "kernels": step.entries.iter().map(entry).collect::<Vec<_>>(),
    })
}

fn entry(entry: &Entry) -> Value {
    let Planned { what, name, part, grid, work } = &entry.planned;
    let what = match what {
        What::Kernel => "kernel",
        What::Library => "library",
        What::Fill => "fill",
        What::HostCopy => "hostCopy",
        What::AllReduce => "allReduce",
    };
    json!({
        "what": what,
        "name": name,
        "part": part,
        "grid": grid,
        "count": entry.count,
        "bytesRead": work.read,
        "bytesWritten": work.written,
        "operations": work.operations,
        "cores": format!("{:?}", work.cores),
        "seconds": entry.cost.seconds,
        "bound": entry.cost.bound.name(),
    })
}
