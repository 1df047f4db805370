//! Scheduling without a model: which tokens are computed in a step, and which blocks of the KV cache hold them.
//!
//! | module | what it does |
//! |---|---|
//! | [`blocks`] | the block pool: reference counts, the prefix cache, shrinking and growing |
//! | [`scheduler`] | one token budget a step, decodes first, then prompts in chunks, preemption with recompute |
//! | [`step`] | what was decided for a step |

pub mod blocks;
pub mod scheduler;
pub mod step;

pub use scheduler::{AddError, Scheduler, SchedulerConfig, Stats};
pub use step::ScheduledStep;

#[cfg(test)]
mod simulation;
