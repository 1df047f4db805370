//! Reading a request body: every field by name and type; what is not supported is refused by name.

use modelprofile_engine::SamplingParams;
use serde_json::{Map, Value};

use super::error::ApiError;
use crate::app::Limits;

/// The fields of a request body.
pub struct Fields<'a>(pub &'a Map<String, Value>);

/// What both endpoints understand.
const COMMON: [&str; 24] = [
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "temperature",
    "top_p",
    "n",
    "stop",
    "seed",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "user",
    "logprobs",
    "top_k",
    "min_p",
    "repetition_penalty",
    "ignore_eos",
    "stop_token_ids",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
];

impl<'a> Fields<'a> {
    /// Refuses every field that is neither common nor in `own`. Null counts as absent.
    pub fn check_known(&self, own: &[&str]) -> Result<(), ApiError> {
        let unknown =
            self.0.iter().find(|(k, v)| !v.is_null() && !COMMON.contains(&k.as_str()) && !own.contains(&k.as_str()));
        match unknown {
            None => Ok(()),
            Some((name, _)) => {
                Err(ApiError::invalid(name, format!("the parameter {name} is not supported: leave it out")))
            }
        }
    }

    /// A field that is there and not null.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    fn typed<T>(&self, name: &str, kind: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| ApiError::invalid(name, format!("{name} must be {kind}")))
    }

    /// A number.
    pub fn float(&self, name: &str) -> Result<Option<f32>, ApiError> {
        self.typed(name, "a number", |v| v.as_f64().map(|v| v as f32))
    }

    /// A count.
    pub fn count(&self, name: &str) -> Result<Option<usize>, ApiError> {
        self.typed(name, "a whole number, 0 or more", |v| v.as_u64().and_then(|v| usize::try_from(v).ok()))
    }

    /// A flag.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    /// A string.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.typed(name, "a string", Value::as_str)
    }
}

/// What a generation needs besides its prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Common {
    /// Choice of tokens.
    pub sampling: SamplingParams,
    /// Most tokens; `None` leaves it to the endpoint.
    pub max_tokens: Option<usize>,
    /// Completions per prompt.
    pub n: usize,
    /// Server-sent events.
    pub stream: bool,
    /// Whether events tell the usage.
    pub usage: StreamUsage,
    /// Stop strings.
    pub stops: Vec<String>,
    /// Stop tokens.
    pub stop_tokens: Vec<u32>,
    /// Go on past end-of-text.
    pub ignore_eos: bool,
}

impl Common {
    /// Reads the common fields.
    pub fn read(fields: &Fields<'_>, limits: &Limits) -> Result<Self, ApiError> {
        let default = SamplingParams::default();
        let sampling = SamplingParams {
            temperature: fields.float("temperature")?.unwrap_or(default.temperature),
            top_k: top_k(fields)?,
            top_p: fields.float("top_p")?.unwrap_or(default.top_p),
            min_p: fields.float("min_p")?.unwrap_or(default.min_p),
            repetition_penalty: fields.float("repetition_penalty")?.unwrap_or(default.repetition_penalty),
            presence_penalty: fields.float("presence_penalty")?.unwrap_or(default.presence_penalty),
            frequency_penalty: fields.float("frequency_penalty")?.unwrap_or(default.frequency_penalty),
            logit_bias: logit_bias(fields, limits)?,
            seed: fields.typed("seed", "a whole number", |v| v.as_u64().or_else(|| v.as_i64().map(|v| v as u64)))?,
        };
        let n = fields.count("n")?.unwrap_or(1);
        if !(1..=limits.choices).contains(&n) {
            return Err(ApiError::invalid("n", format!("n must be between 1 and {}, not {n}", limits.choices)));
        }
        let stream = fields.flag("stream")?.unwrap_or(false);
        let usage = match fields.get("stream_options") {
            None => StreamUsage::None,
            Some(_) if !stream => {
                return Err(ApiError::invalid("stream_options", "stream_options needs stream to be true"));
            }
            Some(Value::Object(options)) => stream_options(&Fields(options))?,
            Some(_) => return Err(ApiError::invalid("stream_options", "stream_options must be an object")),
        };
        Ok(Self {
            sampling,
            max_tokens: fields.count("max_tokens")?,
            n,
            stream,
            usage,
            stops: stops(fields, limits)?,
            stop_tokens: stop_tokens(fields, limits)?,
            ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
        })
    }
}

/// Which events of a stream tell the usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamUsage {
    /// None.
    None,
    /// One of its own, the last (`include_usage`).
    Last,
    /// That and each with text: the tokens of its choice so far (`continuous_usage_stats`, as vLLM calls it).
    Every,
}

/// `include_usage` and `continuous_usage_stats`; the other options that clients know may be there as long as they ask for
/// nothing.
fn stream_options(options: &Fields<'_>) -> Result<StreamUsage, ApiError> {
    for (name, value) in options.0 {
        let asks = !value.is_null() && value != &Value::Bool(false);
        if !["include_usage", "continuous_usage_stats"].contains(&name.as_str()) && asks {
            return Err(ApiError::invalid(
                "stream_options",
                format!("the option {name} of stream_options is not supported: leave it out"),
            ));
        }
    }
    let every = options.flag("continuous_usage_stats")?.unwrap_or(false);
    Ok(match options.flag("include_usage")?.unwrap_or(false) {
        true if every => StreamUsage::Every,
        true => StreamUsage::Last,
        false if every => {
            let message = "continuous_usage_stats of stream_options needs include_usage to be true";
            return Err(ApiError::invalid("stream_options", message));
        }
        false => StreamUsage::None,
    })
}

/// Holds the sampling parameters against their ranges, and against a vocabulary of `vocab` tokens.
///
/// # Errors
/// 400 that names the parameter.
pub fn check_sampling(sampling: &SamplingParams, vocab: usize) -> Result<(), ApiError> {
    sampling.validate(vocab).map_err(|message| {
        // The sentence begins with the parameter.
        let param = message.split(' ').next().unwrap_or_default().to_owned();
        ApiError::invalid(&param, message)
    })
}

/// vLLM's clients send -1 for "all".
fn top_k(fields: &Fields<'_>) -> Result<u32, ApiError> {
    let read = |v: &Value| v.as_i64().filter(|v| *v >= -1).and_then(|v| u32::try_from(v.max(0)).ok());
    Ok(fields.typed("top_k", "a whole number, or -1 for all", read)?.unwrap_or(0))
}

fn logit_bias(fields: &Fields<'_>, limits: &Limits) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(entries) = fields.typed("logit_bias", "an object of token ids and numbers", Value::as_object)? else {
        return Ok(Vec::new());
    };
    if entries.len() > limits.logit_bias {
        let message = format!("logit_bias has {} entries, {} are allowed", entries.len(), limits.logit_bias);
        return Err(ApiError::invalid("logit_bias", message));
    }
    entries
        .iter()
        .map(|(token, bias)| {
            let pair = token.parse::<u32>().ok().zip(bias.as_f64());
            pair.map(|(token, bias)| (token, bias as f32)).ok_or_else(|| {
                ApiError::invalid("logit_bias", format!("logit_bias: {token}: {bias} is not a token id and a number"))
            })
        })
        .collect()
}

fn stops(fields: &Fields<'_>, limits: &Limits) -> Result<Vec<String>, ApiError> {
    let wrong = || ApiError::invalid("stop", "stop must be a string or an array of strings, none of them empty");
    let stops: Vec<String> = match fields.get("stop") {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop.clone()],
        Some(Value::Array(stops)) => {
            stops.iter().map(|s| s.as_str().map(str::to_owned).ok_or_else(wrong)).collect::<Result<_, _>>()?
        }
        Some(_) => return Err(wrong()),
    };
    if stops.iter().any(String::is_empty) {
        return Err(wrong());
    }
    if stops.len() > limits.stops || stops.iter().any(|s| s.len() > limits.stop_bytes) {
        let message = format!("stop allows {} strings of at most {} bytes", limits.stops, limits.stop_bytes);
        return Err(ApiError::invalid("stop", message));
    }
    Ok(stops)
}

fn stop_tokens(fields: &Fields<'_>, limits: &Limits) -> Result<Vec<u32>, ApiError> {
    let read = |v: &Value| {
        let tokens = v.as_array()?;
        tokens.iter().map(|t| t.as_u64().and_then(|t| u32::try_from(t).ok())).collect::<Option<Vec<u32>>>()
    };
    let tokens = fields.typed("stop_token_ids", "an array of token ids", read)?.unwrap_or_default();
    if tokens.len() > limits.stop_tokens {
        let message = format!("stop_token_ids allows {} tokens, not {}", limits.stop_tokens, tokens.len());
        return Err(ApiError::invalid("stop_token_ids", message));
    }
    Ok(tokens)
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "reads better")]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: Value) -> Result<Common, ApiError> {
        Common::read(&Fields(body.as_object().unwrap()), &Limits::default())
    }

    #[test]
    fn absent_and_null_fields_take_openais_defaults() {
        let common = read(json!({"temperature": null})).unwrap();
        assert_eq!(common.sampling, SamplingParams::default());
        assert_eq!((common.n, common.stream, common.max_tokens), (1, false, None));
    }

    #[test]
    fn wrong_types_and_ranges_name_the_field() {
        for (body, field) in [
            (json!({"temperature": "hot"}), "temperature"),
            (json!({"n": 0}), "n must"),
            (json!({"stop": [1]}), "stop"),
            (json!({"stop": ""}), "stop"),
            (json!({"logit_bias": {"x": 1}}), "logit_bias"),
            (json!({"stream_options": {"include_usage": true}}), "stream_options"),
            (json!({"max_tokens": -1}), "max_tokens"),
            (json!({"stop_token_ids": vec![1; 129]}), "stop_token_ids"),
        ] {
            let error = read(body).unwrap_err();
            assert!(error.body()["error"]["message"].as_str().unwrap().contains(field), "{error:?}");
        }
    }

    #[test]
    fn values_out_of_range_name_the_parameter() {
        for (name, value) in [
            ("temperature", json!(2.1)),
            ("temperature", json!(1e300)),
            ("top_p", json!(0)),
            ("min_p", json!(-0.1)),
            ("presence_penalty", json!(-2.5)),
            ("frequency_penalty", json!(3)),
            ("repetition_penalty", json!(0)),
            ("logit_bias", json!({"5": 101})),
            ("logit_bias", json!({"100": 1})),
        ] {
            let common = read(json!({name: value})).unwrap();
            let error = check_sampling(&common.sampling, 100).unwrap_err();
            assert_eq!(error.body()["error"]["param"], name, "{error:?}");
        }
        assert_eq!(check_sampling(&SamplingParams::default(), 100), Ok(()));
    }

    #[test]
    fn unknown_fields_are_refused_by_name() {
        let body = json!({"tools": [], "model": "m", "audio": null});
        let error = Fields(body.as_object().unwrap()).check_known(&[]).unwrap_err();
        assert_eq!(error.body()["error"]["param"], "tools");
    }
}
