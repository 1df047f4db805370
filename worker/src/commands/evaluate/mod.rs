//! `evaluate`: what each format costs, against the first.
//!
//! ```text
//! text    -> engine::evaluate        -> perplexity, divergence    \
//! prompts -> engine::serve (greedy,  -> variety, loops, refusals   > Evaluation -> terminal, evaluation.json,
//! needles ->   sampled)              -> long context              /                quality.json, reports
//! prompts -> answers of two formats  -> blind sheet and key; filled sheet and key -> tally
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | `options` | the command line, and what it means |
//! | `health` | generation through the serving path |
//! | `needles` | the questions of the long-context test |
//! | `result` | the result as JSON, verdicts against the limits |
//! | `report` | HTML and Markdown |
//! | `sheets` | blind sheets and their count |

mod health;
mod needles;
mod options;
mod report;
mod result;
mod sheets;

use std::path::Path;

use anyhow::{Context, bail};
use modelprofile_engine::{
    ProfileSpec, WeightFormat,
    artifact::{Artifact, Store},
    calibrate::kv_scales,
    checkpoint::Checkpoint,
    evaluate::{Evaluator, Score},
    model::ProfileWeights,
    text::Text,
};
use rand::{RngExt, SeedableRng};

pub(super) use options::Evaluate;

use self::{
    health::{Generation, Generator, Plan, Served},
    result::{Evaluation, Limits, Profile},
    sheets::{Pair, Sheet},
};
use crate::{
    commands::{Devices, Wish, on_device},
    quality::{self, Dataset},
    source::Located,
};

/// What all parts of an evaluation work on.
struct Subject {
    model: Located,
    checkpoint: Checkpoint,
    text: Text,
    candidates: Vec<ProfileSpec>,
    /// Tokens of the text that calibrates the scales of the cache.
    calibration: Vec<u32>,
}

impl Evaluate {
    pub(super) fn run(self) -> anyhow::Result<()> {
        if let Some(sheet) = &self.score {
            let read = |path: &Path| std::fs::read_to_string(path).with_context(|| path.display().to_string());
            let key = self.key.as_ref().context("--score needs --key")?;
            println!("{}", sheets::tally(&read(sheet)?, &read(key)?)?.summary());
            return Ok(());
        }
        for path in &self.report {
            report::check(path)?;
        }
        let subject = self.subject()?;
        let chosen = self.compute.choose(&self.cache.directory(), Wish::default())?;
        on_device!(chosen, |devices| match &self.sheets {
            Some(directory) => self.write_sheets(devices, &subject, directory),
            None => self.evaluate(devices, &subject),
        })
    }

    fn evaluate<D: Devices>(&self, devices: &D, subject: &Subject) -> anyhow::Result<()> {
        let dataset = self.dataset(devices.activations())?;
        let tokens = dataset.tokens(&subject.text.tokenizer, subject.checkpoint.config())?;
        let artifacts = self.artifacts(devices, subject)?;
        let scores = self.score_text(devices, subject, &dataset, &tokens, &artifacts)?;
        let windows = tokens.len() / dataset.window(subject.checkpoint.config());
        println!("{} tokens, {windows} windows of {}", tokens.len(), dataset.window(subject.checkpoint.config()));
        print_scores(&scores);
        let mut evaluation = self.evaluation(subject, &dataset, &artifacts, scores);
        // Answers take long and may fail; the scores stay whatever becomes of them.
        self.keep(&evaluation, &dataset, &artifacts)?;
        if !self.skip_generation {
            let generations = self.generate(devices, subject, &dataset, &artifacts)?;
            for (profile, generation) in evaluation.profiles.iter_mut().zip(generations) {
                profile.generation = Some(generation);
            }
            self.keep(&evaluation, &dataset, &artifacts)?;
        }
        println!();
        print_answers(&evaluation);
        for verdict in evaluation.verdicts(Limits::default()) {
            println!("{verdict}");
        }
        for (profile, artifact) in evaluation.profiles.iter().zip(&artifacts) {
            println!("{}: {}", profile.name, artifact.directory().join(result::FILE).display());
        }
        for path in &self.report {
            report::write(path, &evaluation)?;
            println!("report: {}", path.display());
        }
        Ok(())
    }

    fn subject(&self) -> anyhow::Result<Subject> {
        let model = self.model.as_ref().context("--model names no model")?;
        let model = self.fetch.fetch(model, &self.cache.directory())?;
        let checkpoint = Checkpoint::open(&model.path).context("the checkpoint cannot be read")?;
        let text = Text::load(&checkpoint)?;
        let candidates = self.candidates(checkpoint.config())?;
        let calibration = text.tokenizer.encode(super::CALIBRATION, false)?;
        Ok(Subject { model, checkpoint, text, candidates, calibration })
    }

    fn artifacts<D: Devices>(&self, devices: &D, subject: &Subject) -> anyhow::Result<Vec<Artifact>> {
        let store = Store::new(&self.cache.directory());
        let calibration = self.calibration.needed_by(&self.format, &subject.checkpoint)?;
        let mut backend = devices.open()?;
        let bar = super::progress_bar("preparing");
        let prepared: Vec<Artifact> = subject
            .candidates
            .iter()
            .map(|profile| {
                store.prepare_calibrated(
                    &mut backend,
                    devices.threads(),
                    &subject.checkpoint,
                    profile.recipe(),
                    calibration.as_ref(),
                    &mut |progress| {
                        bar.set_length(progress.total);
                        bar.set_position(progress.done);
                        bar.set_message(progress.activity);
                    },
                )
            })
            .collect::<modelprofile_engine::Result<_>>()?;
        bar.finish_and_clear();
        // A card says that an artifact is more than a reference to measure with, which BF16 mostly is.
        let made =
            subject.candidates.iter().zip(&prepared).filter(|(profile, _)| profile.weights != WeightFormat::Bf16);
        let made: Vec<&Artifact> = made.map(|(_, artifact)| artifact).collect();
        super::model::write_cards(&self.cache.directory(), &made, &subject.model, subject.checkpoint.name());
        Ok(prepared)
    }

    /// Scores the text in every candidate, and in the first with 8-bit ends if that was asked for.
    fn score_text<D: Devices>(
        &self,
        devices: &D,
        subject: &Subject,
        dataset: &Dataset,
        tokens: &[u32],
        artifacts: &[Artifact],
    ) -> anyhow::Result<Vec<(String, Score)>> {
        let config = subject.checkpoint.config();
        let cache = self.cache.directory();
        let mut backend = devices.open()?;
        let layout = config.kv_layout(self.kv);
        let scales = kv_scales(&mut backend, &subject.checkpoint, &cache, &layout, &subject.calibration, &mut |_| {})?;
        let mut evaluator = Evaluator::with_scales(backend, config, layout, &scales, dataset.window(config))?
            .with_bos(quality::leading_token(&subject.text.tokenizer)?);
        let load = |artifact: &Artifact, device: &D::Device| ProfileWeights::load(device, config, artifact);
        let mut names: Vec<String> = subject.candidates.iter().map(|c| c.name.clone()).collect();
        let mut profiles = Vec::new();
        for artifact in artifacts {
            profiles.push(load(artifact, evaluator.backend())?);
        }
        if self.output_layer {
            let mut weights = load(&artifacts[0], evaluator.backend())?;
            // Any quantized format has the output layer that is asked about.
            let quantized = Store::new(&cache).prepare(&subject.checkpoint, WeightFormat::Fp8, &mut |_| {})?;
            let ends = load(&quantized, evaluator.backend())?;
            (weights.embedding, weights.output) = (ends.embedding, ends.output);
            names.push(format!("{} 8-bit output", names[0]));
            profiles.push(weights);
        }
        let bar = super::progress_bar("windows");
        let scores = evaluator.score(&profiles.iter().collect::<Vec<_>>(), tokens, &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        Ok(names.into_iter().zip(scores).collect())
    }

    /// Answers of every candidate, one engine after the other.
    fn generate<D: Devices>(
        &self,
        devices: &D,
        subject: &Subject,
        dataset: &Dataset,
        artifacts: &[Artifact],
    ) -> anyhow::Result<Vec<Generation>> {
        let prompts = self.prompts()?;
        let plan = Plan {
            prompts: &prompts,
            max_tokens: self.max_tokens,
            seed: self.seed,
            hay: dataset.text(),
            needle_lengths: self.needle_lengths(subject.checkpoint.config().max_positions),
        };
        let bar = super::progress_bar("answers");
        let mut generations = Vec::new();
        for (profile, artifact) in subject.candidates.iter().zip(artifacts) {
            bar.set_message(profile.name.clone());
            let generation =
                self.generator(devices, subject, profile, artifact, &plan)?.run(&plan, &mut |done, total| {
                    bar.set_length(total as u64);
                    bar.set_position(done as u64);
                })?;
            generations.push(generation);
        }
        bar.finish_and_clear();
        Ok(generations)
    }

    fn generator<'a, D: Devices>(
        &self,
        devices: &D,
        subject: &'a Subject,
        profile: &ProfileSpec,
        artifact: &Artifact,
        plan: &Plan,
    ) -> anyhow::Result<Generator<'a>> {
        let served = Served {
            cache: self.cache.directory(),
            checkpoint: &subject.checkpoint,
            text: &subject.text,
            calibration: &subject.calibration,
        };
        Generator::start(devices, &served, profile, artifact, plan)
    }

    fn write_sheets<D: Devices>(&self, devices: &D, subject: &Subject, directory: &Path) -> anyhow::Result<()> {
        let [a, b] = subject.candidates.as_slice() else {
            bail!("a blind sheet compares two formats: name them with --format A,B");
        };
        let prompts = self.prompts()?;
        let (max_tokens, seed) = (self.max_tokens, self.seed);
        let plan = Plan { prompts: &prompts, max_tokens, seed, hay: "", needle_lengths: Vec::new() };
        let bar = super::progress_bar("answers");
        bar.set_length(2 * prompts.len() as u64);
        let mut answers = Vec::new();
        for (profile, artifact) in [a, b].into_iter().zip(&self.artifacts(devices, subject)?) {
            bar.set_message(profile.name.clone());
            let generator = self.generator(devices, subject, profile, artifact, &plan)?;
            answers.push(generator.greedy(&prompts, max_tokens, &mut || bar.inc(1))?);
        }
        bar.finish_and_clear();
        let pairs: Vec<Pair> = prompts
            .iter()
            .zip(answers[0].iter().zip(&answers[1]))
            .map(|(prompt, (a, b))| Pair { prompt: prompt.readable(), answers: [a.text.clone(), b.text.clone()] })
            .collect();
        let mut random =
            rand::rngs::StdRng::try_from_rng(&mut rand::rngs::SysRng).context("the system gives no random numbers")?;
        let nonce = format!("{:032x}", random.random::<u128>());
        let sheet = Sheet::new([a.name.clone(), b.name.clone()], &pairs, seed, &nonce);
        sheet.write(directory)?;
        println!("{} pairs in {}", pairs.len(), directory.display());
        println!("commitment {}", sheet.key.commitment());
        println!("Hand out sheet.csv and sheet.md; keep key.json to yourself until the sheet is filled. Then:");
        let at = |name: &str| directory.join(name).display().to_string();
        println!("  modelprofile-worker evaluate --score {} --key {}", at("sheet.csv"), at("key.json"));
        Ok(())
    }

    fn evaluation(
        &self,
        subject: &Subject,
        dataset: &Dataset,
        artifacts: &[Artifact],
        scores: Vec<(String, Score)>,
    ) -> Evaluation {
        let profiles = scores.into_iter().enumerate().map(|(index, (name, score))| {
            let artifact = artifacts.get(index);
            Profile {
                name,
                artifact_key: artifact.map(|a| a.manifest().key.clone()),
                weight_bytes: artifact.map_or(0, Artifact::weight_bytes),
                whole_perplexity: score.perplexity(),
                comparison: score.comparison(),
                generation: None,
            }
        });
        Evaluation {
            version: 1,
            model: subject.checkpoint.name().to_owned(),
            revision: subject.checkpoint.revision().to_owned(),
            dataset: dataset.label(),
            window: dataset.window(subject.checkpoint.config()),
            kv_cache: format!("{:?}", self.kv).to_uppercase(),
            seed: self.seed,
            measured_at: quality::now(),
            profiles: profiles.collect(),
        }
    }

    /// Writes the result beside each artifact.
    fn keep(&self, evaluation: &Evaluation, dataset: &Dataset, artifacts: &[Artifact]) -> anyhow::Result<()> {
        for (index, artifact) in artifacts.iter().enumerate() {
            let directory = artifact.directory();
            let text = serde_json::to_string_pretty(&evaluation.of_one(index))?;
            quality::write_whole(&directory.join(result::FILE), text.as_bytes())?;
            if self.measures_for_the_gate() {
                let measured = quality::measured(&evaluation.profiles[index].comparison, dataset);
                quality::store(directory, &measured)?;
            }
        }
        Ok(())
    }
}

/// One line for each profile: perplexities, and what changed against the first.
fn print_scores(scores: &[(String, Score)]) {
    println!(
        "{:<24} {:>10} {:>18} {:>9} {:>20} {:>9} {:>8} {:>9}",
        "format", "perplexity", "second half", "vs first", "mean KLD", "99% KLD", "RMS dp", "same top"
    );
    let base = scores.first().map_or(1.0, |(_, score)| score.perplexity());
    for (name, score) in scores {
        let comparison = score.comparison();
        println!(
            "{:<24} {:>10.4} {:>9.4} ±{:>7.4} {:>+8.2}% {:>10.6} ±{:>8.6} {:>9.6} {:>7.3}% {:>8.2}%",
            name,
            score.perplexity(),
            comparison.perplexity.value,
            comparison.perplexity.error,
            (score.perplexity() / base - 1.0) * 100.0,
            comparison.divergence.value,
            comparison.divergence.error,
            comparison.divergences.p99,
            comparison.rms_probability_change_percent.value,
            comparison.top1_agreement_percent.value,
        );
    }
}

fn print_answers(evaluation: &Evaluation) {
    if evaluation.profiles.iter().all(|p| p.generation.is_none()) {
        return;
    }
    println!(
        "{:<24} {:>10} {:>10} {:>9} {:>7} {:>7} {:>9} {:>9} {:>10} {:>9}",
        "format",
        "distinct-1",
        "distinct-4",
        "repeated",
        "loops",
        "tokens",
        "refusals",
        "no end",
        "language",
        "needles"
    );
    for profile in &evaluation.profiles {
        let Some(generation) = &profile.generation else { continue };
        let health = &generation.greedy;
        println!(
            "{:<24} {:>10.3} {:>10.3} {:>8.1}% {:>6.1}% {:>7.1} {:>8.1}% {:>8.1}% {:>9.1}% {:>9}",
            profile.name,
            health.distinct[0],
            health.distinct[3],
            health.repeated * 100.0,
            health.loops * 100.0,
            health.tokens.value,
            health.refused * 100.0,
            health.not_stopped * 100.0,
            health.other_language * 100.0,
            format!("{} / {}", generation.needles.iter().filter(|n| n.found).count(), generation.needles.len()),
        );
    }
    println!();
}
