//! `bench --trace` on a small model: a file that viewers of traces open, and tables.

use std::{fs, path::Path};

use serde_json::Value;

use crate::tiny::{self, fail, run, worker};

/// Traces a few short measurements; what was printed, and the events of the file.
fn trace(folder: &Path) -> (String, Vec<Value>) {
    let (model, file) = (tiny::model(folder, "license: mit\n"), folder.join("trace.json"));
    let mut command = worker(&folder.join("cache"));
    command.args([
        "bench",
        "--format",
        "FP8,Q4_1",
        "--prefill",
        "40",
        "--chunk",
        "16",
        "--batch",
        "1,3",
        "--tokens",
        "6",
    ]);
    let text = run(command.args(["--context", "20", "--threads", "2", "--model"]).arg(model).arg("--trace").arg(&file));
    let trace: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    (text, trace["traceEvents"].as_array().unwrap().clone())
}

fn number(event: &Value, field: &str) -> f64 {
    event[field].as_f64().unwrap_or_else(|| panic!("no {field} in {event}"))
}

fn end(event: &Value) -> f64 {
    number(event, "ts") + number(event, "dur")
}

/// Less than a nanosecond, in microseconds: what adding two decimal numbers may be off by.
const ROUNDING: f64 = 0.0005;

#[test]
fn the_file_has_a_process_for_each_measurement_and_kernels_inside_their_steps() {
    let folder = tempfile::tempdir().unwrap();
    let (text, events) = trace(folder.path());
    let names: Vec<&str> = events
        .iter()
        .filter(|event| event["ph"] == "M" && event["name"] == "process_name")
        .map(|event| event["args"]["name"].as_str().unwrap())
        .collect();
    let expected = ["FP8 prefill, 40 tokens", "FP8 decode, 1 sequence", "FP8 decode, 3 sequences"];
    assert_eq!(names[..3], expected);
    assert_eq!(names[3..], expected.map(|name| name.replace("FP8", "Q4_1")));
    for (index, name) in names.iter().enumerate() {
        let of = |event: &&Value| event["pid"] == index + 1 && event["ph"] == "X";
        let events: Vec<&Value> = events.iter().filter(of).collect();
        let (steps, kernels): (Vec<&Value>, Vec<&Value>) = events.iter().partition(|event| event["cat"] == "step");
        assert_eq!(steps.len(), 4, "{name}");
        for pair in steps.windows(2) {
            assert!(end(pair[0]) <= number(pair[1], "ts") + ROUNDING, "{name}: steps overlap");
        }
        // Two layers of nine kernels, and what is before and behind them.
        assert_eq!(kernels.len(), 4 * (2 * 9 + 7), "{name}");
        for (step, kernels) in steps.iter().zip(kernels.chunks(2 * 9 + 7)) {
            assert!(number(step, "ts") <= number(kernels[0], "ts") + ROUNDING, "{name}: a kernel before its step");
            assert!(end(kernels.last().unwrap()) <= end(step) + ROUNDING, "{name}: a kernel behind its step");
            for pair in kernels.windows(2) {
                assert!(end(pair[0]) <= number(pair[1], "ts") + ROUNDING, "{name}: kernels overlap");
            }
            let sum: f64 = kernels.iter().map(|kernel| number(kernel, "dur")).sum();
            assert!(sum <= number(step, "dur") + ROUNDING, "{name}: {sum} in {step}");
            let bytes: f64 = kernels.iter().map(|kernel| number(&kernel["args"], "bytes")).sum();
            assert!((bytes - number(&step["args"], "bytes")).abs() < 0.5, "{name}: {bytes} in {step}");
        }
        assert!(text.contains(&format!("\n{name}: ")), "{name} has no table in\n{text}");
    }
    let product = events.iter().find(|event| event["name"] == "gate_up 192x64 FP8").unwrap();
    // The first of the last four steps has the 8 rows of a prompt's last chunk: 2 x 8 x 192 x 64.
    assert_eq!((product["args"]["layer"].as_u64(), product["args"]["operations"].as_u64()), (Some(0), Some(196_608)));
    for expected in ["rms_norm", "down 64x96 INT4:g32", "rest of the step", "of bound", "ui.perfetto.dev"] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
}

#[test]
fn without_the_option_nothing_is_traced() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny::model(folder.path(), "license: mit\n");
    let mut command = worker(&folder.path().join("cache"));
    command
        .args([
            "bench",
            "--format",
            "FP8",
            "--prefill",
            "8",
            "--batch",
            "1",
            "--tokens",
            "2",
            "--context",
            "8",
            "--model",
        ])
        .arg(model);
    let text = run(&mut command);
    assert!(text.contains("decode x1") && !text.contains("rest of the step"), "{text}");
}

#[test]
fn a_file_that_cannot_be_written_is_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny::model(folder.path(), "license: mit\n");
    let mut command = worker(&folder.path().join("cache"));
    let error = fail(command.args(["bench", "--trace", "/no/such/folder/trace.json", "--model"]).arg(model));
    assert!(error.contains("cannot write /no/such/folder/trace.json"), "{error}");
}
