//! Rules of the schedule. Windows are civil time: a week is seven days of 24 hours here, whatever clocks do twice a year.

use super::ladder::names;
use super::unique;
use crate::{Day, FieldError, Profile, Schedule, Window, time_of_day};

const DAY: u32 = 24 * 60;
const WEEK: u32 = 7 * DAY;

pub(super) fn schedule(schedule: &Schedule, profiles: &[Profile], errors: &mut Vec<FieldError>) {
    let path = "spec.switching.schedule";
    if jiff::tz::TimeZone::get(&schedule.time_zone).is_err() {
        errors.push(FieldError::new(
            format!("{path}.timeZone"),
            format!(
                "`{}` is not a known time zone; write an IANA name such as Europe/Paris or UTC",
                schedule.time_zone
            ),
        ));
    }
    if schedule.windows.is_empty() {
        errors
            .push(FieldError::new(format!("{path}.windows"), "must not be empty; add a window or remove the schedule"));
    }
    let at = |i: usize| format!("{path}.windows[{i}]");
    unique(schedule.windows.iter().map(|w| w.name.as_str()), |i| format!("{}.name", at(i)), errors);
    for (i, window) in schedule.windows.iter().enumerate() {
        if !profiles.iter().any(|p| p.name == window.profile) {
            errors.push(FieldError::new(
                format!("{}.profile", at(i)),
                format!("there is no profile `{}`; write one of {}", window.profile, names(profiles)),
            ));
        }
        times(window, &at(i), errors);
        for (j, day) in window.days.iter().enumerate() {
            if window.days[..j].contains(day) {
                errors.push(FieldError::new(
                    format!("{}.days[{j}]", at(i)),
                    format!("{day:?} is there twice; remove one"),
                ));
            }
        }
    }
    overlaps(&schedule.windows, at, errors);
}

fn times(window: &Window, path: &str, errors: &mut Vec<FieldError>) {
    for (field, text) in [("start", &window.start), ("end", &window.end)] {
        if time_of_day(text).is_none() {
            errors.push(FieldError::new(
                format!("{path}.{field}"),
                format!("`{text}` must be a time of day from \"00:00\" to \"24:00\""),
            ));
        }
    }
    if time_of_day(&window.start) == Some(24 * 60) {
        errors.push(FieldError::new(
            format!("{path}.start"),
            "the day ends at 24:00; to start then, write \"00:00\" and the next day",
        ));
    }
    if time_of_day(&window.start).is_some() && window.start == window.end {
        let message = "equals start, so the window is empty; for a whole day write start \"00:00\" and end \"24:00\"";
        errors.push(FieldError::new(format!("{path}.end"), message));
    }
}

/// The spans of a window as minutes since Monday 00:00, start below [`WEEK`]; the end may lie beyond it.
fn spans(window: &Window) -> Vec<(u32, u32)> {
    let (Some(start), Some(end)) = (time_of_day(&window.start), time_of_day(&window.end)) else { return Vec::new() };
    let (start, end) = (u32::from(start), u32::from(end));
    if start == end {
        return Vec::new();
    }
    let length = if end > start { end - start } else { end + DAY - start };
    let days = if window.days.is_empty() { &Day::WEEK[..] } else { &window.days[..] };
    let mut starts: Vec<u32> = days.iter().map(|day| *day as u32 * DAY + start).collect();
    starts.sort_unstable();
    starts.dedup();
    starts.into_iter().map(|s| (s % WEEK, s % WEEK + length)).collect()
}

/// Each pair of windows at most once, at the later one of the list. A window never overlaps with itself: it is shorter
/// than a day or exactly one.
fn overlaps(windows: &[Window], at: impl Fn(usize) -> String, errors: &mut Vec<FieldError>) {
    let spans: Vec<_> = windows.iter().map(spans).collect();
    for (i, later) in spans.iter().enumerate() {
        for (j, earlier) in spans[..i].iter().enumerate() {
            let common = later.iter().find_map(|a| earlier.iter().find_map(|b| intersection(*a, *b)));
            if let Some((from, to)) = common {
                errors.push(FieldError::new(
                    at(i),
                    format!(
                        "overlaps with `{}` from {} to {}; windows can not overlap, change start, end or days",
                        windows[j].name,
                        moment(from),
                        moment(to),
                    ),
                ));
            }
        }
    }
}

/// Common minutes of two spans on the circle of the week.
fn intersection(a: (u32, u32), b: (u32, u32)) -> Option<(u32, u32)> {
    // Either may reach into the week that the other one starts in.
    [(0, 0), (WEEK, 0), (0, WEEK)].into_iter().find_map(|(shift_a, shift_b)| {
        let from = (a.0 + shift_a).max(b.0 + shift_b);
        let to = (a.1 + shift_a).min(b.1 + shift_b);
        (from < to).then_some((from % WEEK, to % WEEK))
    })
}

fn moment(minute: u32) -> String {
    let day = Day::WEEK[(minute / DAY % 7) as usize];
    format!("{day:?} {:02}:{:02}", minute % DAY / 60, minute % 60)
}
