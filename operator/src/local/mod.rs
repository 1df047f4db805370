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
//! | [`serve`] | from the command line to the loop: what is checked, taken and started |
//! | `pass` | the loop above, to the exit code |
//! | `follow` | what a pass does about a worker that answers, and about an edited manifest |
//! | [`signals`] | the signals that end the loop |
//! | [`pilot`] | which profile should be active: the policy's decision, from what the worker says |
//! | [`gate`] | what the quality gate says of the worker's profiles, and what of that is news: pure |
//! | [`workers`] | the seam: what observing and acting on workers means, whatever they are |
//! | [`process`] | workers as one child process |
//! | [`admin`] | client of a worker's admin API |
//! | [`watch`] | the manifest file: when it changed, and what an edit means for a running worker |
//! | [`restart`] | when a worker that ended starts again: pure |
//! | [`retry`] | when a switch that did not come about is asked for again: pure |
//! | [`session`] | the file by which `modelprofile switch` finds a running local mode |
//! | [`notes`] | every reason and sentence that is told as an event: pure |
//! | [`events`] | the event log: counted, bounded, and as a table: pure |
//! | [`journal`] | says and records: the terminal, and the files beside the session |
//! | [`status`] | the status object, as a cluster would show it: pure |
//! | [`view`] | progress bars and the live table, or plain lines where stdout is not a terminal |

pub mod admin;
pub mod events;
mod follow;
pub mod gate;
pub mod journal;
pub mod notes;
mod pass;
pub mod pilot;
pub mod process;
pub mod restart;
pub mod retry;
pub mod serve;
pub mod session;
pub mod signals;
pub mod status;
pub mod view;
pub mod watch;
pub mod workers;
