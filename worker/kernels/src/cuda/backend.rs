//! [`Backend`] on a GPU: the operations, with its queue and its memory.

use std::ops::Range;

use super::{
    Cuda,
    content::CudaBuffer,
    cublaslt::Shape,
    draw,
    driver::Address,
    executor::Executor,
    graph::Command,
    kernels::Ptr,
    kv::CudaKv,
    launch::rows::Vocabulary,
    operations::{self, check_step, number},
    present::Present,
    scratch::Slot,
    step::{CudaStep, Numbers},
    weights::CudaWeight,
};
use crate::{AttentionShape, Backend, Draw, Result, Rotary, StepPlan, Store};

impl Executor for Cuda {
    type Buffer = CudaBuffer;
    type Weight = CudaWeight;
    type Kv = CudaKv;

    fn submit(&self, command: Command) -> Result<()> {
        Self::submit(self, command)
    }

    fn scratch(&self, slot: Slot, bytes: usize) -> Result<Address> {
        Self::scratch(self, slot, bytes)
    }

    fn send(&self, slot: Slot, bytes: &[u8]) -> Result<Address> {
        Self::send(self, slot, bytes)
    }

    fn present<T>(&self, work: impl FnOnce(&mut Present) -> T) -> T {
        Self::present(self, work)
    }

    fn is_in_step(&self) -> bool {
        self.shared.queue(|queue| queue.is_in_step())
    }

    fn make_ready(&self, weight: &CudaWeight) -> Result<()> {
        self.with_room(|| weight.make_ready())
    }

    fn back(&self, kv: &mut CudaKv, blocks: usize) -> Result<()> {
        self.with_room(|| kv.back(blocks))
    }

    fn takes(&self, shape: Shape) -> Result<bool> {
        self.shared.queue(|queue| match &queue.machine.lt {
            Some(lt) => lt.takes(shape),
            None => Ok(false),
        })
    }

    fn processors(&self) -> usize {
        self.shared.gpu.info.processors as usize
    }

    fn deterministic(&self) -> bool {
        self.options.deterministic
    }

    fn unpack_rows(&self) -> usize {
        self.options.unpack_rows
    }
}

impl Backend for Cuda {
    type Step = CudaStep;

    fn begin(&mut self, plan: &StepPlan) -> Result<CudaStep> {
        let numbers = Numbers::new(plan, self.options.graphs)?;
        let place = self.send(Slot::Step, numbers.bytes())?;
        if let Some(bucket) = numbers.shape.bucket {
            self.shared.queue(|queue| queue.expect(bucket))?;
        }
        let generation = self.present(|present| present.begin(&numbers));
        Ok(CudaStep::new(&numbers, Ptr::new(place), generation))
    }

    fn embed(&mut self, step: &CudaStep, table: &CudaWeight, out: &mut CudaBuffer) -> Result<()> {
        let vocabulary = Vocabulary { tokens: number(table.spec().n), first: 0, missing: f32::NAN };
        operations::embed(self, step, table, (vocabulary, vocabulary.tokens), out)
    }

    fn rms_norm(
        &mut self,
        rows: usize,
        x: &CudaBuffer,
        gain: &CudaBuffer,
        epsilon: f32,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        operations::rms_norm(self, rows, x, gain, epsilon, out)
    }

    fn linear(
        &mut self,
        rows: usize,
        x: &CudaBuffer,
        w: &CudaWeight,
        bias: Option<&CudaBuffer>,
        store: Store,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        operations::product(self, rows, x, w, bias, store, out)
    }

    fn rotate_and_store(
        &mut self,
        step: &CudaStep,
        qkv: &mut CudaBuffer,
        shape: &AttentionShape,
        rotary: &Rotary<'_, CudaBuffer>,
        kv: &mut CudaKv,
        layer: usize,
    ) -> Result<()> {
        operations::rotate_and_store(self, step, qkv, shape, rotary, (kv, layer))
    }

    fn attention(
        &mut self,
        step: &CudaStep,
        qkv: &CudaBuffer,
        shape: &AttentionShape,
        kv: &CudaKv,
        layer: usize,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        operations::attention(self, step, qkv, shape, (kv, layer), out)
    }

    fn gated_silu(&mut self, rows: usize, x: &CudaBuffer, out: &mut CudaBuffer) -> Result<()> {
        operations::gated_silu(self, rows, x, out)
    }

    fn gather_logit_rows(
        &mut self,
        step: &CudaStep,
        x: &CudaBuffer,
        range: Range<usize>,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        operations::gather(self, step, x, range, out)
    }

    fn sample(&mut self, logits: &mut CudaBuffer, first: usize, draws: &[Draw]) -> Result<Option<Vec<Option<u32>>>> {
        let Some(tokens) = draw::tokens(self, logits, first, draws)? else { return Ok(None) };
        let mut host = vec![0u32; draws.len()];
        self.copy_out(tokens.address(), bytemuck::cast_slice_mut(&mut host))?;
        Ok(Some(draw::found(host)))
    }

    fn end(&mut self, step: CudaStep) -> Result<()> {
        check_step(self, &step)?;
        self.shared.flush()
    }
}
