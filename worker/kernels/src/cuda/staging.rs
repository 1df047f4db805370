//! Page-locked memory that host bytes pass through on their way to the device.

use std::sync::Arc;

use super::driver::{Address, Event, Pinned, Stream};
use crate::Result;

/// Most bytes of a part of [`Staging`]: page-locked memory is dear, and larger copies are no faster.
const MOST_STAGED: usize = 8 << 20;

/// Page-locked memory on the way to the device, used in turn: the host fills one part while the other is copied.
#[derive(Debug, Default)]
pub(super) struct Staging {
    parts: [Option<(Pinned, Option<Event>)>; 2],
    next: usize,
}

impl Staging {
    /// Copies bytes to the device on a stream. The place must be mapped for them.
    pub(super) fn upload(&mut self, stream: &Arc<Stream>, bytes: &[u8], to: Address) -> Result<()> {
        for (index, piece) in bytes.chunks(MOST_STAGED).enumerate() {
            self.upload_piece(stream, piece, to + (index * MOST_STAGED) as Address)?;
        }
        Ok(())
    }

    fn upload_piece(&mut self, stream: &Arc<Stream>, bytes: &[u8], to: Address) -> Result<()> {
        let part = &mut self.parts[self.next];
        self.next = (self.next + 1) % 2;
        if let Some((_, event)) = part
            && let Some(event) = event.take()
        {
            event.wait()?;
        }
        if part.as_ref().is_none_or(|(pinned, _)| pinned.bytes().len() < bytes.len()) {
            *part = None;
            *part = Some((Pinned::zeroed(stream.context(), bytes.len().next_power_of_two().max(4096))?, None));
        }
        let Some((pinned, event)) = part else { return Ok(()) };
        pinned.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        // SAFETY: the memory stays until the event was waited for, here or in `drop`; the place is the caller's.
        let copied = unsafe { stream.upload(to, pinned.bytes().as_ptr(), bytes.len()) };
        match copied.and_then(|()| Event::record(stream)) {
            Ok(recorded) => {
                *event = Some(recorded);
                Ok(())
            }
            Err(error) => {
                let _ = stream.synchronize();
                Err(error)
            }
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        for (_, event) in self.parts.iter().flatten() {
            if let Some(event) = event {
                let _ = event.wait();
            }
        }
    }
}
