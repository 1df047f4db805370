//! [`Device`] of several GPUs.

use std::sync::Arc;

use super::{
    Parallel,
    ranks::Rank,
    split::{self, Share},
    values::{ParallelBuffer, ParallelKv, ParallelWeight, Parts},
};
use crate::{
    BlockMove, Device, HostTensor, KernelError, KvLayout, KvScales, PackedWeight, Presence, Result, Split, WeightSpec,
    Workload,
    cuda::{CudaKv, layout, storage::HOST_BANDWIDTH},
};

impl Parallel {
    /// Makes the pools of a cache.
    pub(super) fn pools(
        &self,
        (layout, scales): (KvLayout, &KvScales),
        divided: bool,
        blocks: usize,
        max_blocks: usize,
    ) -> impl Fn(&mut Rank) -> Result<CudaKv> + Send + Sync + 'static {
        let (scales, devices) = (scales.clone(), self.count());
        move |rank| {
            if !divided {
                return rank.cuda.kv(layout, &scales, blocks, max_blocks);
            }
            let (layout, scales) = split::cache(layout, &scales, rank.index, devices);
            rank.cuda.kv(layout, &scales, blocks, max_blocks)
        }
    }
}

impl Device for Parallel {
    type Buffer = ParallelBuffer;
    type Weight = ParallelWeight;
    type Kv = ParallelKv;

    fn name(&self) -> String {
        named(&self.infos.iter().map(|info| info.name.as_str()).collect::<Vec<_>>())
    }

    fn buffer(&self, rows: usize, width: usize) -> Result<ParallelBuffer> {
        let parts = self.ask(move |rank| rank.cuda.buffer(rows, width))?;
        Ok(ParallelBuffer::new(rows, width, parts, None))
    }

    fn upload(&self, host: &HostTensor) -> Result<ParallelBuffer> {
        let (rows, width, shared) = (host.rows, host.width, Arc::new(host.clone()));
        let parts = self.ask(move |rank| rank.cuda.upload(&shared))?;
        let row = (rows == 1).then(|| Arc::from(host.data.as_slice()));
        Ok(ParallelBuffer::new(rows, width, parts, row))
    }

    fn download(&self, buffer: &ParallelBuffer, rows: usize, host: &mut HostTensor) -> Result<()> {
        buffer.check("the buffer", rows, buffer.width)?;
        let (parts, divided) = (buffer.parts.clone(), buffer.division.is_some());
        let mut all = self.ask(move |rank| {
            let buffer = parts.get(rank)?;
            let mut host = HostTensor::default();
            // All wait, so that one which is lost is noticed while the others wait for it.
            let own = if divided || rank.index == 0 { rows } else { 0 };
            let done = rank.cuda.download(&buffer, own, &mut host);
            rank.tell().and(done).map(|()| host)
        })?;
        let Some(division) = &buffer.division else {
            std::mem::swap(host, &mut all[0]);
            return Ok(());
        };
        host.rows = rows;
        host.width = buffer.width;
        host.data.clear();
        host.data.resize(rows * buffer.width, 0.0);
        for (index, part) in all.iter().enumerate() {
            division.put(index, &part.data, buffer.width, &mut host.data);
        }
        Ok(())
    }

    fn weight(&self, packed: &PackedWeight, split: Split) -> Result<ParallelWeight> {
        packed.spec.validate()?;
        let share = Share::new(&packed.spec, split, self.count())?;
        let whole = packed.unpack()?;
        let of = share.clone();
        let parts = self.ask(move |rank| rank.cuda.weight_of(&of.part(&whole, rank.index)))?;
        Ok(ParallelWeight { spec: packed.spec, share, parts: Parts::new(parts), ranks: self.ranks.clone() })
    }

    fn weight_bytes(&self, spec: &WeightSpec, split: Split) -> Result<usize> {
        spec.validate()?;
        let share = Share::new(spec, split, self.count())?;
        let sizes = (0..self.count()).map(|device| layout::gpu_len(&share.spec(spec, device)));
        sizes.collect::<Result<Vec<_>>>().map(|sizes| sizes.into_iter().max().unwrap_or(0))
    }

    fn kv_block_bytes(&self, layout: &KvLayout) -> usize {
        let divided = layout.kv_heads.is_multiple_of(self.count());
        let kv_heads = if divided { layout.kv_heads / self.count() } else { layout.kv_heads };
        KvLayout { kv_heads, ..*layout }.block_bytes()
    }

    fn host_bandwidth(&self) -> Option<f64> {
        // Each has a link of its own, and its part comes over it.
        Some(HOST_BANDWIDTH)
    }

    fn reserve(&self, workload: &Workload) -> Result<usize> {
        // What all rows are multiplied with is smaller on each; a bound need not be close.
        let workload = workload.clone();
        let bytes = self.ask(move |rank| rank.cuda.reserve(&workload))?;
        Ok(bytes.into_iter().max().unwrap_or(0))
    }

    fn presence(&self, weight: &ParallelWeight) -> Presence {
        let parts = weight.parts.clone();
        let all = self.ask(move |rank| parts.with(rank.index, |weight| Ok(rank.cuda.presence(weight))));
        // What cannot be told is told by the next step.
        all.ok().and_then(|all| all.into_iter().min()).unwrap_or(Presence::Absent)
    }

    fn prefetch(&self, weight: &ParallelWeight) {
        let parts = weight.parts.clone();
        self.ranks.submit(move |rank| {
            parts.with(rank.index, |weight| {
                rank.cuda.prefetch(weight);
                Ok(())
            })
        });
    }

    fn release(&self, weight: &ParallelWeight) {
        // It ends the recorded step on each GPU that has the weight.
        self.bucket.set(None);
        let parts = weight.parts.clone();
        self.ranks.submit(move |rank| {
            parts.with(rank.index, |weight| {
                rank.cuda.release(weight);
                Ok(())
            })
        });
    }

    fn kv(&self, layout: KvLayout, scales: &KvScales, blocks: usize, max_blocks: usize) -> Result<ParallelKv> {
        let heads = layout.layers * layout.kv_heads;
        if scales.k.len() != heads || scales.v.len() != heads {
            return Err(KernelError::Shape(format!("the KV scales are not for {heads} heads")));
        }
        // What cannot be divided is whole on each: the weights say whether that is what the model needs.
        let divided = layout.kv_heads.is_multiple_of(self.count());
        let parts = self.ask(self.pools((layout, scales), divided, blocks, max_blocks))?;
        Ok(ParallelKv {
            layout,
            scales: scales.clone(),
            divided,
            used: false,
            blocks,
            max_blocks,
            parts: Parts::new(parts),
            ranks: self.ranks.clone(),
        })
    }

    fn kv_resize(&self, kv: &mut ParallelKv, blocks: usize) -> Result<()> {
        let resize = |blocks: usize| {
            let parts = kv.parts.clone();
            self.ask(move |rank| parts.with(rank.index, |kv| rank.cuda.kv_resize(kv, blocks)))
        };
        if let Err(error) = resize(blocks) {
            // All have as many as before, as far as that is possible.
            let _ = resize(kv.blocks);
            return Err(error);
        }
        kv.blocks = blocks;
        Ok(())
    }

    fn kv_move(&self, kv: &mut ParallelKv, moves: &[BlockMove]) -> Result<()> {
        let (parts, moves) = (kv.parts.clone(), moves.to_vec());
        self.ask(move |rank| parts.with(rank.index, |kv| rank.cuda.kv_move(kv, &moves))).map(|_| ())
    }
}

/// Equal devices by their number, others one by one.
fn named(names: &[&str]) -> String {
    match names {
        [first, rest @ ..] if rest.iter().all(|name| name == first) => format!("{} x {first}", names.len()),
        _ => names.join(" + "),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn equal_devices_are_named_by_their_number() {
        assert_eq!(super::named(&["H100", "H100"]), "2 x H100");
        assert_eq!(super::named(&["H100", "H200"]), "H100 + H200");
    }
}
