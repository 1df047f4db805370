//! The seam between deciding and doing: a decision is made on what [`Workers::observe`] returns and carried out by the other
//! methods. Here workers are a child process; nothing on the deciding side may know that.

use modelprofile_api::worker::{SwitchReport, WorkerState};
use modelprofile_api::{Quality, Validated};

/// How the worker is, as far as was seen in this pass.
#[derive(Clone, Debug, PartialEq)]
pub enum Health {
    /// Running, but it never answered so far.
    Starting,
    /// It answered.
    Answered(Box<WorkerState>),
    /// Running, and it did answer before, but not in this pass. The sentence says what went wrong.
    Silent(String),
    /// Gone without having been asked to go. The text says how it ended and gives its last words.
    Ended(String),
}

/// Answer to a switch that was asked for: the worker's report, or why there is none.
pub type SwitchAnswer = Result<SwitchReport, String>;

/// All that is known after one look at the worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// How it is.
    pub health: Health,
    /// Answer to [`Workers::switch`], once, in the first pass after it came.
    pub answer: Option<SwitchAnswer>,
}

/// How a worker that was asked to stop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// It finished its requests and went.
    Drained,
    /// It did not go within the limit and was killed.
    Killed,
    /// It was not running.
    Absent,
}

/// Observing and acting on the workers of one model.
pub trait Workers {
    /// Starts a worker of `manifest` that serves `profile` first. It prepares in the background: [`Workers::observe`] tells
    /// how far it is.
    ///
    /// # Errors
    /// It could not be started at all.
    fn start(&mut self, manifest: &Validated, profile: &str) -> impl Future<Output = anyhow::Result<()>>;

    /// Process id of the worker, where it is a process of this machine and runs.
    fn pid(&self) -> Option<u32>;

    /// One look. It takes a bounded time, whatever the worker does.
    fn observe(&mut self) -> impl Future<Output = Observation>;

    /// The worker's metrics in Prometheus' text format; `None` without an answer in a bounded time.
    fn metrics(&mut self) -> impl Future<Output = Option<String>>;

    /// Asks for a change of profile and returns at once. The answer comes with a later observation; until then a second call
    /// does nothing, because what is desired is compared anew in every pass.
    fn switch(&mut self, profile: &str);

    /// Tells the worker the limits to hold its profiles against, within a bounded time. Whether it took them is seen in a later
    /// observation, and until then they are told again.
    fn set_quality(&mut self, limits: &Quality) -> impl Future<Output = ()>;

    /// Ends the worker at once, whatever it has; a later observation tells how it ended.
    fn kill(&mut self);

    /// Asks the worker to finish what it has and go, and waits for that no longer than its limit.
    fn stop(&mut self) -> impl Future<Output = Stopped>;
}
