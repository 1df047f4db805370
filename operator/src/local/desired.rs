//! Which profile should be active. Pure: what it decides on comes in, what it decides comes out.

use modelprofile_api::{SwitchingMode, Validated};

/// The profile that should be active, given the one that is (or that a switch under way leads to).
///
/// A pinned profile wins over everything. Otherwise the model stays where a person put it; it starts in the first profile.
pub fn desired<'a>(manifest: &'a Validated, current: Option<&str>) -> &'a str {
    let resting = manifest.resting_profile();
    let kept = current
        .filter(|_| manifest.spec().switching.mode != SwitchingMode::Pinned)
        .and_then(|name| manifest.profile(name));
    &kept.unwrap_or(resting).name
}

/// The profile that the manifest pins, if it does.
pub fn pinned(manifest: &Validated) -> Option<&str> {
    let switching = &manifest.spec().switching;
    switching.pinned_profile.as_deref().filter(|_| switching.mode == SwitchingMode::Pinned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::watch::fixture;

    #[test]
    fn without_a_pin_the_model_starts_in_its_first_profile_and_stays_where_it_is_put() {
        let manifest = fixture::valid("{mode: Recommend}");
        assert_eq!(desired(&manifest, None), "quality");
        assert_eq!(desired(&manifest, Some("density")), "density");
        assert_eq!(desired(&manifest, Some("removed")), "quality");
        assert_eq!(pinned(&manifest), None);
    }

    #[test]
    fn a_pin_wins_over_the_current_profile() {
        let manifest = fixture::valid("{mode: Pinned, pinnedProfile: density}");
        assert_eq!(desired(&manifest, None), "density");
        assert_eq!(desired(&manifest, Some("quality")), "density");
        assert_eq!(pinned(&manifest), Some("density"));
    }
}
