//! The file of `bench --trace`: the trace event format of Chrome in JSON, an event a line. A measurement is a process with one
//! thread, on which each step is an event with its kernels inside.

use std::{
    io::{self, Write},
    time::Duration,
};

use modelprofile_engine::trace::{Bound, Call, Step, Work};
use modelprofile_kernels::cpu::probe::Machine;
use serde_json::{Map, Value, json};

use super::Measurement;

/// Writes all measurements.
pub(super) fn write(out: &mut impl Write, measurements: &[Measurement], machine: &Machine) -> io::Result<()> {
    let limits = json!({
        "threads": machine.threads,
        "read GB/s": rounded(machine.read_bandwidth / 1e9),
        "INT8 GOP/s": rounded(machine.int8_operations / 1e9),
        "BF16 GOP/s": rounded(machine.bf16_operations / 1e9),
    });
    write!(out, "{{\"displayTimeUnit\":\"ms\",\"otherData\":{limits},\"traceEvents\":[")?;
    let mut separator = "\n";
    for (index, measurement) in measurements.iter().enumerate() {
        for event in of_measurement(index + 1, measurement, machine) {
            write!(out, "{separator}{event}")?;
            separator = ",\n";
        }
    }
    writeln!(out, "\n]}}")
}

/// Names, then steps with their kernels.
fn of_measurement(id: usize, measurement: &Measurement, machine: &Machine) -> Vec<Value> {
    let about = |name: &str, args: Value| json!({"name": name, "ph": "M", "pid": id, "tid": id, "args": args});
    let mut events = vec![
        about("process_name", json!({"name": measurement.name})),
        about("process_sort_index", json!({"sort_index": id})),
        about("thread_name", json!({"name": "steps"})),
    ];
    for step in &measurement.steps {
        events.push(of_step(id, step, machine));
        events.extend(step.calls.iter().map(|call| of_call(id, call, step, machine)));
    }
    events
}

fn of_step(id: usize, step: &Step, machine: &Machine) -> Value {
    let (mut work, mut least) = (Work::default(), 0.0);
    for call in &step.calls {
        let of_call = call.kernel.work(&step.plan);
        work += of_call;
        least += of_call.bound(machine).map_or(0.0, |(least, _)| least);
    }
    let mut args = rates(work, step.duration, Some((least, None)));
    let first = step.plan.sequences.iter().map(|sequence| sequence.first_position).max();
    args.insert("rows".into(), step.plan.rows().into());
    args.insert("sequences".into(), step.plan.sequences.len().into());
    args.insert("tokens before".into(), first.into());
    event(id, "step", "step", step.start, step.duration, &args)
}

fn of_call(id: usize, call: &Call, step: &Step, machine: &Machine) -> Value {
    let work = call.kernel.work(&step.plan);
    let bound = work.bound(machine).map(|(least, bound)| (least, Some(bound)));
    let mut args = rates(work, call.duration, bound);
    if let Some(layer) = call.layer {
        args.insert("layer".into(), layer.into());
    }
    event(id, &call.kernel.to_string(), call.kernel.category(), call.start, call.duration, &args)
}

/// Bytes and operations by the time, and the least time by the bound.
fn rates(work: Work, duration: Duration, bound: Option<(f64, Option<Bound>)>) -> Map<String, Value> {
    let seconds = duration.as_secs_f64();
    let mut args = Map::new();
    args.insert("bytes".into(), work.moved().into());
    args.insert("operations".into(), work.operations().into());
    // A time of nothing has no rates; JSON has no infinity.
    if let Some((least, bound)) = bound.filter(|_| seconds > 0.0) {
        args.insert("GB/s".into(), rounded(work.moved() as f64 / seconds / 1e9).into());
        args.insert("GOP/s".into(), rounded(work.operations() as f64 / seconds / 1e9).into());
        if let Some(bound) = bound {
            args.insert("bound".into(), bound.name().into());
        }
        args.insert("fraction of bound".into(), rounded(least / seconds).into());
    }
    args
}

/// A complete event; its times are microseconds with three digits, so nanoseconds.
fn event(
    id: usize,
    name: &str,
    category: &str,
    start: Duration,
    duration: Duration,
    args: &Map<String, Value>,
) -> Value {
    let micros = |time: Duration| time.as_nanos() as f64 / 1e3;
    json!({
        "name": name, "cat": category, "ph": "X", "ts": micros(start), "dur": micros(duration), "pid": id, "tid": id, "args": args,
    })
}

/// To three digits, which is finer than anything is measured.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
