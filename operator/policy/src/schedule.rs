//! Hours of the week: civil time in one zone, as instants.
//!
//! A window's start and end are civil times. On the days when clocks change, a time that exists twice means the first of
//! the two, and a time that does not exist means the instant of the change. This keeps the order of civil times, so
//! windows that do not overlap in civil time never overlap as instants: an instant lies in one window at most.

use jiff::civil::{Date, Time, Weekday};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp};
use modelprofile_api::{Day, time_of_day};

use crate::rules::RulesError;

/// The windows, ready to be looked up.
#[derive(Clone, Debug)]
pub struct Schedule {
    zone: TimeZone,
    windows: Vec<Window>,
}

/// One window of the week.
#[derive(Clone, Debug)]
pub struct Window {
    /// Name that decisions mention.
    pub name: String,
    /// Index of the preferred profile.
    pub rung: usize,
    /// Start and end in minutes of the day; an end that is not later lies on the next day.
    start: u16,
    end: u16,
    /// Whether it starts on a day of the week, Monday first.
    days: [bool; 7],
}

/// What the schedule says at an instant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Current<'a> {
    /// The window's name.
    pub window: &'a str,
    /// Index of the preferred profile.
    pub rung: usize,
    /// When it closes.
    pub until: Timestamp,
}

impl Schedule {
    /// Reads the schedule of a manifest whose ladder is `names`.
    ///
    /// # Errors
    /// Unknown zone or profile, or a time that is none.
    pub fn new(schedule: &modelprofile_api::Schedule, names: &[String]) -> Result<Self, RulesError> {
        let path = "spec.switching.schedule";
        let zone = TimeZone::get(&schedule.time_zone).map_err(|_| {
            RulesError::new(format!("{path}.timeZone"), format!("`{}` is not a known time zone", schedule.time_zone))
        })?;
        let window = |(i, w): (usize, &modelprofile_api::Window)| {
            let wrong = |field: &str, what: String| RulesError::new(format!("{path}.windows[{i}].{field}"), what);
            let time = |text: &str, field| {
                time_of_day(text).ok_or_else(|| wrong(field, format!("`{text}` is no time of day")))
            };
            let mut days = [w.days.is_empty(); 7];
            for (place, day) in Day::WEEK.iter().enumerate() {
                days[place] |= w.days.contains(day);
            }
            Ok(Window {
                name: w.name.clone(),
                rung: names
                    .iter()
                    .position(|name| *name == w.profile)
                    .ok_or_else(|| wrong("profile", format!("there is no profile `{}`", w.profile)))?,
                start: time(&w.start, "start")?,
                end: time(&w.end, "end")?,
                days,
            })
        };
        let windows = schedule.windows.iter().enumerate().map(window).collect::<Result<_, _>>()?;
        Ok(Self { zone, windows })
    }

    /// The window that `now` lies in.
    pub fn at(&self, now: Timestamp) -> Option<Current<'_>> {
        self.spans(now).find(|(_, start, end)| *start <= now && now < *end).map(|(window, _, until)| Current {
            window: &window.name,
            rung: window.rung,
            until,
        })
    }

    /// The next instant after `now` at which a window opens or closes; within a day, or `None`.
    pub fn next_change(&self, now: Timestamp) -> Option<Timestamp> {
        self.spans(now).flat_map(|(_, start, end)| [start, end]).filter(|at| *at > now).min()
    }

    /// The spans of windows that start yesterday, today or tomorrow.
    fn spans(&self, now: Timestamp) -> impl Iterator<Item = (&Window, Timestamp, Timestamp)> {
        let today = self.zone.to_datetime(now).date();
        let dates = [today.yesterday(), Ok(today), today.tomorrow()];
        dates.into_iter().flatten().flat_map(move |date| {
            self.windows.iter().filter_map(move |window| {
                if !window.days[day_index(date.weekday())] {
                    return None;
                }
                let start = self.instant(date, window.start)?;
                let last = if window.end > window.start { date } else { date.tomorrow().ok()? };
                Some((window, start, self.instant(last, window.end)?))
            })
        })
    }

    /// The instant of a civil time; 24:00 is the next day's first.
    fn instant(&self, date: Date, minute: u16) -> Option<Timestamp> {
        let (date, minute) = if minute >= 24 * 60 { (date.tomorrow().ok()?, 0) } else { (date, minute) };
        let time = Time::new((minute / 60) as i8, (minute % 60) as i8, 0, 0).ok()?;
        let civil = self.zone.to_ambiguous_timestamp(date.to_datetime(time));
        match civil.offset() {
            AmbiguousOffset::Unambiguous { .. } | AmbiguousOffset::Fold { .. } => civil.earlier().ok(),
            // The later reading lies after the change; the change is the last one before it.
            AmbiguousOffset::Gap { .. } => {
                let after = civil.later().ok()?.checked_add(SignedDuration::from_nanos(1)).ok()?;
                self.zone.preceding(after).next().map(|change| change.timestamp())
            }
        }
    }
}

fn day_index(day: Weekday) -> usize {
    usize::try_from(day.to_monday_zero_offset()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAYS: [Day; 7] = [Day::Mon, Day::Tue, Day::Wed, Day::Thu, Day::Fri, Day::Sat, Day::Sun];

    fn schedule(zone: &str, windows: &[(&str, &str, &[Day])]) -> Schedule {
        let windows = windows.iter().enumerate().map(|(i, (start, end, days))| modelprofile_api::Window {
            name: format!("w{i}"),
            profile: "density".to_owned(),
            days: days.to_vec(),
            start: (*start).to_owned(),
            end: (*end).to_owned(),
        });
        let schedule = modelprofile_api::Schedule { time_zone: zone.to_owned(), windows: windows.collect() };
        Schedule::new(&schedule, &["quality".to_owned(), "density".to_owned()]).unwrap()
    }

    fn at(schedule: &Schedule, time: &str) -> Option<String> {
        schedule.at(time.parse().unwrap()).map(|current| current.window.to_owned())
    }

    #[test]
    fn a_window_holds_on_its_days_in_its_zone() {
        let s = schedule("Europe/Paris", &[("08:00", "20:00", &[Day::Mon, Day::Fri])]);
        // 2026-03-02 is a Monday; Paris is an hour ahead of UTC in winter.
        assert_eq!(at(&s, "2026-03-02T06:59:59Z"), None);
        assert_eq!(at(&s, "2026-03-02T07:00:00Z").as_deref(), Some("w0"));
        assert_eq!(at(&s, "2026-03-02T18:59:59Z").as_deref(), Some("w0"));
        assert_eq!(at(&s, "2026-03-02T19:00:00Z"), None);
        assert_eq!(at(&s, "2026-03-03T12:00:00Z"), None);
        // And two in summer.
        assert_eq!(at(&s, "2026-07-06T06:00:00Z").as_deref(), Some("w0"));
    }

    #[test]
    fn a_window_across_midnight_belongs_to_the_day_on_which_it_starts() {
        let s = schedule("UTC", &[("22:00", "06:00", &[Day::Sun])]);
        assert_eq!(at(&s, "2026-03-01T23:00:00Z").as_deref(), Some("w0"));
        assert_eq!(at(&s, "2026-03-02T05:59:00Z").as_deref(), Some("w0"));
        assert_eq!(at(&s, "2026-03-02T06:00:00Z"), None);
        assert_eq!(at(&s, "2026-03-02T23:00:00Z"), None);
        assert_eq!(
            s.next_change("2026-03-01T20:00:00Z".parse().unwrap()),
            Some("2026-03-01T22:00:00Z".parse().unwrap())
        );
    }

    #[test]
    fn when_clocks_go_forward_a_time_that_is_skipped_is_the_change_itself() {
        // Paris, 2026-03-29: 02:00 is followed by 03:00, at 01:00 UTC.
        let s = schedule("Europe/Paris", &[("01:30", "02:30", &[]), ("02:30", "02:45", &[]), ("03:00", "04:00", &[])]);
        assert_eq!(at(&s, "2026-03-29T00:59:59Z").as_deref(), Some("w0"));
        assert_eq!(at(&s, "2026-03-29T01:00:00Z").as_deref(), Some("w2"));
        assert_eq!(at(&s, "2026-03-29T02:00:00Z"), None);
    }

    #[test]
    fn when_clocks_go_back_a_window_opens_once() {
        // Paris, 2026-10-25: 03:00 is followed by 02:00, at 01:00 UTC.
        let s = schedule("Europe/Paris", &[("01:30", "02:30", &[]), ("02:30", "05:00", &[])]);
        assert_eq!(at(&s, "2026-10-25T00:29:00Z").as_deref(), Some("w0"));
        assert_eq!(at(&s, "2026-10-25T00:30:00Z").as_deref(), Some("w1"));
        assert_eq!(at(&s, "2026-10-25T01:10:00Z").as_deref(), Some("w1"), "02:10 for the second time");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn an_instant_lies_in_one_window_at_most(
            zone in prop::sample::select(vec!["Europe/Paris", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "UTC"]),
            cuts in prop::collection::btree_set(0u16..1440, 2..7),
            days in prop::sample::subsequence(DAYS.to_vec(), 0..=7),
            // Half of the instants lie around a change of the clocks: Paris, New York, Lord Howe, in 2026.
            minute in prop_oneof![
                0i64..525_600,
                prop::sample::select(vec!["2026-03-29T01:00:00Z", "2026-10-25T01:00:00Z", "2026-03-08T07:00:00Z",
                    "2026-11-01T06:00:00Z", "2026-04-04T15:00:00Z", "2026-10-03T15:30:00Z"])
                    .prop_flat_map(|change| {
                        let start = "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap();
                        let minutes = change.parse::<Timestamp>().unwrap().duration_since(start).as_secs() / 60;
                        minutes - 180..minutes + 180
                    }),
            ],
        ) {
            let text = |m: u16| format!("{:02}:{:02}", m / 60, m % 60);
            let cuts: Vec<u16> = cuts.into_iter().collect();
            let mut spans: Vec<(String, String)> = cuts.windows(2).map(|w| (text(w[0]), text(w[1]))).collect();
            // The rest of the day, across midnight: civil time is covered without gap or overlap.
            spans.push((text(cuts[cuts.len() - 1]), text(cuts[0])));
            let windows: Vec<(&str, &str, &[Day])> = spans.iter().map(|(a, b)| (&**a, &**b, &days[..])).collect();
            let s = schedule(zone, &windows);
            let now = "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_mins(minute);
            let count = s.spans(now).filter(|(_, start, end)| *start <= now && now < *end).count();
            // Without days, every day; then there is always exactly one.
            prop_assert!(count <= 1 && (count == 1 || !(days.is_empty() || days.len() == 7)), "{}", count);
        }
    }
}
