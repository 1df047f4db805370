//! [`Backend`] of several GPUs: each operation on every GPU's parts.

use std::{ops::Range, sync::Arc};

use super::{
    Parallel,
    ranks::Rank,
    split::{self, Division, Share},
    values::{ParallelBuffer, ParallelKv, ParallelStep, ParallelWeight, Parts},
};
use crate::{
    AttentionShape, Backend, Draw, KernelError, Result, Rotary, StepPlan, Store,
    cuda::{CudaBuffer, graph},
};

impl Parallel {
    fn check_step(&self, step: &ParallelStep) -> Result<()> {
        if step.number == self.number {
            return Ok(());
        }
        Err(KernelError::Device("a step is used after a later one began".into()))
    }

    /// Whether attention is divided: as Q, K and V are.
    fn is_divided(&self, qkv: &ParallelBuffer, shape: &AttentionShape, rows: usize) -> Result<bool> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = *shape;
        qkv.check("Q, K and V", rows, (heads + 2 * kv_heads) * head_dim)?;
        if qkv.division.is_none() {
            return Ok(false);
        }
        qkv.check_division("Q, K and V", Some(&Division::heads(heads, kv_heads, head_dim, self.count())?))?;
        Ok(true)
    }

    /// Makes a pool that nothing was stored into be divided as attention is.
    fn settle(&self, kv: &mut ParallelKv, divided: bool) -> Result<()> {
        if kv.divided == divided {
            kv.used = true;
            return Ok(());
        }
        if kv.used {
            return Err(KernelError::Shape(
                "a cache is divided over the GPUs as the weights of Q, K and V are: those of its first step".into(),
            ));
        }
        kv.divided = divided;
        kv.used = true;
        let make = self.pools((kv.layout, &kv.scales), divided, kv.blocks, kv.max_blocks);
        let parts = kv.parts.clone();
        self.submit(move |rank| {
            drop(parts.take(rank));
            let pool = make(rank)?;
            parts.put(rank, pool);
            Ok(())
        })
    }

    /// The parts of a bias for a product whose outputs are divided so.
    fn bias_parts(&self, bias: &ParallelBuffer, division: Option<&Division>) -> Result<Parts<CudaBuffer>> {
        bias.check_division("the bias", None)?;
        let Some(division) = division else { return Ok(bias.parts.clone()) };
        if let Some((of, parts)) = bias.bias.get() {
            if of == division {
                return Ok(parts.clone());
            }
            return Err(KernelError::Shape("one bias for products that are divided in different ways".into()));
        }
        let Some(row) = bias.row.clone() else {
            return Err(KernelError::Shape(
                "a product whose outputs are divided takes a bias that was uploaded".into(),
            ));
        };
        let parts = Parts::empty(self.count());
        let (made, of) = (parts.clone(), division.clone());
        self.submit(move |rank| {
            let data = of.take(rank.index, &row);
            let part = crate::HostTensor { rows: 1, width: data.len(), data };
            let buffer = crate::Device::upload(&rank.cuda, &part)?;
            made.put(rank, buffer);
            Ok(())
        })?;
        // It ends a recorded step, which goes on without padding.
        self.bucket.set(None);
        let _ = bias.bias.set((division.clone(), parts.clone()));
        Ok(parts)
    }

    /// A product of which each GPU has some inputs: parts of a sum, which replaces them.
    fn linear_in_parts(
        &self,
        rows: usize,
        (x, w, division): (&ParallelBuffer, &ParallelWeight, &Division),
        bias: Option<&ParallelBuffer>,
        store: Store,
        out: &mut ParallelBuffer,
    ) -> Result<()> {
        x.check_division("the product's input", Some(division))?;
        if store == Store::Add {
            out.check_division("what a product is added to", None)?;
        }
        let bias = bias.map(|bias| self.bias_parts(bias, None)).transpose()?;
        out.divide(&self.ranks, None);
        let summed = self.summed_rows(rows, out.rows);
        let (x, w, out) = (x.parts.clone(), w.parts.clone(), out.parts.clone());
        self.submit(move |rank| {
            // One adds what was there, and the bias.
            let (store, bias) = if rank.index == 0 { (store, bias.as_ref()) } else { (Store::Overwrite, None) };
            let done = multiply(rank, rows, (&x, &w), bias, store, &out);
            // The others are in the sum already.
            let summed = rank.all_reduce(out.get(rank), summed);
            done.and(summed)
        })
    }
}

/// A GPU's part of a product.
fn multiply(
    rank: &mut Rank,
    rows: usize,
    (x, w): (&Parts<CudaBuffer>, &Parts<crate::cuda::CudaWeight>),
    bias: Option<&Parts<CudaBuffer>>,
    store: Store,
    out: &Parts<CudaBuffer>,
) -> Result<()> {
    let (x, mut out) = (x.get(rank)?, out.get(rank)?);
    let bias = bias.map(|bias| bias.get(rank)).transpose()?;
    let index = rank.index;
    let cuda = &mut rank.cuda;
    w.with(index, |w| cuda.linear(rows, &x, w, bias.as_ref(), store, &mut out))
}

impl Backend for Parallel {
    type Step = ParallelStep;

    fn begin(&mut self, plan: &StepPlan) -> Result<ParallelStep> {
        self.number += 1;
        self.rows = plan.rows();
        self.bucket.set(graph::bucket_of(plan, self.graphs));
        let (number, shared) = (self.number, Arc::new(plan.clone()));
        self.submit(move |rank| rank.begin_step(number, &shared))?;
        Ok(ParallelStep { number, rows: plan.rows(), logit_rows: plan.logit_rows.len() })
    }

    fn embed(&mut self, step: &ParallelStep, table: &ParallelWeight, out: &mut ParallelBuffer) -> Result<()> {
        self.check_step(step)?;
        out.check("the residual", step.rows, table.spec.k)?;
        out.divide(&self.ranks, None);
        let (all, rows) = (table.spec.n, self.summed_rows(step.rows, out.rows));
        let (parts, out) = (table.parts.clone(), out.parts.clone());
        match &table.share {
            Share::Inputs(_) => Err(KernelError::Shape("an embedding is divided by its tokens, or whole".into())),
            Share::Whole => self.submit(move |rank| {
                let (step, mut out) = (rank.step()?, out.get(rank)?);
                let cuda = &mut rank.cuda;
                parts.with(rank.index, |table| cuda.embed(&step, table, &mut out))
            }),
            Share::Outputs(division) => {
                let firsts: Vec<usize> = (0..self.count()).map(|rank| division.of(rank)[0].start).collect();
                self.submit(move |rank| {
                    let look_up = |rank: &mut Rank| {
                        let (step, mut out) = (rank.step()?, out.get(rank)?);
                        let (index, cuda) = (rank.index, &mut rank.cuda);
                        parts.with(index, |table| cuda.embed_part(&step, table, firsts[index], all, &mut out))
                    };
                    let done = look_up(rank);
                    let summed = rank.all_reduce(out.get(rank), rows);
                    done.and(summed)
                })
            }
        }
    }

    fn rms_norm(
        &mut self,
        rows: usize,
        x: &ParallelBuffer,
        gain: &ParallelBuffer,
        epsilon: f32,
        out: &mut ParallelBuffer,
    ) -> Result<()> {
        x.check("the norm's input", rows, x.width)?;
        x.check_division("the norm's input", None)?;
        gain.check("the norm's gain", 1, x.width)?;
        gain.check_division("the norm's gain", None)?;
        out.check("the norm's output", rows, x.width)?;
        out.divide(&self.ranks, None);
        let (x, gain, out) = (x.parts.clone(), gain.parts.clone(), out.parts.clone());
        self.submit(move |rank| rank.cuda.rms_norm(rows, &x.get(rank)?, &gain.get(rank)?, epsilon, &mut out.get(rank)?))
    }

    fn linear(
        &mut self,
        rows: usize,
        x: &ParallelBuffer,
        w: &ParallelWeight,
        bias: Option<&ParallelBuffer>,
        store: Store,
        out: &mut ParallelBuffer,
    ) -> Result<()> {
        x.check("the product's input", rows, w.spec.k)?;
        out.check("the product's output", rows, w.spec.n)?;
        if let Some(bias) = bias {
            bias.check("the bias", 1, w.spec.n)?;
        }
        let division = match &w.share {
            Share::Inputs(division) => return self.linear_in_parts(rows, (x, w, division), bias, store, out),
            Share::Outputs(division) => Some(division),
            Share::Whole => None,
        };
        x.check_division("the product's input", None)?;
        if store == Store::Add {
            out.check_division("what a product is added to", division)?;
        }
        let bias = bias.map(|bias| self.bias_parts(bias, division)).transpose()?;
        out.divide(&self.ranks, division);
        let (x, w, out) = (x.parts.clone(), w.parts.clone(), out.parts.clone());
        self.submit(move |rank| multiply(rank, rows, (&x, &w), bias.as_ref(), store, &out))
    }

    fn rotate_and_store(
        &mut self,
        step: &ParallelStep,
        qkv: &mut ParallelBuffer,
        shape: &AttentionShape,
        rotary: &Rotary<'_, ParallelBuffer>,
        kv: &mut ParallelKv,
        layer: usize,
    ) -> Result<()> {
        self.check_step(step)?;
        let divided = self.is_divided(qkv, shape, step.rows)?;
        self.settle(kv, divided)?;
        let own = if divided { split::attention(shape, self.count()) } else { *shape };
        let whole = [Some(rotary.inverse_frequencies), rotary.query_norm, rotary.key_norm];
        for buffer in whole.into_iter().flatten() {
            buffer.check_division("a head's norm or the rotary frequencies", None)?;
        }
        let parts = |buffer: &ParallelBuffer| buffer.parts.clone();
        let frequencies = parts(rotary.inverse_frequencies);
        let norms = [rotary.query_norm, rotary.key_norm].map(|norm| norm.map(parts));
        let (attention_factor, norm_epsilon) = (rotary.attention_factor, rotary.norm_epsilon);
        let (qkv, kv) = (qkv.parts.clone(), kv.parts.clone());
        self.submit(move |rank| {
            let (step, mut qkv, frequencies) = (rank.step()?, qkv.get(rank)?, frequencies.get(rank)?);
            let norm = |norm: &Option<Parts<CudaBuffer>>| norm.as_ref().map(|norm| norm.get(rank)).transpose();
            let (query, key) = (norm(&norms[0])?, norm(&norms[1])?);
            let rotary = Rotary {
                inverse_frequencies: &frequencies,
                attention_factor,
                query_norm: query.as_ref(),
                key_norm: key.as_ref(),
                norm_epsilon,
            };
            let (index, cuda) = (rank.index, &mut rank.cuda);
            kv.with(index, |kv| cuda.rotate_and_store(&step, &mut qkv, &own, &rotary, kv, layer))
        })
    }

    fn attention(
        &mut self,
        step: &ParallelStep,
        qkv: &ParallelBuffer,
        shape: &AttentionShape,
        kv: &ParallelKv,
        layer: usize,
        out: &mut ParallelBuffer,
    ) -> Result<()> {
        self.check_step(step)?;
        let divided = self.is_divided(qkv, shape, step.rows)?;
        if divided != kv.divided {
            return Err(KernelError::Shape("attention over a cache that is divided in another way".into()));
        }
        let width = shape.heads * shape.head_dim;
        out.check("the attention's output", step.rows, width)?;
        let own = if divided { split::attention(shape, self.count()) } else { *shape };
        out.divide(&self.ranks, divided.then(|| Division::even(width, self.count())).as_ref());
        let (qkv, kv, out) = (qkv.parts.clone(), kv.parts.clone(), out.parts.clone());
        self.submit(move |rank| {
            let (step, qkv, mut out) = (rank.step()?, qkv.get(rank)?, out.get(rank)?);
            let (index, cuda) = (rank.index, &mut rank.cuda);
            kv.with(index, |kv| cuda.attention(&step, &qkv, &own, kv, layer, &mut out))
        })
    }

    fn gated_silu(&mut self, rows: usize, x: &ParallelBuffer, out: &mut ParallelBuffer) -> Result<()> {
        let width = out.width;
        x.check("gate and up", rows, 2 * width)?;
        out.check("the activation", rows, width)?;
        let division = x.division.as_ref().map(|_| Division::halves(2 * width, self.count())).transpose()?;
        x.check_division("gate and up", division.as_ref())?;
        // The same columns of both, and so of their product.
        let division = division.map(|_| Division::even(width, self.count()));
        out.divide(&self.ranks, division.as_ref());
        let (x, out) = (x.parts.clone(), out.parts.clone());
        self.submit(move |rank| rank.cuda.gated_silu(rows, &x.get(rank)?, &mut out.get(rank)?))
    }

    fn gather_logit_rows(
        &mut self,
        step: &ParallelStep,
        x: &ParallelBuffer,
        range: Range<usize>,
        out: &mut ParallelBuffer,
    ) -> Result<()> {
        self.check_step(step)?;
        if range.end > step.logit_rows {
            return Err(KernelError::Shape(format!("rows {range:?} of {} with logits", step.logit_rows)));
        }
        x.check("the rows", step.rows, x.width)?;
        x.check_division("the rows", None)?;
        out.check("the selected rows", range.len(), x.width)?;
        out.divide(&self.ranks, None);
        let (x, out) = (x.parts.clone(), out.parts.clone());
        self.submit(move |rank| {
            let (step, x, mut out) = (rank.step()?, x.get(rank)?, out.get(rank)?);
            rank.cuda.gather_logit_rows(&step, &x, range.clone(), &mut out)
        })
    }

    fn sample(
        &mut self,
        logits: &mut ParallelBuffer,
        first: usize,
        draws: &[Draw],
    ) -> Result<Option<Vec<Option<u32>>>> {
        logits.check("the logits", first + draws.len(), logits.width)?;
        if logits.division.is_some() {
            return Ok(None);
        }
        // Its values are about to be others.
        logits.divide(&self.ranks, None);
        let (parts, draws) = (logits.parts.clone(), Arc::<[Draw]>::from(draws));
        let mut all = self.ask(move |rank| {
            let mut logits = parts.get(rank)?;
            // All wait, so that one which is lost is noticed while the others wait for it.
            let own = if rank.index == 0 { &draws[..] } else { &[] };
            let done = rank.cuda.sample(&mut logits, first, own);
            rank.tell().and(done)
        })?;
        Ok(all.swap_remove(0))
    }

    fn end(&mut self, step: ParallelStep) -> Result<()> {
        self.check_step(&step)?;
        self.ask(|rank| {
            rank.step = None;
            rank.tell()
        })
        .map(|_| ())
    }
}
