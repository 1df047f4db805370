//! A checkpoint into a GGUF file: plan, then quantize and write tensor by tensor.
//!
//! Memory stays bounded whatever the tensor: rows are dequantized one at a time per thread, and their blocks leave in pieces
//! of a few megabytes. Rows are independent, so the file does not depend on the number of threads.

use std::path::Path;

use super::{
    FileType, Importance, metadata,
    quants::{LARGEST, quantize_row},
    writer::{TensorInfo, Writer},
};
use crate::{
    EngineError, Result,
    artifact::Progress,
    checkpoint::{Checkpoint, Role, RowMap, SourceDtype, SourceTensor},
    model::rope,
};

/// Bytes of blocks that are computed before they are written.
const PIECE: usize = 4 << 20;

/// How a file is made.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// What it is.
    pub file_type: FileType,
    /// What errors in each column cost; `None` weighs by the weights alone.
    pub importance: Option<&'a Importance>,
    /// Threads that quantize, at least one.
    pub threads: usize,
    /// Quantize tensors again that are quantized to another type already: their error adds to the new one's.
    pub requantize: bool,
}

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Size of the file.
    pub bytes: u64,
    /// Weights in it.
    pub parameters: u64,
    /// Bits of the tensors' data per weight.
    pub bits_per_weight: f64,
    /// Tensors that were taken over bit for bit.
    pub copied: usize,
    /// Tensors that were converted.
    pub converted: usize,
}

/// Writes `checkpoint` as a GGUF file. `progress` counts bytes of the source.
///
/// Tensors that lie in the type that the file needs, and all those of a source of the same file type, are copied bit for bit.
///
/// # Errors
/// [`EngineError::Config`] when a source tensor is quantized to another type and [`Options::requantize`] is not set, when the
/// importance does not belong to the model, or when a weight is too large for the type;
/// [`EngineError::Unsupported`] when the tokenizer cannot be stored; the checkpoint's and the file system's errors. Nothing
/// is left under `output` then.
pub fn export(
    checkpoint: &Checkpoint,
    output: &Path,
    options: &Options<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary> {
    let importance = options.importance.map(|importance| normalized(checkpoint, importance)).transpose()?;
    let planned = plan(checkpoint, options)?;
    let infos: Vec<TensorInfo> = planned.iter().map(|tensor| tensor.info.clone()).collect();
    let entries = metadata::entries(checkpoint, options.file_type, options.importance)?;
    let mut writer = Writer::create(output, &entries, &infos)?;

    let total: u64 = planned.iter().map(|tensor| tensor.source_bytes() as u64).sum();
    let mut done = 0;
    for tensor in &planned {
        progress(Progress { done, total, activity: tensor.info.name.clone() });
        match &tensor.source {
            Source::Values(values) => {
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                writer.write(&bytes)?;
            }
            Source::Tensor { role, tensor: source } => {
                let columns = importance.as_ref().and_then(|all| all.of(*role, checkpoint));
                let job = Job { planned: tensor, source, map: role.gguf_row_map(checkpoint.config()), columns };
                job.write(&mut writer, options.threads.max(1), &mut |bytes| {
                    // What was read is not needed again: resident memory stays that of a piece.
                    checkpoint.release_named(source.name);
                    progress(Progress { done: done + bytes, total, activity: tensor.info.name.clone() });
                })?;
            }
        }
        done += tensor.source_bytes() as u64;
    }
    let bytes = writer.finish()?;
    progress(Progress { done, total, activity: "done".to_owned() });

    let data: usize = infos.iter().filter_map(TensorInfo::bytes).sum();
    let parameters = checkpoint.parameters();
    let copied = planned.iter().filter(|tensor| tensor.is_copy()).count();
    let bits_per_weight = data as f64 * 8.0 / parameters.max(1) as f64;
    Ok(Summary { bytes, parameters, bits_per_weight, copied, converted: planned.len() - copied })
}

/// Holds that a checkpoint can be written so, before what takes long.
///
/// # Errors
/// As [`export`] has for the tensors' types.
pub fn check(checkpoint: &Checkpoint, options: &Options<'_>) -> Result<()> {
    plan(checkpoint, options).map(drop)
}

/// A tensor of the new file.
struct Planned<'a> {
    info: TensorInfo,
    source: Source<'a>,
}

enum Source<'a> {
    Tensor {
        role: Role,
        tensor: SourceTensor<'a>,
    },
    /// FP32 values that the container wants as a tensor.
    Values(Vec<f32>),
}

impl Planned<'_> {
    fn source_bytes(&self) -> usize {
        match &self.source {
            Source::Tensor { tensor, .. } => tensor.bytes.len(),
            Source::Values(values) => values.len() * 4,
        }
    }

    fn is_copy(&self) -> bool {
        matches!(&self.source, Source::Tensor { tensor, .. } if tensor.dtype == self.info.dtype)
    }
}

/// Every tensor of the new file, in the order of the computation.
fn plan<'a>(checkpoint: &'a Checkpoint, options: &Options<'_>) -> Result<Vec<Planned<'a>>> {
    if let Some(quantization) = checkpoint.quantization() {
        return Err(EngineError::Config(format!(
            "{} is quantized already ({}), in codes that GGUF does not have: give the original checkpoint",
            checkpoint.name(),
            quantization.describe()
        )));
    }
    let config = checkpoint.config();
    let same = checkpoint.gguf_metadata().and_then(|metadata| metadata.unsigned("general.file_type"))
        == Some(options.file_type.number().into());
    let mut planned = Vec::new();
    for role in Role::all(config) {
        let tensor = checkpoint.require(role)?;
        let mut dtype = options.file_type.tensor_type(role, config, options.importance.is_some());
        if same {
            dtype = tensor.dtype;
        } else if is_quantized(tensor.dtype) && is_quantized(dtype) && dtype != tensor.dtype && !options.requantize {
            return Err(EngineError::Config(format!(
                "{} is {} already and would be quantized a second time, to {}: start from the original checkpoint, or allow \
                 it with --requantize",
                tensor.name,
                tensor.dtype.name(),
                dtype.name()
            )));
        }
        let shape = if role.is_vector() { vec![tensor.cols] } else { vec![tensor.rows, tensor.cols] };
        let info = TensorInfo { name: role.gguf_name(), shape, dtype };
        planned.push(Planned { info, source: Source::Tensor { role, tensor } });
    }
    if let Some(factors) = rope::divisors(config) {
        let info =
            TensorInfo { name: "rope_freqs.weight".to_owned(), shape: vec![factors.len()], dtype: SourceDtype::F32 };
        planned.push(Planned { info, source: Source::Values(factors) });
    }
    Ok(planned)
}

/// Quantized types, as opposed to plain numbers.
fn is_quantized(dtype: SourceDtype) -> bool {
    dtype.block_elements() > 1
}

/// Importances of a model's tensors, each with mean 1, and no column free.
struct Columns(Vec<(Role, Vec<f32>)>);

impl Columns {
    fn of(&self, role: Role, checkpoint: &Checkpoint) -> Option<&[f32]> {
        let find = |role| self.0.iter().find(|(known, _)| *known == role).map(|(_, values)| values.as_slice());
        // The input of a tied output layer is measured under the output's name.
        let tied = role == Role::Embedding && checkpoint.config().tied_embeddings;
        find(role).or_else(|| if tied { find(Role::Output) } else { None })
    }
}

/// A column whose inputs were always zero in the calibration still counts this much of the mean.
const LEAST: f32 = 1e-4;

fn normalized(checkpoint: &Checkpoint, importance: &Importance) -> Result<Columns> {
    let config = checkpoint.config();
    let mut all = Vec::new();
    for role in Role::all(config).into_iter().chain(config.tied_embeddings.then_some(Role::Output)) {
        let Some(values) = importance.get(role) else { continue };
        let cols = role.shape(config).1;
        if values.len() != cols {
            return Err(EngineError::Config(format!(
                "the importance matrix has {} columns for {}, the model has {cols}: it belongs to another model",
                values.len(),
                role.gguf_name()
            )));
        }
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / cols as f64;
        if mean > 0.0 {
            let scaled = values.iter().map(|v| (f64::from(*v) / mean) as f32 + LEAST).collect();
            all.push((role, scaled));
        }
    }
    if all.is_empty() {
        return Err(EngineError::Config(
            "the importance matrix has nothing about this model's tensors: it belongs to another model".to_owned(),
        ));
    }
    Ok(Columns(all))
}

/// One tensor on its way into the file.
struct Job<'a> {
    planned: &'a Planned<'a>,
    source: &'a SourceTensor<'a>,
    /// Row order of the new file.
    map: RowMap,
    columns: Option<&'a [f32]>,
}

impl Job<'_> {
    /// Quantizes and writes the tensor in pieces. `progress` gets the bytes of the source that are done.
    fn write(&self, writer: &mut Writer, threads: usize, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let (rows, cols) = (self.source.rows, self.source.cols);
        let wrong = || EngineError::Config(format!("{} has no row of {cols} columns", self.planned.info.name));
        let row_bytes = self.planned.info.dtype.row_bytes(cols).filter(|bytes| *bytes > 0).ok_or_else(wrong)?;
        let share = (PIECE / row_bytes / threads).min(rows.div_ceil(threads)).max(1);
        let mut piece = vec![0; (share * threads).min(rows) * row_bytes];
        for start in (0..rows).step_by(share * threads) {
            let len = (rows - start).min(share * threads) * row_bytes;
            let out = &mut piece[..len];
            let results = std::thread::scope(|scope| {
                let workers: Vec<_> = out
                    .chunks_mut(share * row_bytes)
                    .enumerate()
                    .map(|(i, out)| scope.spawn(move || self.rows(start + i * share, row_bytes, out)))
                    .collect();
                workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Vec<_>>()
            });
            for result in results {
                // A panic of a worker goes on in this thread.
                result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            writer.write(out)?;
            progress(((start + len / row_bytes) * self.source.bytes.len() / rows) as u64);
        }
        Ok(())
    }

    /// File rows from `first` on into `out`.
    fn rows(&self, first: usize, row_bytes: usize, out: &mut [u8]) -> Result<()> {
        let mut values = vec![0.0; self.source.cols];
        let dtype = self.planned.info.dtype;
        let bounded = !matches!(dtype, SourceDtype::F32 | SourceDtype::Bf16);
        for (i, out) in out.chunks_exact_mut(row_bytes).enumerate() {
            let row = self.map.row_at(first + i);
            // Reads the values even of a copy: a row that is not finite must not get into a new file.
            self.source.row_f32(row, &mut values)?;
            if self.planned.is_copy() {
                out.copy_from_slice(self.source.row_bytes(row)?);
                continue;
            }
            if let Some(value) = values.iter().find(|v| bounded && v.abs() > LARGEST) {
                return Err(EngineError::Config(format!(
                    "{} has the weight {value}, too large for {}; BF16 holds it",
                    self.source.name,
                    dtype.name()
                )));
            }
            quantize_row(dtype, &values, self.columns, out).ok_or_else(|| {
                EngineError::Config(format!("{} cannot be stored as {}", self.source.name, dtype.name()))
            })?;
        }
        Ok(())
    }
}
