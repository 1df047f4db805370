//! What stands for buffers, weights, the pool and a step of a device in a plan: shapes, at addresses that nobody reads.

use std::sync::Arc;

use crate::{
    KvLayout, Split,
    cuda::{
        content::{Held, Kept},
        driver::Address,
        executor::{Located, Paged},
        kernels::Ptr,
        launch::Pool,
        operand::Placed,
        step::CudaStep,
    },
};

/// Addresses that nobody reads: apart, aligned, and not null.
pub(super) const fn address(index: u64) -> Address {
    (index + 1) << 36
}

/// A buffer of a [`Planner`](super::Planner): its sides.
#[derive(Debug)]
pub struct PlanBuffer {
    pub(super) id: u64,
    pub(super) kept: Arc<()>,
    pub(super) rows: usize,
    pub(super) width: usize,
}

/// A weight of a [`Planner`](super::Planner): its layout.
#[derive(Debug)]
pub struct PlanWeight {
    pub(super) placed: Placed,
    /// Its name in the plan.
    pub(super) part: &'static str,
    pub(super) split: Split,
}

/// A pool of a [`Planner`](super::Planner): its geometry.
#[derive(Debug)]
pub struct PlanKv {
    pub(super) layout: KvLayout,
    pub(super) blocks: usize,
    pub(super) max_blocks: usize,
}

/// A step of a [`Planner`](super::Planner).
#[derive(Debug)]
pub struct PlanStep(pub(super) CudaStep);

impl Held for PlanBuffer {
    fn id(&self) -> u64 {
        self.id
    }

    fn at(&self) -> Ptr<f32> {
        Ptr::new(address(self.id))
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn width(&self) -> usize {
        self.width
    }

    fn kept(&self) -> Kept {
        self.kept.clone()
    }
}

impl Located for PlanWeight {
    fn placed(&self) -> Placed {
        self.placed
    }
}

impl Paged for PlanKv {
    fn layout(&self) -> &KvLayout {
        &self.layout
    }

    fn blocks(&self) -> usize {
        self.blocks
    }

    fn is_backed(&self, _blocks: usize) -> bool {
        true
    }

    fn pool(&self, layer: usize) -> Pool {
        Pool { base: address(0), layout: self.layout, layer, scales: [address(1 << 18); 2] }
    }
}
