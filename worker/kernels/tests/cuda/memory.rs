//! Memory on the GPU: the budget at every instant, regions that come and go, weights that change places, and failures of
//! every driver call.

use modelprofile_kernels::{
    BlockMove, Device, HostTensor, KernelError, KvFormat, KvLayout, KvScales, Split, StepPlan, WeightKind,
    cuda::{Cuda, CudaOptions, available},
    pack,
};

use crate::{
    device::noise,
    model::{Model, Sizes, TINY, Weights, error, plan, weight},
    sim::{Sim, alone, options},
};

const MIB: usize = 1 << 20;

/// A device with a budget in MiB.
fn device(budget: usize) -> Cuda {
    Cuda::new(CudaOptions { budget: Some(budget * MIB), ..options() }).unwrap()
}

#[test]
fn buffers_stop_at_the_budget_and_their_memory_is_used_again() {
    let _alone = alone();
    let gpu = device(32);
    if let Some(sim) = Sim::find() {
        sim.peak();
    }
    let mut buffers = Vec::new();
    let refused = loop {
        match gpu.buffer(MIB / 1024, 1024) {
            Ok(buffer) => buffers.push(buffer),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, KernelError::OutOfMemory(_)), "{refused}");
    assert!((6..=7).contains(&buffers.len()), "buffers of 4 MiB beside the workspace: {}", buffers.len());
    assert!(gpu.memory().created() <= 32 * MIB);
    // A freed neighbourhood holds one larger buffer.
    buffers.drain(1..4);
    let large = gpu.buffer(3 * MIB / 1024, 1024).unwrap();
    let mut host = HostTensor::default();
    gpu.download(&large, 3 * MIB / 1024, &mut host).unwrap();
    assert!(host.data.iter().all(|v| *v == 0.0), "a new buffer is zero, whatever was there");
    // Memory above the last buffer goes to whoever needs it: here the cache.
    drop((large, buffers));
    let layout = KvLayout { layers: 2, kv_heads: 2, head_dim: 64, format: KvFormat::Bf16 };
    let blocks = 20 * MIB / layout.block_bytes();
    let kv = gpu.kv(layout, &KvScales::unit(&layout), blocks, blocks).unwrap();
    assert!(kv.mapped_bytes() >= 20 * MIB);
    if let Some(sim) = Sim::find() {
        assert!(sim.peak() <= (32 * MIB) as u64, "the emulated device counts physical bytes");
    }
}

#[test]
fn the_pool_takes_and_gives_whole_chunks_and_keeps_its_blocks() {
    let _alone = alone();
    let mut gpu = device(64);
    let chunk = gpu.memory().chunk_bytes();
    let sizes = Sizes { layers: 4, ..TINY };
    let weights = Weights::new(&gpu, &sizes, WeightKind::Bf16, WeightKind::Bf16);
    let mut model = Model::new(&gpu, sizes, KvFormat::Bf16, 100, 48);
    let layout = KvLayout { layers: 4, kv_heads: 2, head_dim: 64, format: KvFormat::Bf16 };
    let mapped = |blocks: usize| (blocks * layout.block_bytes()).div_ceil(chunk) * chunk;
    assert_eq!(model.kv.mapped_bytes(), mapped(100));

    // Tokens in a block at the upper end; then the block moves down, and the pool shrinks below it.
    let prompt = plan(&[(0, 9, vec![99])], sizes.vocab);
    model.step(&mut gpu, &weights, None, &prompt).unwrap();
    let next = |block: u32| {
        let mut next = plan(&[(9, 1, vec![block])], sizes.vocab);
        next.tokens = vec![11];
        next
    };
    let expected = model.step(&mut gpu, &weights, None, &next(99)).unwrap();
    gpu.kv_move(&mut model.kv, &[BlockMove { from: 99, to: 40 }, BlockMove { from: 40, to: 2 }]).unwrap();
    gpu.kv_resize(&mut model.kv, 10).unwrap();
    assert_eq!((model.kv.blocks(), model.kv.mapped_bytes()), (10, mapped(10)));
    assert_eq!(model.step(&mut gpu, &weights, None, &next(2)).unwrap(), expected);
    assert!(model.step(&mut gpu, &weights, None, &next(40)).is_err(), "outside the pool");

    gpu.kv_resize(&mut model.kv, 300).unwrap();
    assert_eq!(model.kv.mapped_bytes(), mapped(300));
    assert_eq!(model.step(&mut gpu, &weights, None, &next(2)).unwrap(), expected, "content and address stay");
    assert!(gpu.kv_resize(&mut model.kv, 401).is_err(), "beyond the reserved number");
    assert!(gpu.kv_move(&mut model.kv, &[BlockMove { from: 300, to: 0 }]).is_err());
    assert!(gpu.kv_move(&mut model.kv, &[BlockMove { from: 1, to: 1 }]).is_err());
}

#[test]
fn a_pool_for_heads_without_a_kernel_is_refused() {
    let _alone = alone();
    let gpu = device(32);
    let layout = KvLayout { layers: 1, kv_heads: 1, head_dim: 80, format: KvFormat::Bf16 };
    let text = gpu.kv(layout, &KvScales::unit(&layout), 1, 1).err().unwrap().to_string();
    assert!(text.contains("80") && text.contains("CPU"), "{text}");
}

/// Larger weights, so that two profiles do not fit the budget together.
const WIDE: Sizes = Sizes { hidden: 1024, intermediate: 2048, layers: 3, ..TINY };

#[test]
fn profiles_change_places_within_the_budget_and_compute_what_they_did() {
    let _alone = alone();
    let mut gpu = device(64);
    let quality = Weights::new(&gpu, &WIDE, WeightKind::Bf16, WeightKind::Bf16);
    let density = Weights::new(&gpu, &WIDE, WeightKind::Int4 { group: 128 }, WeightKind::Bf16);
    let mut model = Model::new(&gpu, WIDE, KvFormat::Bf16, 8, 8);
    let (first, second) = (plan(&[(0, 3, vec![0])], WIDE.vocab), plan(&[(0, 2, vec![1])], WIDE.vocab));
    let mut results = Vec::new();
    for round in 0..3 {
        for (active, leaving) in [(&quality, &density), (&density, &quality)] {
            active.each(|weight| gpu.prefetch(weight));
            let leaving = (round > 0 || std::ptr::eq(active, &raw const density)).then_some(leaving);
            let step = model.step(&mut gpu, active, leaving, &first).unwrap();
            results.push((step, model.step(&mut gpu, active, None, &second).unwrap()));
            assert!(gpu.memory().used() <= 64 * MIB);
        }
    }
    assert!(results[0] != results[1]);
    assert_eq!(results[0], results[2]);
    assert_eq!(results[1], results[5]);
    assert!(gpu.take_notes().is_empty());
    let mut resident = 0;
    quality.each(|weight| resident += usize::from(weight.is_resident()));
    assert_eq!(resident, 0, "the profile that left has no memory");
}

#[test]
fn a_switch_with_no_room_for_both_goes_layer_by_layer() {
    let _alone = alone();
    // What one profile takes, measured; then a budget with room for little more.
    let mut wide = device(128);
    let weights = Weights::new(&wide, &WIDE, WeightKind::Bf16, WeightKind::Bf16);
    let mut model = Model::new(&wide, WIDE, KvFormat::Bf16, 8, 8);
    let step = plan(&[(0, 3, vec![0])], WIDE.vocab);
    let expected = model.step(&mut wide, &weights, None, &step).unwrap();
    let used = wide.memory().used();
    drop((weights, model, wide));

    let budget = used + 6 * MIB;
    let mut gpu = Cuda::new(CudaOptions { budget: Some(budget), ..options() }).unwrap();
    let old = Weights::new(&gpu, &WIDE, WeightKind::Bf16, WeightKind::Bf16);
    let new = Weights::new(&gpu, &WIDE, WeightKind::Bf16, WeightKind::Bf16);
    let mut model = Model::new(&gpu, WIDE, KvFormat::Bf16, 8, 8);
    assert_eq!(model.step(&mut gpu, &old, None, &step).unwrap(), expected);
    if let Some(sim) = Sim::find() {
        sim.peak();
    }
    new.each(|weight| gpu.prefetch(weight));
    assert_eq!(model.step(&mut gpu, &new, Some(&old), &step).unwrap(), expected);
    assert_eq!(model.step(&mut gpu, &old, Some(&new), &step).unwrap(), expected);
    if let Some(sim) = Sim::find() {
        assert!(sim.peak() <= budget as u64);
    }
    // Without the other profile's leaving there is no way: an error value, and the device computes on.
    let refused = model.step(&mut gpu, &new, None, &step).unwrap_err();
    assert!(matches!(refused, KernelError::OutOfMemory(_)), "{refused}");
    assert_eq!(model.step(&mut gpu, &old, Some(&new), &step).unwrap(), expected);
}

#[test]
fn a_weight_that_fits_no_budget_is_refused_when_it_is_made() {
    let _alone = alone();
    let gpu = device(8);
    let text = gpu
        .weight(&pack(&weight(WeightKind::Bf16, 4096, 2048, 1)).unwrap(), Split::Replicated)
        .unwrap_err()
        .to_string();
    assert!(text.contains("budget"), "{text}");
}

#[test]
fn a_weight_may_be_dropped_while_it_is_being_copied_or_used() {
    let _alone = alone();
    let mut gpu = device(64);
    let packed = pack(&weight(WeightKind::Bf16, 256, 1024, 1)).unwrap();
    let coming = gpu.weight(&packed, Split::Replicated).unwrap();
    gpu.prefetch(&coming);
    assert!(coming.is_resident());
    drop(coming);
    let used = gpu.weight(&packed, Split::Replicated).unwrap();
    let x = gpu.upload(&HostTensor { rows: 2, width: 1024, data: noise(2048, 3) }).unwrap();
    let (mut first, mut second) = (gpu.buffer(2, 256).unwrap(), gpu.buffer(2, 256).unwrap());
    use modelprofile_kernels::{Backend, Store};
    gpu.linear(2, &x, &used, None, Store::Overwrite, &mut first).unwrap();
    drop(used);
    let again = gpu.weight(&packed, Split::Replicated).unwrap();
    gpu.linear(2, &x, &again, None, Store::Overwrite, &mut second).unwrap();
    let (mut a, mut b) = (HostTensor::default(), HostTensor::default());
    gpu.download(&first, 2, &mut a).unwrap();
    gpu.download(&second, 2, &mut b).unwrap();
    assert_eq!(a, b);
    assert!(error(&a.data, &vec![0.0; 512]) > 0.0);
}

/// What a worker does in its first seconds, in small: a decoded row, and the rows of a prompt, whose product is cuBLASLt's.
fn life(budget: usize) -> modelprofile_kernels::Result<(Vec<f32>, Vec<f32>)> {
    let sizes = Sizes { layers: 1, ..TINY };
    let mut gpu = Cuda::new(CudaOptions { budget: Some(budget), ..options() })?;
    let packed = pack(&weight(WeightKind::Fp8, 64, 128, 1))?;
    let one = gpu.weight(&packed, Split::Replicated)?;
    gpu.prefetch(&one);
    gpu.release(&one);
    let x = gpu.upload(&HostTensor { rows: 1, width: 128, data: noise(128, 1) })?;
    let mut out = gpu.buffer(1, 64)?;
    use modelprofile_kernels::{Backend, Store};
    gpu.linear(1, &x, &one, None, Store::Overwrite, &mut out)?;
    let prompt = gpu.upload(&HostTensor { rows: 40, width: 128, data: noise(40 * 128, 2) })?;
    let mut prompted = gpu.buffer(40, 64)?;
    gpu.linear(40, &prompt, &one, None, Store::Overwrite, &mut prompted)?;
    let layout = KvLayout { layers: 1, kv_heads: sizes.kv_heads, head_dim: 64, format: KvFormat::Bf16 };
    let mut kv = gpu.kv(layout, &KvScales::unit(&layout), 600, 1200)?;
    gpu.kv_move(&mut kv, &[BlockMove { from: 3, to: 0 }])?;
    gpu.kv_resize(&mut kv, 10)?;
    gpu.kv_resize(&mut kv, 500)?;
    let plan = StepPlan { tokens: vec![1], sequences: plan(&[(0, 1, vec![0])], 9).sequences, logit_rows: vec![0] };
    let table = gpu.weight(&pack(&weight(WeightKind::Bf16, 16, 128, 2))?, Split::Replicated)?;
    let mut residual = gpu.buffer(1, 128)?;
    for _ in 0..3 {
        let step = gpu.begin(&plan)?;
        gpu.embed(&step, &table, &mut residual)?;
        gpu.linear(1, &residual, &one, None, Store::Overwrite, &mut out)?;
        let mut host = HostTensor::default();
        gpu.download(&out, 1, &mut host)?;
    }
    let (mut decoded, mut rows) = (HostTensor::default(), HostTensor::default());
    gpu.download(&out, 1, &mut decoded)?;
    gpu.download(&prompted, 40, &mut rows)?;
    Ok((decoded.data, rows.data))
}

/// The functions of cuBLASLt in [`life`].
const LIBRARY_CALLS: [&str; 8] = [
    "cublasLtCreate",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmul",
];
/// `CUBLAS_STATUS_INTERNAL_ERROR`, and the driver's `CUDA_ERROR_UNKNOWN`.
const LIBRARY_FAILURE: i32 = 14;
const FAILURE: i32 = 999;

/// The driver functions of [`life`]; those that only free are not here: when they fail, the driver itself keeps something.
const CALLS: [&str; 33] = [
    "cuDriverGetVersion",
    "cuInit",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceTotalMem_v2",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuCtxSetCurrent",
    "cuStreamCreate",
    "cuMemGetInfo_v2",
    "cuMemGetAllocationGranularity",
    "cuMemAddressReserve",
    "cuMemCreate",
    "cuMemMap",
    "cuMemSetAccess",
    "cuMemHostAlloc",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemsetD32Async",
    "cuLaunchKernelEx",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventQuery",
    "cuEventSynchronize",
    "cuStreamWaitEvent",
    "cuStreamSynchronize",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
];

#[test]
fn a_failure_of_any_call_is_an_error_value_and_leaks_nothing() {
    let _alone = alone();
    let Some(sim) = Sim::find() else { return };
    let expected = life(64 * MIB).unwrap();
    assert_eq!(sim.bytes(), 0, "all memory is given back");
    let mut struck = 0;
    let calls = CALLS.map(|function| (function, FAILURE)).into_iter();
    for (function, code) in calls.chain(LIBRARY_CALLS.map(|function| (function, LIBRARY_FAILURE))) {
        let before = sim.calls(function);
        life(64 * MIB).unwrap();
        let count = sim.calls(function) - before;
        assert!(count > 0, "{function} is not called; the list is of another time");
        // The first calls, the last, and some between.
        let mut places: Vec<u64> = vec![1, 2, 3, count / 2, count.saturating_sub(1), count];
        places.retain(|nth| (1..=count).contains(nth));
        places.sort_unstable();
        places.dedup();
        for nth in places {
            println!("{function}, call {nth} of {count}");
            sim.fail(function, nth, code);
            let result = life(64 * MIB);
            sim.calm();
            match result {
                // What is not needed (a graph, a copy ahead) may fail. Products that cuBLASLt does not scale are scaled
                // by a kernel behind it, which rounds in another order.
                Ok((decoded, rows)) => {
                    assert_eq!(decoded, expected.0, "{function}, call {nth}");
                    assert!(error(&rows, &expected.1) < 1e-6, "{function}, call {nth}");
                }
                Err(told) => {
                    struck += 1;
                    assert!(!told.to_string().is_empty());
                }
            }
            assert_eq!(sim.bytes(), 0, "{function}, call {nth} leaks");
        }
    }
    assert!(struck > CALLS.len(), "most failures are told: {struck}");
    assert_eq!(life(64 * MIB).unwrap(), expected);
    assert!(!available().unwrap().is_empty());
}

#[test]
fn a_budget_below_the_workspace_is_refused() {
    let _alone = alone();
    let refused = Cuda::new(CudaOptions { budget: Some(MIB), ..options() }).err().unwrap();
    assert!(matches!(refused, KernelError::OutOfMemory(_)), "{refused}");
}
