//! The step time held against published throughput: `modelprofile simulate --check`.
//!
//! Half of the rows fit the three constants, the other half judges them. `docs/simulator.md` is what this prints.

use std::fmt::Write as _;

use modelprofile_api::{KvCacheFormat, WeightFormat};
use modelprofile_roofline::published::{ROWS, h100, llama_8b, llama_70b};

use super::{Batch, Constants, Hardware, ModelShape, Precision, Roofline};

/// The command that writes `docs/simulator.md` anew.
pub const REGENERATE: &str = "cargo run -p modelprofile-operator -- simulate --check > docs/simulator.md";

/// Relative error up to which a row counts as met.
const TOLERANCE: f64 = 0.25;
/// TensorRT-LLM's limits as its benchmarks set them: sequences of a batch, tokens of a step.
const MAX_SEQUENCES: f64 = 2048.0;
const MAX_TOKENS: f64 = 8192.0;
/// Share of the free memory that TensorRT-LLM gives to the KV cache.
const CACHE_SHARE: f64 = 0.9;

/// One published measurement.
struct Row {
    shape: ModelShape,
    tensor_parallel: u32,
    prompt: f64,
    output: f64,
    tokens_per_second: f64,
    /// Whether the row fits the constants; else it judges them.
    fits: bool,
}

/// What the unexplained time of a step grows with.
#[derive(Clone, Copy, PartialEq)]
enum Overhead {
    Layer,
    Step,
    Sequence,
}

/// One form of the model.
#[derive(Clone, Copy, PartialEq)]
struct Form {
    overhead: Overhead,
    /// Whether a request is admitted only when its whole output fits, so that none is ever evicted.
    reserves: bool,
}

const CHOSEN: Form = Form { overhead: Overhead::Layer, reserves: true };

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (i, &(prompt, output, small, large)) in ROWS.iter().enumerate() {
        // Alternate rows of each table, so that both models and all lengths are on both sides.
        for (shape, tensor_parallel, tokens_per_second, fits) in
            [(llama_8b(), 1, small, i % 2 == 0), (llama_70b(), 2, large, i % 2 == 1)]
        {
            rows.push(Row { shape, tensor_parallel, prompt, output, tokens_per_second, fits });
        }
    }
    rows
}

/// Output tokens per second when requests always wait.
///
/// As many requests run as the cache holds. Each step gives every one of them a token; the requests that end make room for
/// the prompts of as many new ones, which share the step.
fn saturated(hardware: &Hardware, row: &Row, form: Form, constants: Constants) -> f64 {
    let precision = Precision {
        weights: WeightFormat::Fp8,
        group: 128,
        kv: KvCacheFormat::Fp8E4m3,
        tensor_parallel: row.tensor_parallel,
    };
    let layers = f64::from(row.shape.layers);
    // The constant means time per layer, per step or per sequence (in hundreds), as the form says.
    let extra = constants.layer_overhead_seconds;
    let in_layers = match form.overhead {
        Overhead::Layer => extra,
        Overhead::Step => extra * 32.0 / layers,
        Overhead::Sequence => 0.0,
    };
    let roofline =
        Roofline::new(hardware, &row.shape, precision, Constants { layer_overhead_seconds: in_layers, ..constants });
    let capacity = roofline.kv_capacity(hardware.memory_bytes as f64, CACHE_SHARE) as f64;
    let mean_context = row.prompt + row.output / 2.0;
    let held = if form.reserves { row.prompt + row.output } else { mean_context };
    let mut running = MAX_SEQUENCES.min(capacity / held);
    let tokens_of_one = 1.0 + row.prompt / row.output;
    running = running.min(MAX_TOKENS / tokens_of_one);
    let prefill = running / row.output * row.prompt;
    let batch = Batch {
        decode: running,
        decode_context: running * mean_context,
        prefill,
        prefill_context: prefill * row.prompt / 2.0,
    };
    let per_sequence = if form.overhead == Overhead::Sequence { extra / 100.0 * running } else { 0.0 };
    running / (roofline.step_seconds(batch) + per_sequence)
}

fn error(hardware: &Hardware, row: &Row, form: Form, constants: Constants) -> f64 {
    saturated(hardware, row, form, constants) / row.tokens_per_second - 1.0
}

/// The constants with the least mean square of the logarithmic error over `rows`, by exhaustive search: no start value, no
/// local minimum.
fn fit<'a>(hardware: &Hardware, rows: impl Iterator<Item = &'a Row>, form: Form) -> Constants {
    let rows: Vec<_> = rows.collect();
    let mut best = (f64::INFINITY, Constants::default());
    // Copies reach 90 % of the nominal bandwidth of these memories; more would be an artefact of the fit.
    for bandwidth in 10..=18 {
        for compute in 20..=95 {
            for overhead in 0..=30 {
                let constants = Constants {
                    bandwidth_efficiency: f64::from(bandwidth) / 20.0,
                    compute_efficiency: f64::from(compute) / 100.0,
                    layer_overhead_seconds: f64::from(overhead)
                        / if form.overhead == Overhead::Layer { 1e5 } else { 2500.0 },
                };
                let cost: f64 = rows.iter().map(|row| error(hardware, row, form, constants).ln_1p().powi(2)).sum();
                if cost < best.0 {
                    best = (cost, constants);
                }
            }
        }
    }
    best.1
}

/// Rows within the tolerance, and rows, of those that `which` chooses.
fn met(
    hardware: &Hardware,
    rows: &[Row],
    form: Form,
    constants: Constants,
    which: impl Fn(&Row) -> bool,
) -> (usize, usize) {
    let chosen: Vec<_> = rows.iter().filter(|row| which(row)).collect();
    let met = chosen.iter().filter(|row| error(hardware, row, form, constants).abs() <= TOLERANCE).count();
    (met, chosen.len())
}

/// Compares the simulator with the published rows, as the Markdown of `docs/simulator.md`.
pub fn report() -> String {
    let hardware = h100();
    let rows = rows();
    let constants = fit(&hardware, rows.iter().filter(|row| row.fits), CHOSEN);
    let swapped = fit(&hardware, rows.iter().filter(|row| !row.fits), CHOSEN);
    let mut text = String::new();
    let (all, of) = met(&hardware, &rows, CHOSEN, constants, |_| true);
    let (judged, of_judged) = met(&hardware, &rows, CHOSEN, constants, |row| !row.fits);
    let (crossed, of_crossed) = met(&hardware, &rows, CHOSEN, swapped, |row| row.fits);
    let _ = write!(
        text,
        "# How far to trust the simulator\n\n\
         Written by `{REGENERATE}`; a test compares.\n\n\
         ## The step time\n\n\
         ```text\n\
         step = max(weight bytes / (bandwidth x b), operations / (peak x c))    matrices: read while they are multiplied\n     \
         + KV bytes / (bandwidth x b)                                      attention of decoding sequences\n     \
         + attention operations / (peak BF16 x c)                          attention of prompts\n     \
         + 2 all-reduces a layer                                           tensor parallelism alone\n     \
         + layers x o                                                      what the others do not explain\n\
         ```\n\n\
         Bandwidth and peak are those of the hardware file. INT4 weights are read as 4 bits and multiplied in BF16, so they\n\
         are slower than FP8 once a step has more than about 90 tokens. Three constants are fitted:\n\n\
         | constant | value |\n|---|---|\n\
         | b, share of the bandwidth | {:.2} |\n| c, share of the peak | {:.2} |\n| o, overhead of a layer | {:.0} µs |\n\n\
         b is limited to 0.90, what copies reach. o stands for full batches, where it was fitted; for a batch of one it is\n\
         too high, and the simulator too slow.\n\n",
        constants.bandwidth_efficiency,
        constants.compute_efficiency,
        constants.layer_overhead_seconds * 1e6,
    );
    let _ = write!(
        text,
        "## Against published throughput\n\n\
         TensorRT-LLM 1.0 on H100 80GB, FP8 weights and cache, output tokens per second, requests always waiting. Rows\n\
         marked `fit` gave the constants, the others judge them.\n\n\
         **{all} of {of} rows within 25 %; of the {of_judged} that judge, {judged}.** With the halves exchanged, {crossed} of \
         {of_crossed} that then judge.\n\n\
         | model | GPUs | prompt | output | published | simulated | error | |\n|---|--:|--:|--:|--:|--:|--:|---|\n"
    );
    for row in &rows {
        let simulated = saturated(&hardware, row, CHOSEN, constants);
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {simulated:.0} | {:+.0} % | {} |",
            row.shape.name,
            row.tensor_parallel,
            row.prompt,
            row.output,
            row.tokens_per_second,
            100.0 * error(&hardware, row, CHOSEN, constants),
            if row.fits { "fit" } else { "" },
        );
    }
    text.push_str(
        "\n## Other forms that were tried\n\n\
         The same fit on the same half. *Reserves*: a request starts when its whole output fits into the cache, which is\n\
         TensorRT-LLM's default; otherwise its mean length counts.\n\n\
         | unexplained time grows with | reserves | rows within 25 % | of these, judging | worst error |\n|---|---|--:|--:|--:|\n",
    );
    for (overhead, name) in
        [(Overhead::Layer, "layers"), (Overhead::Step, "nothing"), (Overhead::Sequence, "sequences")]
    {
        for reserves in [true, false] {
            let form = Form { overhead, reserves };
            let constants = fit(&hardware, rows.iter().filter(|row| row.fits), form);
            let (all, _) = met(&hardware, &rows, form, constants, |_| true);
            let (judged, _) = met(&hardware, &rows, form, constants, |row| !row.fits);
            let worst = rows
                .iter()
                .map(|row| error(&hardware, row, form, constants))
                .fold(0.0_f64, |worst, next| if next.abs() > worst.abs() { next } else { worst });
            let mark = if form == CHOSEN { " (chosen)" } else { "" };
            let reserves = if reserves { "yes" } else { "no" };
            let _ = writeln!(text, "| {name}{mark} | {reserves} | {all} | {judged} | {:+.0} % |", 100.0 * worst);
        }
    }
    text.push_str(
        "\n## A day\n\n\
         ![Arrivals, pressure, time to first token and profile over a day with a peak](simulator-day.svg)\n\n\
         Llama-3.3-70B on four H100 80GB, a peak of two hours, long answers, load alone decides. Figures and picture:\n\
         `cargo run --release -p modelprofile-operator --example simulate-day -- docs/simulator-day.svg`.\n\n\
         Six ways to serve the same traffic are compared. The first three do not switch; the others take the same decisions\n\
         and carry them out differently. Surge loads a second set of workers beside the first: twice the accelerators for as\n\
         long as that takes. Recreate stops every worker and starts it anew: what an engine pays that can not switch in place\n\
         and has no accelerator to spare, since requests wait until the weights are loaded. A backlog that gets less is no\n\
         peak, so what waited for a reload does not cause the next one.\n\n\
         The fleet simulation knows batches, paged cache, chunked prompts, preemption, load and switch times. It does not\n\
         know prefix caching, the time of HTTP and tokenizing, or failing workers; a load balancer sends each request to\n\
         the less busy of two workers chosen by chance.\n",
    );
    text
}

/// How the published rows are met: rows within 25 %, rows of the judging half within 25 %, and the largest relative error.
pub fn summary() -> (usize, usize, f64) {
    let (hardware, rows, constants) = (h100(), rows(), Constants::default());
    let worst = rows.iter().map(|row| error(&hardware, row, CHOSEN, constants).abs()).fold(0.0, f64::max);
    let all = met(&hardware, &rows, CHOSEN, constants, |_| true).0;
    (all, met(&hardware, &rows, CHOSEN, constants, |row| !row.fits).0, worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_what_the_command_prints() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/simulator.md");
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(committed == report(), "docs/simulator.md is not up to date: run `{REGENERATE}`");
    }

    #[test]
    fn the_constants_are_those_of_the_fit() {
        let rows = rows();
        let fitted = fit(&h100(), rows.iter().filter(|row| row.fits), CHOSEN);
        assert_eq!(fitted, Constants::default());
    }

    #[test]
    fn published_throughput_is_met() {
        let rows = rows();
        let (all, of) = met(&h100(), &rows, CHOSEN, Constants::default(), |_| true);
        assert_eq!(of, 18);
        assert!(all >= 14, "{all}");
        let (judged, of) = met(&h100(), &rows, CHOSEN, Constants::default(), |row| !row.fits);
        assert_eq!(of, 9);
        assert!(judged >= 7, "{judged}");
    }
}
