//! The end of a process that other threads still compute in.

use std::io::Write as _;

/// Ends the process at once, without what libraries registered for its end.
///
/// A GPU's driver frees its state in such a handler. A thread that is within one of its calls then, as one that computes or
/// quantizes may be, crashes, and whoever started the process takes a signal for its end instead of the status.
#[allow(unsafe_code, reason = "the C library's function")]
pub fn end_process(status: u8) -> ! {
    // What cannot be written now is lost either way.
    let _ = std::io::stdout().flush();
    // SAFETY: no memory of ours is touched.
    unsafe { libc::_exit(i32::from(status)) }
}
