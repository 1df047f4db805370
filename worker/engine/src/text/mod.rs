//! Text around the engine: what turns messages into prompt tokens, and generated tokens back into text.
//!
//! ```text
//! messages -> ChatTemplate -> Tokenizer::encode -> engine -> StreamDecoder -> StopMatcher -> client
//! ```
//!
//! - [`Text`]: the tokenizer and the template of a checkpoint;
//! - [`tokenizer`]: [`Tokenizer`], one interface over a Hugging Face `tokenizer.json` and a GGUF vocabulary;
//! - [`gguf_vocab`]: [`GgufVocab`] and its translation to the `tokenizer.json` form;
//! - `pieces`: the bytes that each token stands for, worked out once at load;
//! - [`stream`]: [`StreamDecoder`], token by token, complete characters only;
//! - [`stop`]: [`StopMatcher`], stop strings across token borders;
//! - [`template`]: [`ChatTemplate`], the model's own Jinja template under bounds; `python` makes it print as Python does.

pub mod gguf_vocab;
pub(crate) mod load;
mod pieces;
mod python;
pub mod stop;
pub mod stream;
pub mod template;
pub mod tokenizer;

pub use gguf_vocab::GgufVocab;
pub use load::{Text, tokenizer_files};
pub use stop::{StopMatcher, StopOutcome};
pub use stream::StreamDecoder;
pub use template::ChatTemplate;
pub use tokenizer::Tokenizer;

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod hostile_tests;
