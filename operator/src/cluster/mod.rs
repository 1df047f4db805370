//! `modelprofile operator`: workers are pods of a cluster.
//!
//! ```text
//!  API server ──watch──> index ─┐
//!                               ├──> observe ──> judge, decide ──> plan ──> act, apply ──> status ──> news
//!  worker pods ──HTTP──> workers┘
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`controller`] | the loop: what is watched, when a pass comes |
//! | [`looks`] | which ModelProfile is looked at next, and when |
//! | `pass` | one pass, from the first arrow to the last |
//! | [`context`] | what every pass needs, and what it leaves |
//! | [`index`] | what the API server told, by ModelProfile |
//! | [`workers`] | asking worker pods: state, metrics, switches, a first request |
//! | [`observe`] | one look at all that belongs to a ModelProfile |
//! | [`pods`], [`prepared`] | what keeps a pod from working; how far the prepare Job is; pure |
//! | [`judge`] | what the policy is asked; pure |
//! | [`plan`] | from what is asked for and what exists to what has to be done; pure |
//! | `act` | a plan carried out, through [`apply`] and [`workers`] |
//! | [`stored`] | a ModelProfile as the API server has it |
//! | [`apply`] | writes to the cluster |
//! | [`status`], [`conditions`] | what is said of it; pure |
//! | [`news`], [`recorder`] | which of it is told as an Event (pure); publishing it |
//! | [`memory`] | what is remembered between passes, and may be lost |
//! | [`tokens`] | tokens for the workers' admin API |
//! | [`metrics`] | the operator's own metrics and health |
//! | [`error`] | errors by what is to be done about them |
//! | [`lease`], [`leadership`] | which of several operators acts; the thread that sees to it |
//! | [`start`] | from the flags to the loop: key, Lease, ports |

mod act;
pub mod apply;
pub mod conditions;
pub mod context;
pub mod controller;
pub mod error;
pub mod index;
pub mod judge;
pub mod leadership;
pub mod lease;
pub mod looks;
pub mod memory;
pub mod metrics;
pub mod news;
pub mod observe;
mod pass;
pub mod plan;
pub mod pods;
pub mod prepared;
pub mod recorder;
pub mod start;
pub mod status;
pub mod stored;
pub mod tokens;
pub mod workers;
