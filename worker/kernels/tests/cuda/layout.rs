//! The GPU's weight layout as the device reads it: what a kernel unpacks is what the host packed, by either way.

use half::bf16;
use modelprofile_kernels::{
    WeightKind,
    cuda::layout::{GpuLayout, pack_gpu},
    pack,
    rtn::{self, Grid},
};

use crate::device::{Gpu, Shape, noise};

/// From rows, and from the layout of the CPU, which artifacts keep: the same values on the device.
#[test]
fn weights_reach_the_device_from_rows_and_from_the_layout_of_the_cpu() {
    let gpu = Gpu::new(&["linear"]);
    for (kind, name) in [
        (WeightKind::Int4 { group: 32 }, "unpack_bf16_int4"),
        (WeightKind::Int4 { group: 64 }, "unpack_bf16_int4"),
        (WeightKind::Int4 { group: 128 }, "unpack_bf16_int4"),
        (WeightKind::Int8Group { group: 64 }, "unpack_bf16_int8g"),
    ] {
        for (n, k) in [(1, 128), (40, 384), (97, 256)] {
            let host = rtn::quantize(kind, Grid::Minimum, n, k, &noise(n * k, 3)).unwrap();
            let from_cpu = pack(&host).unwrap().unpack().unwrap();
            for host in [&host, &from_cpu] {
                let (layout, bytes) = pack_gpu(host).unwrap();
                let (WeightKind::Int4 { group } | WeightKind::Int8Group { group }) = kind else { unreachable!() };
                let weight = gpu.upload(&bytes);
                let out = gpu.output::<u16>(n * k);
                let GpuLayout { codes, scales, rows, .. } = layout;
                let args = args![
                    &out,
                    weight.at(codes.offset),
                    weight.at(scales.offset),
                    weight.at(rows.offset),
                    n,
                    k,
                    usize::from(group)
                ];
                gpu.launch(name, Shape { grid: (n.div_ceil(32), 1, 1), threads: 256, shared: 0 }, args);
                let found = gpu.download(&out);
                let mut row = vec![0.0; k];
                for (index, found) in found.chunks_exact(k).enumerate() {
                    host.dequantize_row(index, &mut row);
                    for (found, value) in found.iter().zip(&row) {
                        let found = bf16::from_bits(*found).to_f32();
                        // Half the step of BF16, and the FP32 rounding before it.
                        let power = f32::from_bits(value.to_bits() & 0x7f80_0000);
                        assert!((found - value).abs() <= power / 256.0 * 1.001 + 1e-9, "{kind:?} {n}x{k} {index}");
                    }
                }
            }
        }
    }
}
