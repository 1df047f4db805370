//! The half of an artifact that other tools read: `model.safetensors` in the `compressed-tensors` layout, whose tensors
//! `checkpoint::quantized::compressed_tensors` describes. Embedding and output layer are stored in BF16, scales in FP32,
//! which holds them exactly.
//!
//! A grid with a free minimum (`w = s q + m`) is beyond that layout: its layers get `weight_min` instead of zero points, and
//! the configuration names the method `modelprofile-affine`, so that no reader takes it for the other. So it
//! does with `modelprofile-llm-int8`: INT8 with zeros in the outlier columns, `outlier_weight` BF16 `[n, c]` and
//! `outlier_columns` I32 `[c]`.

use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use half::bf16;
use modelprofile_kernels::{FP8_BLOCK, HostWeight, WeightKind};
use serde_json::{Map, Value, json};

use crate::{
    EngineError, Result, WeightFormat, ZeroPoint,
    checkpoint::{SourceTensor, StoredWeight},
    interchange::compressed_tensors::{self, ScaleType},
};

/// A tensor to come: name, safetensors dtype, shape.
struct Planned {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
}

impl Planned {
    fn bytes(&self) -> usize {
        let size = match self.dtype {
            "BF16" => 2,
            "F32" | "I32" => 4,
            "I64" => 8,
            _ => 1,
        };
        self.shape.iter().product::<usize>() * size
    }
}

/// The tensors of one weight, in the order in which [`TensorWriter::weight`] writes them.
fn planned(name: &str, kind: WeightKind, format: WeightFormat, n: usize, k: usize) -> Vec<Planned> {
    let tensor = |suffix: &str, dtype, shape: &[usize]| Planned {
        name: format!("{name}.{suffix}"),
        dtype,
        shape: shape.to_vec(),
    };
    let grouped = |per_word: usize, group: u16| {
        let groups = k / usize::from(group);
        let zeros = match format.zero() {
            ZeroPoint::Symmetric => None,
            ZeroPoint::Integer => Some(tensor("weight_zero_point", "I32", &[n.div_ceil(per_word), groups])),
            ZeroPoint::Minimum => Some(tensor("weight_min", "F32", &[n, groups])),
        };
        let codes = [
            tensor("weight_packed", "I32", &[n, k.div_ceil(per_word)]),
            tensor("weight_scale", "F32", &[n, groups]),
            tensor("weight_shape", "I64", &[2]),
        ];
        codes.into_iter().chain(zeros).collect()
    };
    match kind {
        WeightKind::Bf16 => vec![tensor("weight", "BF16", &[n, k])],
        WeightKind::Fp8 if format == WeightFormat::Fp8Tensor => {
            vec![tensor("weight", "F8_E4M3", &[n, k]), tensor("weight_scale", "F32", &[1])]
        }
        WeightKind::Fp8 => vec![tensor("weight", "F8_E4M3", &[n, k]), tensor("weight_scale", "F32", &[n, 1])],
        WeightKind::Fp8Static => vec![
            tensor("weight", "F8_E4M3", &[n, k]),
            tensor("weight_scale", "F32", &[1]),
            tensor("input_scale", "F32", &[1]),
        ],
        WeightKind::Fp8Block => vec![
            tensor("weight", "F8_E4M3", &[n, k]),
            tensor("weight_scale", "F32", &[n.div_ceil(FP8_BLOCK), k / FP8_BLOCK]),
        ],
        WeightKind::Int8 => vec![tensor("weight", "I8", &[n, k]), tensor("weight_scale", "F32", &[n, 1])],
        WeightKind::Int8Outliers { columns } => vec![
            tensor("weight", "I8", &[n, k]),
            tensor("weight_scale", "F32", &[n, 1]),
            tensor("outlier_weight", "BF16", &[n, usize::from(columns)]),
            tensor("outlier_columns", "I32", &[usize::from(columns)]),
        ],
        WeightKind::Int4 { group } => grouped(8, group),
        WeightKind::Int8Group { group } => grouped(4, group),
    }
}

/// Writes a safetensors file whose header is known before the data: memory is bounded by one tensor.
pub(super) struct TensorWriter {
    path: PathBuf,
    out: BufWriter<File>,
    planned: std::vec::IntoIter<Planned>,
    written: usize,
    format: WeightFormat,
}

/// What a file will hold, collected first.
pub(super) struct TensorPlan {
    tensors: Vec<Planned>,
    format: WeightFormat,
}

impl TensorPlan {
    /// Nothing yet, of a profile of that format: the grid of its group-wise weights, and whether FP8's scales are a
    /// tensor's, is not in the weights' kinds.
    pub(super) fn new(format: WeightFormat) -> Self {
        Self { tensors: Vec::new(), format }
    }

    pub(super) fn weight(&mut self, name: &str, kind: WeightKind, n: usize, k: usize) {
        self.tensors.extend(planned(name, kind, self.format, n, k));
    }

    pub(super) fn vector(&mut self, name: &str, len: usize) {
        self.tensors.push(Planned { name: name.to_owned(), dtype: "F32", shape: vec![len] });
    }

    /// Writes the header. The tensors must follow in the planned order.
    pub(super) fn create(self, path: &Path) -> Result<TensorWriter> {
        let io = |e| EngineError::io(path, e);
        let mut out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(io)?);
        out.write_all(&self.header()).map_err(io)?;
        Ok(TensorWriter {
            path: path.to_owned(),
            out,
            planned: self.tensors.into_iter(),
            written: 0,
            format: self.format,
        })
    }

    /// Goes on after the first `written` tensors of a file; what follows them is cut off.
    ///
    /// # Errors
    /// Another header, or a shorter file.
    pub(super) fn resume(self, path: &Path, written: usize) -> Result<TensorWriter> {
        let io = |e| EngineError::io(path, e);
        let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(io)?;
        let header = self.header();
        let mut found = vec![0; header.len()];
        file.read_exact(&mut found).map_err(io)?;
        let end = (header.len() + self.tensors.iter().take(written).map(Planned::bytes).sum::<usize>()) as u64;
        if found != header || written > self.tensors.len() || file.metadata().map_err(io)?.len() < end {
            let message = "is not what the interrupted build had written, and is removed: start again".to_owned();
            return Err(EngineError::Artifact { path: path.display().to_string(), message });
        }
        file.set_len(end).map_err(io)?;
        file.seek(SeekFrom::Start(end)).map_err(io)?;
        let mut planned = self.tensors.into_iter();
        planned.by_ref().take(written).for_each(drop);
        let (out, format) = (BufWriter::with_capacity(1 << 20, file), self.format);
        Ok(TensorWriter { path: path.to_owned(), out, planned, written, format })
    }

    /// Length and text of the header.
    fn header(&self) -> Vec<u8> {
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!({"format": "pt"}));
        let mut offset = 0usize;
        for tensor in &self.tensors {
            let end = offset + tensor.bytes();
            let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]});
            header.insert(tensor.name.clone(), entry);
            offset = end;
        }
        let mut text = Value::Object(header).to_string();
        // The format wants the data to start at a multiple of 8.
        while !text.len().is_multiple_of(8) {
            text.push(' ');
        }
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes
    }
}

impl TensorWriter {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let damaged = |message: String| EngineError::Artifact { path: self.path.display().to_string(), message };
        let next = self.planned.next().ok_or_else(|| damaged("more tensors than planned".into()))?;
        if next.bytes() != bytes.len() {
            return Err(damaged(format!("{} has {} bytes, planned {}", next.name, bytes.len(), next.bytes())));
        }
        self.written += 1;
        self.out.write_all(bytes).map_err(|e| EngineError::io(&self.path, e))
    }

    /// The next planned weight.
    pub(super) fn weight(&mut self, weight: &HostWeight) -> Result<()> {
        match weight {
            HostWeight::Bf16 { values, .. } => self.put(bytemuck::cast_slice(values)),
            HostWeight::Fp8 { codes, scales, .. } => {
                self.put(codes)?;
                // All rows of a tensor have the same where the format shares it.
                let shared = self.format == WeightFormat::Fp8Tensor;
                self.put(bytemuck::cast_slice(if shared { &scales[..1] } else { scales }))
            }
            HostWeight::Fp8Static { codes, scales, input_scale, .. } => {
                self.put(codes)?;
                // All rows of a tensor have the same.
                self.put(bytemuck::cast_slice(&scales[..1]))?;
                self.put(&input_scale.to_le_bytes())
            }
            HostWeight::Fp8Block { k, codes, scales, .. } => {
                self.put(codes)?;
                let bands = scales.chunks_exact(k / FP8_BLOCK).step_by(FP8_BLOCK);
                self.put(bytemuck::cast_slice(&bands.flatten().copied().collect::<Vec<f32>>()))
            }
            HostWeight::Int8 { codes, scales, .. } => {
                self.put(bytemuck::cast_slice(codes))?;
                self.put(bytemuck::cast_slice(scales))
            }
            HostWeight::Int8Outliers { codes, scales, columns, outliers, .. } => {
                self.put(bytemuck::cast_slice(codes))?;
                self.put(bytemuck::cast_slice(scales))?;
                self.put(bytemuck::cast_slice(outliers))?;
                self.put(bytemuck::cast_slice(columns))
            }
            HostWeight::Grouped { .. } => {
                let damaged =
                    |message: String| EngineError::Artifact { path: self.path.display().to_string(), message };
                let stored = StoredWeight::from_host(weight, self.format.zero()).map_err(damaged)?;
                for tensor in compressed_tensors::tensors(&stored, ScaleType::F32) {
                    self.put(&tensor.bytes)?;
                }
                Ok(())
            }
        }
    }

    /// The next planned vector.
    pub(super) fn vector(&mut self, values: &[f32]) -> Result<()> {
        self.put(bytemuck::cast_slice(values))
    }

    /// The next planned weight, rounded to BF16, row by row.
    pub(super) fn bf16(&mut self, tensor: &SourceTensor<'_>) -> Result<()> {
        let damaged = |message: String| EngineError::Artifact { path: self.path.display().to_string(), message };
        let next = self.planned.next().ok_or_else(|| damaged("more tensors than planned".into()))?;
        if next.bytes() != 2 * tensor.elements() {
            return Err(damaged(format!("{} has {} values", next.name, tensor.elements())));
        }
        let mut row = vec![0.0; tensor.cols];
        for index in 0..tensor.rows {
            tensor.row_f32(index, &mut row)?;
            let rounded: Vec<bf16> = row.iter().map(|v| bf16::from_f32(*v)).collect();
            self.out.write_all(bytemuck::cast_slice(&rounded)).map_err(|e| EngineError::io(&self.path, e))?;
        }
        self.written += 1;
        Ok(())
    }

    /// Tensors that are safely on disk.
    pub(super) fn sync(&mut self) -> Result<usize> {
        let synced = self.out.flush().and_then(|()| self.out.get_ref().sync_data());
        synced.map_err(|e| EngineError::io(&self.path, e))?;
        Ok(self.written)
    }

    /// Flushes to disk.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.sync().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use modelprofile_kernels::rtn;

    use super::*;

    #[test]
    fn a_written_file_is_read_by_the_safetensors_library() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.safetensors");
        let weight = HostWeight::Fp8 { n: 2, k: 3, codes: vec![1, 2, 3, 4, 5, 6], scales: vec![0.5, 0.25] };
        let mut plan = TensorPlan::new(WeightFormat::Fp8);
        plan.weight("layer", WeightKind::Fp8, 2, 3);
        plan.vector("norm.weight", 2);
        let mut writer = plan.create(&path).unwrap();
        writer.weight(&weight).unwrap();
        writer.vector(&[1.0, 2.0]).unwrap();
        writer.finish().unwrap();
        let bytes = std::fs::read(path).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.tensor("layer.weight").unwrap().data(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(read.tensor("layer.weight_scale").unwrap().shape(), [2, 1]);
        assert_eq!(read.tensor("norm.weight").unwrap().data().len(), 8);
    }

    #[test]
    fn every_kind_writes_the_tensors_that_were_planned() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.safetensors");
        let (n, k) = (130, 256);
        let rows: Vec<f32> = (0..n * k).map(|i| (i % 251) as f32 / 100.0 - 1.0).collect();
        let symmetric = |kind| rtn::quantize(kind, rtn::Grid::Symmetric, n, k, &rows).unwrap();
        let weights = [
            symmetric(WeightKind::Fp8Block),
            rtn::fp8_static(n, k, &rows, 0.5).unwrap(),
            rtn::int8_outliers(n, k, &rows, &[3, 200]).unwrap(),
            symmetric(WeightKind::Int4 { group: 64 }),
            symmetric(WeightKind::Int8Group { group: 32 }),
        ];
        let mut plan = TensorPlan::new(WeightFormat::Fp8);
        for (index, weight) in weights.iter().enumerate() {
            plan.weight(&index.to_string(), weight.spec().kind, n, k);
        }
        let mut writer = plan.create(&path).unwrap();
        for weight in &weights {
            writer.weight(weight).unwrap();
        }
        writer.finish().unwrap();
        let bytes = std::fs::read(path).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            read.tensor(name).unwrap().data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let HostWeight::Fp8Block { scales, .. } = &weights[0] else { unreachable!() };
        assert_eq!(floats("0.weight_scale"), [scales[0], scales[1], scales[128 * 2], scales[128 * 2 + 1]]);
        assert_eq!(read.tensor("0.weight_scale").unwrap().shape(), [2, 2]);
        assert_eq!(floats("1.input_scale"), [0.5]);
        assert_eq!(read.tensor("2.outlier_columns").unwrap().data(), [3, 0, 0, 0, 200, 0, 0, 0]);
        assert_eq!(read.tensor("2.outlier_weight").unwrap().shape(), [130, 2]);
    }

    #[test]
    fn a_tensor_of_another_size_than_planned_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let mut plan = TensorPlan::new(WeightFormat::Fp8);
        plan.vector("norm.weight", 3);
        let mut writer = plan.create(&directory.path().join("x")).unwrap();
        assert!(writer.vector(&[1.0]).is_err());
    }
}
