//! How a token is drawn from a row of logits, as a backend is told that does it itself.

/// How the token of one row is chosen: bias, penalties, temperature, top-k, top-p, min-p, one random number, in this order.
///
/// Candidates are ordered by their probability, of equal ones the lower token first; each truncation keeps a prefix. Probabilities
/// are relative to the best candidate's; below 1e-12 of it a token is none.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// In `[0, 1)`: the share of the candidates' probability, added up in the order of tokens, at which the token lies.
    pub random: f64,
    /// Divides logits. Below [`Self::GREEDY_BELOW`] the largest logit's token is taken, the lowest of equal ones, and nothing
    /// below applies but bias and penalties.
    pub temperature: f32,
    /// Keep so many candidates; 0 keeps all.
    pub top_k: u32,
    /// Keep the fewest that have this share of the probability; 1 keeps all.
    pub top_p: f32,
    /// Drop what is less likely than this times the best.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of `seen` tokens; 1 leaves them.
    pub repetition: f32,
    /// Subtracted from logits of `seen` tokens with a count above 0.
    pub presence: f32,
    /// Subtracted from these once for each count.
    pub frequency: f32,
    /// Added to the logits of these tokens, each of which is named once; those outside the vocabulary are passed over.
    pub bias: Vec<(u32, f32)>,
    /// Tokens of prompt and output, each named once, with how often the output has it. Looked at where there is a penalty.
    pub seen: Vec<(u32, u32)>,
}

impl Draw {
    /// Temperatures below this are greedy: they leave one token anyway, and their inverse would leave FP32's range.
    pub const GREEDY_BELOW: f32 = 1e-5;

    /// Whether the largest logit is taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature < Self::GREEDY_BELOW
    }
}

/// From the model's own distribution, at its lower end.
impl Default for Draw {
    fn default() -> Self {
        Self {
            random: 0.0,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition: 1.0,
            presence: 0.0,
            frequency: 0.0,
            bias: Vec::new(),
            seen: Vec::new(),
        }
    }
}
