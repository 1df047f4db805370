//! One manifest, six ways to serve the same traffic.

use std::fmt::Write as _;

use anyhow::{Context, bail};
use jiff::Timestamp;
use modelprofile_api::{Manifest, ModelProfileSpec, ScalingMode, Strategy, SwitchingMode};

use super::fleet::{Outcome, Scenario};
use super::replica::RungModel;
use super::{Constants, Hardware, ModelShape, Precision, Roofline};

/// Share of an accelerator's memory that a worker takes when the manifest has no budget.
const DEFAULT_SHARE: f64 = 0.92;

/// What a comparison takes beside the manifest.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The accelerator.
    pub hardware: Hardware,
    /// The model.
    pub shape: ModelShape,
    /// Workers at the start, and the fewest at any time.
    pub replicas: u32,
    /// Time that a new worker takes beside its weights: pod, process, libraries; in seconds.
    pub start_seconds: f64,
    /// Bandwidth at which a new worker reads its weights, in bytes per second.
    pub load_bandwidth: f64,
    /// Time between two decisions, in seconds.
    pub interval: f64,
    /// Civil time of the trace's start.
    pub start: Timestamp,
    /// Seed of the routing.
    pub seed: u64,
}

/// The scenarios to compare: always quality, always density, scale only, switch in place, Surge, Recreate. Those that the
/// manifest makes impossible (one profile alone, or profiles whose cache differs) are left out.
///
/// Surge and Recreate are what an engine pays that can not switch in place: Surge twice the accelerators for as long as
/// the new workers load, Recreate, without spare accelerators, that time without a worker.
///
/// # Errors
/// A profile does not fit into the memory; the budget is more than there is.
pub fn scenarios(manifest: &Manifest, setting: &Setting) -> anyhow::Result<Vec<Scenario>> {
    let spec = &manifest.spec;
    let budget = budget(spec, &setting.hardware)?;
    let mut rungs = Vec::new();
    for profile in &spec.profiles {
        let precision = Precision::from(profile);
        let roofline = Roofline::new(&setting.hardware, &setting.shape, precision, Constants::default());
        let tokens = roofline.kv_capacity(budget, 1.0);
        if tokens < 1024 {
            bail!(
                "profile {}: {:.1} GB of weights on {} x {:.1} GB leave room for {tokens} tokens of KV cache; raise \
                 tensorParallel or placement.memoryBudget, or choose a denser format",
                profile.name,
                roofline.weight_bytes() as f64 / 1e9,
                precision.tensor_parallel,
                budget / 1e9,
            );
        }
        rungs.push(RungModel::new(roofline, tokens, setting.hardware.host_link));
    }
    let Some(last) = rungs.len().checked_sub(1) else { bail!("spec.profiles: there is none") };
    let slo_seconds = spec.switching.targets.time_to_first_token_seconds.to_f64().unwrap_or(4.0);
    let load_seconds = rungs
        .iter()
        .map(|rung| setting.start_seconds + rung.roofline.weight_bytes() as f64 / setting.load_bandwidth)
        .collect();
    let base = Scenario {
        name: String::new(),
        spec: spec.clone(),
        memory_bytes: (budget * f64::from(rungs[0].roofline.accelerators())) as u64,
        compute_bound_tokens: rungs[0].roofline.crossover(&rungs[last].roofline),
        rungs,
        rung: 0,
        replicas: setting.replicas,
        load_seconds,
        interval: setting.interval,
        start: setting.start,
        slo_seconds,
        seed: setting.seed,
    };
    let fixed = (setting.replicas, setting.replicas);
    let scaled = (setting.replicas, spec.scaling.max_replicas.max(setting.replicas));
    let mut all = vec![base.clone().variant("always quality", Some(0), spec.switching.strategy, fixed)];
    if last > 0 {
        all.push(base.clone().variant("always density", Some(last), spec.switching.strategy, fixed));
    }
    all.push(base.clone().variant("scale only", Some(0), spec.switching.strategy, scaled));
    if last > 0 {
        let first = &spec.profiles[0];
        let same =
            |p: &modelprofile_api::Profile| p.kv_cache == first.kv_cache && p.tensor_parallel == first.tensor_parallel;
        if spec.profiles.iter().all(same) {
            all.push(base.clone().variant("switch in place", None, Strategy::InPlace, scaled));
        }
        all.push(base.clone().variant("Surge", None, Strategy::Surge, scaled));
        all.push(base.variant("Recreate", None, Strategy::Recreate, scaled));
    }
    Ok(all)
}

fn budget(spec: &ModelProfileSpec, hardware: &Hardware) -> anyhow::Result<f64> {
    let Some(quantity) = &spec.placement.memory_budget else {
        return Ok(hardware.memory_bytes as f64 * DEFAULT_SHARE);
    };
    let bytes = quantity.to_u64().context("spec.placement.memoryBudget")?;
    if bytes > hardware.memory_bytes {
        bail!(
            "spec.placement.memoryBudget: {:.1} GB is more than the {:.1} GB of {}; lower it or name other hardware",
            bytes as f64 / 1e9,
            hardware.memory_bytes as f64 / 1e9,
            hardware.name
        );
    }
    Ok(bytes as f64)
}

impl Scenario {
    /// The same with another name, pin (`None`: switched automatically), strategy, and limits of the workers.
    fn variant(mut self, name: &str, pin: Option<usize>, strategy: Strategy, (least, most): (u32, u32)) -> Self {
        name.clone_into(&mut self.name);
        let switching = &mut self.spec.switching;
        switching.mode = if pin.is_some() { SwitchingMode::Pinned } else { SwitchingMode::Auto };
        switching.pinned_profile = pin.map(|rung| self.spec.profiles[rung].name.clone());
        switching.strategy = strategy;
        self.rung = pin.unwrap_or(0);
        let scaling = &mut self.spec.scaling;
        (scaling.mode, scaling.min_replicas, scaling.max_replicas) = (ScalingMode::Auto, least, most);
        self
    }
}

/// The outcomes as a Markdown table.
pub fn table(outcomes: &[Outcome], slo_seconds: f64) -> String {
    let mut text = format!(
        "| | TTFT within {slo_seconds} s | p95 TTFT | GPU-hours | tokens in quality | switches | scalings | refused |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|\n"
    );
    for outcome in outcomes {
        let _ = writeln!(
            text,
            "| {} | {:.1} % | {:.2} s | {:.2} | {:.1} % | {} | {} | {} |",
            outcome.name,
            100.0 * outcome.attainment(),
            outcome.time_to_first_token.quantile(0.95),
            outcome.gpu_seconds / 3600.0,
            100.0 * outcome.quality_share(),
            outcome.switches,
            outcome.scalings,
            outcome.rejected,
        );
    }
    text
}

/// What each profile holds, for the head of a report.
pub fn ladder(manifest: &Manifest, scenario: &Scenario) -> String {
    let mut text = String::new();
    for (profile, rung) in manifest.spec.profiles.iter().zip(&scenario.rungs) {
        let _ = writeln!(
            text,
            "{}: {} weights {:.1} GB, {} cache of {} tokens, {:.2} s to switch to in place",
            profile.name,
            profile.weights.format.as_str(),
            rung.roofline.weight_bytes() as f64 / 1e9,
            profile.kv_cache.format.as_str(),
            16 * u64::from(rung.blocks),
            rung.copy_seconds,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use modelprofile_api::KvCacheFormat;
    use modelprofile_roofline::published::{h100, llama_70b};

    use super::*;

    fn setting() -> Setting {
        Setting {
            hardware: h100(),
            shape: llama_70b(),
            replicas: 2,
            start_seconds: 30.0,
            load_bandwidth: 2e9,
            interval: 5.0,
            start: Timestamp::UNIX_EPOCH,
            seed: 1,
        }
    }

    fn manifest() -> Manifest {
        Manifest::from_yaml(include_str!("../../../deploy/examples/llama-70b.yaml")).unwrap()
    }

    fn names(manifest: &Manifest) -> Vec<String> {
        scenarios(manifest, &setting()).unwrap().into_iter().map(|scenario| scenario.name).collect()
    }

    #[test]
    fn six_ways_are_compared_and_the_impossible_ones_left_out() {
        let mut manifest = manifest();
        let [quality, density, scale, in_place] = ["always quality", "always density", "scale only", "switch in place"];
        assert_eq!(names(&manifest), [quality, density, scale, in_place, "Surge", "Recreate"]);
        manifest.spec.profiles[1].kv_cache.format = KvCacheFormat::Bf16;
        assert_eq!(names(&manifest), [quality, density, scale, "Surge", "Recreate"]);
        manifest.spec.profiles.truncate(1);
        assert_eq!(names(&manifest), [quality, scale]);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let mut manifest = manifest();
        manifest.spec.placement.memory_budget = Some(modelprofile_api::Quantity("90Gi".to_owned()));
        let error = scenarios(&manifest, &setting()).unwrap_err().to_string();
        assert!(error.contains("memoryBudget") && error.contains("H100"), "{error}");
        manifest.spec.placement.memory_budget = Some(modelprofile_api::Quantity("60Gi".to_owned()));
        let error = scenarios(&manifest, &setting()).unwrap_err().to_string();
        assert!(error.starts_with("profile quality: ") && error.contains("tensorParallel"), "{error}");
    }
}
