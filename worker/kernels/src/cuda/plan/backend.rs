//! The traits of a [`Planner`]: operations with their names in the plan.

use std::{ops::Range, sync::Arc};

use super::{PlanBuffer, PlanKv, PlanStep, PlanWeight, Planner, What, values::address};
use crate::{
    AttentionShape, Backend, BlockMove, Device, Draw, HostTensor, KernelError, KvLayout, KvScales, PackedWeight,
    Result, Rotary, Split, StepPlan, Store, WeightSpec,
    cuda::{
        draw,
        executor::Executor,
        graph::Command,
        kernels::Ptr,
        launch::{
            attention,
            rows::{self, Vocabulary},
        },
        layout,
        memory::lock,
        operations::{self, number},
        scratch::Slot,
        step::{CudaStep, Numbers},
        work::{Work, floats},
    },
};

impl Device for Planner {
    type Buffer = PlanBuffer;
    type Weight = PlanWeight;
    type Kv = PlanKv;

    fn name(&self) -> String {
        format!("a plan for {} multiprocessors", self.options.processors)
    }

    fn buffer(&self, rows: usize, width: usize) -> Result<PlanBuffer> {
        let mut state = lock(&self.state);
        state.next_buffer += 1;
        Ok(PlanBuffer { id: state.next_buffer, kept: Arc::new(()), rows, width })
    }

    fn upload(&self, host: &HostTensor) -> Result<PlanBuffer> {
        self.buffer(host.rows, host.width)
    }

    fn download(&self, buffer: &PlanBuffer, rows: usize, host: &mut HostTensor) -> Result<()> {
        operations::fits("the buffer", buffer, rows, buffer.width)?;
        self.begin_part("to the host");
        operations::read(self, buffer)?;
        self.plan(What::HostCopy, "copy_to_host", [0; 3], Work::bytes(floats(rows * buffer.width), 0));
        *host = HostTensor { rows, width: buffer.width, data: vec![0.0; rows * buffer.width] };
        // As on a device, a step is over when its results are asked for.
        lock(&self.state).in_step = false;
        Ok(())
    }

    fn weight(&self, packed: &PackedWeight, split: Split) -> Result<PlanWeight> {
        self.planned_weight("product", &packed.spec, split)
    }

    fn weight_bytes(&self, spec: &WeightSpec, _split: Split) -> Result<usize> {
        layout::gpu_len(spec)
    }

    fn prefetch(&self, _weight: &PlanWeight) {}

    fn release(&self, _weight: &PlanWeight) {}

    fn kv(&self, layout: KvLayout, _scales: &KvScales, blocks: usize, max_blocks: usize) -> Result<PlanKv> {
        attention::unit(layout.head_dim)?;
        Ok(PlanKv { layout, blocks, max_blocks })
    }

    fn kv_resize(&self, kv: &mut PlanKv, blocks: usize) -> Result<()> {
        if blocks > kv.max_blocks {
            return Err(KernelError::OutOfMemory(format!("{blocks} KV blocks; {} are reserved", kv.max_blocks)));
        }
        kv.blocks = blocks;
        Ok(())
    }

    fn kv_move(&self, kv: &mut PlanKv, moves: &[BlockMove]) -> Result<()> {
        self.begin_part("moves of blocks");
        let bytes = kv.layout.block_bytes();
        self.submit(Command::Launch(rows::move_blocks(Ptr::new(address(0)), bytes, Ptr::NULL, moves.len() as u32)))
    }
}

impl Backend for Planner {
    type Step = PlanStep;

    fn begin(&mut self, plan: &StepPlan) -> Result<PlanStep> {
        let numbers = Numbers::new(plan, self.options.graphs)?;
        self.begin_part("the step's numbers");
        let place = self.send(Slot::Step, numbers.bytes())?;
        let mut state = lock(&self.state);
        state.in_step = true;
        let generation = state.present.begin(&numbers);
        Ok(PlanStep(CudaStep::new(&numbers, Ptr::new(place), generation)))
    }

    fn end(&mut self, _step: PlanStep) -> Result<()> {
        lock(&self.state).in_step = false;
        Ok(())
    }

    fn embed(&mut self, step: &PlanStep, table: &PlanWeight, out: &mut PlanBuffer) -> Result<()> {
        self.begin_part("embedding");
        // Which of the vocabulary's tokens a device has makes no difference to what it is given.
        let vocabulary = Vocabulary { tokens: number(table.placed.layout.spec.n), first: 0, missing: 0.0 };
        let all = vocabulary.tokens.saturating_mul(number(self.options.devices));
        operations::embed(self, &step.0, table, (vocabulary, all), out)?;
        // Each device has the rows of its tokens, and zeros.
        self.sum(table.split == Split::Outputs, step.0.shape.rows, &[], out)
    }

    fn rms_norm(
        &mut self,
        rows: usize,
        x: &PlanBuffer,
        gain: &PlanBuffer,
        epsilon: f32,
        out: &mut PlanBuffer,
    ) -> Result<()> {
        self.begin_part("norm");
        operations::rms_norm(self, rows, x, gain, epsilon, out)
    }

    fn linear(
        &mut self,
        rows: usize,
        x: &PlanBuffer,
        w: &PlanWeight,
        bias: Option<&PlanBuffer>,
        store: Store,
        out: &mut PlanBuffer,
    ) -> Result<()> {
        self.begin_part(w.part);
        operations::product(self, rows, x, w, bias, store, out)?;
        // What each device has of the vocabulary is put together on the host.
        self.sum(w.split == Split::Inputs, rows, &[x], out)
    }

    fn rotate_and_store(
        &mut self,
        step: &PlanStep,
        qkv: &mut PlanBuffer,
        shape: &AttentionShape,
        rotary: &Rotary<'_, PlanBuffer>,
        kv: &mut PlanKv,
        layer: usize,
    ) -> Result<()> {
        self.begin_part("rotate and store");
        operations::rotate_and_store(self, &step.0, qkv, shape, rotary, (kv, layer))
    }

    fn attention(
        &mut self,
        step: &PlanStep,
        qkv: &PlanBuffer,
        shape: &AttentionShape,
        kv: &PlanKv,
        layer: usize,
        out: &mut PlanBuffer,
    ) -> Result<()> {
        self.begin_part("attention");
        operations::attention(self, &step.0, qkv, shape, (kv, layer), out)
    }

    fn gated_silu(&mut self, rows: usize, x: &PlanBuffer, out: &mut PlanBuffer) -> Result<()> {
        self.begin_part("activation");
        operations::gated_silu(self, rows, x, out)
    }

    fn sample(&mut self, logits: &mut PlanBuffer, first: usize, draws: &[Draw]) -> Result<Option<Vec<Option<u32>>>> {
        // Each of several devices has a part of the vocabulary.
        if self.options.devices > 1 {
            return Ok(None);
        }
        self.begin_part("sampling");
        if draw::tokens(self, logits, first, draws)?.is_none() {
            return Ok(None);
        }
        self.plan(What::HostCopy, "copy_to_host", [0; 3], Work::bytes(draws.len() * size_of::<u32>(), 0));
        lock(&self.state).in_step = false;
        Ok(Some(vec![Some(0); draws.len()]))
    }

    fn gather_logit_rows(
        &mut self,
        step: &PlanStep,
        x: &PlanBuffer,
        range: Range<usize>,
        out: &mut PlanBuffer,
    ) -> Result<()> {
        self.begin_part("rows with logits");
        operations::gather(self, &step.0, x, range, out)
    }
}
