//! Starting an engine: artifacts -> weights -> KV pool -> engine thread.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize},
        mpsc,
    },
};

use modelprofile_kernels::Calibrate;
use rand::SeedableRng;

use super::{
    MemorySnapshot, Observer, Snapshot,
    core::{Core, Rung, State},
    handle::{EndOfThread, EngineHandle, EngineLimits, Shared},
    heartbeat::Heartbeat,
    memory::MemoryPlan,
    pace::Pace,
};
use crate::{
    EngineError, ProfileSpec, Result,
    artifact::{Artifact, Progress, Store},
    calibrate::kv_scales,
    checkpoint::Checkpoint,
    model::{Model, ProfileWeights},
    quantize::{Calibration, DEFAULT_CALIBRATION_TOKENS},
    sched::{Scheduler, SchedulerConfig},
};

/// How an engine runs.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Artifacts live below this directory.
    pub cache: PathBuf,
    /// Host threads that quantize. The device's are its own.
    pub threads: usize,
    /// The ladder, best quality first.
    pub profiles: Vec<ProfileSpec>,
    /// Profile to start in; `None` is the first.
    pub start: Option<String>,
    /// Limit of `weights + KV pool + workspace` in bytes.
    pub memory_budget: u64,
    /// Longest context; `None` is what the model and the smallest KV pool allow.
    pub max_context_tokens: Option<usize>,
    /// The text that calibrates methods which look at activations, and with its beginning the scales of an FP8 E4M3 KV cache.
    /// The same text gives the same artifacts, whoever makes them.
    pub calibration: Vec<u32>,
    /// Most rows of a step (prompt tokens and decodes together).
    pub max_batched_tokens: usize,
    /// Most requests computed at once.
    pub max_running: usize,
    /// Most requests that may wait.
    pub max_waiting: usize,
}

/// Prepares every profile and starts the engine thread: [`prepare`], then [`start_with`].
///
/// # Errors
/// Those of the two.
pub fn start<B: Calibrate>(
    mut backend: B,
    checkpoint: &Checkpoint,
    config: &EngineConfig,
    observer: Box<dyn Observer>,
    progress: &mut dyn FnMut(usize, Progress),
) -> Result<EngineHandle> {
    let artifacts = prepare(&mut backend, checkpoint, config, progress)?;
    start_with(backend, checkpoint, config, &artifacts, observer, progress)
}

/// The artifacts of the ladder, found or built. `progress` gets the index of the profile.
///
/// # Errors
/// A format that does not fit the model, a checkpoint or artifact error; each says what to do.
pub fn prepare<B: Calibrate>(
    backend: &mut B,
    checkpoint: &Checkpoint,
    config: &EngineConfig,
    progress: &mut dyn FnMut(usize, Progress),
) -> Result<Vec<Artifact>> {
    let model_config = checkpoint.config();
    let first = config.profiles.first().ok_or_else(|| EngineError::Config("the ladder has no profile".into()))?;
    for profile in &config.profiles {
        profile.validate(model_config)?;
        if profile.kv != first.kv {
            return Err(EngineError::Config(format!(
                "profile {}: a ladder that switches in place needs one kvCache.format, {} has another",
                profile.name, first.name
            )));
        }
    }
    let store = Store::new(&config.cache);
    let mut artifacts: Vec<Artifact> = Vec::with_capacity(config.profiles.len());
    for (index, profile) in config.profiles.iter().enumerate() {
        let recipe = profile.recipe();
        let calibration = if recipe.needs_calibration() {
            Some(Calibration::new(&config.calibration, DEFAULT_CALIBRATION_TOKENS, 0)?)
        } else {
            None
        };
        artifacts.push(store.prepare_calibrated(
            backend,
            config.threads,
            checkpoint,
            recipe,
            calibration.as_ref(),
            &mut |p| progress(index, p),
        )?);
    }
    Ok(artifacts)
}

/// Starts the engine thread on the artifacts of the ladder, in its order. `progress` gets the index of the profile.
///
/// # Errors
/// A start profile that is not in the ladder, a budget that is too small, a checkpoint or artifact error; each says what to
/// do.
pub fn start_with<B: Calibrate>(
    mut backend: B,
    checkpoint: &Checkpoint,
    config: &EngineConfig,
    artifacts: &[Artifact],
    observer: Box<dyn Observer>,
    progress: &mut dyn FnMut(usize, Progress),
) -> Result<EngineHandle> {
    let model_config = checkpoint.config();
    let first = config.profiles.first().ok_or_else(|| EngineError::Config("the ladder has no profile".into()))?;
    let active = match &config.start {
        None => 0,
        Some(name) => config
            .profiles
            .iter()
            .position(|p| p.name == *name)
            .ok_or_else(|| EngineError::Config(format!("no profile is named {name}")))?,
    };
    let layout = model_config.kv_layout(first.kv);
    let memory = MemoryPlan::on(&backend, model_config, &layout, config)?;
    let sizes = config
        .profiles
        .iter()
        .zip(artifacts)
        .map(|(p, a)| Ok((p.name.clone(), ProfileWeights::bytes(&backend, model_config, a)?)))
        .collect::<Result<Vec<(String, u64)>>>()?;
    let (blocks, max_context_tokens) = memory.ladder(&sizes, config.max_context_tokens, model_config.max_positions)?;
    let rungs = config
        .profiles
        .iter()
        .zip(artifacts)
        .zip(sizes.iter().zip(&blocks))
        .map(|((profile, artifact), ((_, weight_bytes), blocks))| {
            Ok(Rung {
                name: profile.name.as_str().into(),
                artifact_key: artifact.manifest().key.clone(),
                weight_bytes: *weight_bytes,
                blocks: *blocks,
                weights: ProfileWeights::load(&backend, model_config, artifact)?,
                artifact: artifact.clone(),
                leaves: false,
            })
        })
        .collect::<Result<Vec<Rung<B>>>>()?;
    let scales =
        kv_scales(&mut backend, checkpoint, &config.cache, &layout, &config.calibration, &mut |p| progress(0, p))?;
    // Address space for whatever profile joins the ladder later; memory is taken for the blocks in use.
    let kv = backend.kv(layout, &scales, blocks[active], memory.blocks(0))?;
    let model = Model::new(&backend, model_config, config.max_batched_tokens)?;
    if backend.host_bandwidth().is_some() {
        // The first request does not wait for them.
        rungs[active].weights.prefetch(&backend);
    }
    let scheduler = Scheduler::new(SchedulerConfig {
        blocks: blocks[active],
        max_batched_tokens: config.max_batched_tokens,
        max_running: config.max_running,
        max_tokens: max_context_tokens,
    });
    let shared = Arc::new(Shared {
        snapshot: Mutex::new(empty_snapshot()),
        queued: AtomicUsize::new(0),
        draining: AtomicBool::new(false),
        heartbeat: Heartbeat::new(),
        ended: AtomicBool::new(false),
    });
    let (sender, commands) = mpsc::channel();
    let core = Core {
        backend,
        model,
        rungs,
        active,
        leaving: Vec::new(),
        kv,
        scheduler,
        pace: Pace::default(),
        memory,
        max_context_tokens,
        observer,
        commands,
        shared: shared.clone(),
        eos_tokens: model_config.eos_tokens.clone(),
        pending: None,
        moving: None,
        last_switch: None,
        state: State::default(),
        entropy: rand::rngs::StdRng::try_from_rng(&mut rand::rngs::SysRng)
            .map_err(|e| EngineError::Config(format!("the system gives no random numbers: {e}")))?,
    };
    core.publish();
    let shared_of_thread = shared.clone();
    std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || {
            let _end = EndOfThread(shared_of_thread);
            core.run();
        })
        .map_err(|e| EngineError::Config(format!("the engine thread did not start: {e}")))?;
    let limits =
        EngineLimits { max_context_tokens, vocab: model_config.vocab, max_waiting: config.max_waiting, memory };
    Ok(EngineHandle { commands: sender, shared, limits })
}

fn empty_snapshot() -> Snapshot {
    Snapshot {
        active: "".into(),
        target: None,
        profiles: Vec::new(),
        running: 0,
        waiting: 0,
        oldest_waiting: None,
        blocks_total: 0,
        blocks_used: 0,
        blocks_cached: 0,
        blocks_waiting: 0,
        memory: MemorySnapshot::default(),
        generated_tokens: 0,
        last_switch: None,
        last_progress: None,
        draining: false,
    }
}
