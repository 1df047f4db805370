//! Text around the engine: tokenizer, chat template, incremental decoding, stop strings.
