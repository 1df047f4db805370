//! The half of an artifact that other tools read: `model.safetensors` in the `compressed-tensors` layout, whose tensors
//! `checkpoint::quantized::compressed_tensors` describes. Embedding and output layer are stored in BF16, scales in FP32,
//! which holds them exactly.
//!
//! A grid with a free minimum (`w = s q + m`) is beyond that layout: its layers get `weight_min` instead of zero points, and
//! the configuration names the method `modelprofile-affine`, so that no reader takes it for the other. So it
//! does with `modelprofile-llm-int8`: INT8 with zeros in the outlier columns, `outlier_weight` BF16 `[n, c]` and
//! `outlier_columns` I32 `[c]`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use half::bf16;
use modelprofile_kernels::{FP8_BLOCK, HostWeight, WeightKind, WeightSpec};
use serde_json::{Map, Value, json};

use super::stream::{Piece, Stream, Synced, codes};
use crate::{
    EngineError, Result, WeightFormat, ZeroPoint,
    checkpoint::{SourceTensor, StoredWeight},
    interchange::{
        Tensor,
        compressed_tensors::{self, ScaleType},
    },
    quantize::{in_order, pieces},
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

/// Writes a safetensors file whose header is known before the data.
pub(super) struct TensorWriter {
    path: PathBuf,
    out: Stream,
    planned: std::vec::IntoIter<Planned>,
    written: usize,
    format: WeightFormat,
    threads: usize,
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
    pub(super) fn create(self, path: &Path, threads: usize) -> Result<TensorWriter> {
        let mut out = Stream::create(path)?;
        out.send(Piece::Owned(self.header()))?;
        let (path, planned) = (path.to_owned(), self.tensors.into_iter());
        Ok(TensorWriter { path, out, planned, written: 0, format: self.format, threads })
    }

    /// Goes on after the first `written` tensors of a file; what follows them is cut off.
    ///
    /// # Errors
    /// Another header, or a shorter file.
    pub(super) fn resume(self, path: &Path, written: usize, threads: usize) -> Result<TensorWriter> {
        let header = self.header();
        let end = header.len() + self.tensors.iter().take(written).map(Planned::bytes).sum::<usize>();
        // More tensors than there are end beyond every file.
        let end = if written > self.tensors.len() { u64::MAX } else { end as u64 };
        let out = Stream::resume(path, end, &header)?;
        let mut planned = self.tensors.into_iter();
        planned.by_ref().take(written).for_each(drop);
        Ok(TensorWriter { path: path.to_owned(), out, planned, written, format: self.format, threads })
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
    fn damaged(&self, message: String) -> EngineError {
        EngineError::Artifact { path: self.path.display().to_string(), message }
    }

    /// The next planned tensor, whose bytes follow.
    fn begin(&mut self, bytes: usize) -> Result<()> {
        let next = self.planned.next().ok_or_else(|| self.damaged("more tensors than planned".into()))?;
        if next.bytes() != bytes {
            return Err(self.damaged(format!("{} has {bytes} bytes, planned {}", next.name, next.bytes())));
        }
        self.written += 1;
        Ok(())
    }

    fn put(&mut self, bytes: Vec<u8>) -> Result<()> {
        self.begin(bytes.len())?;
        self.out.send(Piece::Owned(bytes))
    }

    fn floats(&mut self, values: &[f32]) -> Result<()> {
        self.put(bytemuck::cast_slice(values).to_vec())
    }

    /// The next planned weight: its parts, one below the other, all but the last of a multiple of eight rows: so many have their
    /// zero points in one word.
    pub(super) fn weight(&mut self, parts: &[Arc<HostWeight>]) -> Result<()> {
        let Some(first) = parts.first() else { return Err(self.damaged("a weight without parts".into())) };
        if let HostWeight::Grouped { .. } = **first {
            return self.grouped(parts);
        }
        self.begin(parts.iter().map(|part| codes(part).len()).sum())?;
        for part in parts {
            self.out.send(Piece::Codes(part.clone()))?;
        }
        let all: Vec<f32> = parts.iter().flat_map(|part| scales(part)).copied().collect();
        match &**first {
            HostWeight::Bf16 { .. } | HostWeight::Grouped { .. } => Ok(()),
            // All rows of a tensor have the same where the format shares it.
            HostWeight::Fp8 { .. } if self.format == WeightFormat::Fp8Tensor => self.floats(&all[..1]),
            HostWeight::Fp8 { .. } | HostWeight::Int8 { .. } => self.floats(&all),
            HostWeight::Fp8Static { input_scale, .. } => {
                // All rows of a tensor have the same.
                self.floats(&all[..1])?;
                self.floats(&[*input_scale])
            }
            HostWeight::Fp8Block { k, .. } => {
                let bands = all.chunks_exact(k / FP8_BLOCK).step_by(FP8_BLOCK);
                self.floats(&bands.flatten().copied().collect::<Vec<f32>>())
            }
            HostWeight::Int8Outliers { columns, .. } => {
                self.floats(&all)?;
                let outliers = parts.iter().flat_map(|part| match &**part {
                    HostWeight::Int8Outliers { outliers, .. } => bytemuck::cast_slice(outliers),
                    _ => &[] as &[u8],
                });
                self.put(outliers.copied().collect())?;
                self.put(bytemuck::cast_slice(columns).to_vec())
            }
        }
    }

    /// A weight in groups, whose codes are packed into words and whose scales are multiplied out, some rows at a time.
    fn grouped(&mut self, parts: &[Arc<HostWeight>]) -> Result<()> {
        let ranges: Vec<_> = parts
            .iter()
            .flat_map(|part| {
                let spec = part.spec();
                pieces(spec.n, spec.k, WeightKind::Bf16).map(move |rows| (part, rows))
            })
            .collect();
        let spec = parts.iter().map(|part| part.spec()).reduce(|all, part| WeightSpec { n: all.n + part.n, ..all });
        let Some(spec) = spec else { return Ok(()) };
        let (path, zero) = (self.path.display().to_string(), self.format.zero());
        let encode = |(): &mut (), (part, rows): (&Arc<HostWeight>, std::ops::Range<usize>)| {
            let damaged = |message: String| EngineError::Artifact { path: path.clone(), message };
            let stored = StoredWeight::from_host(&rows_of(part, rows), zero).map_err(damaged)?;
            Ok(compressed_tensors::tensors(&stored, ScaleType::F32))
        };
        // The codes go out as they come; what is small beside them follows.
        let next = self.planned.as_slice().first().map_or(0, Planned::bytes);
        self.begin(next)?;
        let (mut sent, mut rest) = (0, Vec::<Tensor>::new());
        in_order(self.threads, ranges.into_iter(), encode, |tensors: Vec<Tensor>| {
            let mut tensors = tensors.into_iter();
            let codes = tensors.next().map(|codes| codes.bytes).unwrap_or_default();
            sent += codes.len();
            for (index, tensor) in tensors.enumerate() {
                match rest.get_mut(index) {
                    Some(all) => all.bytes.extend(tensor.bytes),
                    None => rest.push(tensor),
                }
            }
            self.out.send(Piece::Owned(codes))
        })?;
        if sent != next {
            return Err(self.damaged(format!("{sent} bytes of codes, planned {next}")));
        }
        for tensor in rest {
            match tensor.suffix {
                "weight_shape" => {
                    self.put([spec.n as i64, spec.k as i64].iter().flat_map(|dim| dim.to_le_bytes()).collect())?;
                }
                _ => self.put(tensor.bytes)?,
            }
        }
        Ok(())
    }

    /// The next planned vector.
    pub(super) fn vector(&mut self, values: &[f32]) -> Result<()> {
        self.floats(values)
    }

    /// The next planned weight, rounded to BF16, some rows at a time.
    pub(super) fn bf16(&mut self, tensor: &SourceTensor<'_>) -> Result<()> {
        self.begin(2 * tensor.elements())?;
        let round = |row: &mut Vec<f32>, rows: std::ops::Range<usize>| {
            row.resize(tensor.cols, 0.0);
            let mut bytes = vec![0; rows.len() * tensor.cols * 2];
            for (index, out) in rows.zip(bytes.chunks_exact_mut((tensor.cols * 2).max(1))) {
                tensor.row_f32(index, row)?;
                for (out, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(&*row) {
                    *out = bf16::from_f32(*value).to_le_bytes();
                }
            }
            Ok(bytes)
        };
        let rows = pieces(tensor.rows, tensor.cols, WeightKind::Bf16);
        in_order(self.threads, rows, round, |bytes| self.out.send(Piece::Owned(bytes)))
    }

    /// Tensors so far.
    pub(super) fn so_far(&self) -> usize {
        self.written
    }

    /// Syncs what was written so far, beside what comes then.
    pub(super) fn sync(&mut self, then: &Arc<Synced>) -> Result<()> {
        self.out.sync(then)
    }

    /// Ends early: what went wrong with the file, if something did.
    pub(super) fn end(&mut self) -> Result<()> {
        self.out.end().map(drop)
    }

    /// SHA-256 of the whole file, on disk.
    pub(super) fn finish(self) -> Result<String> {
        Ok(self.out.finish()?.0)
    }
}

/// The scales of a weight that is not in groups.
fn scales(weight: &HostWeight) -> &[f32] {
    match weight {
        HostWeight::Bf16 { .. } | HostWeight::Grouped { .. } => &[],
        HostWeight::Fp8 { scales, .. }
        | HostWeight::Fp8Static { scales, .. }
        | HostWeight::Fp8Block { scales, .. }
        | HostWeight::Int8 { scales, .. }
        | HostWeight::Int8Outliers { scales, .. } => scales,
    }
}

/// Some rows of a weight in groups; another is given back whole.
fn rows_of(weight: &HostWeight, rows: std::ops::Range<usize>) -> HostWeight {
    let HostWeight::Grouped { k, bits, group, codes, scales, mins, row_scales, .. } = weight else {
        return weight.clone();
    };
    let groups = rows.start * (k / group)..rows.end * (k / group);
    HostWeight::Grouped {
        n: rows.len(),
        k: *k,
        bits: *bits,
        group: *group,
        codes: codes[rows.start * k..rows.end * k].to_vec(),
        scales: scales[groups.clone()].to_vec(),
        mins: mins[groups].to_vec(),
        row_scales: row_scales[rows].to_vec(),
    }
}

#[cfg(test)]
#[path = "tensors_tests.rs"]
mod tests;
