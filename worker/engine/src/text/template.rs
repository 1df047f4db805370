//! The model's own chat template: Jinja source from the checkpoint, run on a request's messages under bounds.

use std::io;
use std::path::Path;
use std::sync::Arc;

use jiff::Zoned;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind};
use serde_json::{Map, Value};

use super::python;
use super::tokenizer::{read_bounded, special_token};
use crate::{EngineError, Result};

/// Work of one rendering: an instruction or 64 bytes of data each. A conversation of a thousand messages takes about a
/// hundred thousand; the most that a template can allocate is 256 MB.
const MAX_FUEL: u64 = 4_000_000;
/// Bytes of one prompt; far above the text of the longest context.
const MAX_OUTPUT_BYTES: usize = 16 << 20;
/// Nested macros, includes and loops.
const MAX_RECURSION: usize = 64;

const DEFAULT: &str = "default";
/// Name that transformers gives to the variant for requests with tools.
const TOOL_USE: &str = "tool_use";

type Clock = Arc<dyn Fn() -> Zoned + Send + Sync>;

/// A compiled chat template. Renders as transformers does: blocks trimmed, Python's methods on strings and
/// dictionaries, `tojson`, `raise_exception`, `strftime_now`.
///
/// A rendering is bounded in work, memory, nesting and output. The source is the checkpoint's; a request gives only
/// values, which are never parsed as a template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
}

impl ChatTemplate {
    /// Compiles one template. `bos` and `eos` are the texts of these tokens, which most templates write.
    ///
    /// # Errors
    ///
    /// [`EngineError::Template`] with the line of a syntax error.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self> {
        Self::named([(DEFAULT, source)], bos, eos)
    }

    /// Compiles a family of templates. `tool_use`, where there is one, serves requests with tools; `default` the
    /// others.
    ///
    /// # Errors
    ///
    /// [`EngineError::Template`] with the line of a syntax error, or if there is no `default`.
    pub fn named<'a>(
        templates: impl IntoIterator<Item = (&'a str, &'a str)>,
        bos: Option<&str>,
        eos: Option<&str>,
    ) -> Result<Self> {
        let mut environment = environment().map_err(|e| template_error(&e))?;
        for (name, source) in templates {
            environment
                .add_template_owned(name.to_owned(), without_generation_blocks(source))
                .map_err(|e| template_error(&e))?;
        }
        if environment.get_template(DEFAULT).is_err() {
            let message = format!("the model has no template named {DEFAULT}");
            return Err(EngineError::Template(message));
        }
        let template = Self { environment, bos: bos.map(Into::into), eos: eos.map(Into::into) };
        Ok(template.with_clock(Arc::new(Zoned::now)))
    }

    /// The template of a Hugging Face directory: `chat_template.jinja` (with `additional_chat_templates/`), else
    /// `chat_template` in `tokenizer_config.json`, a string or a list of named templates. `None` for a base model.
    ///
    /// # Errors
    ///
    /// As [`ChatTemplate::new`], and [`EngineError::Io`] or [`EngineError::Checkpoint`] for the files.
    pub fn from_hf_dir(dir: &Path) -> Result<Option<Self>> {
        let (templates, config) = Self::sources(dir)?;
        if templates.is_empty() {
            return Ok(None);
        }
        let templates = templates.iter().map(|(name, source)| (name.as_str(), source.as_str()));
        Self::named(templates, special_token(&config, "bos_token"), special_token(&config, "eos_token")).map(Some)
    }

    /// The sources by name of a directory's templates, and its `tokenizer_config.json` (null when there is none).
    pub(crate) fn sources(dir: &Path) -> Result<(Vec<(String, String)>, Value)> {
        let config_path = dir.join("tokenizer_config.json");
        let config: Value = if config_path.exists() {
            serde_json::from_slice(&read_bounded(&config_path)?)
                .map_err(|e| EngineError::checkpoint(config_path.display(), e.to_string()))?
        } else {
            Value::Null
        };
        let mut templates = Vec::new();
        let tool_use = dir.join("additional_chat_templates").join(format!("{TOOL_USE}.jinja"));
        for (name, path) in [(DEFAULT, dir.join("chat_template.jinja")), (TOOL_USE, tool_use)] {
            if path.exists() {
                let source = String::from_utf8(read_bounded(&path)?)
                    .map_err(|e| EngineError::checkpoint(path.display(), e.to_string()))?;
                templates.push((name.to_owned(), source));
            }
        }
        if templates.is_empty() {
            templates = from_config(&config);
        }
        Ok((templates, config))
    }

    /// Takes the time for `strftime_now` from `clock` instead of the system.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.environment.add_function("strftime_now", move |format: &str| {
            jiff::fmt::strtime::format(format, &clock())
                .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}")))
        });
        self
    }

    /// The prompt for `messages` (a list of objects with `role` and `content`), with `tools` described if the template
    /// can. `add_generation_prompt` ends it where the assistant's answer begins.
    ///
    /// # Errors
    ///
    /// [`EngineError::Template`]: the template refused the messages (its own sentence), or ran past its bounds.
    pub fn render(&self, messages: &Value, tools: Option<&Value>, add_generation_prompt: bool) -> Result<String> {
        self.render_with(messages, tools, add_generation_prompt, &Map::new())
    }

    /// [`render`](Self::render) with further variables, such as `enable_thinking`. They cannot replace the template's
    /// own: `messages`, `tools`, `add_generation_prompt`, `bos_token`, `eos_token`.
    ///
    /// # Errors
    ///
    /// As [`render`](Self::render).
    pub fn render_with(
        &self,
        messages: &Value,
        tools: Option<&Value>,
        add_generation_prompt: bool,
        variables: &Map<String, Value>,
    ) -> Result<String> {
        let mut context = variables.clone();
        context.insert("messages".into(), messages.clone());
        // Python's None, which templates test for, not undefined.
        context.insert("tools".into(), tools.cloned().unwrap_or(Value::Null));
        context.insert("add_generation_prompt".into(), add_generation_prompt.into());
        for (name, token) in [("bos_token", &self.bos), ("eos_token", &self.eos)] {
            context.remove(name);
            if let Some(token) = token {
                context.insert(name.into(), token.as_str().into());
            }
        }
        let tool_template = tools.and_then(|_| self.environment.get_template(TOOL_USE).ok());
        let template = match tool_template {
            Some(template) => template,
            None => self.environment.get_template(DEFAULT).map_err(|e| template_error(&e))?,
        };
        let mut out = Bounded { bytes: Vec::new(), full: false };
        let rendered = template.render_captured_to(Serde(&context), &mut out);
        if out.full {
            let limit = MAX_OUTPUT_BYTES >> 20;
            return Err(EngineError::Template(format!("the prompt is longer than {limit} MiB; send fewer messages")));
        }
        rendered.map_err(|e| template_error(&e))?;
        String::from_utf8(out.bytes).map_err(|e| EngineError::Template(e.to_string()))
    }
}

fn environment() -> std::result::Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    // Jinja's own delimiters; only the white space differs from the default.
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.set_fuel(Some(MAX_FUEL));
    environment.set_recursion_limit(MAX_RECURSION);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(python::print);
    environment.add_test("iterable", python::is_iterable);
    environment.add_filter("tojson", python::tojson);
    environment.add_function("raise_exception", |message: String| -> std::result::Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    Ok(environment)
}

/// `chat_template` of `tokenizer_config.json`: a string, or a list of `{name, template}`.
fn from_config(config: &Value) -> Vec<(String, String)> {
    match config.get("chat_template") {
        Some(Value::String(source)) => vec![(DEFAULT.to_owned(), source.clone())],
        Some(Value::Array(list)) => list
            .iter()
            .filter_map(|entry| {
                let name = entry.get("name")?.as_str()?;
                Some((name.to_owned(), entry.get("template")?.as_str()?.to_owned()))
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// Replaces the `generation` blocks of transformers, which mark the assistant's words for training and print what is in
/// them, by an `if true` that keeps their whitespace control.
fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        // In `{%}` the percent sign opens: it can not close too.
        let (before, inside) = rest.split_at(open + 2);
        let Some(length) = inside.find("%}") else { break };
        let (tag, after) = inside.split_at(length);
        out.push_str(before);
        match tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// What the user can act on: the sentence of `raise_exception`, or the engine's with the line in the template.
fn template_error(error: &Error) -> EngineError {
    let message = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "the template ran too long; send fewer messages".to_owned(),
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        _ => error.to_string(),
    };
    EngineError::Template(message)
}

/// Refuses to grow past [`MAX_OUTPUT_BYTES`].
struct Bounded {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + part.len() > MAX_OUTPUT_BYTES {
            self.full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
