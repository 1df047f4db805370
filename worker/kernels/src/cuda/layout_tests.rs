use half::bf16;

use super::*;
use crate::{
    PackedWeight,
    format::e4m3,
    rtn::{self, Grid},
};

const KINDS: [WeightKind; 12] = [
    WeightKind::Bf16,
    WeightKind::Fp8,
    WeightKind::Fp8Static,
    WeightKind::Fp8Block,
    WeightKind::Int8,
    WeightKind::Int8Outliers { columns: 0 },
    WeightKind::Int8Outliers { columns: 5 },
    WeightKind::Int4 { group: 32 },
    WeightKind::Int4 { group: 64 },
    WeightKind::Int4 { group: 128 },
    WeightKind::Int8Group { group: 32 },
    WeightKind::Int8Group { group: 128 },
];

/// Values of very different size from row to row, so that no two scales are the same.
fn weight(kind: WeightKind, n: usize, k: usize) -> HostWeight {
    let value = |i: usize| {
        let noise = (i as u32).wrapping_mul(2_654_435_761) >> 8;
        (noise as f32 / 8_388_608.0 - 1.0) * (1.0 + (i / k) as f32)
    };
    let rows: Vec<f32> = (0..n * k).map(value).collect();
    match kind {
        WeightKind::Fp8Static => rtn::fp8_static(n, k, &rows, 0.125),
        WeightKind::Int8Outliers { columns } => {
            let columns: Vec<u32> = (0..u32::from(columns)).map(|c| c * 7 + 1).collect();
            rtn::int8_outliers(n, k, &rows, &columns)
        }
        _ => rtn::quantize(kind, Grid::Minimum, n, k, &rows),
    }
    .unwrap()
}

fn half_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn float_at(bytes: &[u8], at: usize) -> f32 {
    f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// A row read back as the kernels' head comments describe the layout, without the functions that packed it.
fn row(layout: &GpuLayout, bytes: &[u8], row: usize) -> Vec<f32> {
    let part = |part: Part| &bytes[part.range()];
    let WeightSpec { kind, k, .. } = layout.spec;
    let codes = part(layout.codes);
    let row_scale = || float_at(part(layout.rows), row * 4);
    let mut values: Vec<f32> = (0..k)
        .map(|column| match kind {
            WeightKind::Bf16 => bf16::from_bits(half_at(codes, (row * layout.k + column) * 2)).to_f32(),
            WeightKind::Fp8 | WeightKind::Fp8Static => row_scale() * e4m3::decode(codes[row * layout.k + column]),
            WeightKind::Fp8Block => {
                let scale = float_at(part(layout.scales), (row * (k / 128) + column / 128) * 4);
                scale * e4m3::decode(codes[row * layout.k + column])
            }
            WeightKind::Int8 | WeightKind::Int8Outliers { .. } => {
                row_scale() * f32::from(codes[row * layout.k + column] as i8)
            }
            WeightKind::Int4 { group } | WeightKind::Int8Group { group } => {
                let group = usize::from(group);
                let (g, j, t, i) = (row % 8, row % 32 / 8, column % 32 / 8, column % 8);
                let nibble = |plane: usize| {
                    let unit = (row / 32 * (k / 32) + column / 32) * layout.planes() + plane;
                    let at = unit * 512 + (4 * g + t) * 16 + j * 4;
                    let word = u32::from_le_bytes([codes[at], codes[at + 1], codes[at + 2], codes[at + 3]]);
                    (word >> (4 * (i / 2) + 16 * (i % 2)) & 15) as f32
                };
                let code = (0..layout.planes()).map(|plane| nibble(plane) * [1.0, 16.0][plane]).sum::<f32>();
                let at = (row / 32 * (k / group) + column / group) * 128 + g * 16 + j * 2;
                let half = |at: usize| f16::from_bits(half_at(part(layout.scales), at)).to_f32();
                row_scale() * (half(at) * code + half(at + 8))
            }
        })
        .collect();
    for (index, column) in part(layout.columns).as_chunks::<4>().0.iter().enumerate() {
        let at = (row * layout.outlier_k + index) * 2;
        values[u32::from_le_bytes(*column) as usize] = bf16::from_bits(half_at(part(layout.outliers), at)).to_f32();
    }
    values
}

#[test]
fn every_kind_is_read_back_as_the_kernels_read_it() {
    for kind in KINDS {
        for (n, k) in [(1, 128), (31, 256), (33, 384), (96, 128)] {
            let host = weight(kind, n, k);
            let (layout, bytes) = pack_gpu(&host).unwrap();
            let mut expected = vec![0.0; k];
            for index in 0..n {
                host.dequantize_row(index, &mut expected);
                assert_eq!(row(&layout, &bytes, index), expected, "{kind:?} {n}x{k}, row {index}");
            }
        }
    }
}

#[test]
fn padding_is_zero_and_parts_are_aligned_and_apart() {
    for kind in KINDS {
        let (layout, bytes) = pack_gpu(&weight(kind, 33, 128)).unwrap();
        for index in 33..64 {
            assert!(row(&layout, &bytes, index).iter().all(|v| *v == 0.0), "{kind:?}, row {index}");
        }
        let mut end = 0;
        for part in [layout.codes, layout.scales, layout.rows, layout.outliers, layout.columns] {
            assert!(part.offset.is_multiple_of(ALIGNMENT), "{kind:?}");
            assert!(part.len == 0 || part.offset >= end, "{kind:?}");
            end = end.max(part.range().end);
        }
        assert!(end <= layout.len && layout.len == gpu_len(&layout.spec).unwrap(), "{kind:?}");
    }
    // K of the row-major kinds that is no whole number of pieces.
    let host = weight(WeightKind::Int8, 3, 13);
    let (layout, bytes) = pack_gpu(&host).unwrap();
    assert_eq!((layout.n, layout.k), (32, 16));
    assert!((0..3).all(|row| bytes[row * 16 + 13..(row + 1) * 16].iter().all(|b| *b == 0)));
}

#[test]
fn a_weight_in_the_layout_of_the_cpu_gives_the_same_bytes() {
    for kind in KINDS {
        let host = weight(kind, 37, 256);
        let packed: PackedWeight = crate::pack(&host).unwrap();
        let unpacked = packed.unpack().unwrap();
        assert_eq!(unpacked, host, "{kind:?}");
        let (a, b) = (pack_gpu(&host).unwrap(), pack_gpu(&unpacked).unwrap());
        assert_eq!((a.0, &a.1[..]), (b.0, &b.1[..]), "{kind:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut host = weight(WeightKind::Fp8, 4, 32);
    assert!(pack_into(&host, &mut [0; 7]).is_err());
    if let HostWeight::Fp8 { scales, .. } = &mut host {
        scales.pop();
    }
    assert!(matches!(pack_gpu(&host), Err(KernelError::Shape(_))));
    let spec = WeightSpec { kind: WeightKind::Int4 { group: 128 }, n: 4, k: 96 };
    assert!(GpuLayout::new(&spec).is_err());
}

#[test]
fn four_bits_take_their_bytes_and_no_more() {
    // Llama 3.1 8B, down projection: 4.25 bits a weight and four bytes a row.
    let spec = WeightSpec { kind: WeightKind::Int4 { group: 128 }, n: 4096, k: 14336 };
    assert_eq!(gpu_len(&spec).unwrap(), 4096 * 14336 / 2 + 4096 * 112 * 4 + 4096 * 4);
}
