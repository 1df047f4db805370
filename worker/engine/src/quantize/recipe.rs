//! What is made of a checkpoint: format and method, and the text that calibrates the method.

use std::sync::Arc;

use modelprofile_kernels::{WeightKind, WeightSpec};
use sha2::{Digest, Sha256};

use crate::{EngineError, Method, ModelConfig, Result, WeightFormat, ZeroPoint, artifact::hex};

/// A format and the method that brings weights to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Recipe {
    /// What is stored.
    pub format: WeightFormat,
    /// How it is chosen.
    pub method: Method,
}

impl From<WeightFormat> for Recipe {
    /// Round to nearest, which every format has.
    fn from(format: WeightFormat) -> Self {
        Self { format, method: Method::RoundToNearest }
    }
}

impl Recipe {
    /// Canonical text: the format's, and the method's unless it is round to nearest.
    pub fn canonical(self) -> String {
        match self.method {
            Method::RoundToNearest => self.format.canonical(),
            method => format!("{}-{}", self.format.canonical(), method.canonical()),
        }
    }

    /// Whether the calibration text decides what is stored: a method that looks at it, or one scale for all inputs.
    pub fn needs_calibration(self) -> bool {
        self.method.needs_calibration() || self.format == WeightFormat::Fp8Static
    }

    /// Checks that the method makes the format.
    ///
    /// # Errors
    /// [`EngineError::Config`] names the formats that it makes.
    pub fn validate(self) -> Result<()> {
        let made = match self.method {
            Method::RoundToNearest => return Ok(()),
            Method::Awq => matches!(self.format, WeightFormat::Int4 { .. }),
            Method::Gptq => matches!(self.format, WeightFormat::Int4 { .. } | WeightFormat::Int8),
            Method::SmoothQuant | Method::LlmInt8 => self.format == WeightFormat::Int8,
        };
        if made {
            return Ok(());
        }
        let formats = match self.method {
            Method::Awq => "INT4",
            Method::Gptq => "INT4 and INT8",
            _ => "INT8",
        };
        Err(EngineError::Config(format!(
            "the method {} makes {formats}, not {}",
            self.method.canonical(),
            self.format.canonical()
        )))
    }

    /// Checks that the method makes the format, and that the format can hold every linear layer of a model.
    ///
    /// # Errors
    /// [`EngineError::Config`] with the layers whose inputs the format does not divide, their number, and the group sizes
    /// that divide the inputs of all layers.
    pub fn fits(self, config: &ModelConfig) -> Result<()> {
        self.validate()?;
        let widths = [
            ("query, key, value, gate and up layers", config.hidden),
            ("attention output layers", config.heads * config.head_dim),
            ("down layers", config.intermediate),
        ];
        for (layers, k) in widths {
            let Err(error) = (WeightSpec { kind: self.kind(k), n: 1, k }).validate() else { continue };
            let (WeightKind::Int4 { group } | WeightKind::Int8Group { group }) = self.kind(k) else {
                return Err(EngineError::Config(format!("the {layers}: {error}")));
            };
            let divides = |group: &usize| widths.iter().all(|(_, k)| k.is_multiple_of(*group));
            let sizes: Vec<String> = [32, 64, 128].into_iter().filter(divides).map(|g| g.to_string()).collect();
            let instead = if sizes.is_empty() {
                "no size divides those of all layers: use FP8 or INT8".to_owned()
            } else {
                format!("sizes that divide those of all layers: {}", sizes.join(", "))
            };
            return Err(EngineError::Config(format!(
                "groups of {group} do not divide the {k} inputs of the {layers}; {instead}"
            )));
        }
        Ok(())
    }

    /// Storage of a linear layer with that many inputs.
    pub(crate) fn kind(self, inputs: usize) -> WeightKind {
        match self.method {
            Method::LlmInt8 => super::llm_int8::kind(inputs),
            _ => self.format.kind(),
        }
    }

    /// The grid of 4-bit groups; symmetric for formats without a choice.
    pub(super) fn zero_point(self) -> ZeroPoint {
        match self.format {
            WeightFormat::Int4 { zero, .. } => zero,
            WeightFormat::Q4_1 => ZeroPoint::Minimum,
            _ => ZeroPoint::Symmetric,
        }
    }
}

/// Text for calibration: sequences of one length, computed without a beginning-of-text token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calibration {
    tokens: Arc<[u32]>,
    sequence: usize,
}

/// Tokens that calibrate a method unless somebody says otherwise.
pub const DEFAULT_CALIBRATION_TOKENS: usize = 32_768;
/// Tokens of a sequence, where the text has as many.
const SEQUENCE: usize = 512;

impl Calibration {
    /// At most `limit` tokens of a text, in sequences of 512 tokens that are spread evenly over it; `seed` shifts them.
    ///
    /// # Errors
    /// [`EngineError::Config`] when the text has fewer than 2 tokens.
    pub fn new(tokens: &[u32], limit: usize, seed: u64) -> Result<Self> {
        let sequence = SEQUENCE.min(tokens.len()).min(limit.max(2));
        if sequence < 2 {
            return Err(EngineError::Config(
                "the calibration text has fewer than two tokens: give a longer one, some ten thousand words of the \
                 kind of text that the model will see"
                    .into(),
            ));
        }
        let available = tokens.len() / sequence;
        let wanted = (limit / sequence).clamp(1, available);
        // Whole sequences only, `stride` apart: as far as the text allows.
        let slack = tokens.len() - wanted * sequence;
        let shift = if slack == 0 { 0 } else { (seed % (slack as u64 / wanted as u64 + 1)) as usize };
        let start = |i: usize| i * sequence + i * (slack / wanted) + shift;
        let chosen: Vec<u32> =
            (0..wanted).flat_map(|i| tokens[start(i)..start(i) + sequence].iter().copied()).collect();
        Ok(Self { tokens: chosen.into(), sequence })
    }

    /// The sequences.
    pub fn sequences(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.tokens.chunks_exact(self.sequence)
    }

    /// Tokens of each sequence.
    pub fn sequence_tokens(&self) -> usize {
        self.sequence
    }

    /// Tokens in all.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// SHA-256 over length and tokens, in hex: part of the artifact key.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update((self.sequence as u64).to_le_bytes());
        for token in self.tokens.iter() {
            hash.update(token.to_le_bytes());
        }
        hex(&hash.finalize())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failure is the test's result")]
    use rstest::rstest;

    use super::*;

    #[test]
    fn sequences_are_spread_over_the_whole_text() {
        let tokens: Vec<u32> = (0..10_000).collect();
        let calibration = Calibration::new(&tokens, 2048, 0).unwrap();
        let firsts: Vec<u32> = calibration.sequences().map(|s| s[0]).collect();
        assert_eq!(firsts, [0, 2500, 5000, 7500]);
        assert!(calibration.sequences().all(|s| s.len() == 512 && s.windows(2).all(|w| w[1] == w[0] + 1)));
    }

    #[test]
    fn another_seed_takes_other_sequences_of_the_same_number() {
        let tokens: Vec<u32> = (0..10_000).collect();
        let [a, b] = [0, 1].map(|seed| Calibration::new(&tokens, 2048, seed).unwrap());
        assert_ne!(a.digest(), b.digest());
        assert_eq!(a.tokens().len(), b.tokens().len());
    }

    #[rstest]
    #[case(700, 100_000, 1, 512)]
    #[case(100, 100_000, 1, 100)]
    #[case(1024, 1024, 2, 512)]
    #[case(5000, 64, 1, 64)]
    fn short_texts_and_limits_give_what_there_is(
        #[case] len: u32,
        #[case] limit: usize,
        #[case] sequences: usize,
        #[case] tokens: usize,
    ) {
        let calibration = Calibration::new(&(0..len).collect::<Vec<_>>(), limit, 7).unwrap();
        assert_eq!((calibration.sequences().len(), calibration.sequence_tokens()), (sequences, tokens));
    }

    #[test]
    fn methods_refuse_formats_that_they_do_not_make() {
        let recipe = Recipe { format: WeightFormat::Fp8, method: Method::Awq };
        let error = recipe.validate().unwrap_err().to_string();
        assert!(error.contains("awq makes INT4, not fp8"), "{error}");
        assert!(Recipe { format: WeightFormat::Int8, method: Method::SmoothQuant }.validate().is_ok());
    }
    /// The widths of a Llama of two layers.
    fn config(hidden: usize, intermediate: usize, heads: usize) -> ModelConfig {
        ModelConfig { hidden, intermediate, heads, ..crate::checkpoint::testing::tiny_config() }
    }

    #[rstest]
    #[case::hidden(576, 1536, 36, 128, "128 do not divide the 576 inputs of the query", "layers: 32, 64")]
    #[case::attention(512, 1536, 30, 64, "64 do not divide the 480 inputs of the attention output", "layers: 32")]
    #[case::down(128, 96, 8, 64, "64 do not divide the 96 inputs of the down", "layers: 32")]
    #[case::none(80, 96, 5, 32, "32 do not divide the 80 inputs", "use FP8 or INT8")]
    fn a_group_that_does_not_divide_is_named_with_the_layers_and_what_does(
        #[case] hidden: usize,
        #[case] intermediate: usize,
        #[case] heads: usize,
        #[case] group: u16,
        #[case] layers: &str,
        #[case] instead: &str,
    ) {
        let format = WeightFormat::Int4 { group, zero: ZeroPoint::Integer };
        for method in [Method::RoundToNearest, Method::Gptq] {
            let error = Recipe { format, method }.fits(&config(hidden, intermediate, heads)).unwrap_err().to_string();
            assert!(error.contains(layers) && error.contains(instead), "{error}");
        }
        let fitting = config(256, 512, 16);
        assert!(Recipe { format, method: Method::Gptq }.fits(&fitting).is_ok());
    }

    #[test]
    fn blocks_that_do_not_divide_are_named_with_the_layers() {
        let error = Recipe::from(WeightFormat::Fp8Block).fits(&config(256, 192, 16)).unwrap_err().to_string();
        assert!(error.contains("down layers") && error.contains("192") && error.contains("one FP8 scale"), "{error}");
    }
}
