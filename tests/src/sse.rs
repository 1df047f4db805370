//! Server-sent events out of a stream of bytes. Only `data` is read: OpenAI's streams carry nothing else.

use anyhow::bail;

/// An event longer than this is not one of ours.
const EVENT_LIMIT: usize = 1 << 20;

/// Takes bytes as they come and gives whole events back.
#[derive(Debug, Default)]
pub struct Events {
    rest: Vec<u8>,
}

impl Events {
    /// The `data` of every event that `bytes` completes, in order.
    ///
    /// # Errors
    /// An event that has no end, or is not UTF-8.
    pub fn push(&mut self, bytes: &[u8]) -> anyhow::Result<Vec<String>> {
        self.rest.extend(bytes.iter().filter(|byte| **byte != b'\r'));
        let mut events = Vec::new();
        while let Some(end) = self.rest.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = self.rest.drain(..end + 2).collect();
            let lines = std::str::from_utf8(&event)?.lines();
            let data: Vec<&str> = lines.filter_map(|line| line.strip_prefix("data:")).map(str::trim_start).collect();
            if !data.is_empty() {
                events.push(data.join("\n"));
            }
        }
        if self.rest.len() > EVENT_LIMIT {
            bail!("an event of more than {EVENT_LIMIT} bytes");
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_whole_however_the_bytes_are_cut() {
        let text = ": note\n\ndata: {\"a\": \"é\"}\n\ndata: x\r\ndata: y\r\n\r\ndata: [DONE]\n\n";
        for size in 1..text.len() {
            let mut events = Events::default();
            let seen: Vec<String> =
                text.as_bytes().chunks(size).flat_map(|bytes| events.push(bytes).unwrap()).collect();
            assert_eq!(seen, ["{\"a\": \"é\"}", "x\ny", "[DONE]"], "pieces of {size}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        assert!(Events::default().push(&vec![b'x'; EVENT_LIMIT + 1]).is_err());
    }
}
