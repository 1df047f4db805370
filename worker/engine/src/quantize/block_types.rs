//! Weights that were rounded before: the block types of a GGUF file, and which of them a recipe rounds again.

use std::{collections::BTreeMap, fmt};

use modelprofile_kernels::WeightKind;
use serde::{Deserialize, Serialize};

use super::{Recipe, takes_over};
use crate::{
    WeightFormat,
    checkpoint::{Checkpoint, Role, SourceDtype},
};

/// Tensors counted by the quantized type in which their file stores them: `Q4_1 (210 tensors), Q8_0 (1)`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockTypes(BTreeMap<String, usize>);

impl BlockTypes {
    /// All quantized tensors of a checkpoint of single types; none of a directory, whose layers
    /// [`Checkpoint::quantization`] tells about.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        Self::counted(checkpoint, |_, _| true)
    }

    /// Those that a recipe rounds a second time: not BF16, which dequantizes, nor blocks that the format takes over bit for
    /// bit. Empty, too, when the weights were pruned.
    pub fn requantized(checkpoint: &Checkpoint, recipe: Recipe) -> Self {
        let (config, format) = (checkpoint.config(), recipe.format);
        if format == WeightFormat::Bf16 {
            return Self::default();
        }
        Self::counted(checkpoint, |role, dtype| {
            // The model's ends have a storage of their own, which no method looks at.
            let is_end = matches!(role, Role::Embedding | Role::Output);
            let kind = if is_end { format.output_kind(config.hidden) } else { recipe.kind(role.shape(config).1) };
            let taken = (is_end || !recipe.needs_calibration()) && takes_over(dtype, format, kind);
            kind != WeightKind::Bf16 && !taken
        })
    }

    fn counted(checkpoint: &Checkpoint, counts: impl Fn(Role, SourceDtype) -> bool) -> Self {
        let mut types = BTreeMap::new();
        for role in Role::all(checkpoint.config()) {
            if let Some(dtype) = checkpoint.tensor(role).map(|tensor| tensor.dtype)
                && dtype.block_elements() > 1
                && counts(role, dtype)
            {
                *types.entry(dtype.name().to_owned()).or_default() += 1;
            }
        }
        Self(types)
    }

    /// Whether no tensor is counted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sentence for whoever makes `format` of a source whose weights of these types it rounds again; `None` without any.
    pub fn warning(&self, source: &str, format: &str) -> Option<String> {
        (!self.is_empty()).then(|| {
            format!(
                "{source} is quantized already: {self}. {format} rounds these weights a second time, and the errors of both \
                 roundings add up: give the original checkpoint (BF16, F16 or F32) if you can get it"
            )
        })
    }
}

impl fmt::Display for BlockTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, count)) in self.0.iter().enumerate() {
            match at {
                0 => write!(f, "{name} ({count} tensor{})", if *count == 1 { "" } else { "s" })?,
                _ => write!(f, ", {name} ({count})")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failure is the test's result")]
    use rstest::rstest;

    use super::*;
    use crate::{Method, ZeroPoint, checkpoint::testing::tiny_llama};

    const INT4: WeightFormat = WeightFormat::Int4 { group: 32, zero: ZeroPoint::Minimum };

    /// A Llama of two layers with seven matrices each, and a tied embedding.
    fn tiny(dtype: SourceDtype) -> (tempfile::TempDir, Checkpoint) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        std::fs::write(&path, tiny_llama(dtype).build()).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        (folder, checkpoint)
    }

    #[rstest]
    // The embedding is stored in groups of 8 bits, which are not its blocks.
    #[case::own_blocks(SourceDtype::Q4_1, WeightFormat::Q4_1.into(), "Q4_1 (1 tensor)")]
    #[case::ends_too(SourceDtype::Q8_0, WeightFormat::Q8_0.into(), "")]
    #[case::ends_alone(SourceDtype::Q8_0, WeightFormat::Q4_1.into(), "Q8_0 (14 tensors)")]
    #[case::same_bits_another_grid(SourceDtype::Q4_1, INT4.into(), "Q4_1 (15 tensors)")]
    #[case::fp8(SourceDtype::Q4_0, WeightFormat::Fp8.into(), "Q4_0 (15 tensors)")]
    #[case::a_method(SourceDtype::Q4_0, Recipe { format: INT4, method: Method::Gptq }, "Q4_0 (15 tensors)")]
    #[case::dequantized(SourceDtype::Q4_0, WeightFormat::Bf16.into(), "")]
    #[case::values(SourceDtype::F16, WeightFormat::Fp8.into(), "")]
    fn what_is_rounded_again_is_what_is_not_taken_over(
        #[case] source: SourceDtype,
        #[case] recipe: Recipe,
        #[case] expected: &str,
    ) {
        let (_folder, checkpoint) = tiny(source);
        let again = BlockTypes::requantized(&checkpoint, recipe);
        assert_eq!(again.to_string(), expected);
        let warning = again.warning("tiny", "the format");
        assert_eq!(warning.is_some(), !expected.is_empty());
        assert!(warning.is_none_or(|text| text.contains(expected) && text.contains("give the original checkpoint")));
    }
}
