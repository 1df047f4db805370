//! [`Backend`] for [`Traced`]: each operation is the other backend's, between two looks at the clock.

use std::{ops::Range, time::Duration};

use modelprofile_kernels::{AttentionShape, Backend, Draw, Result, Rotary, StepPlan, Store};

use super::{Kernel, Known, Product, Recorder, Step, Traced};

impl<B: Backend> Traced<B> {
    /// Calls the backend and records the kernel, whatever becomes of it: a step that fails is never kept.
    fn timed<T>(&mut self, kernel: Kernel, call: impl FnOnce(&mut B) -> Result<T>) -> Result<T> {
        let start = self.origin.elapsed();
        let result = call(&mut self.backend);
        let end = self.origin.elapsed();
        self.recorder.get_mut().add(kernel, start, end);
        result
    }
}

impl<B: Backend> Backend for Traced<B> {
    type Step = B::Step;

    fn begin(&mut self, plan: &StepPlan) -> Result<Self::Step> {
        // Copied before the step starts, which would not copy it.
        let step =
            Step { plan: plan.clone(), start: self.origin.elapsed(), duration: Duration::ZERO, calls: Vec::new() };
        let recorder = self.recorder.get_mut();
        *recorder = Recorder { steps: std::mem::take(&mut recorder.steps), current: Some(step), layer: None };
        self.timed(Kernel::Begin, |backend| backend.begin(plan))
    }

    fn embed(&mut self, step: &Self::Step, table: &Self::Weight, out: &mut Self::Buffer) -> Result<()> {
        self.timed(Kernel::Embed(table.about.weight), |backend| backend.embed(step, &table.inner, &mut out.inner))
    }

    fn rms_norm(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        gain: &Self::Buffer,
        epsilon: f32,
        out: &mut Self::Buffer,
    ) -> Result<()> {
        self.timed(Kernel::RmsNorm { rows, width: x.about }, |backend| {
            backend.rms_norm(rows, &x.inner, &gain.inner, epsilon, &mut out.inner)
        })
    }

    fn linear(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        w: &Self::Weight,
        bias: Option<&Self::Buffer>,
        store: Store,
        out: &mut Self::Buffer,
    ) -> Result<()> {
        let product = Product {
            part: self.recorder.get_mut().part(w.about.split),
            rows,
            weight: w.about.weight,
            bias: bias.is_some(),
            store,
            grouped: self.backend.grouped_activations(),
        };
        self.timed(Kernel::Linear(product), |backend| {
            backend.linear(rows, &x.inner, &w.inner, bias.map(|bias| &bias.inner), store, &mut out.inner)
        })
    }

    fn rotate_and_store(
        &mut self,
        step: &Self::Step,
        qkv: &mut Self::Buffer,
        shape: &AttentionShape,
        rotary: &Rotary<'_, Self::Buffer>,
        kv: &mut Self::Kv,
        layer: usize,
    ) -> Result<()> {
        let rotary = Rotary {
            inverse_frequencies: &rotary.inverse_frequencies.inner,
            attention_factor: rotary.attention_factor,
            query_norm: rotary.query_norm.map(|norm| &norm.inner),
            key_norm: rotary.key_norm.map(|norm| &norm.inner),
            norm_epsilon: rotary.norm_epsilon,
        };
        self.recorder.get_mut().layer = Some(layer);
        self.timed(Kernel::RotateAndStore { shape: *shape, kv: kv.about }, |backend| {
            backend.rotate_and_store(step, &mut qkv.inner, shape, &rotary, &mut kv.inner, layer)
        })
    }

    fn attention(
        &mut self,
        step: &Self::Step,
        qkv: &Self::Buffer,
        shape: &AttentionShape,
        kv: &Self::Kv,
        layer: usize,
        out: &mut Self::Buffer,
    ) -> Result<()> {
        self.recorder.get_mut().layer = Some(layer);
        self.timed(Kernel::Attention { shape: *shape, kv: kv.about }, |backend| {
            backend.attention(step, &qkv.inner, shape, &kv.inner, layer, &mut out.inner)
        })
    }

    fn gated_silu(&mut self, rows: usize, x: &Self::Buffer, out: &mut Self::Buffer) -> Result<()> {
        self.timed(Kernel::GatedSilu { rows, width: out.about }, |backend| {
            backend.gated_silu(rows, &x.inner, &mut out.inner)
        })
    }

    fn gather_logit_rows(
        &mut self,
        step: &Self::Step,
        x: &Self::Buffer,
        range: Range<usize>,
        out: &mut Self::Buffer,
    ) -> Result<()> {
        self.timed(Kernel::GatherLogitRows { rows: range.len(), width: x.about }, |backend| {
            backend.gather_logit_rows(step, &x.inner, range, &mut out.inner)
        })
    }

    /// Recorded where something was drawn: a device that does not draw only says so.
    fn sample(&mut self, logits: &mut Self::Buffer, first: usize, draws: &[Draw]) -> Result<Option<Vec<Option<u32>>>> {
        let Known { inner, about: width } = logits;
        let start = self.origin.elapsed();
        let drawn = self.backend.sample(inner, first, draws)?;
        let end = self.origin.elapsed();
        if drawn.is_some() {
            self.recorder.get_mut().add(Kernel::Sample { rows: draws.len(), width: *width }, start, end);
        }
        Ok(drawn)
    }

    fn end(&mut self, step: Self::Step) -> Result<()> {
        self.timed(Kernel::End, |backend| backend.end(step))?;
        let now = self.origin.elapsed();
        let recorder = self.recorder.get_mut();
        if let Some(mut step) = recorder.current.take() {
            step.duration = now.saturating_sub(step.start);
            recorder.steps.push(step);
        }
        Ok(())
    }
}
