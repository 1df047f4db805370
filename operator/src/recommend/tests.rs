use modelprofile_api::{Manifest, Method, violations};
use proptest::prelude::*;
use rstest::rstest;

use super::*;

fn request(model_name: &str, hardware_name: &str, gpus: u32, context: u32, concurrency: u32, p: Priority) -> Request {
    Request {
        shape: model(model_name).unwrap(),
        machine: hardware(hardware_name).unwrap(),
        gpus,
        context_tokens: context,
        concurrency,
        priority: p,
    }
}

/// `FORMAT > FORMAT / KV / tensor parallelism x replicas`.
fn summary(plan: &Plan) -> String {
    let rungs: Vec<_> = plan.rungs.iter().map(|r| r.format.as_str()).collect();
    format!("{} / {} / {}x{}", rungs.join(" > "), plan.kv_format.as_str(), plan.tensor_parallel, plan.replicas)
}

fn labels() -> Labels {
    Labels { name: "m".into(), uri: "hf://owner/name".into(), license: None }
}

#[rstest]
#[case("llama-3.1-8b", "h100-80gb", 1, 8192, 16, Priority::Quality, "BF16 / BF16 / 1x1")]
#[case("llama-3.1-8b", "h100-80gb", 1, 8192, 16, Priority::Balanced, "FP8 / BF16 / 1x1")]
#[case("llama-3.3-70b", "h100-80gb", 1, 16384, 8, Priority::Balanced, "FP8 > INT4 / FP8E4M3 / 1x1")]
#[case("llama-3.3-70b", "h100-80gb", 1, 16384, 8, Priority::Density, "INT4 / FP8E4M3 / 1x1")]
#[case("llama-3.3-70b", "h100-80gb", 4, 16384, 8, Priority::Quality, "BF16 > FP8 / BF16 / 4x1")]
#[case("llama-3.1-8b", "a100-80gb", 1, 8192, 16, Priority::Density, "INT8 / BF16 / 1x1")]
#[case("llama-3.1-8b", "h100-80gb", 1, 131_072, 4, Priority::Balanced, "FP8 / FP8E4M3 / 1x1")]
#[case("smollm2-135m", "cpu", 1, 2048, 4, Priority::Balanced, "Q8_0 / BF16 / 1x1")]
#[case("llama-3.1-8b", "cpu", 1, 8192, 8, Priority::Balanced, "Q8_0 > Q4_K_M / BF16 / 1x1")]
fn each_case_has_its_ladder(
    #[case] model: &str,
    #[case] hardware: &str,
    #[case] gpus: u32,
    #[case] context: u32,
    #[case] concurrency: u32,
    #[case] priority: Priority,
    #[case] expected: &str,
) {
    let plan = recommend(&request(model, hardware, gpus, context, concurrency, priority)).unwrap();
    assert_eq!(summary(&plan), expected, "{}", text(&plan));
}

#[test]
fn density_that_does_not_pay_is_warned_of() {
    let plan = recommend(&request("llama-3.1-8b", "h100-80gb", 1, 8192, 16, Priority::Balanced)).unwrap();
    assert_eq!(plan.warnings, ["density does not pay: INT4 holds only 5 % more KV tokens than FP8"]);
}

#[test]
fn what_can_not_fit_is_told_what_would() {
    let error = recommend(&request("llama-3.3-70b", "l40s", 1, 16384, 64, Priority::Quality)).unwrap_err();
    assert!(error.0.contains("x L40S,") && error.0.contains("GiB of memory each"), "{error}");
}

#[test]
fn the_manifest_with_its_comments_is_valid_and_misses_nothing_where_all_is_built() {
    let request = request("llama-3.3-70b", "h100-80gb", 1, 16384, 8, Priority::Balanced);
    let text = yaml(&request, &recommend(&request).unwrap(), &labels()).unwrap();
    assert_eq!(violations(&Manifest::from_yaml(&text).unwrap()), []);
    assert!(text.contains("# because Are the contexts long?") && !text.contains("# not in this version: "), "{text}");
}

#[test]
fn the_reasons_say_why_awq_and_what_to_write_for_gptq() {
    let request = request("llama-3.3-70b", "h100-80gb", 1, 16384, 8, Priority::Balanced);
    let plan = recommend(&request).unwrap();
    let asked: Vec<_> = plan.reasons.iter().filter(|reason| reason.question == "Which method rounds INT4?").collect();
    assert_eq!(asked.len(), 1, "{}", text(&plan));
    assert!(asked[0].numbers.contains("a matrix of 3.1 GiB for 28672 inputs"), "{}", asked[0].numbers);
    assert!(asked[0].answer.ends_with("write method: GPTQ, zeroPoint: Symmetric"), "{}", asked[0].answer);
    // What is told to be written is accepted.
    let gptq = yaml(&request, &plan, &labels())
        .unwrap()
        .replace("      method: AWQ\n", "      method: GPTQ\n      zeroPoint: Symmetric\n");
    let manifest = Manifest::from_yaml(&gptq).unwrap();
    assert_eq!((manifest.spec.profiles[1].weights.method, violations(&manifest)), (Method::Gptq, vec![]));
}

#[test]
fn without_int4_no_method_is_asked_for() {
    let plan = recommend(&request("llama-3.1-8b", "h100-80gb", 1, 8192, 16, Priority::Balanced)).unwrap();
    assert!(!text(&plan).contains("GPTQ"), "{}", text(&plan));
}

/// Compares with a file of `golden/`; `UPDATE_GOLDEN=1 cargo test -p modelprofile-operator --lib golden` writes it anew.
fn golden(file: &str, request: &Request) {
    let path = format!("{}/src/recommend/golden/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = yaml(request, &recommend(request).unwrap(), &labels()).unwrap();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap());
}

#[test]
fn golden_text_of_70b_on_one_h100() {
    golden("llama-70b-h100.yaml", &request("llama-3.3-70b", "h100-80gb", 1, 16384, 8, Priority::Balanced));
}

#[test]
fn golden_text_of_8b_on_one_h100() {
    golden("llama-8b-h100.yaml", &request("llama-3.1-8b", "h100-80gb", 1, 8192, 16, Priority::Balanced));
}

fn priorities() -> impl Strategy<Value = Priority> {
    prop_oneof![Just(Priority::Quality), Just(Priority::Balanced), Just(Priority::Density)]
}

proptest! {
    #[test]
    fn no_plan_breaks_a_rule_or_overfills_the_memory(
        model in prop::sample::select(vec!["llama-3.1-8b", "llama-3.3-70b", "qwen2.5-32b", "smollm2-135m"]),
        hardware in prop::sample::select(vec!["a100-80gb", "h100-80gb", "h200", "l40s", "cpu"]),
        gpus in 1u32..20,
        context in 0u32..140_000,
        concurrency in 0u32..500,
        priority in priorities(),
    ) {
        let request = request(model, hardware, gpus, context, concurrency, priority);
        if let Ok(plan) = recommend(&request) {
            let (_, manifest) = manifest(&request, &plan, &labels()).unwrap();
            prop_assert_eq!(violations(&manifest), []);
            let memory = request.machine.memory_bytes;
            prop_assert!(plan.memory_budget_mib << 20 <= memory);
            prop_assert!(plan.tensor_parallel * plan.replicas <= gpus);
            let each = u64::from(concurrency.div_ceil(plan.replicas)) * u64::from(context);
            prop_assert!(plan.rungs.last().unwrap().kv_tokens >= each);
            let per_token = request.shape.kv_bytes_per_token(plan.kv_format) / u64::from(plan.tensor_parallel);
            for rung in &plan.rungs {
                prop_assert!(rung.kv_tokens >= u64::from(context));
                prop_assert!(rung.weight_bytes + rung.kv_tokens * per_token <= memory / 100 * 91);
            }
        }
    }
}
