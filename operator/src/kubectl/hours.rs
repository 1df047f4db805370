//! The schedule's windows, now and next, as a sentence: pure.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use modelprofile_policy::Rules;
use modelprofile_policy::schedule::Schedule;

use crate::local::events::age;

/// Windows repeat every week.
const HORIZON: SignedDuration = SignedDuration::from_hours(8 * 24);

/// What the schedule says now and what it says next. `zone` is the schedule's, in which its windows are written.
pub fn sentence(rules: &Rules, zone: Option<&str>, now: Timestamp) -> String {
    let Some(schedule) = &rules.schedule else {
        return format!("none: {} is preferred at all times", rules.name(0));
    };
    let when = |at: Timestamp| {
        let known = zone.and_then(|zone| Some((zone, TimeZone::get(zone).ok()?)));
        let (name, zone) = known.unwrap_or(("UTC", TimeZone::UTC));
        let text = at.to_zoned(zone).strftime("%a %H:%M").to_string();
        format!("{text} {name} (in {})", age(at.duration_since(now).as_secs()))
    };
    let current = schedule.at(now);
    let text = match &current {
        Some(window) => {
            format!("{} prefers {} until {}", window.window, rules.name(window.rung), when(window.until))
        }
        None => format!("no window is open, {} is preferred", rules.name(0)),
    };
    if let Some((at, window, rung)) = next(schedule, current.map_or(now, |current| current.until), now) {
        return format!("{text}; next, {window} prefers {} from {}", rules.name(rung), when(at));
    }
    text
}

/// The next window that opens at `from` or later, when it does, and which profile it prefers.
fn next(schedule: &Schedule, from: Timestamp, now: Timestamp) -> Option<(Timestamp, &str, usize)> {
    let mut at = from;
    // At the end of one window another may begin.
    if at > now
        && let Some(window) = schedule.at(at)
    {
        return Some((at, window.window, window.rung));
    }
    while at.duration_since(now) < HORIZON {
        let Some(change) = schedule.next_change(at) else {
            // Nothing changes until the end of tomorrow.
            at = at.checked_add(SignedDuration::from_hours(24)).ok()?;
            continue;
        };
        if let Some(window) = schedule.at(change) {
            return Some((change, window.window, window.rung));
        }
        at = change;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::watch::fixture::valid;

    fn at(switching: &str, now: &str) -> String {
        let valid = valid(switching);
        let rules = Rules::new(valid.spec(), SignedDuration::from_secs(5)).unwrap();
        let zone = valid.spec().switching.schedule.as_ref().map(|schedule| schedule.time_zone.as_str());
        sentence(&rules, zone, now.parse().unwrap())
    }

    const WEEK: &str = "{schedule: {timeZone: Europe/Paris, windows: [
        {name: office, profile: density, days: [Mon, Fri], start: '08:00', end: '20:00'},
        {name: evening, profile: quality, days: [Mon], start: '20:00', end: '22:00'}]}}";

    #[test]
    fn without_a_schedule_the_first_profile_is_preferred() {
        assert_eq!(at("{}", "2026-03-02T12:00:00Z"), "none: quality is preferred at all times");
    }

    #[test]
    fn the_window_that_is_open_and_the_one_that_follows_at_its_end_are_told_in_their_zone() {
        // A Monday; Paris is an hour ahead.
        assert_eq!(
            at(WEEK, "2026-03-02T12:00:00Z"),
            "office prefers density until Mon 20:00 Europe/Paris (in 7h); next, evening prefers quality from Mon 20:00 \
             Europe/Paris (in 7h)"
        );
    }

    #[test]
    fn a_window_days_ahead_is_found() {
        assert_eq!(
            at(WEEK, "2026-03-02T21:30:00Z"),
            "no window is open, quality is preferred; next, office prefers density from Fri 08:00 Europe/Paris (in 3d9h)"
        );
    }
}
