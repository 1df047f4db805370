//! Which manifest a worker is started with after the user's file was edited.

use crate::harness::{Local, manifest};

/// A worker that prepares in steps: the line that says what is served comes after the one that says that it is ready.
const SLOWLY: [(&str, &str); 1] = [("FAKE_PREPARES", "40")];

#[test]
fn a_worker_that_dies_after_an_invalid_edit_starts_again_as_it_was() {
    let mut local = Local::start("{mode: Auto}", &SLOWLY);
    local.expect("demo is ready");
    local.write("broken");
    local.expect("not valid, so nothing changes");
    die_once(&mut local);
    local.expect("serving: profile quality");
}

#[test]
fn a_worker_that_dies_after_an_edit_that_waits_starts_again_as_it_was() {
    let mut local = Local::start("{mode: Auto}", &SLOWLY);
    local.expect("demo is ready");
    local.write(&manifest("{mode: Auto}").replace("name: quality", "name: best").replace("FP8", "BF16"));
    local.expect("restart `modelprofile local` for the change of spec.profiles[0].name");
    die_once(&mut local);
    local.expect("serving: profile quality");
}

#[test]
fn a_worker_is_given_the_manifest_that_is_followed() {
    let mut local = Local::start("{mode: Auto}", &[]);
    local.expect("demo is ready");
    local.write(&manifest("{mode: Pinned, pinnedProfile: density}").replace("FP8", "BF16"));
    local.expect("serving: profile density");
    die_once(&mut local);
    let given = std::fs::read_to_string(local.path("logs/demo.manifest.json")).unwrap();
    let given: serde_json::Value = serde_json::from_str(&given).unwrap();
    assert_eq!(given["spec"]["switching"]["pinnedProfile"], "density");
    assert_eq!(given["spec"]["profiles"][0]["weights"]["format"], "FP8");
}

/// Makes the worker die, and waits until the next one is ready.
fn die_once(local: &mut Local) {
    std::fs::write(local.path("die"), "").unwrap();
    local.expect("it starts again in 1 s");
    std::fs::remove_file(local.path("die")).unwrap();
    local.expect("demo is ready");
}
