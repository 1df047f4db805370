//! Where group-wise weights change from the own kernel to unpacking and cuBLASLt: in the backend, and by the model.

use modelprofile_engine::{ModelConfig, WeightFormat};
use modelprofile_kernels::{
    Backend, Device as _, StepPlan, Store, WeightSpec,
    cuda::{PlanOptions, Planned, Planner},
};
use modelprofile_roofline::{Ceilings, Constants, Hardware};

use super::{
    Profile, share,
    step::{Shapes, cost, is_grouped},
};

/// The most rows that are looked at: a step has no more.
const MOST_ROWS: usize = 4096;
/// Rows up to which nothing but own kernels is sensible: where the backend leaves small tiles.
const LEAST_ROWS: usize = 33;

/// One weight's.
#[derive(Clone, Debug, PartialEq)]
pub struct Crossover {
    /// Its name.
    pub part: &'static str,
    /// Its format.
    pub format: WeightFormat,
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
    /// Rows from which the backend unpacks.
    pub backend: Option<usize>,
    /// Rows from which unpacking is modelled to be faster.
    pub modelled: Option<usize>,
    /// Seconds of the own kernel at the backend's number.
    pub own_seconds: f64,
    /// Seconds of unpacking and cuBLASLt at that number.
    pub unpacked_seconds: f64,
}

/// Those of a profile's weights whose codes come in groups.
///
/// # Errors
/// The model cannot be divided, or the backend cannot hold a weight.
pub fn crossovers(hardware: &Hardware, config: &ModelConfig, profile: &Profile) -> anyhow::Result<Vec<Crossover>> {
    let config = share(config, profile.devices)?;
    let ceilings = Ceilings::new(hardware, Constants::default());
    let options = PlanOptions::new(hardware.multiprocessors as usize);
    let seconds = |options, spec: &WeightSpec, rows| -> anyhow::Result<f64> {
        Ok(product(options, spec, rows)?.iter().map(|planned| cost(&ceilings, 1, planned).seconds).sum())
    };
    // The same product without cuBLASLt is the own kernel's, with a threshold of one row the other way.
    let own = PlanOptions { library: false, ..options };
    let unpacked = PlanOptions { unpack_rows: 1, ..options };
    let mut found = Vec::new();
    for (part, spec, _) in Shapes::new(&config, profile.weights).layer() {
        if !is_grouped(spec.kind) {
            continue;
        }
        let mut backend = None;
        let mut modelled = None;
        for rows in LEAST_ROWS..=MOST_ROWS {
            if backend.is_none() && product(options, &spec, rows)?.iter().any(|p| p.name.starts_with("unpack")) {
                backend = Some(rows);
            }
            if modelled.is_none() && seconds(unpacked, &spec, rows)? < seconds(own, &spec, rows)? {
                modelled = Some(rows);
            }
            if backend.is_some() && modelled.is_some() {
                break;
            }
        }
        let at = backend.unwrap_or(MOST_ROWS);
        found.push(Crossover {
            part,
            format: profile.weights,
            n: spec.n,
            k: spec.k,
            backend,
            modelled,
            own_seconds: seconds(own, &spec, at)?,
            unpacked_seconds: seconds(unpacked, &spec, at)?,
        });
    }
    Ok(found)
}

/// The kernels of one product.
fn product(options: PlanOptions, spec: &WeightSpec, rows: usize) -> anyhow::Result<Vec<Planned>> {
    let mut planner = Planner::new(options);
    let weight = planner.planned_weight("product", spec, modelprofile_kernels::Split::Replicated)?;
    let (x, mut out) = (planner.buffer(rows, spec.k)?, planner.buffer(rows, spec.n)?);
    planner.begin(&StepPlan::default())?;
    planner.take();
    planner.linear(rows, &x, &weight, None, Store::Overwrite, &mut out)?;
    Ok(planner.take())
}
