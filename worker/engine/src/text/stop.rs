//! Stop strings in a stream of text.

/// Finds stop strings across the borders of chunks and holds back only what may still become one.
///
/// The match that ends first wins; of several that end at the same place the longest. So the outcome does not depend
/// on how the text is cut into chunks. Each stop string runs the automaton of Knuth, Morris and Pratt (1977): constant
/// work per byte, whatever the text.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<Automaton>,
    /// Text that was pushed and not emitted: the longest suffix that begins a stop string.
    held: String,
    matched: Option<usize>,
}

/// What a push gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that can go to the client now.
    pub emit: String,
    /// A stop string was found. It and what follows it are not emitted, now or later.
    pub stopped: bool,
}

#[derive(Clone, Debug)]
struct Automaton {
    stop: String,
    /// For each prefix length 1..=len: the length of the longest proper prefix that is also its suffix.
    border: Vec<usize>,
    /// Bytes of `stop` that the text so far ends with.
    state: usize,
}

impl StopMatcher {
    /// A matcher for any of `stops`. Empty strings are left out: they would stop every text before it begins.
    pub fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).map(Automaton::new).collect();
        Self { stops, held: String::new(), matched: None }
    }

    /// Adds text. After a stop nothing more is emitted.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        if self.matched.is_some() {
            return StopOutcome { emit: String::new(), stopped: true };
        }
        for (index, &byte) in text.as_bytes().iter().enumerate() {
            // Every automaton takes the byte, also after one has matched.
            let mut found: Option<(usize, usize)> = None;
            for (number, stop) in self.stops.iter_mut().enumerate() {
                if stop.step(byte) {
                    found = found.max(Some((stop.stop.len(), number)));
                }
            }
            if let Some((length, number)) = found {
                let end = self.held.len() + index + 1;
                let mut emit = std::mem::take(&mut self.held);
                emit.push_str(text);
                emit.truncate(end - length);
                self.matched = Some(number);
                return StopOutcome { emit, stopped: true };
            }
        }
        self.held.push_str(text);
        let hold = self.stops.iter().map(|stop| stop.state).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - hold);
        StopOutcome { emit: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// The text that was held back, once no more can follow; empty after a stop.
    pub fn finish(&mut self) -> String {
        self.stops.iter_mut().for_each(|stop| stop.state = 0);
        std::mem::take(&mut self.held)
    }

    /// The stop string that was found.
    pub fn matched(&self) -> Option<&str> {
        self.matched.map(|number| self.stops[number].stop.as_str())
    }
}

impl Automaton {
    fn new(stop: String) -> Self {
        let bytes = stop.as_bytes();
        let mut border = vec![0; bytes.len()];
        let mut length = 0;
        for end in 1..bytes.len() {
            while length > 0 && bytes[end] != bytes[length] {
                length = border[length - 1];
            }
            length += usize::from(bytes[end] == bytes[length]);
            border[end] = length;
        }
        Self { stop, border, state: 0 }
    }

    /// Takes one byte of text; true if the text now ends with the stop string.
    fn step(&mut self, byte: u8) -> bool {
        let stop = self.stop.as_bytes();
        while self.state > 0 && stop[self.state] != byte {
            self.state = self.border[self.state - 1];
        }
        self.state += usize::from(stop[self.state] == byte);
        self.state == stop.len()
    }
}

#[cfg(test)]
#[path = "stop_tests.rs"]
mod tests;
