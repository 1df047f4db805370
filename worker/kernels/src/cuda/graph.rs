//! The queue of work to the compute stream, and decode steps that are recorded and replayed.
//!
//! A decode step of a large model is some hundred launches, and launching costs the host more than computing costs the
//! device. So a step of a size that came before is submitted as one graph. The queue does this below the backend's
//! operations, which submit the same [`Command`]s in any case:
//!
//! ```text
//! first step of its kind    observe   commands are submitted as they come, and written down
//! second                    follow    commands are compared with those written down, and not submitted;
//!                                     at the end the list is captured as a graph, and the graph submitted
//! later                     follow    ... and the graph submitted
//! ```
//!
//! Commands hold everything that determines what the device does: kernel, grid, addresses, scalars. A step whose commands
//! are all equal to a list does what the list does, whatever the model code meant by them. A command that differs ends the
//! following: the list up to there is submitted plainly, then the command, and the list is forgotten. So model code has no
//! notion of graphs, a change in it cannot make a stale graph run, and a failure of capturing costs speed only.
//!
//! What differs from step to step lies in the device's memory (tokens, positions, block tables), always at the same
//! address. Steps of up to a bucket's rows are padded to the bucket. A list is looked up by bucket and first command,
//! which holds the address of the embedding, and so the ladder's rung; addresses of weights and cache stay right when
//! memory comes and goes (see `memory`).
//!
//! Of several devices that compute one model, each has a queue, and all or none of them run a step as a graph: see
//! `parallel::Agreement`. Sums over the devices are commands too. One that fails to submit some other command still submits the sums
//! behind it, in which the other devices would wait for it.

use std::sync::Arc;

use super::{
    cublaslt::{Lt, Product},
    driver::{Address, Event, Graph, Stream},
    kernels::{Kernels, Launch},
    parallel::{Course, Member, Vote},
    work::{Work, floats},
};
use crate::{KernelError, Result, StepPlan};

/// Rows of a padded decode step. Few enough to be captured soon, close enough to waste little: at most a third of the
/// rows are padding from 3 rows on, and rows cost little where the weights' bytes are the limit.
const BUCKETS: [usize; 11] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64];

/// Most lists that are kept: buckets of a few rungs. A graph takes some memory of the driver's.
const MOST_LISTS: usize = 4 * BUCKETS.len();

/// The bucket of a step of `rows` rows, none when it is too large for one.
pub(super) fn bucket(rows: usize) -> Option<usize> {
    BUCKETS.into_iter().find(|bucket| *bucket >= rows)
}

/// The bucket of a step: none unless each sequence decodes one row, all of which want logits, since then the part of the step behind the layers has
/// a size of its own, too.
pub(super) fn bucket_of(plan: &StepPlan, graphs: bool) -> Option<usize> {
    let rows = plan.rows();
    let decode = plan.sequences.iter().all(|sequence| sequence.rows == 1);
    if graphs && rows > 0 && decode && plan.logit_rows.len() == rows { bucket(rows) } else { None }
}

/// One piece of work for the compute stream, by value.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "nearly all commands are launches, and lists of them are read in order")]
pub(super) enum Command {
    /// A kernel.
    Launch(Launch),
    /// A product of cuBLASLt.
    Product(Product),
    /// The same word over a range.
    Fill {
        /// Where.
        at: Address,
        /// What.
        word: u32,
        /// How often.
        count: usize,
    },
    /// Sums over the devices of one model, in place.
    AllReduce {
        /// Where this device's part is, and the sum then.
        at: Address,
        /// FP32 values.
        count: usize,
    },
}

impl Command {
    /// The kernel's name, its grid (nothing where the library chooses), and its work.
    pub(super) fn summary(&self) -> (&'static str, [u32; 3], Work) {
        match self {
            Self::Launch(launch) => (launch.name(), launch.grid(), launch.work()),
            Self::Product(product) => (product.shape.name(), [0; 3], product.shape.work()),
            Self::Fill { count, .. } => ("fill", [0; 3], Work::bytes(0, floats(*count))),
            Self::AllReduce { count, .. } => ("all_reduce", [0; 3], Work::bytes(0, floats(*count))),
        }
    }
}

/// What commands are submitted with.
pub(super) struct Machine {
    pub(super) stream: Arc<Stream>,
    pub(super) kernels: Kernels,
    pub(super) lt: Option<Lt>,
    /// This device's place among those that compute one model together; none when it computes alone.
    pub(super) member: Option<Member>,
}

impl Machine {
    fn submit(&self, command: &Command) -> Result<()> {
        match command {
            Command::Launch(launch) => self.kernels.submit(&self.stream, launch),
            Command::Product(product) => match &self.lt {
                Some(lt) => lt.submit(&self.stream, product),
                // Whoever plans a product asks first whether the library takes it.
                None => Err(KernelError::Device("a product of cuBLASLt, which is not loaded".into())),
            },
            // SAFETY: whoever made the command owns the range; memory is unmapped only behind a flush and a wait.
            Command::Fill { at, word, count } => unsafe { self.stream.fill(*at, *word, *count) },
            Command::AllReduce { at, count } => match &self.member {
                Some(member) => member.all_reduce(&self.stream, *at, *count),
                None => Err(KernelError::Device("a sum over devices on a device that computes alone".into())),
            },
        }
    }

    /// Submits commands up to the first that fails, and behind it those that other devices wait in.
    fn submit_all(&self, commands: &[Command]) -> Result<()> {
        let mut done = Ok(());
        for command in commands {
            if done.is_ok() || matches!(command, Command::AllReduce { .. }) {
                done = done.and(self.submit(command));
            }
        }
        done
    }
}

/// A step that was seen.
struct List {
    bucket: usize,
    commands: Vec<Command>,
    graph: Recorded,
}

enum Recorded {
    Not,
    Graph {
        graph: Graph,
        /// The step that it was captured in: the same on all devices that captured it together.
        step: u64,
    },
    /// Capturing failed; the list is submitted plainly.
    Failed,
}

enum Mode {
    /// Commands are submitted as they come.
    Plain,
    /// As before, in a step that is padded to a bucket.
    Step,
    /// A step of this bucket begins with the next command.
    Expect(usize),
    /// Submitted and written down.
    Observe { bucket: usize, commands: Vec<Command> },
    /// Compared with a list: so many are equal.
    Follow { list: usize, equal: usize },
}

/// Work on its way to the compute stream.
pub(super) struct Queue {
    pub(super) machine: Machine,
    mode: Mode,
    lists: Vec<List>,
    /// Graphs that are not launched again but may be running, each with an event behind it.
    retired: Vec<(Graph, Option<Event>)>,
    notes: Vec<String>,
    on_note: fn(&str),
    /// What was noted before.
    said: Vec<String>,
    replays: u64,
    /// Everything that is submitted, while somebody wants to know.
    written_down: Option<Vec<Command>>,
}

impl Queue {
    /// `on_note` is called with each note as it comes up.
    pub(super) fn new(machine: Machine, on_note: fn(&str)) -> Self {
        let (lists, retired, notes, said) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { machine, mode: Mode::Plain, lists, retired, notes, on_note, said, replays: 0, written_down: None }
    }

    /// From now on, or no longer, what is submitted is written down; what was up to now. No step is followed meanwhile.
    pub(super) fn write_down(&mut self, on: bool) -> Vec<Command> {
        std::mem::replace(&mut self.written_down, on.then(Vec::new)).unwrap_or_default()
    }

    /// Adds a sentence for the log, once.
    pub(super) fn note(&mut self, sentence: String) {
        if !self.said.contains(&sentence) {
            (self.on_note)(&sentence);
            self.said.push(sentence.clone());
            self.notes.push(sentence);
        }
    }

    /// True within a step that is padded to a bucket.
    pub(super) fn is_in_step(&self) -> bool {
        !matches!(self.mode, Mode::Plain)
    }

    /// Sentences for the log that came up since the last call: each fact once.
    pub(super) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Steps that ran as a graph.
    pub(super) fn replays(&self) -> u64 {
        self.replays
    }

    /// A decode step padded to `bucket` begins.
    pub(super) fn expect(&mut self, bucket: usize) -> Result<()> {
        self.flush()?;
        // What is written down is a list of its own: nothing is followed or replayed.
        self.mode = if self.written_down.is_some() { Mode::Step } else { Mode::Expect(bucket) };
        Ok(())
    }

    /// Submits a command, or sees that it will be.
    ///
    /// # Errors
    /// The driver's. Commands of the step so far may have been submitted.
    pub(super) fn submit(&mut self, command: Command) -> Result<()> {
        if let Some(list) = &mut self.written_down {
            list.push(command.clone());
        }
        match std::mem::replace(&mut self.mode, Mode::Plain) {
            Mode::Plain => self.machine.submit(&command),
            Mode::Step => {
                self.mode = Mode::Step;
                self.machine.submit(&command)
            }
            Mode::Expect(bucket) => {
                let found = self.lists.iter().position(|l| l.bucket == bucket && l.commands.first() == Some(&command));
                if let Some(list) = found {
                    self.mode = Mode::Follow { list, equal: 1 };
                    return Ok(());
                }
                self.vote(Vote::Plain);
                self.observe(bucket, Vec::with_capacity(512), command)
            }
            Mode::Observe { bucket, commands } => self.observe(bucket, commands, command),
            Mode::Follow { list, equal } => {
                if self.lists[list].commands.get(equal) == Some(&command) {
                    self.mode = Mode::Follow { list, equal: equal + 1 };
                    return Ok(());
                }
                self.end_following(list, equal)?;
                self.machine.submit(&command)
            }
        }
    }

    fn observe(&mut self, bucket: usize, mut commands: Vec<Command>, command: Command) -> Result<()> {
        self.machine.submit(&command)?;
        commands.push(command);
        self.mode = Mode::Observe { bucket, commands };
        Ok(())
    }

    /// Everything submitted up to now is on the stream afterwards, and the step, if one was followed or written down, is
    /// at its end.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.retired.retain(|(_, event)| !event.as_ref().is_some_and(|event| event.is_done().unwrap_or(false)));
        match std::mem::replace(&mut self.mode, Mode::Plain) {
            Mode::Plain | Mode::Step | Mode::Expect(_) => {
                self.vote(Vote::Plain);
                Ok(())
            }
            Mode::Observe { bucket, commands } => {
                if self.lists.len() == MOST_LISTS {
                    let oldest = self.lists.remove(0);
                    self.retire(oldest.graph);
                }
                self.lists.push(List { bucket, commands, graph: Recorded::Not });
                Ok(())
            }
            Mode::Follow { list, equal } => self.end_following(list, equal),
        }
    }

    /// Forgets all recorded steps. Nothing may be running.
    pub(super) fn forget(&mut self) {
        self.lists.clear();
        self.retired.clear();
    }

    /// What is done with a step: what this device wants, if it computes alone.
    fn vote(&mut self, vote: Vote) -> Course {
        match (&mut self.machine.member, vote) {
            (Some(member), vote) => member.vote(vote),
            (None, Vote::Plain) => Course::Plain,
            (None, Vote::Graph(None)) => Course::Capture,
            (None, Vote::Graph(Some(_))) => Course::Launch,
        }
    }

    /// Keeps a graph until its last launch is done, without waiting: other devices may wait for this one meanwhile.
    fn retire(&mut self, graph: Recorded) {
        if let Recorded::Graph { graph, .. } = graph {
            // Without an event it stays as long as the queue.
            self.retired.push((graph, Event::record(&self.machine.stream).ok()));
        }
    }

    /// The step is over or has left its list: what was equal is submitted.
    fn end_following(&mut self, index: usize, equal: usize) -> Result<()> {
        let list = &self.lists[index];
        let whole = equal == list.commands.len();
        let vote = match &list.graph {
            Recorded::Not if whole => Vote::Graph(None),
            Recorded::Graph { step, .. } if whole => Vote::Graph(Some(*step)),
            _ => Vote::Plain,
        };
        match self.vote(vote) {
            Course::Plain => {
                let done = self.machine.submit_all(&self.lists[index].commands[..equal]);
                if !whole {
                    let left = self.lists.remove(index);
                    self.retire(left.graph);
                }
                return done;
            }
            Course::Capture => {
                let old = std::mem::replace(&mut self.lists[index].graph, Recorded::Failed);
                self.retire(old);
                if !self.capture(index) {
                    return self.machine.submit_all(&self.lists[index].commands);
                }
            }
            Course::Launch => {}
        }
        self.launch(index)
    }

    /// Captures a list as a graph; false where this device, or another one, could not.
    fn capture(&mut self, index: usize) -> bool {
        let (machine, list) = (&self.machine, &mut self.lists[index]);
        let captured = machine.stream.capture(|| machine.submit_all(&list.commands));
        let sentence = captured.as_ref().err().map(|e| format!("decode steps run without a graph: {e}"));
        let (all, step) = match &machine.member {
            Some(member) => (member.captured(captured.is_ok()), member.step()),
            None => (captured.is_ok(), 0),
        };
        if let (Ok(graph), true) = (captured, all) {
            list.graph = Recorded::Graph { graph, step };
        }
        if let Some(sentence) = sentence {
            self.note(sentence);
        }
        matches!(self.lists[index].graph, Recorded::Graph { .. })
    }

    /// Launches a list's graph.
    fn launch(&mut self, index: usize) -> Result<()> {
        let list = &mut self.lists[index];
        let Recorded::Graph { graph, .. } = &list.graph else { return self.machine.submit_all(&list.commands) };
        // SAFETY: the step's own commands just named all this memory, so it is mapped; it is unmapped only behind a flush.
        let Err(error) = (unsafe { graph.launch() }) else {
            self.replays += 1;
            return Ok(());
        };
        if let Some(member) = &self.machine.member {
            // The others have launched theirs, and wait for this one's part within.
            member.part(&error);
            return Err(error);
        }
        let sentence = format!("decode steps run without their graph: {error}");
        list.graph = Recorded::Failed;
        let done = self.machine.submit_all(&list.commands);
        self.note(sentence);
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_padded_to_the_next_bucket() {
        assert_eq!([1, 5, 64].map(bucket), [Some(1), Some(6), Some(64)]);
        assert_eq!(bucket(65), None);
        for pair in BUCKETS.windows(2).filter(|pair| pair[0] >= 3) {
            assert!(pair[1] - pair[0] - 1 <= pair[1] / 2, "{pair:?}");
        }
    }
}
