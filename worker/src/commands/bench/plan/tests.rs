use std::path::Path;

use clap::Parser;
use modelprofile_engine::ZeroPoint;

use super::*;
use crate::plan::Profile;

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");

fn sizes() -> Sizes<'static> {
    Sizes { batch: &[1, 16], context: 1000, prefill: &[600], chunk: 512 }
}

fn profiles() -> Vec<Profile> {
    let profile = |weights, devices| Profile { name: format_name(weights), weights, kv: KvFormat::Fp8E4m3, devices };
    let int4 = WeightFormat::Int4 { group: 128, zero: ZeroPoint::Minimum };
    vec![profile(WeightFormat::Fp8, 1), profile(int4, 1), profile(WeightFormat::Bf16, 2)]
}

fn outcome(model: &str) -> (Outcome, ModelConfig) {
    let hardware = modelprofile_roofline::hardware("h100-80gb").unwrap();
    let (name, config) = model::read(Path::new(model)).unwrap();
    (plan(hardware, (name, &config), &profiles(), &sizes()).unwrap(), config)
}

#[test]
fn the_table_fits_a_terminal_and_calls_every_rate_modelled() {
    for model in ["llama-3.1-8b", "llama-3.3-70b"] {
        let (outcome, config) = outcome(model);
        let text = report::text(&outcome, &config, &sizes()).unwrap();
        for line in text.lines() {
            assert!(line.chars().count() <= 120, "{line}");
            assert!(!line.contains("tokens/s") || line.contains("modelled"), "{line}");
        }
        for expected in ["linear_int4_m8", "cublaslt_fp8_scaled", "all_reduce", "NVLink", "tensor cores", "PCIe", "256"]
        {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
    }
}

#[test]
fn json_says_that_it_is_modelled_and_its_kernels_add_up_to_steps() {
    let (outcome, config) = outcome("llama-3.1-8b");
    let json = report::json(&outcome, &config, &sizes());
    assert_eq!(json["modelled"], true);
    let profiles = json["profiles"].as_array().unwrap();
    assert_eq!(profiles.len(), 3);
    for profile in profiles {
        let steps = profile["steps"].as_array().unwrap();
        assert_eq!(steps.len(), 3);
        for step in steps {
            let kernels = step["kernels"].as_array().unwrap();
            let sum: f64 = kernels.iter().map(|k| k["seconds"].as_f64().unwrap() * k["count"].as_f64().unwrap()).sum();
            assert!((sum / step["seconds"].as_f64().unwrap() - 1.0).abs() < 1e-9);
        }
        // The prompt's last chunk has 88 rows; its rate is that of both chunks.
        let prefill = &steps[2];
        assert_eq!((prefill["rows"].as_u64(), prefill["tokens"].as_u64()), (Some(88), Some(600)));
        assert!(prefill["allSeconds"].as_f64() > prefill["seconds"].as_f64());
    }
    assert_eq!(json["crossovers"].as_array().unwrap().len(), 4);
}

#[test]
fn a_manifest_names_its_profiles_and_its_model() {
    let manifest = read_manifest(Path::new(&format!("{DEPLOY}/examples/llama-70b-tp2.yaml"))).unwrap();
    let profiles = of_manifest(&manifest).unwrap();
    assert!(profiles.len() > 1 && profiles.iter().all(|profile| profile.devices == 2), "{profiles:?}");
    let (name, config) = model::of_manifest(&manifest.spec.model.uri).unwrap();
    assert_eq!((name.as_str(), config.layers, config.hidden), ("Llama-3.3-70B", 80, 8192));
    let error = model::of_manifest("hf://nobody/Unheard-Of-1B").unwrap_err().to_string();
    assert!(error.contains("--model") && error.contains("llama-3.1-8b"), "{error}");
}

#[test]
fn a_config_json_is_enough_of_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let text = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 320,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "hidden_act": "silu", "torch_dtype": "bfloat16"}"#;
    std::fs::write(folder.path().join("config.json"), text).unwrap();
    for path in [folder.path().join("config.json"), folder.path().to_owned()] {
        let (_, config) = model::read(&path).unwrap();
        assert_eq!((config.layers, config.heads, config.vocab, config.tied_embeddings), (3, 4, 320, true));
    }
    let error = model::read(Path::new("/no/such/model")).unwrap_err().to_string();
    assert!(error.contains("qwen2.5-32b"), "{error}");
}

#[test]
fn a_plan_needs_hardware_and_prints_from_the_command_line() {
    let parse = |arguments: &str| {
        crate::commands::Cli::try_parse_from(["modelprofile-worker"].into_iter().chain(arguments.split(' ')))
    };
    assert!(parse("bench --plan --model llama-3.1-8b").is_err());
    assert!(parse("bench --json --model llama-3.1-8b").is_err());
    assert!(parse("bench --hardware h100-80gb --model llama-3.1-8b").is_err());
    assert!(parse("bench --plan --hardware h100-80gb").is_err(), "neither model nor manifest");
    parse("bench --plan --hardware h100-80gb --model smollm2-135m --batch 1 --prefill 64 --json")
        .unwrap()
        .run()
        .unwrap();
    let manifest =
        format!("bench --plan --hardware h100-80gb --file {DEPLOY}/examples/llama-70b.yaml --batch 1 --prefill 64");
    parse(&manifest).unwrap().run().unwrap();
}
