//! How much each input column of each linear layer matters: what an importance matrix holds.

use std::collections::BTreeMap;

use modelprofile_kernels::Calibrate;

use super::{
    Calibration,
    dense::DenseLayer,
    pipeline::STAGES,
    runner::{DeviceLayer, Runner},
    statistics::Collector,
};
use crate::{
    Result,
    artifact::Progress,
    checkpoint::{Checkpoint, Role},
};

/// The mean of the squares of every linear layer's inputs over calibration text, `[k]` by role, from the exact model.
///
/// # Errors
/// A damaged tensor by name, inputs that are not finite, the device's errors.
pub fn importance<B: Calibrate>(
    backend: &mut B,
    checkpoint: &Checkpoint,
    calibration: &Calibration,
    progress: &mut dyn FnMut(Progress),
) -> Result<BTreeMap<Role, Vec<f32>>> {
    let config = checkpoint.config();
    let mut runner = Runner::new(backend, checkpoint, calibration)?;
    let mut found = BTreeMap::new();
    for index in 0..config.layers {
        let activity = format!("looking at layer {} of {}", index + 1, config.layers);
        progress(Progress { done: index as u64, total: config.layers as u64, activity });
        let layer = DenseLayer::load(checkpoint, index, 1)?;
        let device = DeviceLayer::new(backend, &layer)?;
        let collectors = Collector::all(backend, &mut runner, &device, config, false)?;
        for (stage, collector) in STAGES.into_iter().zip(&collectors) {
            for role in stage.roles(index) {
                found.insert(role, collector.columns.square_mean());
            }
        }
    }
    Ok(found)
}
