//! The event log of a model: what happened, as `kubectl describe` shows it. Pure; [`super::notes`] has the sentences.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::notes::{Note, Severity};

/// How many events are kept: the newest.
pub const LIMIT: usize = 50;

/// Bytes of a message, as the Kubernetes API limits them too.
const MESSAGE_LIMIT: usize = 1024;

/// Something that happened once or several times; the fields are those of a core/v1 Event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Whether somebody may have to act.
    #[serde(rename = "type")]
    pub severity: Severity,
    /// One word of a closed set, for programs.
    pub reason: String,
    /// A sentence for a person, at most 1024 bytes.
    pub message: String,
    /// How often it happened.
    pub count: u32,
    /// When it happened first.
    pub first_timestamp: Timestamp,
    /// When it happened last.
    pub last_timestamp: Timestamp,
}

/// The newest events, in the order in which they happened last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventLog {
    events: Vec<Event>,
}

impl EventLog {
    /// Adds what happened now. What happened before with the same words is counted up and becomes the newest.
    pub fn record(&mut self, note: &Note, now: Timestamp) {
        let message = cut(&note.message);
        let same = |e: &Event| e.severity == note.severity && e.reason == note.reason && e.message == message;
        let event = match self.events.iter().position(same) {
            Some(place) => {
                let before = self.events.remove(place);
                Event { count: before.count.saturating_add(1), last_timestamp: now, ..before }
            }
            None => Event {
                severity: note.severity,
                reason: note.reason.to_owned(),
                message: message.to_owned(),
                count: 1,
                first_timestamp: now,
                last_timestamp: now,
            },
        };
        if self.events.len() == LIMIT {
            self.events.remove(0);
        }
        self.events.push(event);
    }

    /// The newest `most` events, newest last.
    pub fn latest(&self, most: usize) -> &[Event] {
        &self.events[self.events.len().saturating_sub(most)..]
    }
}

/// The part of a message that an event may have.
fn cut(message: &str) -> &str {
    if message.len() <= MESSAGE_LIMIT {
        return message;
    }
    let end = (0..=MESSAGE_LIMIT).rev().find(|end| message.is_char_boundary(*end));
    &message[..end.unwrap_or_default()]
}

/// Events as a table for a person, with ages as of `now`.
pub fn table(events: &[Event], now: Timestamp) -> String {
    if events.is_empty() {
        return "Events:  <none>\n".to_owned();
    }
    let mut rows = vec![["Type", "Reason", "Age", "Message"].map(str::to_owned)];
    rows.push(["----", "------", "---", "-------"].map(str::to_owned));
    rows.extend(events.iter().map(|event| {
        [event.severity.as_str().to_owned(), event.reason.clone(), times(event, now), one_line(&event.message)]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let (kind, reason, age) = (width(0), width(1), width(2));
    let lines = rows.iter().map(|row| format!("  {:kind$}  {:reason$}  {:age$}  {}\n", row[0], row[1], row[2], row[3]));
    std::iter::once("Events:\n".to_owned()).chain(lines).collect()
}

/// When it happened last, and how often since when if that was more than once.
fn times(event: &Event, now: Timestamp) -> String {
    let since = |time: Timestamp| age(now.duration_since(time).as_secs());
    let last = since(event.last_timestamp);
    match event.count {
        1 => last,
        count => format!("{last} (x{count} over {})", since(event.first_timestamp)),
    }
}

/// A duration in the one or two units that matter, in Kubernetes' manner.
pub(crate) fn age(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    let two = |large: i64, letter: char, small: i64, after: char| match seconds % large / small {
        0 => format!("{}{letter}", seconds / large),
        rest => format!("{}{letter}{rest}{after}", seconds / large),
    };
    match seconds {
        // A clock that was set back makes no negative ages.
        ..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        _ if seconds < 10 * MINUTE => two(MINUTE, 'm', 1, 's'),
        _ if seconds < 3 * HOUR => format!("{}m", seconds / MINUTE),
        _ if seconds < 8 * HOUR => two(HOUR, 'h', MINUTE, 'm'),
        _ if seconds < 2 * DAY => format!("{}h", seconds / HOUR),
        _ if seconds < 8 * DAY => two(DAY, 'd', HOUR, 'h'),
        _ => format!("{}d", seconds / DAY),
    }
}

/// A message whose lines are joined, so that a row of the table stays one.
fn one_line(message: &str) -> String {
    let mut joined = String::new();
    for line in message.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if !joined.is_empty() {
            joined.push_str(if joined.ends_with(':') { " " } else { "; " });
        }
        joined.push_str(line);
    }
    joined
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn note(reason: &'static str, message: &str) -> Note {
        Note { severity: Severity::Normal, reason, message: message.to_owned() }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn equal_events_are_counted_and_the_latest_comes_last() {
        let mut log = EventLog::default();
        log.record(&note("WorkerReady", "demo is ready"), at(10));
        log.record(&note("Switched", "switched"), at(20));
        log.record(&note("WorkerReady", "demo is ready"), at(30));
        let event = |reason: &str, message: &str, count, first, last| Event {
            severity: Severity::Normal,
            reason: reason.to_owned(),
            message: message.to_owned(),
            count,
            first_timestamp: at(first),
            last_timestamp: at(last),
        };
        assert_eq!(
            log.latest(LIMIT),
            [event("Switched", "switched", 1, 20, 20), event("WorkerReady", "demo is ready", 2, 10, 30)]
        );
    }

    #[test]
    fn events_that_differ_in_one_field_are_two() {
        let mut log = EventLog::default();
        log.record(&note("A", "one"), at(0));
        log.record(&note("B", "one"), at(0));
        log.record(&note("A", "two"), at(0));
        log.record(&Note { severity: Severity::Warning, ..note("A", "one") }, at(0));
        assert_eq!(log.latest(LIMIT).iter().map(|event| event.count).collect::<Vec<_>>(), [1; 4]);
    }

    #[test]
    fn the_newest_fifty_are_kept() {
        let mut log = EventLog::default();
        for number in 0..60 {
            log.record(&note("Switched", &format!("number {number}")), at(number));
        }
        // One that is counted up pushes none out.
        log.record(&note("Switched", "number 59"), at(60));
        let kept: Vec<i64> = log.latest(100).iter().map(|event| event.first_timestamp.as_second()).collect();
        assert_eq!(kept, (10..60).collect::<Vec<i64>>());
        assert_eq!(log.latest(2), &log.latest(LIMIT)[48..]);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let mut log = EventLog::default();
        let long = format!("{}é", "a".repeat(1023));
        log.record(&note("Invalid", &long), at(0));
        log.record(&note("Invalid", &long), at(1));
        assert_eq!(log.latest(LIMIT).len(), 1, "what is cut still counts as equal");
        assert_eq!(log.latest(LIMIT)[0].message, "a".repeat(1023));
    }

    #[test]
    fn the_table_is_that_of_kubectl_describe() {
        let mut log = EventLog::default();
        for second in [0, 60, 240] {
            log.record(&note("WorkerStarted", "the worker starts in profile quality"), at(second));
        }
        let broken = "not valid:\nspec.a: wrong\n  spec.b: wrong";
        log.record(&Note { severity: Severity::Warning, ..note("Invalid", broken) }, at(245));
        assert_eq!(
            table(log.latest(10), at(250)),
            "Events:
  Type     Reason         Age                  Message
  ----     ------         ---                  -------
  Normal   WorkerStarted  10s (x3 over 4m10s)  the worker starts in profile quality
  Warning  Invalid        5s                   not valid: spec.a: wrong; spec.b: wrong
"
        );
        assert_eq!(table(&[], at(0)), "Events:  <none>\n");
    }

    #[test]
    fn the_log_is_a_list_of_core_v1_events() {
        let mut log = EventLog::default();
        log.record(&note("Switched", "switched"), at(1_772_366_400));
        let json = serde_json::json!([{
            "type": "Normal", "reason": "Switched", "message": "switched", "count": 1,
            "firstTimestamp": "2026-03-01T12:00:00Z", "lastTimestamp": "2026-03-01T12:00:00Z",
        }]);
        assert_eq!(serde_json::to_value(&log).unwrap(), json);
        assert_eq!(serde_json::from_value::<EventLog>(json).unwrap(), log);
    }

    #[rstest]
    #[case(-5, "0s")]
    #[case(119, "119s")]
    #[case(120, "2m")]
    #[case(599, "9m59s")]
    #[case(600, "10m")]
    #[case(3 * 3600 + 120, "3h2m")]
    #[case(47 * 3600, "47h")]
    #[case(50 * 3600, "2d2h")]
    #[case(30 * 86400, "30d")]
    fn ages_have_the_units_that_matter(#[case] seconds: i64, #[case] text: &str) {
        assert_eq!(age(seconds), text);
    }
}
