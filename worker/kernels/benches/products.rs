//! Operations per second of the products and of attention on one thread, by CPU time: it holds still while others compute.
//!
//! `cargo bench -p modelprofile-kernels [-- FILTER]`
#![allow(clippy::unwrap_used, clippy::panic, reason = "a tool for developers")]

use std::hint::black_box;

use modelprofile_kernels::{
    AttentionShape, BLOCK_TOKENS, Backend, Device, GroupedActivations, HostTensor, KvFormat, KvLayout, KvScales,
    SequenceSpan, StepPlan, Store, WeightKind,
    cpu::{Cpu, CpuOptions},
    pack, rtn,
};

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    let cpu = |grouped_activations| Cpu::new(CpuOptions { threads: 1, isa: None, grouped_activations }).unwrap();
    let (mut halves, mut cpu) = (cpu(GroupedActivations::Bf16), cpu(GroupedActivations::Int8));
    println!("{:<44} {:>8}", format!("{:?}, one thread", cpu.isa()), "GOP/s");
    for (name, kind) in [
        ("bf16", WeightKind::Bf16),
        ("fp8", WeightKind::Fp8),
        ("int8", WeightKind::Int8),
        ("int4-g32", WeightKind::Int4 { group: 32 }),
        ("int8-g32", WeightKind::Int8Group { group: 32 }),
        ("int4-g32-bf16", WeightKind::Int4 { group: 32 }),
        ("int8-g32-bf16", WeightKind::Int8Group { group: 32 }),
    ] {
        let cpu = if name.ends_with("-bf16") { &mut halves } else { &mut cpu };
        for (n, k) in [(3072, 576), (576, 1536)] {
            let values: Vec<f32> = (0..n * k).map(|i| (i * 7919 % 2003) as f32 / 1000.0 - 1.0).collect();
            let weight = pack(&rtn::quantize(kind, rtn::Grid::Minimum, n, k, &values).unwrap()).unwrap();
            for rows in [1, 4, 8, 16, 128] {
                let name = format!("{name} {n}x{k} rows {rows}");
                if !name.contains(&filter) {
                    continue;
                }
                let x = cpu.upload(&HostTensor { rows, width: k, data: values[..rows * k].to_vec() }).unwrap();
                let mut out = cpu.buffer(rows, n).unwrap();
                let seconds = best(|| {
                    cpu.linear(rows, &x, &weight, None, Store::Overwrite, black_box(&mut out)).unwrap();
                });
                println!("{name:<44} {:>8.1}", 2.0 * (rows * n * k) as f64 / seconds / 1e9);
            }
        }
    }
    for (name, format) in [("bf16", KvFormat::Bf16), ("fp16", KvFormat::Fp16), ("e4m3", KvFormat::Fp8E4m3)] {
        for (rows, context) in [(1, 512), (128, 512), (128, 2048)] {
            let name = format!("attention {name} rows {rows} context {context}");
            if name.contains(&filter) {
                attention(&mut cpu, &name, format, rows, context);
            }
        }
    }
}

/// The shape of a 135 million parameter Llama: 9 query heads on 3 KV heads of 64.
fn attention(cpu: &mut Cpu, name: &str, format: KvFormat, rows: usize, context: usize) {
    let shape = AttentionShape { heads: 9, kv_heads: 3, head_dim: 64, sliding_window: None, scale: 0.125 };
    let layout = KvLayout { layers: 1, kv_heads: 3, head_dim: 64, format };
    let blocks = context / BLOCK_TOKENS;
    let kv = cpu.kv(layout, &KvScales::unit(&layout), blocks, blocks).unwrap();
    let span =
        SequenceSpan { first_row: 0, rows, first_position: context - rows, blocks: (0..blocks as u32).collect() };
    let plan = StepPlan { tokens: vec![0; rows], sequences: vec![span], logit_rows: vec![] };
    let step = cpu.begin(&plan).unwrap();
    let qkv = cpu.buffer(rows, 15 * 64).unwrap();
    let mut out = cpu.buffer(rows, 9 * 64).unwrap();
    let seconds = best(|| cpu.attention(&step, &qkv, &shape, &kv, 0, black_box(&mut out)).unwrap());
    let seen: usize = (context - rows + 1..=context).sum();
    println!("{name:<44} {:>8.1}", 4.0 * (seen * 9 * 64) as f64 / seconds / 1e9);
}

/// Least CPU time of a run, over at least 0.2 s of them.
fn best(mut run: impl FnMut()) -> f64 {
    let (mut least, begin) = (f64::INFINITY, thread_seconds());
    while thread_seconds() - begin < 0.2 {
        let start = thread_seconds();
        run();
        least = least.min(thread_seconds() - start);
    }
    least
}

fn thread_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place to write to.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) } != 0;
    assert!(!failed, "the thread has a clock");
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
