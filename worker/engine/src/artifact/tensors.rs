//! The interchange half of an artifact: `model.safetensors` and `config.json` in the `compressed-tensors` layout, so that
//! other tools load what was quantized here. (Names and shapes: the vllm-project/compressed-tensors format description.)
//!
//! | format | tensors of a linear layer `X` |
//! |---|---|
//! | BF16 | `X.weight` BF16 `[n, k]` |
//! | FP8 (`float-quantized`) | `X.weight` F8_E4M3 `[n, k]`, `X.weight_scale` F32 `[n, 1]` |
//! | FP8 with static activations | the same with F32 `[1]`, and `X.input_scale` F32 `[1]` |
//! | FP8 in blocks | the same with F32 `[n/128, k/128]` |
//! | INT8 (`int-quantized`) | `X.weight` I8 `[n, k]`, `X.weight_scale` F32 `[n, 1]` |
//! | INT4 (`pack-quantized`) | `X.weight_packed` I32 `[n, k/8]`, lowest code in the lowest bits, `X.weight_scale` F32 `[n, k/group]`, `X.weight_shape` I64 `[2]`, and `X.weight_min` F32 `[n, k/group]` |
//! | 8 bits in groups | as INT4 with `[n, k/4]` |
//! | LLM.int8 | as INT8, zero in the outlier columns, and `X.outlier_weight` BF16 `[n, c]`, `X.outlier_columns` I32 `[c]` |
//!
//! `weight_min` is ours: `w = scale * code + min` with a free minimum, which integer zero points cannot say. The
//! configuration then names the format `modelprofile-affine`, so that no reader takes it for the other; so it does with
//! `modelprofile-llm-int8`. Embedding and
//! output layer are stored in BF16.

use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use half::bf16;
use modelprofile_kernels::{FP8_BLOCK, HostWeight, WeightKind};
use serde_json::{Map, Value, json};

use crate::{Architecture, EngineError, ModelConfig, Result, RopeScaling, checkpoint::SourceTensor, quantize::Recipe};

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
fn planned(name: &str, kind: WeightKind, n: usize, k: usize) -> Vec<Planned> {
    let tensor = |suffix: &str, dtype, shape: &[usize]| Planned {
        name: format!("{name}.{suffix}"),
        dtype,
        shape: shape.to_vec(),
    };
    let grouped = |per_word: usize, group: u16| {
        let groups = k / usize::from(group);
        vec![
            tensor("weight_packed", "I32", &[n, k / per_word]),
            tensor("weight_scale", "F32", &[n, groups]),
            tensor("weight_min", "F32", &[n, groups]),
            tensor("weight_shape", "I64", &[2]),
        ]
    };
    match kind {
        WeightKind::Bf16 => vec![tensor("weight", "BF16", &[n, k])],
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
}

/// What a file will hold, collected first.
#[derive(Default)]
pub(super) struct TensorPlan(Vec<Planned>);

impl TensorPlan {
    pub(super) fn weight(&mut self, name: &str, kind: WeightKind, n: usize, k: usize) {
        self.0.extend(planned(name, kind, n, k));
    }

    pub(super) fn vector(&mut self, name: &str, len: usize) {
        self.0.push(Planned { name: name.to_owned(), dtype: "F32", shape: vec![len] });
    }

    /// Writes the header. The tensors must follow in the planned order.
    pub(super) fn create(self, path: &Path) -> Result<TensorWriter> {
        let io = |e| EngineError::io(path, e);
        let mut out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(io)?);
        out.write_all(&self.header()).map_err(io)?;
        Ok(TensorWriter { path: path.to_owned(), out, planned: self.0.into_iter(), written: 0 })
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
        let end = (header.len() + self.0.iter().take(written).map(Planned::bytes).sum::<usize>()) as u64;
        if found != header || written > self.0.len() || file.metadata().map_err(io)?.len() < end {
            let message = "is not what the interrupted build had written; remove it".to_owned();
            return Err(EngineError::Artifact { path: path.display().to_string(), message });
        }
        file.set_len(end).map_err(io)?;
        file.seek(SeekFrom::Start(end)).map_err(io)?;
        let mut planned = self.0.into_iter();
        planned.by_ref().take(written).for_each(drop);
        Ok(TensorWriter { path: path.to_owned(), out: BufWriter::with_capacity(1 << 20, file), planned, written })
    }

    /// Length and text of the header.
    fn header(&self) -> Vec<u8> {
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!({"format": "pt"}));
        let mut offset = 0usize;
        for tensor in &self.0 {
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
                self.put(bytemuck::cast_slice(scales))
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
            HostWeight::Grouped { n, k, bits, group, codes, scales, mins, row_scales } => {
                self.put(&pack_codes(codes, *bits))?;
                for values in [scales, mins] {
                    let groups = k / group;
                    let values: Vec<f32> =
                        values.iter().enumerate().map(|(i, v)| v.to_f32() * row_scales[i / groups]).collect();
                    self.put(bytemuck::cast_slice(&values))?;
                }
                self.put(bytemuck::cast_slice(&[*n as i64, *k as i64]))
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

/// Codes of 4 or 8 bits into 32-bit words, the first code in the lowest bits.
fn pack_codes(codes: &[u8], bits: u8) -> Vec<u8> {
    if bits == 8 {
        return codes.to_vec();
    }
    codes.chunks(2).map(|pair| pair[0] | (pair.get(1).copied().unwrap_or(0) << 4)).collect()
}

/// `config.json` of the artifact, with the quantization that readers of `compressed-tensors` expect.
pub(super) fn config_json(config: &ModelConfig, recipe: Recipe) -> Value {
    let (architecture, model_type) = match config.architecture {
        Architecture::Llama => ("LlamaForCausalLM", "llama"),
        Architecture::Mistral => ("MistralForCausalLM", "mistral"),
        Architecture::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
        Architecture::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
    };
    let scaling = match &config.rope_scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_positions,
        }),
        // The factors that Llama 3's scaling resulted in; transformers has no name for them alone.
        RopeScaling::Factors(factors) => json!({"rope_type": "factors", "factors": factors}),
    };
    let mut value = json!({
        "architectures": [architecture],
        "model_type": model_type,
        "num_hidden_layers": config.layers,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "sliding_window": config.sliding_window,
        "tie_word_embeddings": config.tied_embeddings,
        "attention_bias": config.qkv_bias,
        "hidden_act": "silu",
        "bos_token_id": config.bos_token,
        "eos_token_id": config.eos_tokens,
        "torch_dtype": "bfloat16",
    });
    if let (Some(quantization), Some(map)) = (quantization(recipe.kind(config.hidden)), value.as_object_mut()) {
        map.insert("quantization_config".into(), quantization);
    }
    value
}

fn quantization(kind: WeightKind) -> Option<Value> {
    let eight_bits = |kind: &str| {
        (
            json!({"num_bits": 8, "type": kind, "strategy": "channel", "symmetric": true, "dynamic": false}),
            json!({"num_bits": 8, "type": kind, "strategy": "token", "symmetric": true, "dynamic": true}),
        )
    };
    let grouped = |bits: u8, group: u16| {
        let weights = json!({"num_bits": bits, "type": "int", "strategy": "group", "group_size": group,
                             "symmetric": false, "dynamic": false});
        (weights, Value::Null)
    };
    let (name, (weights, activations)) = match kind {
        WeightKind::Bf16 => return None,
        WeightKind::Fp8 => ("float-quantized", eight_bits("float")),
        WeightKind::Fp8Static => ("float-quantized", {
            let both =
                json!({"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": true, "dynamic": false});
            (both.clone(), both)
        }),
        WeightKind::Fp8Block => ("float-quantized", {
            (
                json!({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [FP8_BLOCK, FP8_BLOCK],
                       "symmetric": true, "dynamic": false}),
                json!({"num_bits": 8, "type": "float", "strategy": "group", "group_size": FP8_BLOCK, "symmetric": true,
                       "dynamic": true}),
            )
        }),
        WeightKind::Int8 => ("int-quantized", eight_bits("int")),
        WeightKind::Int8Outliers { .. } => ("modelprofile-llm-int8", eight_bits("int")),
        WeightKind::Int4 { group } => ("modelprofile-affine", grouped(4, group)),
        WeightKind::Int8Group { group } => ("modelprofile-affine", grouped(8, group)),
    };
    Some(json!({
        "quant_method": if name.starts_with("modelprofile-") { name } else { "compressed-tensors" },
        "format": name,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": activations}},
        "ignore": ["lm_head"],
    }))
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
        let mut plan = TensorPlan::default();
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
        let mut plan = TensorPlan::default();
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
    fn four_bit_codes_fill_words_from_the_lowest_bits() {
        assert_eq!(pack_codes(&[1, 2, 3, 4, 5, 6, 7, 8], 4), 0x8765_4321u32.to_le_bytes());
    }

    #[test]
    fn a_tensor_of_another_size_than_planned_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let mut plan = TensorPlan::default();
        plan.vector("norm.weight", 3);
        let mut writer = plan.create(&directory.path().join("x")).unwrap();
        assert!(writer.vector(&[1.0]).is_err());
    }
}
