//! Time of one decision over 64 replicas, with a schedule and everything observed.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use criterion::{Criterion, criterion_group, criterion_main};
use jiff::{SignedDuration, Timestamp};
use modelprofile_api::Manifest;
use modelprofile_policy::{History, Kv, Observation, Reading, Replica, Rules, Rung, Sample, decide};

const MANIFEST: &str = include_str!("../../../deploy/examples/llama-70b.yaml");

fn bench(c: &mut Criterion) {
    let manifest = Manifest::from_yaml(MANIFEST).expect("the example is well-formed");
    let mut spec = manifest.spec;
    spec.scaling.max_replicas = 64;
    let rules = Rules::new(&spec, SignedDuration::from_secs(5)).expect("the example is valid");
    let mut now = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * 365 * 56);
    let mut history = History::default();
    let observation = |now| Observation {
        active: Some(0),
        replicas: 64,
        workers: (0..64)
            .map(|i| {
                Replica::Ready(Some(Sample {
                    at: now,
                    kv: Some(Kv { total: 1600.0, used: 1500.0 + f64::from(i), waiting: 60.0 }),
                    oldest_waiting: Reading::Value(2.5),
                    time_to_first_token: Reading::Value(3.0),
                    running: 32.0,
                    step_seconds: Some(0.03),
                    tokens_per_second: Some(4000.0),
                    tokens_per_step: Some(60.0),
                }))
            })
            .collect(),
        rungs: vec![
            Rung { kv_tokens: Some(25_000), weight_bytes: Some(70 << 30), ..Rung::default() },
            Rung { kv_tokens: Some(220_000), weight_bytes: Some(38 << 30), ..Rung::default() },
        ],
        memory_bytes: Some(76 << 30),
        compute_bound_tokens: Some(130.0),
        ..Observation::default()
    };
    for _ in 0..5 {
        history.record(&rules, &observation(now), now);
        now += SignedDuration::from_secs(5);
    }
    let seen = observation(now);
    c.bench_function("decide, 64 replicas", |b| b.iter(|| decide(&rules, std::hint::black_box(&seen), &history, now)));
    c.bench_function("record, 64 replicas", |b| {
        let mut history = history.clone();
        b.iter(|| history.record(&rules, std::hint::black_box(&seen), now));
    });
}

criterion_group!(benches, bench);
criterion_main!(benches);
