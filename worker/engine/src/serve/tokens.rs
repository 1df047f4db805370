//! The tokens of a step: drawn where the logits are, but for the rows whose logits the host looks at.

use std::{collections::HashMap, ops::Range};

use modelprofile_kernels::{Draw, HostTensor, StepPlan};

use super::active::Active;
use crate::{Result, TokenLogprob, model::Readout, sample::SampleError, sched::ScheduledStep};

/// What one row of logits became.
pub(super) enum Sampled {
    Token { id: u64, token: u32, logprob: Option<TokenLogprob> },
    Failed { id: u64, error: String },
}

/// Chooses the tokens of a step's requests.
pub(super) struct Tokens<'a> {
    step: &'a ScheduledStep,
    requests: &'a mut HashMap<u64, Active>,
    /// The rows with logits, as the plan has them.
    rows: Vec<usize>,
    /// How many of them, from the first, the host looks at.
    read: usize,
    sampled: Vec<Sampled>,
}

impl<'a> Tokens<'a> {
    /// Reorders the plan's rows with logits: first those that the host looks at, so that what it copies lies together.
    pub(super) fn new(step: &'a ScheduledStep, requests: &'a mut HashMap<u64, Active>, plan: &mut StepPlan) -> Self {
        let is_read = |row: &usize| match step.row(*row) {
            Some((id, position, true)) => requests.get(&id).is_none_or(|request| request.reads_logits(position)),
            // Rows of a prompt that is scored.
            Some((_, _, false)) | None => true,
        };
        let (mut rows, drawn): (Vec<usize>, Vec<usize>) = plan.logit_rows.iter().partition(|row| is_read(row));
        let read = rows.len();
        rows.extend(drawn);
        plan.logit_rows.clone_from(&rows);
        Self { step, requests, rows, read, sampled: Vec::with_capacity(step.items().len()) }
    }

    /// What the rows became.
    pub(super) fn into_sampled(self) -> Vec<Sampled> {
        self.sampled
    }

    fn push(&mut self, id: u64, chosen: std::result::Result<(u32, Option<TokenLogprob>), SampleError>) {
        self.sampled.push(match chosen {
            Ok((token, logprob)) => Sampled::Token { id, token, logprob },
            Err(error) => Sampled::Failed { id, error: error.to_string() },
        });
    }
}

impl Readout for Tokens<'_> {
    fn draws(&mut self, range: Range<usize>) -> Vec<Draw> {
        let rows = &self.rows[range.start.max(self.read).min(range.end)..range.end];
        let draw = |row: &usize| {
            let (id, ..) = self.step.row(*row)?;
            Some(self.requests.get(&id)?.sampler.draw())
        };
        rows.iter().filter_map(draw).collect()
    }

    fn logits(&mut self, range: Range<usize>, logits: &mut HostTensor) -> Result<()> {
        for (index, logits) in range.zip(logits.data.chunks_exact_mut(logits.width)) {
            let Some((id, position, samples)) = self.step.row(self.rows[index]) else { continue };
            let Some(request) = self.requests.get_mut(&id) else { continue };
            request.score_prompt(position, logits);
            if samples {
                let chosen = request.sample(logits);
                self.push(id, chosen);
            }
        }
        Ok(())
    }

    fn tokens(&mut self, range: Range<usize>, tokens: &[Option<u32>]) -> Result<()> {
        for (index, token) in range.zip(tokens) {
            let Some((id, ..)) = self.step.row(self.rows[index]) else { continue };
            let Some(request) = self.requests.get_mut(&id) else { continue };
            let chosen = request.sampler.take(*token).map(|token| (token, None));
            self.push(id, chosen);
        }
        Ok(())
    }
}
