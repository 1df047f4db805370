//! The questions of the long-context test: a number hidden in a text of a length, in the model's own chat format.

use modelprofile_engine::{evaluate::needle, text::Text};

use super::health::render;

/// Depths of the needle in percent.
pub(super) const DEPTHS: [u32; 3] = [10, 50, 90];
/// Tokens of an answer.
pub(super) const ANSWER: usize = 24;
/// Tokens by which a text may be longer than its pieces, where they meet.
const BORDERS: usize = 8;

/// One question.
#[derive(Debug)]
pub(super) struct Question {
    /// As the model gets it.
    pub(super) prompt: Vec<u32>,
    /// What is to be found.
    pub(super) number: u32,
    pub(super) depth_percent: u32,
}

/// The questions of one length in tokens, answer included: one for each depth, made of the sentences of `hay`.
///
/// What the chat format puts around a message is measured, not guessed: some begin with a system prompt of hundreds of
/// tokens. `None` where it leaves no room for the question at this length.
///
/// # Errors
/// Those of the template and of the tokenizer.
pub(super) fn questions(text: &Text, hay: &str, length: usize, seed: u64) -> anyhow::Result<Option<Vec<Question>>> {
    let tokenizer = &text.tokenizer;
    let tokens = |message: &str| {
        let messages = serde_json::json!([{"role": "user", "content": message}]);
        render(text.template.as_ref(), tokenizer, &messages, || format!("{message}\n\nAnswer:"))
    };
    // Of a letter, since some formats leave out a message without text.
    let around = tokens("x")?.len();
    let room = length.saturating_sub(ANSWER + BORDERS + around);
    let mut count = |text: &str| tokenizer.encode(text, false).map_or(usize::MAX / 4, |tokens| tokens.len());
    let mut questions = Vec::with_capacity(DEPTHS.len());
    for depth_percent in DEPTHS {
        let made = needle::haystack(hay, room, f64::from(depth_percent) / 100.0, seed, &mut count);
        let prompt = tokens(&made.prompt)?;
        if prompt.len() + ANSWER > length {
            return Ok(None);
        }
        questions.push(Question { prompt, number: made.number, depth_percent });
    }
    Ok(Some(questions))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use modelprofile_engine::text::{ChatTemplate, Tokenizer};
    use serde_json::json;

    use super::*;
    use crate::quality::Dataset;

    /// A token for each word and mark, and this chat template.
    fn text(template: Option<&str>) -> Text {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}
        });
        std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        Text {
            tokenizer: Arc::new(Tokenizer::from_hf_dir(folder.path()).unwrap()),
            template: template.map(|source| ChatTemplate::new(source, None, None).unwrap()),
        }
    }

    #[test]
    fn a_prompt_has_its_length_whatever_the_chat_format_adds() {
        let system = "Follow these rules. ".repeat(60);
        let long = format!("{system}{{% for m in messages %}}{{{{ m.role }}}}: {{{{ m.content }}}}{{% endfor %}}");
        for template in [None, Some("{{ messages[0].content }}"), Some(long.as_str())] {
            let hay = Dataset::built_in();
            let questions = questions(&text(template), hay.text(), 512, 7).unwrap().unwrap();
            assert_eq!(questions.iter().map(|q| q.depth_percent).collect::<Vec<_>>(), DEPTHS);
            for question in questions {
                let length = question.prompt.len() + ANSWER;
                assert!((420..=512).contains(&length), "{length} with {template:?}");
            }
        }
        assert!(questions(&text(Some(&long)), "", 256, 7).unwrap().is_none(), "the format alone takes 240");
    }
}
