//! `evaluate` where something of it cannot be done, on a small model.

use std::fs;

use serde_json::Value;

use crate::tiny::{self, artifacts, fail, run, worker};

#[test]
fn scores_are_kept_when_answers_fail() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, model) = (folder.path().join("cache"), tiny::model(folder.path(), "license: mit\n"));
    // More than the model's context.
    let options = ["evaluate", "--format", "BF16,INT8", "--max-tokens", "100000", "--model"];
    let errors = fail(worker(&cache).args(options).arg(&model));
    assert!(errors.contains("lower --max-tokens"), "{errors}");
    for (format, directory) in artifacts(&cache) {
        let read = |name: &str| serde_json::from_slice::<Value>(&fs::read(directory.join(name)).unwrap()).unwrap();
        assert!(read("quality.json")["perplexity"].as_f64().unwrap() > 1.0, "{format}");
        let profiles = read("evaluation.json")["profiles"].clone();
        assert!(profiles[0]["comparison"]["perplexity"].is_object(), "{format}: {profiles}");
        assert!(profiles[0].get("generation").is_none(), "{format}: {profiles}");
    }
}

#[test]
fn a_long_system_prompt_leaves_room_for_the_long_context_test() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, model) = (folder.path().join("cache"), tiny::model(folder.path(), "license: mit\n"));
    let system = "Follow these rules. ".repeat(25);
    let template = format!("{system}{{% for m in messages %}}{{{{ m.role }}}}: {{{{ m.content }}}}{{% endfor %}}");
    fs::write(model.join("chat_template.jinja"), template).unwrap();
    let prompts = folder.path().join("prompts.jsonl");
    fs::write(&prompts, r#"{"id":"a","topic":"t","language":"en","messages":[{"role":"user","content":"Hi."}]}"#)
        .unwrap();
    let options = ["evaluate", "--format", "BF16", "--max-tokens", "4", "--needle", "64,256", "--prompts"];
    run(worker(&cache).args(options).arg(&prompts).arg("--model").arg(&model));
    let result = fs::read(artifacts(&cache)[0].1.join("evaluation.json")).unwrap();
    let result: Value = serde_json::from_slice(&result).unwrap();
    let needles = result["profiles"][0]["generation"]["needles"].as_array().unwrap();
    assert_eq!(needles.len(), 3, "64 tokens are less than the format's own: {needles:?}");
    assert!(needles.iter().all(|needle| (180..=232).contains(&needle["tokens"].as_u64().unwrap())), "{needles:?}");
}
