//! `modelprofile operator`: workers are pods of a cluster.
//!
//! ```text
//! ModelProfile ──> Valid ─────────┐
//! observed objects ──> Facts ─────┼──> plan ──> Plan { actions, progress }
//! flags of the operator ──> Options┘
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`plan`] | from what is asked for and what exists to what has to be done; pure |

pub mod plan;
