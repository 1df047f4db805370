//! Bandwidth, kernels, steps and switches, each beside what is modelled.

use std::time::Instant;

use anyhow::Context;
use modelprofile_engine::{WeightFormat, model::ProfileWeights};
use modelprofile_kernels::cuda::{Bandwidth, Cuda, CudaOptions, DeviceInfo, Planned, Profiled, What};
use modelprofile_roofline::{Ceilings, Constants, Cost, Hardware};
use modelprofile_worker::plan::{Step, cost};

use crate::{
    options::{Format, Options},
    rig::{Rig, is_same},
};

/// Everything that was measured.
pub struct Outcome {
    pub device: DeviceInfo,
    /// The device of the tests: its times are those of the emulation.
    pub emulated: bool,
    pub hardware: Hardware,
    pub bandwidth: Bandwidth,
    pub kernels: Vec<Kernel>,
    pub steps: Vec<Measured>,
    pub switches: Vec<Switch>,
    pub crossover: Vec<Crossover>,
    /// What was left out because the time was over.
    pub left_out: Vec<String>,
    pub notes: Vec<String>,
    pub origins: Vec<(&'static str, String)>,
    pub seconds: f64,
}

/// One kernel of a step.
pub struct Kernel {
    pub format: &'static str,
    pub step: String,
    pub part: &'static str,
    pub name: &'static str,
    pub count: usize,
    pub bytes: u64,
    pub operations: u64,
    pub seconds: f64,
    pub modelled: Cost,
}

/// One kind of step.
pub struct Measured {
    pub format: &'static str,
    pub kind: &'static str,
    pub batch: usize,
    pub context: usize,
    pub tokens: usize,
    /// By the host's clock, tokens on the host.
    pub seconds: f64,
    /// Of a decode step, the same with kernels that start before the one ahead is done.
    pub overlapped: Option<f64>,
    pub modelled: f64,
}

/// One change of profile.
pub struct Switch {
    pub from: &'static str,
    pub to: &'static str,
    pub bytes: u64,
    /// From the release of the one to the end of the first step of the other, less a step.
    pub seconds: f64,
    pub modelled: f64,
}

/// The products of a layer with group-wise weights, both ways.
pub struct Crossover {
    pub format: &'static str,
    pub rows: usize,
    /// By own kernels, in seconds.
    pub own: f64,
    /// Unpacked for cuBLASLt.
    pub unpacked: f64,
}

/// Measures everything that the time suffices for.
///
/// # Errors
/// There is no device that can be computed on; the driver's errors.
pub fn all(options: &Options, start: Instant) -> anyhow::Result<Outcome> {
    let gpu = Cuda::new(CudaOptions {
        shipped: options.kernels.clone(),
        cache: std::env::var_os("MODELPROFILE_GPU_CHECK_CACHE").map(Into::into),
        matmul_workspace: if options.tiny { 1 << 20 } else { CudaOptions::default().matmul_workspace },
        ..CudaOptions::default()
    })?;
    let device = gpu.info().clone();
    let emulated = ["cudasim", "emulated"].iter().any(|word| device.name.contains(word));
    let hardware = hardware(options, &device)?;
    let mut rig = Rig::new(gpu, hardware.clone(), options)?;
    let bandwidth = rig.gpu.bandwidth(options.copy_bytes(), options.repeats())?;
    let mut outcome = Outcome {
        device,
        emulated,
        hardware,
        bandwidth,
        kernels: Vec::new(),
        steps: Vec::new(),
        switches: Vec::new(),
        crossover: Vec::new(),
        left_out: Vec::new(),
        notes: Vec::new(),
        origins: Vec::new(),
        seconds: 0.0,
    };
    let mut before: Option<(&'static str, ProfileWeights<Cuda>)> = None;
    for (name, format) in options.formats.iter().copied() {
        if start.elapsed().as_secs_f64() > options.seconds {
            outcome.left_out.push(format!("everything of {name}"));
            continue;
        }
        eprintln!("gpu-check: {name}, after {:.0} s", start.elapsed().as_secs_f64());
        let weights = rig.weights(format)?;
        if !options.only_kernels {
            steps(&mut rig, (name, format), &weights, options, &mut outcome)?;
        }
        kernels(&mut rig, (name, format), &weights, options, &mut outcome)?;
        if matches!(format, WeightFormat::Int4 { .. }) {
            crossover(&mut rig, name, &weights, options, &mut outcome)?;
        }
        if let (Some((left, others)), false) = (&before, options.only_kernels) {
            for (from, to) in [((name, &weights), (*left, others)), ((*left, others), (name, &weights))] {
                outcome.switches.push(switch(&mut rig, from, to, options)?);
            }
        }
        match &before {
            // The first format stays for one switch; then there is room for the next.
            None => before = Some((name, weights)),
            Some((_, others)) => {
                others.release(&rig.gpu);
                before = None;
            }
        }
    }
    outcome.notes = rig.gpu.take_notes();
    outcome.origins =
        rig.gpu.kernel_origins().into_iter().map(|(unit, origin)| (unit, format!("{origin:?}"))).collect();
    outcome.seconds = start.elapsed().as_secs_f64();
    Ok(outcome)
}

/// What to model: as asked, or the known hardware that the device's name begins with.
fn hardware(options: &Options, device: &DeviceInfo) -> anyhow::Result<Hardware> {
    let name = options.hardware.clone().unwrap_or_else(|| {
        let known = modelprofile_roofline::hardware_names();
        let is_it = |known: &&str| {
            let first = known.split('-').next().unwrap_or(known).to_lowercase();
            device.name.to_lowercase().split(|c: char| !c.is_alphanumeric()).any(|word| word == first)
        };
        known.into_iter().find(is_it).unwrap_or("h100-80gb").to_owned()
    });
    let mut hardware = modelprofile_roofline::hardware(&name).with_context(|| format!("--hardware {name}"))?;
    // How work is divided is the device's own.
    hardware.multiprocessors = device.processors;
    Ok(hardware)
}

/// Tokens per second of decode steps and prompts.
fn steps(
    rig: &mut Rig,
    (name, format): Format,
    weights: &ProfileWeights<Cuda>,
    options: &Options,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let paper = rig.on_paper(name, format)?;
    for batch in options.batches() {
        let mut medians = [0.0; 2];
        for (overlap, seconds) in [true, false].into_iter().zip(&mut medians) {
            rig.gpu.set_overlap(overlap)?;
            *seconds = decode(rig, weights, *batch, options)?;
        }
        let [overlapped, seconds] = medians;
        let modelled = paper.decode(*batch, options.context())?;
        outcome.steps.push(Measured { overlapped: Some(overlapped), ..measured(name, &modelled, seconds) });
    }
    for prompt in options.prompts() {
        let plan = rig.plan(1, 0, *prompt);
        let mut seconds = Vec::new();
        for _ in 0..4 {
            let start = Instant::now();
            rig.step(weights, &plan)?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        outcome.steps.push(measured(name, &paper.prefill(*prompt, *prompt)?, median(&mut seconds[1..])));
    }
    Ok(())
}

/// Seconds of a decode step: the median of some, with growing contexts.
fn decode(rig: &mut Rig, weights: &ProfileWeights<Cuda>, batch: usize, options: &Options) -> anyhow::Result<f64> {
    let mut seconds = Vec::new();
    // The first steps map memory, choose algorithms, and record and capture the graph.
    for index in 0..options.steps() + 3 {
        let plan = rig.plan(batch, options.context() + index, 1);
        let start = Instant::now();
        rig.step(weights, &plan)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(median(&mut seconds[3..]))
}

fn measured(format: &'static str, step: &Step, seconds: f64) -> Measured {
    Measured {
        format,
        kind: step.kind,
        batch: step.batch,
        context: step.context,
        tokens: step.tokens,
        seconds,
        overlapped: None,
        modelled: step.seconds(),
    }
}

fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Every kernel of some steps.
fn kernels(
    rig: &mut Rig,
    (name, format): Format,
    weights: &ProfileWeights<Cuda>,
    options: &Options,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let ceilings = Ceilings::new(&outcome.hardware, Constants::default());
    let paper = rig.on_paper(name, format)?;
    let decodes = options.profiled().iter().map(|batch| (*batch, options.context(), 1));
    let prompts = options.prompts().iter().map(|prompt| (1, 0, *prompt));
    for (batch, first, rows) in decodes.chain(prompts) {
        let step = if rows == 1 { paper.decode(batch, first)? } else { paper.prefill(rows, rows)? };
        let title = if rows == 1 { format!("decode x{batch}") } else { format!("prefill {rows}") };
        let plan = rig.plan(batch, first, rows);
        for profiled in rig.profile(weights, &plan, options.repeats())? {
            let planned = step.entries.iter().find(|entry| is_same(&entry.planned, &profiled));
            let part = planned.map_or("not planned", |entry| entry.planned.part);
            // What the plan does not have: another version of cuBLASLt takes other products.
            let unplanned =
                Planned { what: What::Kernel, name: profiled.name, part, grid: profiled.grid, work: profiled.work };
            let modelled = planned.map_or_else(|| cost(&ceilings, 1, &unplanned), |entry| entry.cost);
            outcome.kernels.push(Kernel {
                format: name,
                step: title.clone(),
                part,
                name: profiled.name,
                count: profiled.count,
                bytes: profiled.work.moved(),
                operations: profiled.work.operations,
                seconds: profiled.seconds,
                modelled,
            });
        }
    }
    Ok(())
}

/// From how many rows on unpacking pays.
fn crossover(
    rig: &mut Rig,
    format: &'static str,
    weights: &ProfileWeights<Cuda>,
    options: &Options,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let is_product = |profiled: &Profiled| {
        ["linear_int4", "linear_reduce", "unpack", "cublaslt"].iter().any(|p| profiled.name.starts_with(p))
    };
    for rows in options.crossover() {
        let plan = rig.plan(1, 0, *rows);
        let mut measured = [0.0; 2];
        for (seconds, from) in measured.iter_mut().zip([usize::MAX, 1]) {
            rig.gpu.unpack_from(from);
            let profiled = rig.profile(weights, &plan, options.repeats())?;
            *seconds = profiled.iter().filter(|p| is_product(p)).map(|p| p.seconds * p.count as f64).sum::<f64>()
                / options.layers as f64;
        }
        outcome.crossover.push(Crossover { format, rows: *rows, own: measured[0], unpacked: measured[1] });
    }
    rig.gpu.unpack_from(CudaOptions::default().unpack_rows);
    Ok(())
}

/// A switch between two profiles at a step of one sequence.
fn switch(
    rig: &mut Rig,
    (from_name, from): (&'static str, &ProfileWeights<Cuda>),
    (to_name, to): (&'static str, &ProfileWeights<Cuda>),
    options: &Options,
) -> anyhow::Result<Switch> {
    let plan = rig.plan(1, options.context(), 1);
    // The one is there and the other is not.
    to.release(&rig.gpu);
    rig.step(from, &plan)?;
    let start = Instant::now();
    to.prefetch(&rig.gpu);
    rig.switch(from, to, &plan)?;
    let both = start.elapsed().as_secs_f64();
    let start = Instant::now();
    rig.step(to, &plan)?;
    let seconds = (both - start.elapsed().as_secs_f64()).max(0.0);
    let (_, format) = options.formats.iter().find(|(name, _)| *name == to_name).context("a format of this run")?;
    let paper = rig.on_paper(to_name, *format)?;
    let bytes = paper.weight_bytes()?;
    let modelled = paper.ceilings().host_copy(bytes as f64).seconds;
    Ok(Switch { from: from_name, to: to_name, bytes, seconds, modelled })
}
