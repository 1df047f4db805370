use modelprofile_api::EngineType;
use rstest::rstest;

use super::super::tests::{manifest, options, owner};
use super::*;

const COMMIT: &str = "6f6073b423013f6a7d4d9f39144961bfbfbc386b";

fn launched(sections: &str) -> Vec<String> {
    let launches = launches(&owner(), &manifest(sections), &options());
    let line = |launch: Launch| {
        let all: Vec<String> = launch.command.into_iter().chain(launch.args).collect();
        all.join(" ")
    };
    launches.unwrap().into_iter().map(line).collect()
}

fn refused(sections: &str) -> Vec<String> {
    launches(&owner(), &manifest(sections), &options()).unwrap_err().iter().map(ToString::to_string).collect()
}

fn sections(engine: &str, model: &str, profiles: &str) -> String {
    format!(
        "engine: {{type: {engine}}}\nmodel: {{{model}}}\nprofiles: [{profiles}]\nswitching: {{strategy: Surge}}
cache: {{persistentVolumeClaim: cache}}\nplacement: {{acceleratorResource: nvidia.com/gpu}}\nquality: {{onFailure: Warn}}"
    )
}

#[test]
fn vllm_rounds_one_checkpoint_while_it_loads() {
    let model = format!("uri: 'hf://a/b', revision: {COMMIT}, maxContextTokens: 4096, servedName: chat");
    let profiles = "{name: quality, weights: {format: BF16}, tensorParallel: 2},
        {name: density, weights: {format: FP8}, kvCache: {format: FP8E4M3}}";
    let path = format!("/cache/hub/models--a--b/snapshots/{COMMIT}");
    assert_eq!(
        launched(&sections("VLLM", &model, profiles)),
        [
            format!(
                "vllm serve {path} --host 0.0.0.0 --port 8000 --served-model-name chat --dtype bfloat16 --kv-cache-dtype auto \
                 --tensor-parallel-size 2 --max-model-len 4096"
            ),
            format!(
                "vllm serve {path} --host 0.0.0.0 --port 8000 --served-model-name chat --quantization fp8 --kv-cache-dtype fp8 \
                 --tensor-parallel-size 1 --max-model-len 4096"
            ),
        ]
    );
}

#[rstest]
#[case("{format: FP8}", "FP8E4M3", "--quantization compressed-tensors --kv-cache-dtype fp8")]
#[case(
    "{format: INT8, method: SmoothQuant}",
    "BF16",
    "--quantization compressed-tensors --dtype bfloat16 --kv-cache-dtype auto"
)]
#[case("{format: INT4, method: GPTQ}", "FP8E5M2", "--quantization compressed-tensors --kv-cache-dtype fp8_e5m2")]
#[case("{format: INT4, method: AWQ}", "FP16", "--quantization awq --dtype float16 --kv-cache-dtype auto")]
#[case("{format: FP16}", "FP16", "--dtype float16 --kv-cache-dtype auto")]
fn vllm_loads_a_checkpoint_of_its_own_as_it_was_made(#[case] weights: &str, #[case] kv: &str, #[case] flags: &str) {
    let profile = format!("{{name: dense, weights: {weights}, kvCache: {{format: {kv}}}}}");
    assert_eq!(
        launched(&sections("VLLM", "uri: 'pvc://models/llama-{profile}'", &profile)),
        [format!(
            "vllm serve /volumes/models/llama-dense --host 0.0.0.0 --port 8000 --served-model-name llama {flags} \
             --tensor-parallel-size 1"
        )]
    );
}

#[test]
fn tensorrt_llm_reads_from_the_checkpoint_how_it_was_quantized() {
    let profiles = "{name: quality, weights: {format: FP8}, kvCache: {format: FP8E4M3}, tensorParallel: 4},
        {name: density, weights: {format: INT4, method: AWQ}}";
    let model = "uri: 'pvc://models/llama-{profile}', maxContextTokens: 8192";
    assert_eq!(
        launched(&sections("TensorRTLLM", model, profiles)),
        [
            "trtllm-serve /volumes/models/llama-quality --backend pytorch --host 0.0.0.0 --port 8000 --served_model_name llama \
             --tp_size 4 --kv_cache_dtype fp8 --max_seq_len 8192 --extra_llm_api_options /etc/modelprofile/tensorrt-llm.yaml",
            "trtllm-serve /volumes/models/llama-density --backend pytorch --host 0.0.0.0 --port 8000 --served_model_name llama \
             --tp_size 1 --max_seq_len 8192 --extra_llm_api_options /etc/modelprofile/tensorrt-llm.yaml",
        ]
    );
    assert!(files(EngineType::TensorRtLlm).contains_key("tensorrt-llm.yaml"));
}

#[test]
fn llama_cpp_loads_a_file_per_format() {
    let profiles = "{name: quality, weights: {format: Q8_0}, kvCache: {format: FP16}, tensorParallel: 2},
        {name: density, weights: {format: Q4_K_M}}";
    let model = "uri: 'pvc://models/llama-{format}.gguf', maxContextTokens: 4096";
    let engine = "LlamaCpp, args: ['-np', '16']";
    assert_eq!(
        launched(&sections(engine, model, profiles)),
        [
            "-m /volumes/models/llama-Q8_0.gguf --alias llama --host 0.0.0.0 --port 8000 --metrics -np 8 -c 32768 \
             --cache-type-k f16 --cache-type-v f16 --n-gpu-layers 999 --split-mode row -np 16",
            "-m /volumes/models/llama-Q4_K_M.gguf --alias llama --host 0.0.0.0 --port 8000 --metrics -np 8 -c 32768 \
             --cache-type-k bf16 --cache-type-v bf16 --n-gpu-layers 999 -np 16",
        ]
    );
}

#[rstest]
#[case("https://huggingface.co/a/b/resolve/COMMIT/f.gguf", "/cache/hub/models--a--b/snapshots/COMMIT/f.gguf")]
#[case(
    "https://example.org/f.gguf",
    "/cache/https/41fc3c4c76f2bd81a36e3877b376533ef789d0c1ac35cd300852346c573383b3/f.gguf"
)]
#[case("file:///models/f.gguf", "/models/f.gguf")]
fn a_file_is_where_the_prepare_job_puts_it(#[case] uri: &str, #[case] path: &str) {
    let model = format!("uri: '{}', maxContextTokens: 64", uri.replace("COMMIT", COMMIT));
    let line = &launched(&sections("LlamaCpp", &model, "{name: quality, weights: {format: Q8_0}}"))[0];
    assert!(line.starts_with(&format!("-m {} ", path.replace("COMMIT", COMMIT))), "{line}");
}

const ONE: &str = "{name: quality, weights: {format: BF16}}";

#[rstest]
#[case::gguf_in_vllm("VLLM", "uri: 'pvc://m/a'", "{name: q, weights: {format: Q8_0}}", &[
    "spec.profiles[0].weights.format: VLLM can not serve Q8_0: it reads GGUF files experimentally and slowly; write FP8, INT8 or INT4, or the engine LlamaCpp"])]
#[case::int8_in_trt("TensorRTLLM", "uri: 'pvc://m/a'", "{name: q, weights: {format: INT8}}", &[
    "spec.profiles[0].weights.format: TensorRTLLM can not serve INT8: its PyTorch backend has no INT8 weights; write FP8, which has its size"])]
#[case::fp8_in_llama("LlamaCpp", "uri: 'pvc://m/a', maxContextTokens: 64", "{name: q, weights: {format: FP8}, kvCache: {format: FP8E4M3}}", &[
    "spec.profiles[0].weights.format: LlamaCpp can not serve FP8: it loads GGUF files; write Q8_0, which has its size",
    "spec.profiles[0].kvCache.format: LlamaCpp can not keep FP8E4M3: it has no FP8; write FP16, and for half of its size `--cache-type-k q8_0 --cache-type-v q8_0` in spec.engine.args"])]
#[case::no_context("LlamaCpp", "uri: 'pvc://m/a'", "{name: q, weights: {format: Q8_0}}", &[
    "spec.model.maxContextTokens: required with LlamaCpp, whose cache is 8 times as large; write the longest request in tokens"])]
#[case::mixed_16_bit("VLLM", "uri: 'pvc://m/a'", "{name: q, weights: {format: BF16}, kvCache: {format: FP16}}", &[
    "spec.profiles[0].kvCache.format: VLLM can not keep FP16: 16-bit keys and values have the format of the weights; write BF16 or FP8E4M3"])]
#[case::e5m2_with_fp8("VLLM", "uri: 'pvc://m/a'", "{name: q, weights: {format: FP8}, kvCache: {format: FP8E5M2}}", &[
    "spec.profiles[0].kvCache.format: VLLM can not keep FP8E5M2: with FP8 weights it keeps E4M3 only; write FP8E4M3"])]
#[case::two_checkpoints("VLLM", "uri: 'pvc://m/a'", "{name: q, weights: {format: FP8}}, {name: d, weights: {format: INT4, method: AWQ}}", &[
    "spec.model.uri: VLLM loads `q` from a 16-bit checkpoint and `d` from an AWQ checkpoint, which are two checkpoints; write pvc://CLAIM/PATH with {profile} or {format} in the path, which stands for the profile's name or weight format"])]
#[case::a_branch("VLLM", "uri: 'hf://a/b', revision: main", ONE, &[
    "spec.model.revision: required with VLLM, as a commit of 40 digits: pods that start at different times must load the same files"])]
#[case::a_repository("LlamaCpp", "uri: 'hf://a/b', maxContextTokens: 64", ONE, &[
    "spec.model.uri: LlamaCpp loads one GGUF file; write https://huggingface.co/OWNER/NAME/resolve/COMMIT/FILE.gguf or pvc://CLAIM/FILE.gguf"])]
#[case::a_file("TensorRTLLM", "uri: 'https://example.org/a.gguf'", ONE, &[
    "spec.model.uri: TensorRTLLM loads a directory, not one file; write hf://OWNER/NAME or pvc://CLAIM/PATH"])]
#[case::native_with_a_placeholder("Native", "uri: 'pvc://m/{profile}'", ONE, &[
    "spec.model.uri: the engine Native makes every profile out of one checkpoint; write its path, without {profile} and {format}"])]
fn what_an_engine_can_not_do_is_refused_with_what_to_write(
    #[case] engine: &str,
    #[case] model: &str,
    #[case] profiles: &str,
    #[case] reasons: &[&str],
) {
    assert_eq!(refused(&sections(engine, model, profiles)), reasons);
}

#[test]
fn what_only_our_worker_does_is_refused_with_what_to_write() {
    let text = format!(
        "engine: {{type: VLLM}}\nmodel: {{uri: 'hf://a/b', revision: {COMMIT}}}
profiles: [{{name: quality, weights: {{format: BF16}}, tensorParallel: 2}}]\nswitching: {{strategy: Recreate}}
placement: {{memoryBudget: 70Gi}}\napiKeysSecretRef: {{name: keys}}"
    );
    let mut options = options();
    options.images.vllm = None;
    let errors = launches(&owner(), &manifest(&text), &options).unwrap_err();
    let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "spec.placement.memoryBudget: VLLM takes no amount of memory; remove it, and give `--gpu-memory-utilization` in \
             spec.engine.args",
            "spec.apiKeysSecretRef: VLLM does not read keys from a folder; remove it, and give VLLM_API_KEY in spec.engine.env \
             with a secretKeyRef",
            "spec.quality.onFailure: VLLM serves files that others have quantized, whose quality nobody measures here, so Block \
             would never let it serve; write Warn once you have measured them yourself",
            "spec.profiles[0].tensorParallel: is 2, but there are no accelerators to share the model; write 1, or name their \
             resource in spec.placement.acceleratorResource",
            "spec.engine.image: required: this operator names no image for VLLM; write one, or start the operator with \
             --vllm-image",
            "spec.cache: VLLM loads what the prepare Job has fetched, which a cache that lives as long as a pod loses; set \
             persistentVolumeClaim or hostPath",
        ]
    );
}

#[test]
fn metrics_are_where_each_engine_has_them() {
    let all = [EngineType::Native, EngineType::Vllm, EngineType::TensorRtLlm, EngineType::LlamaCpp];
    assert_eq!(
        all.map(|engine| (metrics(engine).port, metrics(engine).path)),
        [(8001, "/metrics"), (8000, "/metrics"), (8000, "/prometheus/metrics"), (8000, "/metrics")]
    );
}
