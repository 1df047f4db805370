//! Every rule, as an edit of a valid manifest and the one error that it gives.

use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use crate::{Errors, FieldError, Manifest, Validated, needs_cluster, unsupported, violations};

/// A valid manifest with two profiles and nothing but what is required.
fn minimal() -> Value {
    json!({
        "apiVersion": "modelprofile.dev/v1alpha1",
        "kind": "ModelProfile",
        "metadata": {"name": "smollm2"},
        "spec": {
            "model": {"uri": "file:///models/model.gguf"},
            "profiles": [
                {"name": "quality", "weights": {"format": "FP8"}},
                {"name": "density", "weights": {"format": "INT4"}},
            ],
        },
    })
}

/// [`minimal`] with the edits of a JSON merge patch, except that `profiles/1/...` paths may go into lists.
fn with(edits: &[(&str, Value)]) -> Value {
    let mut manifest = minimal();
    for (path, value) in edits {
        let mut at = &mut manifest["spec"];
        for part in path.split('/') {
            at = match part.parse::<usize>() {
                Ok(index) => &mut at[index],
                Err(_) => &mut at[part],
            };
        }
        *at = value.clone();
    }
    manifest
}

fn windows(windows: &[(&str, &str, &str, &str)]) -> Value {
    let windows: Vec<Value> = windows
        .iter()
        .map(|(name, days, start, end)| {
            json!({"name": name, "profile": "density", "days": days.split_whitespace().collect::<Vec<_>>(), "start": start, "end": end})
        })
        .collect();
    json!({"timeZone": "Europe/Paris", "windows": windows})
}

fn errors(manifest: &Value) -> Vec<FieldError> {
    Validated::from_yaml(&manifest.to_string()).map_or_else(|Errors(errors)| errors, |_| Vec::new())
}

fn paths(manifest: &Value) -> Vec<String> {
    errors(manifest).into_iter().map(|e| e.path).collect()
}

#[test]
fn the_minimal_manifest_is_valid_and_has_the_documented_defaults() {
    let valid = Validated::from_yaml(&minimal().to_string()).unwrap();
    let spec = valid.spec();
    assert_eq!(valid.manifest().served_name(), "smollm2");
    assert_eq!(valid.resting_profile().name, "quality");
    assert_eq!(valid.memory_budget_bytes(), None);
    assert_eq!(spec.profiles[1].weights.effective_group_size(), Some(128));
    let written = serde_json::to_value(spec).unwrap();
    assert_eq!(
        written["switching"],
        json!({
            "mode": "Auto", "strategy": "InPlace", "prefer": "Switch",
            "targets": {"kvCacheUtilizationPercent": 85, "queueTimeSeconds": "2", "timeToFirstTokenSeconds": "4"},
            "toDensity": {"stabilizationWindowSeconds": 15},
            "toQuality": {"stabilizationWindowSeconds": 300, "pressureBelowPercent": 70},
            "minDwellSeconds": 120, "maxSwitchesPerHour": 6,
        })
    );
    assert_eq!(
        written["scaling"],
        json!({"mode": "Auto", "minReplicas": 1, "maxReplicas": 1, "scaleDown": {"stabilizationWindowSeconds": 300}})
    );
    assert_eq!(written["cache"], json!({"keepOriginal": true}));
}

#[rstest]
// Structure.
#[case::unknown_field(&[("placment", json!({}))], "spec.placment", "did you mean `placement`?")]
#[case::unknown_nested(&[("profiles/0/weights/groupsize", json!(64))], "spec.profiles[0].weights.groupsize", "did you mean `groupSize`?")]
#[case::wrong_type(&[("model/revision", json!(6012))], "spec.model.revision", "put it in quotes")]
#[case::quoted_number(&[("scaling/maxReplicas", json!("4"))], "spec.scaling.maxReplicas", "leave the quotes away")]
#[case::null(&[("model/servedName", Value::Null)], "spec.model.servedName", "has no value")]
#[case::no_format(&[("profiles/0/weights", json!({}))], "spec.profiles[0].weights.format", "required, but missing")]
#[case::bad_format(&[("profiles/0/weights/format", json!("fp8"))], "spec.profiles[0].weights.format", "did you mean FP8?")]
#[case::bad_kv(&[("profiles/0/kvCache", json!({"format": "FP8"}))], "spec.profiles[0].kvCache.format", "BF16, FP16, FP8E4M3, FP8E5M2")]
#[case::profile_name(&[("profiles/0/name", json!("High Quality"))], "spec.profiles[0].name", "lower-case letters")]
#[case::no_profiles(&[("profiles", json!([]))], "spec.profiles", "must not be empty")]
#[case::float(&[("quality/maxMeanKLDivergence", json!(0.1))], "spec.quality.maxMeanKLDivergence", "\"0.1\"")]
#[case::min_zero(&[("scaling/minReplicas", json!(0))], "spec.scaling.minReplicas", "from 1 to 1000")]
#[case::negative(&[("switching/minDwellSeconds", json!(-1))], "spec.switching.minDwellSeconds", "out of range")]
#[case::huge(&[("quality/dataset", json!({"uri": "file:///t", "maxTokens": 4_294_967_295_u32}))], "spec.quality.dataset.maxTokens", "too large")]
#[case::context(&[("model/maxContextTokens", json!(1))], "spec.model.maxContextTokens", "16")]
// Ladder.
#[case::same_name(&[("profiles/1/name", json!("quality"))], "spec.profiles[1].name", "taken already")]
#[case::group_size(&[("profiles/1/weights/groupSize", json!(48))], "spec.profiles[1].weights.groupSize", "32, 64 or 128")]
#[case::group_of_fp8(&[("profiles/0/weights/groupSize", json!(64))], "spec.profiles[0].weights.groupSize", "INT4 only")]
#[case::zero_of_fp8(&[("profiles/0/weights/zeroPoint", json!("Integer"))], "spec.profiles[0].weights.zeroPoint", "INT4 only")]
#[case::kv_differs(&[("profiles/1/kvCache", json!({"format": "FP16"}))], "spec.profiles[1].kvCache.format", "InPlace keeps the cache")]
// Switching.
#[case::pin_missing(&[("switching/mode", json!("Pinned"))], "spec.switching.pinnedProfile", "one of quality, density")]
#[case::pin_unknown(&[("switching", json!({"mode": "Pinned", "pinnedProfile": "fast"}))], "spec.switching.pinnedProfile", "no profile `fast`")]
#[case::target(&[("switching/targets", json!({"queueTimeSeconds": "soon"}))], "spec.switching.targets.queueTimeSeconds", "seconds above 0")]
#[case::target_zero(&[("switching/targets", json!({"timeToFirstTokenSeconds": 0}))], "spec.switching.targets.timeToFirstTokenSeconds", "above 0")]
#[case::target_percent(&[("switching/targets", json!({"kvCacheUtilizationPercent": 101}))], "spec.switching.targets.kvCacheUtilizationPercent", "1 to 100")]
#[case::pressure(&[("switching/toQuality", json!({"pressureBelowPercent": 100}))], "spec.switching.toQuality.pressureBelowPercent", "1 to 99")]
#[case::no_switches(&[("switching/maxSwitchesPerHour", json!(0))], "spec.switching.maxSwitchesPerHour", "1")]
// Schedule.
#[case::zone(&[("switching/schedule", json!({"timeZone": "Mars/Base", "windows": [{"name": "w", "profile": "density", "start": "08:00", "end": "09:00"}]}))], "spec.switching.schedule.timeZone", "not a known time zone")]
#[case::time(&[("switching/schedule", windows(&[("w", "Mon", "8:00", "09:00")]))], "spec.switching.schedule.windows[0].start", "time of day")]
#[case::end_of_day(&[("switching/schedule", windows(&[("w", "Mon", "24:00", "09:00")]))], "spec.switching.schedule.windows[0].start", "00:00")]
#[case::empty_window(&[("switching/schedule", windows(&[("w", "Mon", "08:00", "08:00")]))], "spec.switching.schedule.windows[0].end", "empty")]
#[case::same_day(&[("switching/schedule", windows(&[("w", "Mon Mon", "08:00", "09:00")]))], "spec.switching.schedule.windows[0].days[1]", "twice")]
#[case::window_names(&[("switching/schedule", windows(&[("w", "Mon", "08:00", "09:00"), ("w", "Tue", "08:00", "09:00")]))], "spec.switching.schedule.windows[1].name", "taken already")]
#[case::window_profile(&[("switching/schedule", json!({"windows": [{"name": "w", "profile": "fast", "start": "08:00", "end": "09:00"}]}))], "spec.switching.schedule.windows[0].profile", "no profile `fast`")]
#[case::no_windows(&[("switching/schedule", json!({"windows": []}))], "spec.switching.schedule.windows", "must not be empty")]
// The rest.
#[case::uri(&[("model/uri", json!("models/model.gguf"))], "spec.model.uri", "no scheme")]
#[case::uri_climbs(&[("model/uri", json!("file:///models/../etc"))], "spec.model.uri", "..")]
#[case::revision(&[("model/revision", json!("main"))], "spec.model.revision", "hf:// only")]
#[case::served_name(&[("model/servedName", json!("a b"))], "spec.model.servedName", "spaces")]
#[case::license(&[("model/license", json!({"accepted": " "}))], "spec.model.license.accepted", "apache-2.0")]
#[case::env_twice(&[("engine/env", json!([{"name": "A"}, {"name": "A"}]))], "spec.engine.env[1].name", "taken already")]
#[case::env_name(&[("engine/env", json!([{"name": "A=B"}]))], "spec.engine.env[0].name", "=")]
#[case::env_both(&[("engine/env", json!([{"name": "A", "value": "b", "secretKeyRef": {"name": "s", "key": "k"}}]))], "spec.engine.env[0]", "remove one")]
#[case::min_above_max(&[("scaling", json!({"minReplicas": 3, "maxReplicas": 2}))], "spec.scaling.maxReplicas", "below minReplicas")]
#[case::divergence(&[("quality/maxMeanKLDivergence", json!("low"))], "spec.quality.maxMeanKLDivergence", "nats")]
#[case::dataset(&[("quality/dataset", json!({"uri": "wikitext"}))], "spec.quality.dataset.uri", "no scheme")]
#[case::budget(&[("placement/memoryBudget", json!("76GB"))], "spec.placement.memoryBudget", "not a quantity")]
#[case::budget_zero(&[("placement/memoryBudget", json!(0))], "spec.placement.memoryBudget", "more than 0")]
#[case::resource(&[("placement/resources", json!({"limits": {"cpu": "two"}}))], "spec.placement.resources.limits.cpu", "not a quantity")]
#[case::request_above_limit(&[("placement/resources", json!({"limits": {"memory": "1Gi"}, "requests": {"memory": "2Gi"}}))], "spec.placement.resources.requests.memory", "above the limit")]
#[case::toleration_value(&[("placement/tolerations", json!([{"key": "a", "operator": "Exists", "value": "b"}]))], "spec.placement.tolerations[0].value", "remove it")]
#[case::toleration_key(&[("placement/tolerations", json!([{"value": "b"}]))], "spec.placement.tolerations[0].key", "required")]
#[case::two_caches(&[("cache", json!({"hostPath": "/cache", "emptyDir": {}}))], "spec.cache", "keep one")]
#[case::host_path(&[("cache/hostPath", json!("/cache/../etc"))], "spec.cache.hostPath", "absolute")]
#[case::relative_host_path(&[("cache/hostPath", json!("cache"))], "spec.cache.hostPath", "absolute")]
#[case::size_limit(&[("cache/emptyDir", json!({"sizeLimit": "much"}))], "spec.cache.emptyDir.sizeLimit", "not a quantity")]
// Not built yet.
#[case::fp16(&[("profiles/0/weights/format", json!("FP16"))], "spec.profiles[0].weights.format", "FP16 is not supported")]
#[case::gguf_mixture(&[("profiles/0/weights/format", json!("Q5_K_M"))], "spec.profiles[0].weights.format", "Q5_K_M is not supported")]
fn one_mistake_gives_one_error_at_its_field(
    #[case] edits: &[(&str, Value)],
    #[case] path: &str,
    #[case] part_of_message: &str,
) {
    let errors = errors(&with(edits));
    let [error] = &errors[..] else { panic!("expected one error at {path}, got {errors:#?}") };
    assert_eq!(error.path, path);
    assert!(error.message.contains(part_of_message), "{error}");
}

#[test]
fn what_is_valid_but_not_built_breaks_no_rule() {
    for (edits, path) in [
        (vec![("profiles/0/weights", json!({"format": "FP16"}))], "spec.profiles[0].weights.format"),
        (
            vec![("switching/strategy", json!("Surge")), ("profiles/1/tensorParallel", json!(2))],
            "spec.profiles[1].tensorParallel",
        ),
    ] {
        let manifest = Manifest::from_yaml(&with(&edits).to_string()).unwrap();
        assert_eq!(violations(&manifest), []);
        let refused: Vec<_> = unsupported(&manifest).into_iter().map(|error| error.path).collect();
        assert_eq!(refused, [path]);
    }
    let two = [("profiles/0/tensorParallel", json!(2)), ("profiles/1/tensorParallel", json!(2))];
    assert_eq!(unsupported(&Manifest::from_yaml(&with(&two).to_string()).unwrap()), []);
}

#[rstest]
#[case(&[("switching/strategy", json!("Surge"))], &["spec.switching.strategy"])]
#[case(
    &[("engine/type", json!("VLLM")), ("switching/strategy", json!("Recreate")), ("profiles/0/tensorParallel", json!(2))],
    &["spec.engine.type", "spec.switching.strategy"]
)]
#[case(&[("engine/type", json!("Native"))], &[])]
fn what_needs_pods_is_valid_and_refused_by_local_mode_alone(#[case] edits: &[(&str, Value)], #[case] paths: &[&str]) {
    let manifest = Manifest::from_yaml(&with(edits).to_string()).unwrap();
    assert_eq!((violations(&manifest), unsupported(&manifest)), (vec![], vec![]));
    let refused = needs_cluster(&manifest);
    assert_eq!(refused.iter().map(|error| error.path.as_str()).collect::<Vec<_>>(), paths);
    assert!(refused.iter().all(|error| error.message.contains("on a cluster")), "{refused:?}");
}

#[rstest]
#[case("AWQ", &["INT4"])]
#[case("GPTQ", &["INT4", "INT8"])]
#[case("SmoothQuant", &["INT8"])]
#[case("LLMInt8", &["INT8"])]
#[case("RoundToNearest", &["BF16", "FP16", "FP8", "INT8", "INT4", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_1", "Q4_0"])]
fn methods_go_with_their_formats(#[case] method: &str, #[case] formats: &[&str]) {
    for format in ["BF16", "FP16", "FP8", "INT8", "INT4", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_1", "Q4_0"] {
        let manifest = with(&[("profiles/0/weights", json!({"format": format, "method": method}))]);
        let broken: Vec<_> = violations(&Manifest::from_yaml(&manifest.to_string()).unwrap());
        if formats.contains(&format) {
            assert_eq!(broken, [], "{method} {format}");
        } else {
            assert_eq!(broken.len(), 1, "{method} {format}: {broken:?}");
            assert_eq!(broken[0].path, "spec.profiles[0].weights.method");
        }
    }
}

#[rstest]
#[case::apart(&[("a", "Mon", "08:00", "12:00"), ("b", "Mon", "12:00", "20:00")], None)]
#[case::other_days(&[("a", "Mon", "08:00", "12:00"), ("b", "Tue", "08:00", "12:00")], None)]
#[case::inside(&[("a", "Mon", "08:00", "20:00"), ("b", "Mon", "09:00", "10:00")], Some("Mon 09:00 to Mon 10:00"))]
#[case::across_midnight(&[("a", "Mon", "22:00", "06:00"), ("b", "Tue", "05:00", "07:00")], Some("Tue 05:00 to Tue 06:00"))]
#[case::across_the_week(&[("a", "Sun", "22:00", "06:00"), ("b", "Mon", "05:00", "07:00")], Some("Mon 05:00 to Mon 06:00"))]
#[case::across_the_week_swapped(&[("b", "Mon", "05:00", "07:00"), ("a", "Sun", "22:00", "06:00")], Some("Mon 05:00 to Mon 06:00"))]
#[case::next_to_each_other_at_midnight(&[("a", "Sun", "22:00", "00:00"), ("b", "Mon", "00:00", "07:00")], None)]
#[case::whole_days(&[("a", "Sat Sun", "00:00", "24:00"), ("b", "Mon", "00:00", "24:00")], None)]
#[case::every_day(&[("a", "", "22:00", "06:00"), ("b", "Wed", "23:00", "23:30")], Some("Wed 23:00 to Wed 23:30"))]
#[case::daily_neighbours(&[("a", "", "20:00", "08:00"), ("b", "", "08:00", "20:00")], None)]
fn windows_do_not_overlap(#[case] list: &[(&str, &str, &str, &str)], #[case] common: Option<&str>) {
    let errors = errors(&with(&[("switching/schedule", windows(list))]));
    match common {
        None => assert_eq!(errors, []),
        Some(common) => {
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert_eq!(errors[0].path, "spec.switching.schedule.windows[1]");
            assert!(errors[0].message.contains(common), "{}", errors[0]);
        }
    }
}

#[test]
fn all_errors_come_at_once_whatever_found_them() {
    let manifest = with(&[
        ("placment", json!({})),                              // unknown
        ("model/maxContextTokens", json!("many")),            // wrong type
        ("model/uri", json!("ftp://a/b")),                    // rule of one field
        ("profiles/1/kvCache", json!({"format": "FP8E5M2"})), // rule between fields
        ("profiles/1/weights/format", json!("Q5_K_M")),       // not built
        ("scaling", json!({"minReplicas": 2})),
    ]);
    let mut found = paths(&manifest);
    found.sort();
    assert_eq!(
        found,
        [
            "spec.model.maxContextTokens",
            "spec.model.uri",
            "spec.placment",
            "spec.profiles[1].kvCache.format",
            "spec.profiles[1].weights.format",
            "spec.scaling.maxReplicas",
        ]
    );
}

#[test]
fn a_field_that_is_wrong_is_not_reported_as_missing_too() {
    let manifest = with(&[("switching", json!({"mode": "Pinned", "pinnedProfile": 5}))]);
    assert_eq!(paths(&manifest), ["spec.switching.pinnedProfile"]);
    // The second profile can not be read, so nothing is said about the ladder as a whole.
    let manifest = with(&[
        ("profiles/1/weights/format", json!("INT3")),
        ("switching", json!({"mode": "Pinned", "pinnedProfile": "density"})),
    ]);
    assert_eq!(paths(&manifest), ["spec.profiles[1].weights.format"]);
}

#[rstest]
#[case("", "")]
#[case("a: [", "")]
#[case("- a", "")]
#[case("a: 1\na: 2", "")]
#[case("kind: ModelProfile", "apiVersion")]
#[case("apiVersion: modelprofile.dev/v1alpha1\nkind: Pod", "kind")]
fn what_is_no_manifest_gives_one_error(#[case] text: &str, #[case] path: &str) {
    let Errors(errors) = Validated::from_yaml(text).unwrap_err();
    assert_eq!(errors.iter().map(|e| e.path.as_str()).collect::<Vec<_>>(), [path], "{errors:?}");
}

#[rstest]
#[case(json!({}), "metadata.name")]
#[case(json!({"name": 5}), "metadata.name")]
#[case(json!({"name": "Smol"}), "metadata.name")]
#[case(json!({"name": "7b"}), "metadata.name")]
#[case(json!({"name": "a", "namespace": "b_c"}), "metadata.namespace")]
#[case(json!([]), "metadata")]
fn metadata_is_checked_without_a_server(#[case] metadata: Value, #[case] path: &str) {
    let mut manifest = minimal();
    manifest["metadata"] = metadata;
    assert_eq!(paths(&manifest), [path]);
}

#[test]
fn what_the_server_adds_is_no_error() {
    let mut manifest = minimal();
    manifest["metadata"] = json!({"name": "a", "namespace": "b", "uid": "x", "generation": 3, "labels": {"a": "b"}});
    manifest["status"] = json!({"activeProfile": "quality"});
    assert_eq!(errors(&manifest), []);
}

#[test]
fn a_pin_is_the_resting_profile() {
    let manifest = with(&[
        ("switching", json!({"mode": "Pinned", "pinnedProfile": "density"})),
        ("placement/memoryBudget", json!("400Mi")),
    ]);
    let valid = Validated::from_yaml(&manifest.to_string()).unwrap();
    assert_eq!(valid.resting_profile().name, "density");
    assert_eq!(valid.memory_budget_bytes(), Some(400 << 20));
}

const EXAMPLES: [(&str, &str); 2] = [
    ("smollm2", include_str!("../../../deploy/examples/smollm2.yaml")),
    ("llama-70b", include_str!("../../../deploy/examples/llama-70b.yaml")),
];

/// File and text of every ModelProfile in deploy/examples; autoscalers lie beside them.
fn examples() -> Vec<(String, String)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let texts = files.map(|file| (file.display().to_string(), std::fs::read_to_string(&file).unwrap()));
    texts.filter(|(_, text)| text.lines().any(|line| line == "kind: ModelProfile")).collect()
}

#[test]
fn the_examples_break_no_rule_and_survive_being_written() {
    let mut names = Vec::new();
    for (file, text) in examples() {
        let manifest = Manifest::from_yaml(&text).unwrap_or_else(|errors| panic!("{file}: {errors}"));
        assert_eq!(violations(&manifest), [], "{file}");
        let again = serde_yaml::to_string(&manifest).unwrap();
        assert_eq!(Manifest::from_yaml(&again).unwrap(), manifest, "{file}");
        assert!(!names.contains(&manifest.metadata.name), "{file}: its name is that of another example");
        names.push(manifest.metadata.name);
    }
    for (expected, _) in EXAMPLES {
        assert!(names.iter().any(|name| name == expected), "{expected} is not among {names:?}");
    }
}

#[test]
fn the_local_example_can_be_carried_out() {
    let valid = Validated::from_yaml(EXAMPLES[0].1).unwrap();
    assert_eq!(valid.memory_budget_bytes(), Some(400 << 20));
    assert_eq!(valid.resting_profile().name, "quality");
}

/// A value that an editor could have left somewhere.
fn junk() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!([{"name": 1}, null, "x"])),
        Just(json!({"format": "INT4", "name": "density", "x": {"y": []}})),
        prop_oneof!["24:00", "00:00", "Pinned", "999999999999999999999Ei", "é", "-1", "../..", "hf://"]
            .prop_map(Value::from),
    ]
}

/// Replaces or removes the `n`-th node, counted depth first.
fn mutate(value: &mut Value, n: &mut usize, junk: &Value) {
    if *n == 0 {
        *value = junk.clone();
        *n = usize::MAX;
        return;
    }
    *n -= 1;
    match value {
        Value::Object(map) => map.values_mut().for_each(|v| mutate(v, n, junk)),
        Value::Array(items) => items.iter_mut().for_each(|v| mutate(v, n, junk)),
        _ => {}
    }
}

proptest! {
    #[test]
    fn mutated_values_never_panic_and_the_accepted_ones_are_written_again(
        example in 0..2usize,
        edits in proptest::collection::vec((0..110usize, junk()), 1..4),
    ) {
        let mut value: Value = serde_yaml::from_str(EXAMPLES[example].1).unwrap();
        for (mut n, junk) in edits {
            mutate(&mut value, &mut n, &junk);
        }
        let text = serde_yaml::to_string(&value).unwrap();
        match Validated::from_yaml(&text) {
            Ok(valid) => {
                let again = serde_yaml::to_string(valid.manifest()).unwrap();
                prop_assert_eq!(Validated::from_yaml(&again), Ok(valid));
            }
            Err(Errors(errors)) => prop_assert!(!errors.is_empty()),
        }
    }

    #[test]
    fn mutated_text_never_panics(
        example in 0..2usize,
        edits in proptest::collection::vec((0..2000usize, any::<char>(), any::<bool>()), 1..8),
    ) {
        let mut text: Vec<char> = EXAMPLES[example].1.chars().collect();
        for (at, c, insert) in edits {
            let at = at % text.len();
            if insert { text.insert(at, c) } else { text[at] = c }
        }
        let text: String = text.into_iter().collect();
        if let Err(Errors(errors)) = Validated::from_yaml(&text) {
            prop_assert!(!errors.is_empty());
        }
    }

    /// Two windows overlap exactly if some minute of the week is in both.
    #[test]
    fn overlaps_are_those_of_the_minutes(
        a in (0..7usize, 0..96u32, 0..97u32),
        b in (0..7usize, 0..96u32, 0..97u32),
    ) {
        let week = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
        let text = |quarter: u32| format!("{:02}:{:02}", quarter / 4, quarter % 4 * 15);
        let minutes = |(day, start, end): (usize, u32, u32)| -> Vec<u32> {
            let length = if end > start { end - start } else { end + 96 - start };
            (0..length).map(|q| (day as u32 * 96 + start + q) % (7 * 96)).collect()
        };
        prop_assume!(a.1 != a.2 && b.1 != b.2);
        let list = [
            ("a", week[a.0], text(a.1), text(a.2)),
            ("b", week[b.0], text(b.1), text(b.2)),
        ];
        let list: Vec<_> = list.iter().map(|(n, d, s, e)| (*n, *d, s.as_str(), e.as_str())).collect();
        let found = errors(&with(&[("switching/schedule", windows(&list))]));
        let common = minutes(a).iter().any(|m| minutes(b).contains(m));
        prop_assert_eq!(!found.is_empty(), common, "{:?}", found);
    }
}

#[rstest]
#[case::tabs("spec:\n\tmodel: x\n", "indent with spaces, YAML takes no tabs")]
#[case::two_documents("a: 1\n---\nb: 2\n", "it holds 2 documents; put each ModelProfile into a file of its own")]
#[case::a_number_beyond_all_types(
    "spec: {switching: {maxSwitchesPerHour: 99999999999999999999999}}",
    "spec.switching.maxSwitchesPerHour: 99999999999999999999999 is too large for a number; write a smaller one"
)]
#[case::twice("metadata: {name: a, name: b}", "duplicate entry")]
fn text_that_is_no_manifest_is_refused_with_what_to_do(#[case] text: &str, #[case] expected: &str) {
    let errors = Manifest::from_yaml(text).unwrap_err().0;
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].message.starts_with("not readable as YAML: "), "{errors:?}");
    assert!(errors[0].message.contains(expected), "{errors:?}");
}

#[test]
fn aliases_that_multiply_without_end_are_refused() {
    let level = |level: usize| format!("a{level}: &a{level} [{}]\n", vec![format!("*a{}", level - 1); 10].join(","));
    let levels: Vec<String> = (1..10).map(level).collect();
    let text = format!("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n{}", levels.concat());
    assert!(Manifest::from_yaml(&text).unwrap_err().to_string().contains("limit exceeded"));
}

#[rstest]
#[case::end("", "\n---\n")]
#[case::head("# comments alone\n---\n", "")]
fn separators_without_a_second_document_are_no_error(#[case] head: &str, #[case] end: &str) {
    assert!(Manifest::from_yaml(&format!("{head}{}{end}", minimal())).is_ok());
}
