//! Local mode: one manifest, one worker as a child process, the terminal.
//!
//! ```text
//!            manifest file                     Ctrl-C, SIGTERM
//!                  │ watch                            │
//!                  v                                  v
//!  [ worker ] -> observe -> decide  -> act -> [ worker ]      one pass, a few times a second
//!                  │
//!                  v
//!                view
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`serve`] | the loop above, from the manifest to the exit code |
//! | [`pilot`] | which profile should be active: the policy's decision, from what the worker says |
//! | [`workers`] | the seam: what observing and acting on workers means, whatever they are |
//! | [`process`] | workers as one child process |
//! | [`admin`] | client of a worker's admin API |
//! | [`watch`] | the manifest file: when it changed, and what an edit means for a running worker |
//! | [`session`] | the file by which `modelprofile switch` finds a running local mode |
//! | [`status`] | the status object, as a cluster would show it: pure |
//! | [`view`] | progress bars and the live table, or plain lines where stdout is not a terminal |

pub mod admin;
pub mod pilot;
pub mod process;
pub mod serve;
pub mod session;
pub mod status;
pub mod view;
pub mod watch;
pub mod workers;
