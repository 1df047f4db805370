use std::time::Duration;

use modelprofile_engine::trace::{Call, Kernel};
use modelprofile_kernels::{SequenceSpan, StepPlan};
use serde_json::{Value, json};

use super::*;

/// 1 GB/s.
const MACHINE: Machine = Machine { threads: 2, read_bandwidth: 1e9, int8_operations: 8e9, bf16_operations: 2e9 };

const fn micros(count: u64) -> Duration {
    Duration::from_micros(count)
}

/// A step of `duration`, of which two norms take 20 and move 34 kB, and an activation takes 4 and moves 24 kB.
fn step(start: u64, duration: u64) -> Step {
    let call = |kernel, after, duration| Call {
        kernel,
        layer: Some(3),
        start: micros(start + after),
        duration: micros(duration),
    };
    let sequence = SequenceSpan { first_row: 0, rows: 1, first_position: 7, blocks: vec![0] };
    Step {
        plan: StepPlan { tokens: vec![1], sequences: vec![sequence], logit_rows: vec![0] },
        start: micros(start),
        duration: micros(duration),
        calls: vec![
            call(Kernel::RmsNorm { rows: 3, width: 1000 }, 1, 10),
            call(Kernel::GatedSilu { rows: 1, width: 2000 }, 12, 4),
            call(Kernel::RmsNorm { rows: 1, width: 500 }, 17, 10),
        ],
    }
}

#[test]
fn a_table_shares_the_step_out_and_cuts_nothing_at_100_percent() {
    let steps = [step(0, 30), step(100, 50)];
    let text = table::text("FP8 decode, 1 sequence", &steps.iter().collect::<Vec<_>>(), 9, &MACHINE);
    let expected = "\
FP8 decode, 1 sequence: 0.040 ms a step, mean of 2 of 9 steps
  kernel                              calls  ms a step   share     GB/s     GOP/s  bound     of bound
  rms_norm                                2     0.0200   50.0%     1.70      0.00  memory      170.0%
  gated_silu                              1     0.0040   10.0%     6.00      0.00  memory      600.0%
  rest of the step                              0.0160   40.0%
  step                                          0.0400  100.0%     1.45      0.00              145.0%
";
    assert_eq!(text, expected);
}

#[test]
fn every_line_fits_a_terminal() {
    let text = table::text("name", &[&step(0, 30)], 1, &MACHINE);
    for line in text.lines().chain(table::LEGEND.lines()) {
        assert!(line.chars().count() <= 120, "{line}");
    }
}

#[test]
fn the_steps_shown_are_those_whose_speed_is_told() {
    let durations = |steps: Vec<&Step>| steps.iter().map(|step| step.duration.as_micros()).collect::<Vec<_>>();
    let steps: Vec<Step> = [90, 40, 10, 50, 30, 60, 20, 70].map(|duration| step(0, duration)).into();
    assert_eq!(durations(middle_half(&steps)), [30, 40, 50, 60]);
    assert_eq!(durations(middle_half(&steps[..1])), [90]);
    // Passes of two steps: 130, 60, 90, 90.
    assert_eq!(durations(fastest_pass(&steps, 2)), [10, 50]);
    assert_eq!(durations(fastest_pass(&[], 2)), [0_u128; 0]);
}

#[test]
fn an_event_says_what_was_done_and_of_which_layer() {
    let measurement =
        Measurement { name: "FP8 decode, 1 sequence".into(), table: String::new(), steps: vec![step(100, 30)] };
    let mut out = Vec::new();
    events::write(&mut out, &[measurement], &MACHINE).unwrap();
    let trace: Value = serde_json::from_slice(&out).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    assert_eq!(events.len(), 3 + 1 + 3);
    assert_eq!(events[0]["args"], json!({"name": "FP8 decode, 1 sequence"}));
    assert_eq!(
        events[3],
        json!({
            "name": "step", "cat": "step", "ph": "X", "ts": 100.0, "dur": 30.0, "pid": 1, "tid": 1,
            "args": {
                "bytes": 58_000, "operations": 0, "GB/s": 1.933, "GOP/s": 0.0, "fraction of bound": 1.933,
                "rows": 1, "sequences": 1, "tokens before": 7,
            },
        })
    );
    assert_eq!(
        events[5],
        json!({
            "name": "gated_silu", "cat": "elementwise", "ph": "X", "ts": 112.0, "dur": 4.0, "pid": 1, "tid": 1,
            "args": {
                "bytes": 24_000, "operations": 0, "GB/s": 6.0, "GOP/s": 0.0, "bound": "memory", "fraction of bound": 6.0,
                "layer": 3,
            },
        })
    );
}

#[test]
fn the_file_holds_the_last_steps_of_each_measurement() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.json");
    let mut trace = Trace::create(&path, MACHINE, 512).unwrap();
    trace.add(WeightFormat::Q4_1, Case::Prefill(600), (0..6).map(|index| step(index * 100, 30)).collect());
    trace.add(WeightFormat::Q4_1, Case::Decode(16), (6..8).map(|index| step(index * 100, 30)).collect());
    trace.finish().unwrap();
    let trace: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let of = |name: &str| events.iter().filter(|event| event["name"] == name).collect::<Vec<_>>();
    let starts: Vec<f64> = of("step").iter().map(|step| step["ts"].as_f64().unwrap()).collect();
    assert_eq!(starts, [200.0, 300.0, 400.0, 500.0, 600.0, 700.0]);
    let names: Vec<&Value> = of("process_name").iter().map(|event| &event["args"]["name"]).collect();
    assert_eq!(names, ["Q4_1 prefill, 600 tokens", "Q4_1 decode, 16 sequences"]);
}

#[test]
fn a_path_that_cannot_be_written_is_told_before_anything_is_measured() {
    let error = Trace::create(Path::new("/no/such/folder/trace.json"), MACHINE, 512).err().unwrap();
    assert!(error.to_string().contains("cannot write /no/such/folder/trace.json"), "{error}");
}

#[test]
fn a_device_that_computes_by_itself_is_refused_with_what_to_use_instead() {
    let error = refusal("NVIDIA H100");
    for expected in ["NVIDIA H100", "--device cpu", "make gpu-check", "bench --plan"] {
        assert!(error.contains(expected), "{error}");
    }
}
