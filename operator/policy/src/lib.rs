//! Which profile should be active, and how many workers should run. Pure: no I/O, no clock, no client.
//!
//! ```text
//! manifest ──> Rules ─────────┐
//! workers  ──> Observation ───┼──> decide ──> Decision { profile, replicas, reason, message, revisit_after }
//! earlier passes ──> History ─┘
//! ```
//!
//! A caller observes, records the observation in the [`History`] and decides, in every pass. The same three values give
//! the same decision, on a cluster, on one machine and in a simulation.
//!
//! | module | what it holds |
//! |---|---|
//! | [`decide()`] | the decision: an ordered list of rules, the first that applies wins |
//! | [`rules`] | what the manifest asks for, read once |
//! | [`schedule`] | hours of the week in civil time, as instants |
//! | [`observation`] | what is known about the workers in one pass |
//! | [`signals`] | which engine has which signal, under which metric |
//! | [`pressure`] | load over target, and what it would be on another rung or with other replicas |
//! | [`gate`] | the quality gate of a ladder, as a condition |
//! | [`history`] | since when conditions hold, the switches of the last hour, workers that were asked for; bounded |
//! | `learned` | what the profiles hold and how fast they are, as far as was seen |
//! | [`decision`] | what comes out |

pub mod decide;
pub mod decision;
pub mod gate;
pub mod history;
mod learned;
pub mod observation;
pub mod pressure;
pub mod rules;
pub mod schedule;
pub mod signals;

pub use decide::decide;
pub use decision::{Action, Decision, Reason};
pub use history::History;
pub use observation::{Kv, Observation, Reading, Replica, Rung, Sample};
pub use rules::{Rules, RulesError};
