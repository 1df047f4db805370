//! The rules that relate fields to each other, and what this build supports.
//!
//! | module | what it checks |
//! |---|---|
//! | `ladder` | profiles: names, methods, groups, what switching in place needs |
//! | `schedule` | windows: names, times, zone, overlaps in civil time |
//! | `rest` | everything else that a schema can not say or that only the API server would check |
//! | `support` | what is valid but not built yet, what needs a cluster, and what is accepted without effect |
//!
//! Pure: nothing here looks at a file, a cluster or a clock.

mod ladder;
mod rest;
mod schedule;
mod support;

#[cfg(test)]
mod tests;

use crate::{FieldError, Manifest, Validated};

pub use support::{needs_cluster, notices, unsupported};

/// Checks a manifest: every rule, then what this build supports.
///
/// # Errors
/// Everything that is wrong, at once; never empty.
pub fn validate(manifest: &Manifest) -> Result<Validated, Vec<FieldError>> {
    let mut errors = violations(manifest);
    errors.extend(unsupported(manifest));
    if errors.is_empty() { Ok(Validated::new(manifest.clone())) } else { Err(errors) }
}

/// Every rule of the API that the manifest breaks, whatever this build supports.
pub fn violations(manifest: &Manifest) -> Vec<FieldError> {
    let mut errors = Vec::new();
    rest::metadata(&manifest.metadata, &mut errors);
    rest::model(&manifest.spec.model, &mut errors);
    rest::engine(&manifest.spec.engine, &mut errors);
    ladder::profiles(&manifest.spec.profiles, &mut errors);
    ladder::switching(&manifest.spec, &mut errors);
    if let Some(schedule) = &manifest.spec.switching.schedule {
        schedule::schedule(schedule, &manifest.spec.profiles, &mut errors);
    }
    rest::scaling(&manifest.spec.scaling, &mut errors);
    rest::quality(&manifest.spec.quality, &mut errors);
    rest::placement(&manifest.spec.placement, &mut errors);
    rest::cache(&manifest.spec.cache, &mut errors);
    errors
}

/// Reports the second and later uses of a name.
fn unique<'a>(names: impl Iterator<Item = &'a str>, path: impl Fn(usize) -> String, errors: &mut Vec<FieldError>) {
    let mut seen = Vec::new();
    for (i, name) in names.enumerate() {
        if seen.contains(&name) {
            errors
                .push(FieldError::new(path(i), format!("`{name}` is taken already; names are unique, choose another")));
        }
        seen.push(name);
    }
}
