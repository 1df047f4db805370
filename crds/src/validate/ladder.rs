//! Rules of the ladder, and of switching on it.

use super::unique;
use crate::{EngineType, FieldError, ModelProfileSpec, Profile, Strategy, SwitchingMode, WeightFormat, Weights};

/// Group sizes that kernels exist for.
const GROUP_SIZES: [u32; 3] = [32, 64, 128];

pub(super) fn profiles(profiles: &[Profile], errors: &mut Vec<FieldError>) {
    if profiles.is_empty() {
        errors.push(FieldError::new("spec.profiles", "must not be empty; add at least one profile"));
    }
    if profiles.len() > 4 {
        let message = format!("has {} items; at most 4 are possible", profiles.len());
        errors.push(FieldError::new("spec.profiles", message));
    }
    unique(profiles.iter().map(|p| p.name.as_str()), |i| format!("spec.profiles[{i}].name"), errors);
    for (i, profile) in profiles.iter().enumerate() {
        let path = format!("spec.profiles[{i}]");
        weights(&profile.weights, &format!("{path}.weights"), errors);
        if profile.tensor_parallel == 0 {
            errors.push(FieldError::new(format!("{path}.tensorParallel"), "must be at least 1"));
        }
    }
}

fn weights(weights: &Weights, path: &str, errors: &mut Vec<FieldError>) {
    let format = weights.format.as_str();
    let formats = weights.method.formats();
    if !formats.is_empty() && !formats.contains(&weights.format) {
        let produced: Vec<&str> = formats.iter().map(|f| f.as_str()).collect();
        let method = weights.method.as_str();
        errors.push(FieldError::new(
            format!("{path}.method"),
            format!(
                "{method} produces {}, not {format}; change the format, or leave the method out",
                produced.join(" or ")
            ),
        ));
    }
    let is_int4 = weights.format == WeightFormat::Int4;
    match weights.group_size {
        Some(_) if !is_int4 => errors.push(FieldError::new(
            format!("{path}.groupSize"),
            format!("is for INT4 only, {format} has its own grouping; remove it"),
        )),
        Some(size) if !GROUP_SIZES.contains(&size) => errors
            .push(FieldError::new(format!("{path}.groupSize"), format!("{size} is not possible; write 32, 64 or 128"))),
        _ => {}
    }
    if weights.zero_point.is_some() && !is_int4 {
        let message = format!("is for INT4 only, the grid of {format} is fixed; remove it");
        errors.push(FieldError::new(format!("{path}.zeroPoint"), message));
    }
}

pub(super) fn switching(spec: &ModelProfileSpec, errors: &mut Vec<FieldError>) {
    let switching = &spec.switching;
    if switching.strategy == Strategy::InPlace {
        in_place(spec, errors);
    }
    if switching.mode == SwitchingMode::Pinned {
        let path = "spec.switching.pinnedProfile";
        match &switching.pinned_profile {
            None => errors.push(FieldError::new(
                path,
                format!("required with mode Pinned; write one of {}", names(&spec.profiles)),
            )),
            Some(pinned) if !spec.profiles.iter().any(|p| p.name == *pinned) => errors.push(FieldError::new(
                path,
                format!("there is no profile `{pinned}`; write one of {}", names(&spec.profiles)),
            )),
            Some(_) => {}
        }
    }
    let target = |field: &str| format!("spec.switching.targets.{field}");
    let targets = &switching.targets;
    if !(1..=100).contains(&targets.kv_cache_utilization_percent) {
        errors.push(FieldError::new(target("kvCacheUtilizationPercent"), "write a number from 1 to 100"));
    }
    for (field, value) in [
        ("queueTimeSeconds", &targets.queue_time_seconds),
        ("timeToFirstTokenSeconds", &targets.time_to_first_token_seconds),
    ] {
        if value.to_f64().is_none_or(|v| v <= 0.0) {
            let message = format!("`{value}` is not a time; write a number of seconds above 0, such as 2 or \"0.5\"");
            errors.push(FieldError::new(target(field), message));
        }
    }
    if !(1..=99).contains(&switching.to_quality.pressure_below_percent) {
        errors.push(FieldError::new(
            "spec.switching.toQuality.pressureBelowPercent",
            "write a number from 1 to 99: at 100 a move down would call for the move up again",
        ));
    }
    if switching.max_switches_per_hour == 0 {
        errors.push(FieldError::new(
            "spec.switching.maxSwitchesPerHour",
            "must be at least 1; to stay in one profile, set mode: Pinned",
        ));
    }
}

/// The cache outlives the switch, so all profiles must read and write it the same way.
fn in_place(spec: &ModelProfileSpec, errors: &mut Vec<FieldError>) {
    if spec.engine.kind != EngineType::Native {
        let engine = spec.engine.kind.as_str();
        errors.push(FieldError::new(
            "spec.switching.strategy",
            format!("InPlace needs the engine Native, not {engine}; write Surge or Recreate"),
        ));
    }
    let Some((first, others)) = spec.profiles.split_first() else { return };
    for (i, profile) in others.iter().enumerate() {
        let path = format!("spec.profiles[{}]", i + 1);
        if profile.kv_cache.format != first.kv_cache.format {
            errors.push(FieldError::new(
                format!("{path}.kvCache.format"),
                format!(
                    "is {}, but `{}` has {}; InPlace keeps the cache, so write the same in all profiles, or choose another strategy",
                    profile.kv_cache.format.as_str(),
                    first.name,
                    first.kv_cache.format.as_str(),
                ),
            ));
        }
        if profile.tensor_parallel != first.tensor_parallel {
            errors.push(FieldError::new(
                format!("{path}.tensorParallel"),
                format!(
                    "is {}, but `{}` has {}; InPlace keeps the workers, so write the same in all profiles, or choose another strategy",
                    profile.tensor_parallel, first.name, first.tensor_parallel,
                ),
            ));
        }
    }
}

/// The profiles' names, for a message.
pub(super) fn names(profiles: &[Profile]) -> String {
    profiles.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ")
}
