//! Every parser of foreign files on mutated real files: an answer or an error, never a panic, an abort, an endless run or a
//! large allocation. `make fuzz` runs each for ten minutes.
//!
//! | module | what it does |
//! |---|---|
//! | this one | a harness per parser: which files, and what is read of them |
//! | `corpus` | the files |
//! | `mutate`, `dice` | mutations, and the random choices of one case |
//! | `found` | what it found, one test each |
//! | `harness` | runs the cases in a process of limited memory, and keeps those that went wrong |
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a failure is the test's result")]

mod corpus;
mod dice;
mod found;
mod harness;
mod mutate;

use std::{fmt::Display, hint::black_box, path::Path};

use modelprofile_engine::{
    WeightFormat,
    artifact::{Artifact, Store, check_files},
    checkpoint::{Checkpoint, Role, quantized::Layout},
    evaluate::Evaluator,
    gguf::{self, FileType, Importance},
    interchange,
    model::{ProfileWeights, rope},
    text::{ChatTemplate, StreamDecoder, Text, Tokenizer, tokenizer_files},
};
use modelprofile_kernels::{KvFormat, pack};
use serde_json::json;

use self::{dice::Dice, harness::fuzz};

fn text(error: impl Display) -> String {
    error.to_string()
}

/// Opens a checkpoint and reads all that a start, a quantization and an export would.
fn read_checkpoint(path: &Path, dice: &mut Dice) -> Result<(), String> {
    let checkpoint = Checkpoint::open(path).map_err(text)?;
    for tensor in checkpoint.tensors() {
        tensor.to_f32().map_err(text)?;
        tensor.as_grouped().map_err(text)?;
    }
    for role in Role::all(checkpoint.config()) {
        checkpoint.stored_bytes(role);
        if let Some(tensor) = checkpoint.tensor(role) {
            let mut row = vec![0.0; tensor.cols];
            tensor.row_f32(tensor.rows - 1, &mut row).map_err(text)?;
        }
        if let Some(weight) = checkpoint.quantized(role).map_err(text)? {
            assert_eq!(
                weight.dequantize().len(),
                role.shape(checkpoint.config()).0 * role.shape(checkpoint.config()).1
            );
            if let Ok((host, _)) = weight.to_host() {
                pack(&host).map_err(text)?;
            }
        }
        checkpoint.release(role);
    }
    black_box(checkpoint.quantization().map(|quantization| (quantization.describe(), quantization.format())));
    black_box((checkpoint.revision(), checkpoint.parameters(), checkpoint.licence(), checkpoint.name()));
    black_box((checkpoint.codes().count(), checkpoint.gguf_entries().count()));
    black_box((rope::inverse_frequencies(checkpoint.config()), interchange::rope::named(checkpoint.config())));
    if dice.chance(1, 16) {
        write(&checkpoint, path, dice).map_err(text)?;
    }
    Ok(())
}

/// Quantizes a checkpoint, or writes it in another layout.
fn write(checkpoint: &Checkpoint, path: &Path, dice: &mut Dice) -> modelprofile_engine::Result<()> {
    let folder = tempfile::tempdir_in(path.parent().unwrap_or(path)).unwrap();
    let output = folder.path().join("out");
    if checkpoint.quantization().is_some() && dice.chance(2, 3) {
        let layouts = [Layout::CompressedTensors, Layout::AutoAwq, Layout::Gptq, Layout::ModelOpt];
        return interchange::export(checkpoint, layouts[dice.below(4)], &output, &mut |_| {}).map(drop);
    }
    if dice.chance(1, 2) {
        let types = [FileType::F16, FileType::Q8_0, FileType::Q4_0, FileType::Q4_K_M];
        let options = gguf::Options { file_type: types[dice.below(4)], importance: None, threads: 1, requantize: true };
        return gguf::export(checkpoint, &output, &options, &mut |_| {}).map(drop);
    }
    let own = checkpoint.quantization().and_then(modelprofile_engine::checkpoint::Quantization::format);
    let formats = [WeightFormat::Bf16, WeightFormat::Fp8, WeightFormat::Int8, corpus::INTEGER, WeightFormat::Q4_1];
    let format = own.unwrap_or(formats[dice.below(5)]);
    Store::new(folder.path()).prepare(checkpoint, format, &mut |_| {}).map(drop)
}

/// Uses a tokenizer and a template as requests do.
fn talk(tokenizer: Tokenizer, template: Option<&ChatTemplate>) -> Result<(), String> {
    let tokenizer = std::sync::Arc::new(tokenizer);
    let sentence = "hello the world é 1234 <|im_end|> </s> \u{1F600}\u{0}\r\n aaaaaaaaaaaaaaaaaaaaaaaaaaaab";
    let tokens = tokenizer.encode(sentence, true).map_err(text)?;
    let mut decoder = StreamDecoder::from_start(tokenizer.clone(), true);
    for token in tokens.iter().copied().chain(0..600).chain([u32::MAX]) {
        decoder.push(token);
        tokenizer.token_bytes(token);
    }
    decoder.finish();
    let _ = tokenizer.decode(&tokens, true);
    if let Some(template) = template {
        let messages = json!([{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]);
        let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
        template.render(&messages, None, true).map_err(text)?;
        template.render(&messages, Some(&tools), true).map_err(text)?;
    }
    Ok(())
}

#[test]
fn gguf_files() {
    fuzz("gguf_files", corpus::gguf_files, |folder, dice| read_checkpoint(&folder.join("model.gguf"), dice));
}

#[test]
fn vocabularies() {
    fuzz("vocabularies", corpus::vocabularies, |folder, _| {
        let checkpoint = Checkpoint::open(&folder.join("model.gguf")).map_err(text)?;
        tokenizer_files(&checkpoint).map_err(text)?;
        let Text { tokenizer, template } = Text::load(&checkpoint).map_err(text)?;
        talk(std::sync::Arc::into_inner(tokenizer).unwrap(), template.as_ref())
    });
}

#[test]
fn directories() {
    fuzz("directories", corpus::directories, read_checkpoint);
}

#[test]
fn quantized_layouts() {
    fuzz("quantized_layouts", corpus::layouts, read_checkpoint);
}

#[test]
fn tokenizer_files_and_templates() {
    fuzz("tokenizer_files_and_templates", corpus::tokenizers, |folder, _| {
        let template = ChatTemplate::from_hf_dir(folder).map_err(text)?;
        talk(Tokenizer::from_hf_dir(folder).map_err(text)?, template.as_ref())
    });
}

#[test]
fn importance_matrices() {
    let checkpoint = corpus::open("llama3-tiny");
    fuzz("importance_matrices", corpus::importances, |folder, dice| {
        let importance = Importance::read(&folder.join("imatrix")).map_err(text)?;
        for role in Role::all(checkpoint.config()) {
            importance.get(role);
        }
        if dice.chance(1, 16) {
            let options = gguf::Options {
                file_type: [FileType::Q4_0, FileType::Q4_1][dice.below(2)],
                importance: Some(&importance),
                threads: 1,
                requantize: false,
            };
            gguf::export(&checkpoint, &folder.join("out"), &options, &mut |_| {}).map_err(text)?;
        }
        Ok(())
    });
}

#[test]
fn artifacts() {
    let config = corpus::open("llama3-tiny").config().clone();
    fuzz("artifacts", corpus::artifacts, |folder, dice| {
        let artifact = Artifact::open(folder).map_err(text)?;
        check_files(folder).map_err(text)?;
        for entry in &artifact.manifest().entries {
            if entry.kind.weight().is_none() {
                artifact.vector(&entry.name).map_err(text)?;
                continue;
            }
            let weight = artifact.weight(&entry.name).map_err(text)?;
            black_box((weight.outliers().map_err(text)?, weight.input_scale().map_err(text)?));
            let mut row = vec![0.0; weight.spec.k];
            for index in 0..weight.spec.n {
                weight.dequantize_row(index, &mut row).map_err(text)?;
            }
        }
        if dice.chance(1, 4) {
            let mut evaluator = Evaluator::new(corpus::cpu(), &config, KvFormat::Bf16, 8).map_err(text)?;
            let weights = ProfileWeights::load(evaluator.backend(), &config, &artifact).map_err(text)?;
            evaluator.logits(&weights, &[1, 2, 3]).map_err(text)?;
        }
        Ok(())
    });
}

#[test]
fn interrupted_builds() {
    let (source, calibration) = (corpus::open("llama3-tiny"), corpus::calibration());
    let mut backend = corpus::cpu();
    fuzz("interrupted_builds", corpus::journals, |folder, _| {
        let recipe = corpus::BUILDS[usize::from(std::fs::read(folder.join("recipe")).unwrap()[0])];
        let store = Store::new(folder);
        let built = store.prepare_calibrated(&mut backend, 1, &source, recipe, Some(&calibration), &mut |_| {});
        let artifact = built.map_err(text)?;
        // What a build calls done must load, whatever the one before it left.
        ProfileWeights::load(&backend, source.config(), &artifact).expect("the artifact is not whole");
        Ok(())
    });
}
