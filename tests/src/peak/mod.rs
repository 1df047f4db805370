//! A peak on a real worker: the same trace with load deciding about the profile, and with the first profile pinned, at equal
//! memory.
//!
//! | module | what it holds |
//! |---|---|
//! | [`manifest`] | the manifest of each run |
//! | [`trace`] | the requests |
//! | [`run`] | one run, and what was seen |
//! | [`explain`] | whether the load explains each switch |

pub mod explain;
pub mod manifest;
pub mod run;
pub mod trace;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use modelprofile_api::Validated;
use modelprofile_api::worker::WorkerState;
use modelprofile_operator::replay::timeline::{self, Beside};
use modelprofile_operator::traces::Trace;

use explain::Moves;
use manifest::{Mode, Room};
use run::{End, Run, Runner};
use trace::{Shape, Source};

/// Mean requests that fit into the first profile's cache.
pub const REQUESTS_IN_CACHE: f64 = 4.0;
/// The burst's rate, as a multiple of what the first profile serves: enough that a queue grows in it.
const OVERLOAD: f64 = 1.4;
/// The rate before and after, as a multiple of the same.
const QUIET: f64 = 0.1;
/// Most time after the last answer until load has brought the model back: more than the window that a return takes.
const BACK_WITHIN: Duration = Duration::from_secs(35);

/// The scenario on one machine: its budget and its trace.
#[derive(Clone, Debug)]
pub struct Scenario {
    runner: Runner,
    manifest: PathBuf,
    folder: PathBuf,
    /// The first profile.
    quality: String,
    room: Room,
    /// Second up to which the requests of the burst arrive.
    burst_end: f64,
    /// The requests.
    pub trace: Trace,
    /// How many of them are longer than the context, and are clipped.
    pub clipped: usize,
    /// Part of the recorded lengths that they have.
    pub kept: f64,
    moves: Moves,
}

impl Scenario {
    /// Where `shape` limits how long a request may take by itself, serves one and shortens all, and the context with them. Then
    /// chooses the memory budget from what `state` says of a worker that served the manifest, measures what the first profile
    /// can serve with it, and makes the trace for that. Manifests go into `folder`.
    ///
    /// # Errors
    /// The manifest has no budget to take from, or the worker does not serve or does not answer.
    pub async fn prepare(
        modelprofile: &Path,
        manifest: &Path,
        folder: &Path,
        source: &Source,
        shape: Shape,
        state: &WorkerState,
    ) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
        let valid = Validated::from_yaml(&text)?;
        let switching = &valid.spec().switching;
        let moves = Moves {
            ladder: state.profiles.iter().map(|profile| profile.name.clone()).collect(),
            up_seconds: f64::from(switching.to_density.stabilization_window_seconds),
            down_seconds: f64::from(switching.to_quality.stabilization_window_seconds),
            low: f64::from(switching.to_quality.pressure_below_percent) / 100.0,
        };
        let quality = state.profiles.first().context("the worker has no profile")?.name.clone();
        let context = valid.spec().model.max_context_tokens.unwrap_or(2048);
        let runner = Runner::new(modelprofile);
        println!("requests: {}", source.name);
        let kept = if shape.alone.is_some() {
            let file = manifest::variant(manifest, folder, "peak-alone.yaml", Mode::Pinned(&quality), None)?;
            kept(&runner, &file, source, &shape, context).await?
        } else {
            1.0
        };
        let (source, context) = (&source.shortened(kept), (f64::from(context) * kept) as u32);
        let mean = source.mean_tokens(context);
        let room = Room { budget_mib: budget_mib(state, REQUESTS_IN_CACHE * mean)?, context };
        println!("{mean:.0} tokens on average within a context of {context}");
        let mib = room.budget_mib;
        println!("budget: {mib} MiB, so that the cache holds {REQUESTS_IN_CACHE} of them in {quality}");
        let file = variant_of(manifest, folder, Mode::Pinned(&quality), room)?;
        let capacity = runner.capacity(&file, &source.probes(&shape)).await?;
        println!("{quality} serves {capacity:.2} requests/s; the burst brings {:.2}", OVERLOAD * capacity);
        let shape = shape.at_rate(OVERLOAD * capacity);
        let trace::Peak { trace, burst_end } = source.peak(&shape, OVERLOAD * capacity, QUIET * capacity);
        let (trace, clipped) = trace.clip(context);
        println!(
            "trace: {} requests in {:.0} s of quiet, {:.0} s of burst, {:.0} s of quiet; {clipped} clipped to the context",
            trace.arrivals.len(),
            shape.lead,
            burst_end - shape.lead,
            shape.tail
        );
        Ok(Self {
            runner,
            manifest: manifest.to_owned(),
            folder: folder.to_owned(),
            quality,
            room,
            burst_end,
            trace,
            clipped,
            kept,
            moves,
        })
    }

    /// One run in which load decides.
    ///
    /// # Errors
    /// The worker does not serve.
    pub async fn switching(&self) -> anyhow::Result<Run> {
        println!("\nthe peak, load decides");
        self.run(Mode::Auto, End::Back { to: self.quality.clone(), within: BACK_WITHIN }).await
    }

    /// One run in the first profile.
    ///
    /// # Errors
    /// The worker does not serve.
    pub async fn pinned(&self) -> anyhow::Result<Run> {
        println!("\nthe same peak, pinned to {}", self.quality);
        self.run(Mode::Pinned(&self.quality), End::AllAnswers).await
    }

    async fn run(&self, mode: Mode<'_>, end: End) -> anyhow::Result<Run> {
        let file = variant_of(&self.manifest, &self.folder, mode, self.room)?;
        let run = self.runner.run(&file, &self.trace, &end).await?;
        println!("{}", run.sentence());
        Ok(run)
    }

    /// Seconds from the answer to the burst's last request until the first profile was asked for again; negative where
    /// the load had fallen before that. `None` if it was not.
    pub fn returned_after(&self, run: &Run) -> Option<f64> {
        let burst = run.outcome.records.iter().filter(|record| record.due <= self.burst_end);
        let answered = burst.map(|record| record.ended).fold(0.0, f64::max);
        let back = run.switches.last().filter(|switch| switch.to == self.quality)?;
        Some(back.at - answered)
    }

    /// `toQuality.stabilizationWindowSeconds` of the manifest.
    pub fn window_seconds(&self) -> f64 {
        self.moves.down_seconds
    }

    /// A sentence for each switch of a run that its load does not explain.
    pub fn unexplained(&self, run: &Run) -> Vec<String> {
        explain::unexplained(run, &self.moves)
    }

    /// Writes the picture of a run, with another one in grey.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn draw(&self, run: &Run, pinned: &Run, file: &Path) -> anyhow::Result<()> {
        let name = format!("pinned to {}", self.quality);
        let svg =
            timeline::svg(&run.outcome, "A peak, load decides", Some(Beside { name: &name, outcome: &pinned.outcome }));
        std::fs::write(file, svg).with_context(|| format!("cannot write {}", file.display()))
    }
}

/// Part of their length that requests keep, so that the machine has the speed for them.
async fn kept(runner: &Runner, manifest: &Path, source: &Source, shape: &Shape, context: u32) -> anyhow::Result<f64> {
    let seconds = runner.alone(manifest, &source.typical(context)).await?;
    let kept = shape.kept(seconds);
    println!("one of mean length takes {seconds:.1} s by itself: all keep {:.0} % of their length", 100.0 * kept);
    Ok(kept)
}

fn variant_of(manifest: &Path, folder: &Path, mode: Mode<'_>, room: Room) -> anyhow::Result<PathBuf> {
    let name = if mode == Mode::Auto { "peak-switching.yaml" } else { "peak-pinned.yaml" };
    manifest::variant(manifest, folder, name, mode, Some(room))
}

/// The budget in MiB at which the first profile's cache holds `tokens`, from what a worker holds at its own budget.
fn budget_mib(state: &WorkerState, tokens: f64) -> anyhow::Result<u64> {
    let active = state.profiles.iter().find(|profile| Some(&profile.name) == state.active_profile.as_ref());
    let active = active.context("the worker has no active profile")?;
    let quality = state.profiles.first().context("the worker has no profile")?;
    ensure!(active.kv_tokens > 0, "the worker has no cache yet");
    let bytes_per_token = state.memory.kv_bytes as f64 / active.kv_tokens as f64;
    let spare = (quality.kv_tokens as f64 - tokens) * bytes_per_token;
    let budget = state.memory.budget_bytes as f64 - spare;
    ensure!(budget > 0.0, "the cache of {} is too small to take from", quality.name);
    Ok((budget / f64::from(1 << 20)).ceil() as u64)
}

#[cfg(test)]
mod tests {
    use modelprofile_api::worker::{WorkerMemory, WorkerProfile};

    use super::*;

    #[test]
    fn the_budget_shrinks_by_the_cache_that_is_not_wanted() {
        let profile =
            |name: &str, kv_tokens| WorkerProfile { name: name.to_owned(), kv_tokens, ..WorkerProfile::default() };
        let mib = 1 << 20;
        let state = WorkerState {
            active_profile: Some("density".to_owned()),
            profiles: vec![profile("quality", 1000), profile("density", 1500)],
            memory: WorkerMemory { budget_bytes: 400 * mib, kv_bytes: 150 * mib, ..WorkerMemory::default() },
            ..WorkerState::default()
        };
        assert_eq!(budget_mib(&state, 1000.0).unwrap(), 400);
        assert_eq!(budget_mib(&state, 396.0).unwrap(), 340);
        assert!(budget_mib(&WorkerState::default(), 396.0).is_err());
    }
}
