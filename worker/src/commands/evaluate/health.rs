//! Generation through the engine's own serving path: answers to the prompts, penalties against loops, needles.
//!
//! Each profile gets an engine of its own, so that no prompt's cached keys and values come from another profile.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use modelprofile_engine::{
    FinishReason, GenerateRequest, ProfileSpec, SamplingParams, TokenEvent,
    artifact::Artifact,
    checkpoint::Checkpoint,
    evaluate::{
        health::{Answer, AnswerHealth, Health, find_loop},
        needle::{self, NeedleResult},
    },
    model::Model,
    serve::{Engine, EngineConfig, EngineHandle, Observation, Observer, start_with},
    text::{ChatTemplate, Text, Tokenizer},
};
use modelprofile_kernels::BLOCK_TOKENS;
use serde::{Deserialize, Serialize};

use super::needles::{self, Question};
use crate::commands::Devices;

/// The prompts that come with the worker.
pub(super) const BUILT_IN: &str = include_str!("../../texts/prompts.jsonl");
/// Penalties that are tried against loops, the mildest first.
const PENALTIES: [f32; 4] = [1.05, 1.1, 1.15, 1.2];
/// Prompts that are computed together.
const RUNNING: usize = 16;
const BATCHED_TOKENS: usize = 256;

/// One line of a prompt file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Prompt {
    /// Unique name.
    pub(super) id: String,
    pub(super) topic: String,
    /// ISO 639-1 code.
    pub(super) language: String,
    pub(super) messages: Vec<Message>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Message {
    pub(super) role: String,
    pub(super) content: String,
}

/// Reads a prompt file; empty lines are passed over.
pub(super) fn read_prompts(text: &str) -> anyhow::Result<Vec<Prompt>> {
    let mut prompts: Vec<Prompt> = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at = || format!("line {} of the prompt file", index + 1);
        let prompt: Prompt = serde_json::from_str(line).with_context(at)?;
        ensure!(
            prompt.messages.last().is_some_and(|m| m.role == "user"),
            "{}: the last message must be a user's",
            at()
        );
        ensure!(prompts.iter().all(|p| p.id != prompt.id), "{}: the id {} was there before", at(), prompt.id);
        prompts.push(prompt);
    }
    Ok(prompts)
}

impl Prompt {
    /// As people read it.
    pub(super) fn readable(&self) -> String {
        match self.messages.as_slice() {
            [only] => only.content.clone(),
            turns => turns.iter().map(|m| format!("{}: {}", m.role, m.content)).collect::<Vec<_>>().join("\n"),
        }
    }

    fn tokens(&self, text: &Text) -> anyhow::Result<Vec<u32>> {
        let messages = serde_json::to_value(&self.messages)?;
        let plain = || self.messages.iter().map(|m| m.content.as_str()).collect::<Vec<_>>().join("\n\n");
        render(text.template.as_ref(), &text.tokenizer, &messages, plain)
    }
}

/// Tokens of messages in the model's chat format; a base model without one goes on with the plain text.
pub(super) fn render(
    template: Option<&ChatTemplate>,
    tokenizer: &Tokenizer,
    messages: &serde_json::Value,
    plain: impl Fn() -> String,
) -> anyhow::Result<Vec<u32>> {
    Ok(match template {
        Some(template) => tokenizer.encode(&template.render(messages, None, true)?, false)?,
        None => tokenizer.encode(&plain(), true)?,
    })
}

/// What a profile's generated text shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Generation {
    /// Greedy answers.
    pub(super) greedy: Health,
    /// Answers sampled at temperature 0.7 and top-p 0.95.
    pub(super) sampled: Health,
    /// Each greedy answer.
    pub(super) answers: Vec<AnswerHealth>,
    /// What to do about loops.
    pub(super) repetition_penalty: Penalty,
    /// Long context: each length and depth.
    pub(super) needles: Vec<NeedleResult>,
}

/// The suggested repetition penalty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Penalty {
    /// No greedy answer loops.
    #[default]
    NotNeeded,
    /// The mildest of those tried with which none of the looping answers loops.
    Suggested(f32),
    /// Loops stay at the strongest that was tried.
    NotEnough(f32),
}

/// What to generate.
pub(super) struct Plan<'a> {
    pub(super) prompts: &'a [Prompt],
    pub(super) max_tokens: usize,
    pub(super) seed: u64,
    /// Text that hay is made of.
    pub(super) hay: &'a str,
    pub(super) needle_lengths: Vec<usize>,
}

/// An engine with one profile, and the text around it.
pub(super) struct Generator<'a> {
    engine: EngineHandle,
    text: &'a Text,
}

struct Silent;

impl Observer for Silent {
    fn observe(&mut self, _: Observation) {}
}

/// What is the same for all profiles of a model.
pub(super) struct Served<'a> {
    /// The artifact cache.
    pub(super) cache: PathBuf,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) text: &'a Text,
    /// Tokens that calibrate the scales of the KV cache.
    pub(super) calibration: &'a [u32],
}

impl<'a> Generator<'a> {
    /// Starts an engine for a profile with room for the longest prompt of the plan.
    pub(super) fn start<D: Devices>(
        devices: &D,
        served: &Served<'a>,
        profile: &ProfileSpec,
        artifact: &Artifact,
        plan: &Plan,
    ) -> anyhow::Result<Self> {
        let (checkpoint, text) = (served.checkpoint, served.text);
        let device = devices.open()?;
        let config = checkpoint.config();
        let mut context = plan.needle_lengths.iter().copied().max().unwrap_or(0);
        for prompt in plan.prompts {
            context = context.max(prompt.tokens(text)?.len() + plan.max_tokens);
        }
        ensure!(
            context <= config.max_positions,
            "a prompt with an answer of {} tokens needs {context} tokens, more than the model's {}: lower --max-tokens",
            plan.max_tokens,
            config.max_positions
        );
        // Room for one longest prompt, and beside it for a batch of short ones.
        let blocks = (context + RUNNING * 512).div_ceil(BLOCK_TOKENS) as u64;
        let needed = artifact.weight_bytes()
            + Model::<D::Device>::workspace_bytes(config, BATCHED_TOKENS)
            + blocks * config.kv_layout(profile.kv).block_bytes() as u64;
        let engine_config = EngineConfig {
            cache: served.cache.clone(),
            // The artifact is there: nothing is quantized.
            threads: 1,
            profiles: vec![profile.clone()],
            start: None,
            memory_budget: devices.own_memory(&device).unwrap_or(needed),
            max_context_tokens: Some(context),
            calibration: served.calibration.to_vec(),
            max_batched_tokens: BATCHED_TOKENS,
            max_running: RUNNING,
            max_waiting: usize::MAX,
        };
        let artifacts = std::slice::from_ref(artifact);
        let engine = start_with(device, checkpoint, &engine_config, artifacts, Box::new(Silent), &mut |_, _| {})?;
        Ok(Self { engine, text })
    }

    /// All that the plan asks for; `progress` gets the answers done and in all.
    pub(super) fn run(&self, plan: &Plan, progress: &mut dyn FnMut(usize, usize)) -> anyhow::Result<Generation> {
        let all = plan.prompts.len() * 2 + plan.needle_lengths.len() * needles::DEPTHS.len();
        let mut done = 0;
        let mut step = || {
            done += 1;
            progress(done, all);
        };
        let greedy = self.greedy(plan.prompts, plan.max_tokens, &mut step)?;
        let answers = measure(plan.prompts, &greedy);
        let sampled = self.answers(plan.prompts, plan.max_tokens, &|index| sampling(plan.seed, index), &mut step)?;
        let looping: Vec<Prompt> =
            plan.prompts.iter().zip(&answers).filter(|(_, a)| a.loops).map(|(p, _)| p.clone()).collect();
        Ok(Generation {
            greedy: Health::of(&answers),
            sampled: Health::of(&measure(plan.prompts, &sampled)),
            repetition_penalty: self.penalty(&looping, plan.max_tokens)?,
            answers,
            needles: self.needles(plan, &mut step)?,
        })
    }

    /// The most likely answer to each prompt.
    pub(super) fn greedy(
        &self,
        prompts: &[Prompt],
        max_tokens: usize,
        step: &mut dyn FnMut(),
    ) -> anyhow::Result<Vec<Answer>> {
        self.answers(prompts, max_tokens, &|_| greedy(1.0), step)
    }

    fn answers(
        &self,
        prompts: &[Prompt],
        max_tokens: usize,
        sampling: &dyn Fn(usize) -> SamplingParams,
        step: &mut dyn FnMut(),
    ) -> anyhow::Result<Vec<Answer>> {
        let requests = prompts
            .iter()
            .enumerate()
            .map(|(index, prompt)| Ok(request(prompt.tokens(self.text)?, sampling(index), max_tokens)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        self.complete(requests, step)
    }

    /// Submits all requests at once, so that the engine batches them.
    fn complete(&self, requests: Vec<GenerateRequest>, step: &mut dyn FnMut()) -> anyhow::Result<Vec<Answer>> {
        let streams = requests.into_iter().map(|r| self.engine.submit(r)).collect::<Result<Vec<_>, _>>()?;
        let mut answers = Vec::with_capacity(streams.len());
        for mut stream in streams {
            let mut tokens = Vec::new();
            let stopped = loop {
                match stream.blocking_next() {
                    Some(TokenEvent::Token { token, .. }) => tokens.push(token),
                    Some(TokenEvent::Prompt(_)) => {}
                    Some(TokenEvent::Finished { reason: FinishReason::Stop, .. }) => break true,
                    Some(TokenEvent::Finished { reason: FinishReason::Length, .. }) => break false,
                    Some(TokenEvent::Finished { error, .. }) => {
                        bail!("the engine failed: {}", error.unwrap_or_else(|| "no reason given".into()))
                    }
                    None => bail!("the engine has stopped"),
                }
            };
            let text = self.text.tokenizer.decode(&tokens, true)?;
            answers.push(Answer { tokens, text, stopped });
            step();
        }
        Ok(answers)
    }

    /// The mildest penalty that ends all of the loops.
    fn penalty(&self, looping: &[Prompt], max_tokens: usize) -> anyhow::Result<Penalty> {
        if looping.is_empty() {
            return Ok(Penalty::NotNeeded);
        }
        for penalty in PENALTIES {
            let answers = self.answers(looping, max_tokens, &|_| greedy(penalty), &mut || {})?;
            if answers.iter().all(|a| find_loop(&a.tokens).is_none()) {
                return Ok(Penalty::Suggested(penalty));
            }
        }
        Ok(Penalty::NotEnough(PENALTIES[PENALTIES.len() - 1]))
    }

    fn needles(&self, plan: &Plan, step: &mut dyn FnMut()) -> anyhow::Result<Vec<NeedleResult>> {
        let mut results = Vec::new();
        for length in &plan.needle_lengths {
            let seed = plan.seed.wrapping_add(*length as u64);
            let Some(questions) = needles::questions(self.text, plan.hay, *length, seed)? else {
                tracing::warn!(
                    "the long-context test of {length} tokens is left out: the model's chat format fills them"
                );
                for _ in needles::DEPTHS {
                    step();
                }
                continue;
            };
            for Question { prompt, number, depth_percent } in questions {
                let tokens = prompt.len();
                // One after the other: the lengths are large, and the next shares the beginning in the prefix cache.
                let answer = self
                    .complete(vec![request(prompt, greedy(1.0), needles::ANSWER)], step)?
                    .pop()
                    .context("the engine gave no answer")?;
                results.push(NeedleResult {
                    tokens,
                    length: *length,
                    depth_percent,
                    found: needle::found(&answer.text, number),
                    answer: answer.text,
                });
            }
        }
        Ok(results)
    }
}

fn measure(prompts: &[Prompt], answers: &[Answer]) -> Vec<AnswerHealth> {
    prompts
        .iter()
        .zip(answers)
        .map(|(prompt, answer)| AnswerHealth::of(&prompt.id, &prompt.language, prompt.messages.len() > 1, answer))
        .collect()
}

fn request(prompt: Vec<u32>, sampling: SamplingParams, max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        prompt,
        sampling,
        max_tokens,
        stop_tokens: Vec::new(),
        ignore_eos: false,
        logprobs: None,
        prompt_logprobs: None,
    }
}

fn greedy(repetition_penalty: f32) -> SamplingParams {
    SamplingParams { temperature: 0.0, repetition_penalty, ..SamplingParams::default() }
}

/// Each prompt has a seed of its own, the same in every profile.
fn sampling(seed: u64, index: usize) -> SamplingParams {
    let seed = Some(seed.wrapping_mul(1_000_003).wrapping_add(index as u64));
    SamplingParams { temperature: 0.7, top_p: 0.95, seed, ..SamplingParams::default() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use modelprofile_engine::evaluate::language::Language;

    use super::*;

    #[test]
    fn the_prompts_are_eight_topics_in_six_languages() {
        let prompts = read_prompts(BUILT_IN).unwrap();
        let topics: BTreeSet<&str> = prompts.iter().map(|p| p.topic.as_str()).collect();
        let pairs: BTreeSet<(&str, &str)> = prompts.iter().map(|p| (p.topic.as_str(), p.language.as_str())).collect();
        assert_eq!((prompts.len(), topics.len(), pairs.len()), (48, 8, 48));
        assert!(prompts.iter().all(|p| Language::from_code(&p.language).is_some()));
        assert!(prompts.iter().filter(|p| p.messages.len() > 1).count() >= 6);
    }

    #[test]
    fn a_wrong_prompt_file_names_its_line() {
        let line = |id: &str, role: &str| {
            format!(r#"{{"id":"{id}","topic":"t","language":"en","messages":[{{"role":"{role}","content":"x"}}]}}"#)
        };
        for (text, part) in [
            (format!("{}\n{}", line("a", "user"), line("a", "user")), "line 2"),
            (line("a", "assistant"), "user's"),
            ("{}".to_owned(), "line 1"),
        ] {
            let error = format!("{:#}", read_prompts(&text).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(read_prompts(&format!("\n{}\n\n", line("a", "user"))).unwrap().len(), 1);
    }

    #[test]
    fn no_line_of_the_evaluation_text_is_in_the_calibration_text() {
        let sentences = |text: &'static str| -> BTreeSet<&str> {
            text.split(['\n', '.', '?', '!', '。']).map(str::trim).filter(|s| s.chars().count() > 12).collect()
        };
        let shared: Vec<_> = sentences(include_str!("../../texts/evaluation.txt"))
            .intersection(&sentences(crate::commands::CALIBRATION))
            .copied()
            .collect();
        assert!(shared.is_empty(), "{shared:?}");
    }
}
