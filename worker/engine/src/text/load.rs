//! The tokenizer and the chat template of a checkpoint, whichever container it comes in.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{ChatTemplate, GgufVocab, Tokenizer};
use crate::checkpoint::{Checkpoint, Metadata};
use crate::{EngineError, Result};

const TEMPLATE: &str = "tokenizer.chat_template";

/// What a checkpoint says about text.
#[derive(Debug)]
pub struct Text {
    /// Shared by the streams of all requests.
    pub tokenizer: Arc<Tokenizer>,
    /// `None` for a base model, which can only complete text.
    pub template: Option<ChatTemplate>,
}

impl Text {
    /// Reads both from `checkpoint`: the metadata of a GGUF file, or the files of a Hugging Face directory.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::from_gguf`], [`Tokenizer::from_hf_dir`], [`ChatTemplate::named`].
    pub fn load(checkpoint: &Checkpoint) -> Result<Self> {
        let Some(metadata) = checkpoint.gguf_metadata() else {
            let dir = checkpoint.directory();
            let tokenizer = Arc::new(Tokenizer::from_hf_dir(dir)?);
            return Ok(Self { tokenizer, template: ChatTemplate::from_hf_dir(dir)? });
        };
        let vocab = vocab(metadata)?;
        let text = |id: Option<u32>| vocab.tokens.get(id? as usize).map(String::as_str);
        let template = match metadata.text(TEMPLATE) {
            None => None,
            Some(default) => {
                let tool_use = metadata.text("tokenizer.chat_template.tool_use").map(|source| ("tool_use", source));
                let sources = [("default", default)].into_iter().chain(tool_use);
                Some(ChatTemplate::named(sources, text(vocab.bos), text(vocab.eos))?)
            }
        };
        Ok(Self { tokenizer: Arc::new(Tokenizer::from_gguf(&vocab, "GGUF metadata")?), template })
    }
}

/// `tokenizer.json` and `tokenizer_config.json` of a GGUF file's vocabulary and chat template, as transformers reads them;
/// nothing for a directory, which has them.
///
/// # Errors
/// As [`Tokenizer::from_gguf`].
pub fn tokenizer_files(checkpoint: &Checkpoint) -> Result<Vec<(&'static str, Value)>> {
    let Some(metadata) = checkpoint.gguf_metadata() else { return Ok(Vec::new()) };
    let vocab = vocab(metadata)?;
    let token = |id: Option<u32>| vocab.tokens.get(id? as usize).cloned();
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token(vocab.bos),
        "eos_token": token(vocab.eos),
        "clean_up_tokenization_spaces": false,
        "model_max_length": checkpoint.config().max_positions,
        "chat_template": metadata.text(TEMPLATE),
    });
    Ok(vec![("tokenizer.json", vocab.to_tokenizer_json("GGUF metadata")?), ("tokenizer_config.json", config)])
}

/// The vocabulary in a GGUF file's metadata.
pub(crate) fn vocab(metadata: &Metadata) -> Result<GgufVocab> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let model = metadata.text(&key("model")).ok_or_else(|| {
        EngineError::checkpoint("GGUF metadata", "tokenizer.ggml.model is missing; the file has no vocabulary")
    })?;
    let texts = |name| metadata.texts(&key(name)).unwrap_or_default().to_vec();
    let id = |name| metadata.unsigned(&key(name)).and_then(|id| u32::try_from(id).ok());
    // A kind outside the format's range is none of those that need anything done.
    let types = metadata.integers(&key("token_type")).unwrap_or_default();
    Ok(GgufVocab {
        model: model.to_owned(),
        pre: metadata.text(&key("pre")).map(Into::into),
        tokens: texts("tokens"),
        token_types: types.iter().map(|&kind| i32::try_from(kind).unwrap_or(0)).collect(),
        merges: texts("merges"),
        scores: metadata.floats(&key("scores")).unwrap_or_default().to_vec(),
        bos: id("bos_token_id"),
        eos: id("eos_token_id"),
        add_bos: metadata.flag(&key("add_bos_token")),
        add_space_prefix: metadata.flag(&key("add_space_prefix")),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    /// The model of the demo. The other tests of this module need no file.
    fn smollm2() -> Text {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/SmolLM2-135M-Instruct-Q4_1.gguf");
        assert!(path.exists(), "{} is missing: run `make model` first", path.display());
        Text::load(&Checkpoint::open(&path).unwrap()).unwrap()
    }

    /// Ids by the reference implementation (transformers 5.19) on the same vocabulary.
    const PLAIN: (&str, &[u32]) = ("The capital of France is", &[504, 3575, 282, 4649, 314]);
    const CODE: (&str, &[u32]) = (
        "def fibonacci(n):\n    # 1, 1, 2, 3, 5, 8, 13, 21\n    if n <= 2:\n        return 1\n",
        &[
            1604, 3987, 46477, 24, 94, 727, 472, 907, 216, 33, 28, 216, 33, 28, 216, 34, 28, 216, 35, 28, 216, 37, 28,
            216, 40, 28, 216, 33, 35, 28, 216, 34, 33, 472, 585, 304, 10204, 216, 34, 42, 448, 1003, 216, 33, 198,
        ],
    );
    const CHAT: (&str, &[u32]) = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nName three primary colors and say why they are primary.<|im_end|>\n<|im_start|>assistant\n",
        &[
            1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182,
            2, 198, 1, 4093, 198, 5820, 1296, 3003, 4683, 284, 1643, 1701, 502, 359, 3003, 30, 2, 198, 1, 520, 9531,
            198,
        ],
    );

    #[test]
    fn smollm2_tokenizes_as_the_reference_does() {
        let Text { tokenizer, .. } = smollm2();
        for (text, ids) in [PLAIN, CODE, CHAT] {
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids);
            assert_eq!(tokenizer.decode(ids, false).unwrap(), text);
        }
        assert_eq!((tokenizer.vocab(), tokenizer.bos(), tokenizer.eos()), (49_152, Some(1), Some(2)));
        let generated = [7042, 30, 198, 198, 504, 2988, 314, 42, 216, 34, 32, 33, 40, 2, 198, 1];
        assert_eq!(
            tokenizer.decode(&generated, false).unwrap(),
            " Paris.\n\nThe answer is: 2018<|im_end|>\n<|im_start|>"
        );
        assert_eq!(tokenizer.decode(&generated, true).unwrap(), " Paris.\n\nThe answer is: 2018\n");
    }

    #[test]
    fn smollm2_renders_its_own_template() {
        let Text { template, .. } = smollm2();
        let question = "Name three primary colors and say why they are primary.";
        let messages = json!([{"role": "user", "content": question}]);
        assert_eq!(template.unwrap().render(&messages, None, true).unwrap(), CHAT.0);
    }
}
