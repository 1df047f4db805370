//! Local mode: one manifest, one worker as a child process, the terminal.
//!
//! ```text
//!            manifest file                     Ctrl-C, SIGTERM
//!                  │ watch                            │
//!                  v                                  v
//!  [ worker ] -> observe -> desired -> act -> [ worker ]      one pass, a few times a second
//!                  │
//!                  v
//!                view
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`workers`] | the seam: what observing and acting on workers means, whatever they are |
//! | [`process`] | workers as one child process |
//! | [`admin`] | client of a worker's admin API |
//! | [`session`] | the file by which `modelprofile switch` finds a running local mode |
//! | [`view`] | progress bars and the live table, or plain lines where stdout is not a terminal |

pub mod admin;
pub mod process;
pub mod session;
pub mod view;
pub mod workers;
