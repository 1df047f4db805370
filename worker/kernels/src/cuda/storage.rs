//! [`Device`] on a GPU: buffers and copies, weights, the pool.

use super::{
    Cuda,
    content::CudaBuffer,
    graph::Command,
    kernels::{Ptr, Rows, Side},
    kv::CudaKv,
    launch::{attention, rows},
    layout,
    operations::{fits, read},
    scratch::Slot,
    weights::CudaWeight,
};
use crate::{
    BlockMove, Device, HostTensor, KernelError, KvLayout, KvScales, PackedWeight, Presence, Result, Split, WeightSpec,
    Workload,
};

/// Modelled: what page-locked copies reach over PCIe 5.0 x16, whose 32 GT/s a lane are 63 GB/s less headers of 256-byte
/// packets.
pub(super) const HOST_BANDWIDTH: f64 = 55e9;

impl Device for Cuda {
    type Buffer = CudaBuffer;
    type Weight = CudaWeight;
    type Kv = CudaKv;

    fn name(&self) -> String {
        self.info().name.clone()
    }

    fn buffer(&self, rows: usize, width: usize) -> Result<CudaBuffer> {
        let buffer = self.new_buffer(rows, width)?;
        if rows * width > 0 {
            self.submit(Command::Fill { at: buffer.at().address(), word: 0, count: rows * width })?;
        }
        Ok(buffer)
    }

    fn upload(&self, host: &HostTensor) -> Result<CudaBuffer> {
        host.check()?;
        let buffer = self.new_buffer(host.rows, host.width)?;
        self.copy_in(bytemuck::cast_slice(&host.data), &buffer.block)?;
        Ok(buffer)
    }

    fn download(&self, buffer: &CudaBuffer, rows: usize, host: &mut HostTensor) -> Result<()> {
        fits("the buffer", buffer, rows, buffer.width)?;
        read(self, buffer)?;
        host.rows = rows;
        host.width = buffer.width;
        host.data.clear();
        host.data.resize(rows * buffer.width, 0.0);
        self.copy_out(buffer.at().address(), bytemuck::cast_slice_mut(&mut host.data))
    }

    fn weight(&self, packed: &PackedWeight, _split: Split) -> Result<CudaWeight> {
        packed.spec.validate()?;
        if packed.bytes.len() != crate::packed_len(&packed.spec) {
            return Err(KernelError::Format(format!("{} bytes are not {:?}", packed.bytes.len(), packed.spec)));
        }
        Side::new("a weight", packed.spec.k)?;
        self.weights.weight(packed)
    }

    fn weight_bytes(&self, spec: &WeightSpec, _split: Split) -> Result<usize> {
        layout::gpu_len(spec)
    }

    fn host_bandwidth(&self) -> Option<f64> {
        Some(HOST_BANDWIDTH)
    }

    fn reserve(&self, workload: &Workload) -> Result<usize> {
        self.set_aside(workload)
    }

    fn presence(&self, weight: &CudaWeight) -> Presence {
        weight.presence().unwrap_or_else(|error| {
            self.note("it is not known whether a weight has come", Err(error));
            Presence::Absent
        })
    }

    fn prefetch(&self, weight: &CudaWeight) {
        self.note("a weight could not be copied ahead", weight.prefetch());
    }

    fn release(&self, weight: &CudaWeight) {
        self.note("a weight's memory could not be given back", weight.release());
    }

    fn kv(&self, layout: KvLayout, scales: &KvScales, blocks: usize, max_blocks: usize) -> Result<CudaKv> {
        let unit = attention::unit(layout.head_dim)?;
        self.shared.gpu.context.bind()?;
        self.shared.queue(|queue| queue.machine.kernels.need(unit))?;
        let kv = self
            .with_room(|| CudaKv::new(&self.physical, &self.arena, &self.shared, layout, scales, blocks, max_blocks))?;
        let both: Vec<f32> = scales.k.iter().chain(&scales.v).copied().collect();
        self.copy_in(bytemuck::cast_slice(&both), kv.scales())?;
        Ok(kv)
    }

    fn kv_resize(&self, kv: &mut CudaKv, blocks: usize) -> Result<()> {
        if blocks < kv.blocks() {
            self.shared.finish()?;
        } else {
            self.weights.settle()?;
        }
        kv.resize(blocks)
    }

    fn kv_move(&self, kv: &mut CudaKv, moves: &[BlockMove]) -> Result<()> {
        let numbers = kv.moves(moves)?;
        let Some(count) = Rows::new(moves.len())? else { return Ok(()) };
        let top = moves.iter().fold(0, |top, m| top.max(m.from.max(m.to) as usize + 1));
        self.with_room(|| kv.back(top))?;
        let list = self.send(Slot::Moves, bytemuck::cast_slice(&numbers))?;
        let (pool, bytes) = (Ptr::new(kv.base()), kv.layout.block_bytes());
        let launch = rows::move_blocks(pool, bytes, Ptr::new(list), count.get() as u32);
        self.submit(Command::Launch(launch))
    }
}
