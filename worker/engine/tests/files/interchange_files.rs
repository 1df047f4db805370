//! Files of quantized checkpoints: read element by element with the published formulas, and damaged in every way that a
//! download or a hostile author can.

use std::{collections::BTreeMap, fs, path::Path, sync::OnceLock};

use half::f16;
use modelprofile_engine::{
    EngineError, WeightFormat, ZeroPoint,
    artifact::Store,
    checkpoint::{Checkpoint, Role, quantized::Layout},
    interchange::export,
};
use proptest::prelude::*;
use rstest::rstest;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};

const LAYOUTS: [Layout; 4] = [Layout::CompressedTensors, Layout::AutoAwq, Layout::Gptq, Layout::ModelOpt];
const MODULE: &str = "model.layers.1.mlp.down_proj";

/// A checkpoint directory in memory: configuration, ModelOpt's file, tensors.
#[derive(Clone)]
struct Files {
    config: Value,
    modelopt: Option<Value>,
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Files {
    /// llama3-tiny at 4 bits in groups of 32, symmetric for ModelOpt and with integer zero points for the others.
    fn of(layout: Layout) -> Self {
        static FILES: OnceLock<Vec<Files>> = OnceLock::new();
        let all = FILES.get_or_init(|| LAYOUTS.map(Self::export).to_vec());
        all[LAYOUTS.iter().position(|l| *l == layout).unwrap()].clone()
    }

    fn export(layout: Layout) -> Self {
        let zero = if layout == Layout::ModelOpt { ZeroPoint::Symmetric } else { ZeroPoint::Integer };
        Self::export_as(layout, WeightFormat::Int4 { group: 32, zero })
    }

    fn export_as(layout: Layout, format: WeightFormat) -> Self {
        let cache = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llama3-tiny");
        let artifact =
            Store::new(cache.path()).prepare(&Checkpoint::open(&source).unwrap(), format, &mut |_| {}).unwrap();
        let own = Checkpoint::open(&cache.path().join("artifacts").join(&artifact.manifest().key)).unwrap();
        let output = cache.path().join("out");
        export(&own, layout, &output, &mut |_| {}).unwrap();
        let json = |name: &str| Some(serde_json::from_slice(&fs::read(output.join(name)).ok()?).unwrap());
        let bytes = fs::read(output.join("model.safetensors")).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        let tensors =
            read.iter().map(|(name, t)| (name.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec())));
        Self {
            config: json("config.json").unwrap(),
            modelopt: json("hf_quant_config.json"),
            tensors: tensors.collect(),
        }
    }

    fn write(&self, directory: &Path) {
        fs::write(directory.join("config.json"), self.config.to_string()).unwrap();
        if let Some(modelopt) = &self.modelopt {
            fs::write(directory.join("hf_quant_config.json"), modelopt.to_string()).unwrap();
        }
        let views = self.tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        fs::write(directory.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    }

    /// Opens the directory and reads every weight.
    fn read(&self) -> Result<Checkpoint, EngineError> {
        let directory = tempfile::tempdir().unwrap();
        self.write(directory.path());
        read_all(directory.path())
    }

    fn refusal(&self) -> String {
        self.read().expect_err("a damaged checkpoint was accepted").to_string()
    }

    fn words(&self, suffix: &str) -> Vec<u32> {
        let (_, _, bytes) = &self.tensors[&format!("{MODULE}.{suffix}")];
        bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn halves(&self, suffix: &str) -> Vec<f32> {
        let (dtype, _, bytes) = &self.tensors[&format!("{MODULE}.{suffix}")];
        assert_eq!(*dtype, Dtype::F16);
        bytes.chunks_exact(2).map(|b| f16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect()
    }
}

fn read_all(directory: &Path) -> Result<Checkpoint, EngineError> {
    let checkpoint = Checkpoint::open(directory)?;
    for role in Role::all(checkpoint.config()) {
        if let Some(weight) = checkpoint.quantized(role)? {
            weight.dequantize();
            let _ = weight.to_host();
        }
    }
    Ok(checkpoint)
}

/// `[n, k]` of [`MODULE`].
const SHAPE: (usize, usize) = (64, 96);
const GROUPS: usize = 3;

/// Every value of a layer by a layout's published formula for one element.
fn by_formula(value: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let (n, k) = SHAPE;
    (0..n).flat_map(|o| (0..k).map(move |i| (o, i))).map(|(o, i)| value(o, i)).collect()
}

fn nibble(word: u32, at: usize) -> f32 {
    ((word >> (4 * at)) & 15) as f32
}

// The formulas are those of the readers: AutoAWQ's and GPTQModel's dequantization, compressed-tensors' unpacking (codes and
// zero points less 8 each), ModelOpt's packing of two signed codes a byte. The last group of a row and odd rows are
// among the elements.
#[rstest]
fn every_element_is_what_the_published_formula_says(
    #[values(Layout::CompressedTensors, Layout::AutoAwq, Layout::Gptq, Layout::ModelOpt)] layout: Layout,
) {
    let files = Files::of(layout);
    let (n, k) = SHAPE;
    let found = match layout {
        Layout::AutoAwq => {
            let (q, z, s) = (files.words("qweight"), files.words("qzeros"), files.halves("scales"));
            // Where column `o % 8` of a word lies: the inverse of 0 2 4 6 1 3 5 7.
            let place = [0, 4, 1, 5, 2, 6, 3, 7];
            by_formula(|o, i| {
                let (g, at) = (i / 32, place[o % 8]);
                (nibble(q[i * n / 8 + o / 8], at) - nibble(z[g * n / 8 + o / 8], at)) * s[g * n + o]
            })
        }
        Layout::Gptq => {
            let (q, z, s) = (files.words("qweight"), files.words("qzeros"), files.halves("scales"));
            let of = files.words("g_idx");
            let add = if files.config["quantization_config"]["checkpoint_format"] == "gptq" { 1.0 } else { 0.0 };
            by_formula(|o, i| {
                let g = of[i] as usize;
                (nibble(q[i / 8 * n + o], i % 8) - (nibble(z[g * n / 8 + o / 8], o % 8) + add)) * s[g * n + o]
            })
        }
        Layout::ModelOpt => {
            let (_, _, q) = &files.tensors[&format!("{MODULE}.weight")];
            let s = files.halves("weight_scale");
            by_formula(|o, i| {
                let nibble = (q[o / 2 * k + i] >> (o % 2 * 4)) & 15;
                f32::from(if nibble > 7 { nibble as i8 - 16 } else { nibble as i8 }) * s[o * GROUPS + i / 32]
            })
        }
        _ => {
            let (q, z, s) =
                (files.words("weight_packed"), files.words("weight_zero_point"), files.halves("weight_scale"));
            by_formula(|o, i| {
                let g = i / 32;
                let (q, z) = (nibble(q[o * k / 8 + i / 8], i % 8) - 8.0, nibble(z[o / 8 * GROUPS + g], o % 8) - 8.0);
                (q - z) * s[o * GROUPS + g]
            })
        }
    };
    let read = files.read().unwrap().config().layers;
    assert_eq!(read, 2);
    let directory = tempfile::tempdir().unwrap();
    files.write(directory.path());
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let expected = checkpoint.quantized(Role::Down(1)).unwrap().unwrap().dequantize();
    assert!(found == expected, "{}", layout.name());
    assert!(expected.iter().any(|v| *v != 0.0));
}

#[rstest]
#[case(Layout::CompressedTensors, "weight_packed")]
#[case(Layout::CompressedTensors, "weight_scale")]
#[case(Layout::CompressedTensors, "weight_zero_point")]
#[case(Layout::CompressedTensors, "weight_shape")]
#[case(Layout::AutoAwq, "qweight")]
#[case(Layout::AutoAwq, "qzeros")]
#[case(Layout::AutoAwq, "scales")]
#[case(Layout::Gptq, "qweight")]
#[case(Layout::Gptq, "g_idx")]
#[case(Layout::ModelOpt, "weight_scale")]
fn a_tensor_that_is_missing_of_another_shape_or_type_is_named(#[case] layout: Layout, #[case] suffix: &str) {
    let name = format!("{MODULE}.{suffix}");
    let mut without = Files::of(layout);
    let (dtype, shape, bytes) = without.tensors.remove(&name).unwrap();
    let message = without.refusal();
    assert!(message.contains(&name) && message.contains("missing"), "{message}");

    let mut flat = without.clone();
    flat.tensors.insert(name.clone(), (dtype, vec![1, shape.iter().product()], bytes.clone()));
    let message = flat.refusal();
    assert!(message.contains(&name) && message.contains("demands"), "{message}");

    let other = if bytes.len() == shape.iter().product::<usize>() { Dtype::I8 } else { Dtype::U8 };
    let widened = vec![bytes.len()];
    let mut retyped = without;
    retyped.tensors.insert(name.clone(), (other, widened, bytes));
    let message = retyped.refusal();
    assert!(message.contains(&name) && message.contains("is needed"), "{message}");
}

#[rstest]
#[case::a_group_beyond_the_last(Layout::Gptq, "g_idx", 0, &3i32.to_le_bytes(), "group 3 of 3")]
#[case::a_negative_group(Layout::Gptq, "g_idx", 4, &(-1i32).to_le_bytes(), "group -1 of 3")]
#[case::a_scale_of_nan(Layout::AutoAwq, "scales", 2, &[0, 0x7e], "element 1 is NaN")]
#[case::an_infinite_scale(Layout::CompressedTensors, "weight_scale", 0, &[0, 0x7c], "element 0 is inf")]
#[case::another_shape_inside(Layout::CompressedTensors, "weight_shape", 0, &65i64.to_le_bytes(), "[65, 96]")]
fn numbers_that_make_no_sense_are_named(
    #[case] layout: Layout,
    #[case] suffix: &str,
    #[case] at: usize,
    #[case] bytes: &[u8],
    #[case] expected: &str,
) {
    let name = format!("{MODULE}.{suffix}");
    let mut files = Files::of(layout);
    files.tensors.get_mut(&name).unwrap().2[at..at + bytes.len()].copy_from_slice(bytes);
    let message = files.refusal();
    assert!(message.contains(&name) && message.contains(expected), "{message}");
}

#[test]
fn inputs_that_the_layer_scales_are_refused() {
    let mut files = Files::of(Layout::ModelOpt);
    let name = format!("{MODULE}.pre_quant_scale");
    files.tensors.get_mut(&name).unwrap().2[0..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
    let message = files.refusal();
    assert!(message.contains(&name) && message.contains("original checkpoint"), "{message}");
}

/// ModelOpt's `FP8` as it comes from the tool: scalars without dimensions, an FP8 cache with its scales.
#[test]
fn static_fp8_is_taken_over_with_its_scales_and_written_on() {
    let mut files = Files::export_as(Layout::ModelOpt, WeightFormat::Fp8);
    let one = |value: f32| (Dtype::F32, Vec::new(), value.to_le_bytes().to_vec());
    let scales: Vec<String> = files.tensors.keys().filter(|name| name.ends_with(".weight_scale")).cloned().collect();
    for name in scales {
        files.tensors.insert(name.replace("weight_scale", "input_scale"), one(0.125));
        files.tensors.insert(name, one(0.002));
    }
    for layer in 0..2 {
        files.tensors.insert(format!("model.layers.{layer}.self_attn.k_proj.k_scale"), one(0.5));
        files.tensors.insert(format!("model.layers.{layer}.self_attn.v_proj.v_scale"), one(0.25));
    }
    let modelopt = files.modelopt.as_mut().unwrap();
    modelopt["quantization"]["quant_algo"] = json!("FP8");
    modelopt["quantization"]["kv_cache_quant_algo"] = json!("FP8");
    let directory = tempfile::tempdir().unwrap();
    files.write(directory.path());

    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    assert_eq!(checkpoint.quantization().unwrap().format(), Some(WeightFormat::Fp8Static));
    assert!(checkpoint.quantization().unwrap().fp8_kv_cache);
    let artifact = Store::new(directory.path()).prepare(&checkpoint, WeightFormat::Fp8Static, &mut |_| {}).unwrap();
    let own = directory.path().join("artifacts").join(&artifact.manifest().key);
    let weight = checkpoint.quantized(Role::Down(1)).unwrap().unwrap();
    let mut row = vec![0.0; SHAPE.1];
    artifact.weight("layers.1.down").unwrap().dequantize_row(3, &mut row).unwrap();
    assert_eq!(row, weight.dequantize()[3 * SHAPE.1..4 * SHAPE.1]);
    for (from, source) in [("published", &checkpoint), ("own", &Checkpoint::open(&own).unwrap())] {
        for layout in [Layout::CompressedTensors, Layout::ModelOpt] {
            let output = directory.path().join(format!("{from}-{}", layout.name()));
            export(source, layout, &output, &mut |_| {}).unwrap();
            let read = Checkpoint::open(&output).unwrap();
            assert!(read.quantized(Role::Down(1)).unwrap().unwrap() == weight, "{from} {}", layout.name());
            // The cache's scales are the published file's; the artifact has none.
            assert_eq!(read.quantization().unwrap().fp8_kv_cache, from == "published", "{}", layout.name());
        }
    }
}

#[test]
fn a_zero_point_on_which_readers_disagree_is_refused() {
    let mut files = Files::of(Layout::Gptq);
    files.config["quantization_config"]["checkpoint_format"] = json!("gptq");
    let name = format!("{MODULE}.qzeros");
    files.tensors.get_mut(&name).unwrap().2[0] = 0x0f;
    let message = files.refusal();
    assert!(message.contains(&name) && message.contains("output 0"), "{message}");
}

#[test]
fn groups_in_activation_order_are_dequantized_written_on_and_not_taken_over() {
    let mut files = Files::of(Layout::Gptq);
    // The groups of the first two inputs of different groups change places.
    let of = &mut files.tensors.get_mut(&format!("{MODULE}.g_idx")).unwrap().2;
    of[0..4].copy_from_slice(&1i32.to_le_bytes());
    of[32 * 4..33 * 4].copy_from_slice(&0i32.to_le_bytes());
    let directory = tempfile::tempdir().unwrap();
    files.write(directory.path());
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let weight = checkpoint.quantized(Role::Down(1)).unwrap().unwrap();
    let zero = if let Value::String(format) = &files.config["quantization_config"]["checkpoint_format"] {
        format == "gptq"
    } else {
        true
    };
    let (q, z, s) = (files.words("qweight"), files.words("qzeros"), files.halves("scales"));
    let expected = (nibble(q[0], 0) - nibble(z[8], 0) - f32::from(u8::from(zero))) * s[64];
    assert_eq!(weight.dequantize()[0].to_bits(), expected.to_bits());

    let format = checkpoint.quantization().unwrap().format().unwrap();
    let error = Store::new(directory.path()).prepare(&checkpoint, format, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("activation order"), "{error}");
    Store::new(directory.path()).prepare(&checkpoint, WeightFormat::Bf16, &mut |_| {}).unwrap();

    let output = directory.path().join("out");
    export(&checkpoint, Layout::Gptq, &output, &mut |_| {}).unwrap();
    let again = Checkpoint::open(&output).unwrap();
    assert!(again.quantized(Role::Down(1)).unwrap().unwrap() == weight);
    let error = export(&checkpoint, Layout::AutoAwq, &directory.path().join("awq"), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("no activation order"), "{error}");
}

#[rstest]
#[case(json!({"quant_method": "bitsandbytes"}), "bitsandbytes")]
#[case(json!({"quant_method": "awq", "bits": 3, "group_size": 32}), "3")]
#[case(json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"}), "gemv")]
#[case(json!({"quant_method": "awq", "bits": 4, "group_size": 36}), "groups of 36 do not divide")]
#[case(json!({"quant_method": "awq", "bits": 4, "group_size": -7}), "-7")]
#[case(json!({"quant_method": "gptq", "bits": 2, "group_size": 32}), "2")]
#[case(json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "marlin"}), "marlin")]
#[case(json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": {"-:.*": {}}}), "dynamic")]
#[case(json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}), "config_groups")]
#[case(json!({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized",
    "config_groups": {"a": {"weights": {"num_bits": 4, "type": "float", "strategy": "tensor_group"}}}}), "nvfp4")]
#[case(json!({"quant_method": "compressed-tensors", "transform_config": {"config_groups": {}}}), "transform_config")]
#[case(json!({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24"}}), "sparsity_config")]
#[case(json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}), "NVFP4")]
fn schemes_that_are_not_read_are_refused_by_name(#[case] quantization: Value, #[case] named: &str) {
    let mut files = Files::of(Layout::AutoAwq);
    files.config["quantization_config"] = quantization;
    let message = files.refusal();
    assert!(message.contains(named), "{message}");
}

#[test]
fn codes_without_a_configuration_are_refused() {
    let mut files = Files::of(Layout::AutoAwq);
    files.config.as_object_mut().unwrap().remove("quantization_config");
    let message = files.refusal();
    assert!(message.contains("missing") || message.contains("quantization_config"), "{message}");
}

#[test]
fn biases_of_zeros_and_scales_of_the_cache_are_passed_over_and_other_tensors_are_not() {
    let mut files = Files::of(Layout::Gptq);
    files.tensors.insert(format!("{MODULE}.bias"), (Dtype::F16, vec![64], vec![0; 128]));
    files.tensors.insert("model.layers.0.self_attn.k_scale".into(), (Dtype::F32, vec![1], vec![0, 0, 128, 63]));
    files.read().unwrap();
    files.tensors.get_mut(&format!("{MODULE}.bias")).unwrap().2[5] = 60;
    let message = files.refusal();
    assert!(message.contains(&format!("{MODULE}.bias")), "{message}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    /// Bytes of the header and of the configuration replaced, the end cut off.
    #[test]
    fn a_damaged_quantized_checkpoint_never_panics(
        layout in 0usize..4,
        places in proptest::collection::vec((0.0f64..0.2, any::<u8>()), 0..6),
        settings in proptest::collection::vec((0.0f64..1.0, any::<u8>()), 0..3),
        kept in 0.5f64..1.5,
    ) {
        let directory = tempfile::tempdir().unwrap();
        Files::of(LAYOUTS[layout]).write(directory.path());
        for (name, places) in [("model.safetensors", &places), ("config.json", &settings)] {
            let mut bytes = fs::read(directory.path().join(name)).unwrap();
            for (at, byte) in places {
                let at = (at * bytes.len() as f64) as usize;
                bytes[at] = *byte;
            }
            if name == "model.safetensors" {
                bytes.truncate((kept * bytes.len() as f64) as usize);
            }
            fs::write(directory.path().join(name), bytes).unwrap();
        }
        let _ = read_all(directory.path());
    }
}
