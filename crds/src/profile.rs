//! One rung of the ladder: the precision of weights and KV cache.

use serde::{Deserialize, Serialize};

/// A named precision of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    /// Name of the profile, unique in the ladder. Required.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 63), regex(pattern = crate::patterns::NAME)))]
    pub name: String,
    /// How the weights are stored and computed. Required.
    pub weights: Weights,
    /// How the KV cache is stored. Left out: BF16.
    #[serde(default)]
    pub kv_cache: KvCache,
    /// Accelerators per worker that share the model. Left out: 1.
    #[serde(default = "one")]
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 64)))]
    pub tensor_parallel: u32,
}

const fn one() -> u32 {
    1
}

/// Precision of the weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.method == 'RoundToNearest' || self.format in {'AWQ': ['INT4'], 'GPTQ': ['INT4', 'INT8'], 'SmoothQuant': ['INT8'], 'LLMInt8': ['INT8']}[self.method]",
     "message": "AWQ produces INT4, GPTQ INT4 or INT8, SmoothQuant and LLMInt8 INT8: change the format, or leave the method out"},
    {"rule": "self.format == 'INT4' || (!has(self.groupSize) && !has(self.zeroPoint))",
     "message": "groupSize and zeroPoint are for INT4 only"},
])))]
#[serde(rename_all = "camelCase")]
pub struct Weights {
    /// Storage format: BF16, FP16, FP8 (E4M3; a checkpoint that comes in FP8 keeps its own scales), INT8, INT4, or a GGUF type.
    /// Required.
    pub format: WeightFormat,
    /// How the weights are rounded to the format. Left out: RoundToNearest, which needs no calibration data.
    #[serde(default)]
    pub method: Method,
    /// INT4 only: consecutive inputs that share one scale; 32, 64 or 128, and a divisor of every matrix width of the
    /// model. Left out: 128.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(extend("x-kubernetes-validations" = [
        {"rule": "self in [32, 64, 128]", "message": "groupSize is 32, 64 or 128"},
    ])))]
    pub group_size: Option<u32>,
    /// INT4 only: where the grid of a group lies. Left out: Minimum, the most precise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero_point: Option<ZeroPoint>,
}

impl Weights {
    /// [`Weights::group_size`] with its default; `None` for formats without groups of the user's choice.
    pub fn effective_group_size(&self) -> Option<u32> {
        (self.format == WeightFormat::Int4).then(|| self.group_size.unwrap_or(128))
    }

    /// [`Weights::zero_point`] with its default; `None` for formats whose grid is fixed.
    pub fn effective_zero_point(&self) -> Option<ZeroPoint> {
        (self.format == WeightFormat::Int4).then(|| self.zero_point.unwrap_or_default())
    }
}

/// Storage format of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(transform = crate::schema::plain_enum))]
pub enum WeightFormat {
    /// bfloat16.
    #[serde(rename = "BF16")]
    Bf16,
    /// IEEE half precision.
    #[serde(rename = "FP16")]
    Fp16,
    /// FP8 E4M3 weights with one scale per output row; activations FP8 with one dynamic scale per token. A checkpoint that comes in
    /// FP8 keeps its own scales, per tensor or block and static ones too.
    #[serde(rename = "FP8")]
    Fp8,
    /// INT8 weights with one scale per output row; activations INT8 with one dynamic scale per token.
    #[serde(rename = "INT8")]
    Int8,
    /// 4-bit weights in groups, `w = s q + m`.
    #[serde(rename = "INT4")]
    Int4,
    /// GGUF: 8 bits, groups of 32, symmetric.
    #[serde(rename = "Q8_0")]
    Q8_0,
    /// GGUF: 6 bits, two levels of scales.
    #[serde(rename = "Q6_K")]
    Q6K,
    /// GGUF: a mixture around 5 bits.
    #[serde(rename = "Q5_K_M")]
    Q5KM,
    /// GGUF: a mixture around 4 bits.
    #[serde(rename = "Q4_K_M")]
    Q4KM,
    /// GGUF: 4 bits, groups of 32 with scale and minimum.
    #[serde(rename = "Q4_1")]
    Q4_1,
    /// GGUF: 4 bits, groups of 32, symmetric.
    #[serde(rename = "Q4_0")]
    Q4_0,
}

impl WeightFormat {
    /// The name in a manifest.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bf16 => "BF16",
            Self::Fp16 => "FP16",
            Self::Fp8 => "FP8",
            Self::Int8 => "INT8",
            Self::Int4 => "INT4",
            Self::Q8_0 => "Q8_0",
            Self::Q6K => "Q6_K",
            Self::Q5KM => "Q5_K_M",
            Self::Q4KM => "Q4_K_M",
            Self::Q4_1 => "Q4_1",
            Self::Q4_0 => "Q4_0",
        }
    }
}

/// How weights are brought to a format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(transform = crate::schema::plain_enum))]
pub enum Method {
    /// Each weight to the nearest point of its grid; no data needed.
    #[default]
    RoundToNearest,
    /// INT4: channels scaled by the size of their activations first.
    #[serde(rename = "AWQ")]
    Awq,
    /// INT4 and INT8: rounding errors compensated with second-order information.
    #[serde(rename = "GPTQ")]
    Gptq,
    /// INT8: outliers moved from activations into weights.
    SmoothQuant,
    /// INT8: outlier columns kept in 16 bits.
    #[serde(rename = "LLMInt8")]
    LlmInt8,
}

impl Method {
    /// The name in a manifest.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RoundToNearest => "RoundToNearest",
            Self::Awq => "AWQ",
            Self::Gptq => "GPTQ",
            Self::SmoothQuant => "SmoothQuant",
            Self::LlmInt8 => "LLMInt8",
        }
    }

    /// Formats that the method produces; empty means every format.
    pub const fn formats(self) -> &'static [WeightFormat] {
        match self {
            Self::RoundToNearest => &[],
            Self::Awq => &[WeightFormat::Int4],
            Self::Gptq => &[WeightFormat::Int4, WeightFormat::Int8],
            Self::SmoothQuant | Self::LlmInt8 => &[WeightFormat::Int8],
        }
    }
}

/// Where the 16 points of a 4-bit group lie: `w = s q + m`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(transform = crate::schema::plain_enum))]
pub enum ZeroPoint {
    /// Around zero: `m = -8 s`.
    Symmetric,
    /// At a whole number of steps from zero: `m = -z s`. What most published 4-bit checkpoints use.
    Integer,
    /// Anywhere: `m` is free.
    #[default]
    Minimum,
}

/// Precision of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct KvCache {
    /// Storage format of keys and values; with the strategy InPlace it is the same in all profiles. Left out: BF16.
    pub format: KvCacheFormat,
}

/// Storage format of keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(transform = crate::schema::plain_enum))]
pub enum KvCacheFormat {
    /// bfloat16.
    #[default]
    #[serde(rename = "BF16")]
    Bf16,
    /// IEEE half precision.
    #[serde(rename = "FP16")]
    Fp16,
    /// FP8 E4M3 with static scales per layer and head, calibrated once per model.
    #[serde(rename = "FP8E4M3")]
    Fp8E4m3,
    /// FP8 E5M2, without scales.
    #[serde(rename = "FP8E5M2")]
    Fp8E5m2,
}

impl KvCacheFormat {
    /// The name in a manifest.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bf16 => "BF16",
            Self::Fp16 => "FP16",
            Self::Fp8E4m3 => "FP8E4M3",
            Self::Fp8E5m2 => "FP8E5M2",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_serde_writes() {
        use WeightFormat::*;
        for format in [Bf16, Fp16, Fp8, Int8, Int4, Q8_0, Q6K, Q5KM, Q4KM, Q4_1, Q4_0] {
            assert_eq!(serde_json::to_value(format).unwrap(), format.as_str());
        }
        for method in [Method::RoundToNearest, Method::Awq, Method::Gptq, Method::SmoothQuant, Method::LlmInt8] {
            assert_eq!(serde_json::to_value(method).unwrap(), method.as_str());
        }
        for kv in [KvCacheFormat::Bf16, KvCacheFormat::Fp16, KvCacheFormat::Fp8E4m3, KvCacheFormat::Fp8E5m2] {
            assert_eq!(serde_json::to_value(kv).unwrap(), kv.as_str());
        }
    }

    #[test]
    fn int4_has_its_defaults_and_other_formats_have_none() {
        let weights: Weights = serde_json::from_str(r#"{"format": "INT4"}"#).unwrap();
        assert_eq!(weights.effective_group_size(), Some(128));
        assert_eq!(weights.effective_zero_point(), Some(ZeroPoint::Minimum));
        let weights: Weights = serde_json::from_str(r#"{"format": "FP8"}"#).unwrap();
        assert_eq!((weights.effective_group_size(), weights.effective_zero_point()), (None, None));
    }
}
