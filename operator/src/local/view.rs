//! What the user sees: progress bars and one block that is redrawn in a terminal; elsewhere plain lines, one per change.

use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::tz::TimeZone;
use modelprofile_api::worker::{WorkerPhase, WorkerState};

use super::notes::sentence;

/// The screen of local mode. Dropping it leaves the last block where it is.
pub struct View {
    screen: Screen,
    zone: TimeZone,
}

enum Screen {
    Terminal { all: MultiProgress, bars: Vec<ProgressBar>, block: Option<ProgressBar> },
    Lines { last: String },
}

impl View {
    /// For the standard output as it is; times are shown in `zone`.
    pub fn new(zone: TimeZone) -> Self {
        let screen = if std::io::stdout().is_terminal() {
            let all = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
            Screen::Terminal { all, bars: Vec::new(), block: None }
        } else {
            Screen::Lines { last: String::new() }
        };
        Self { screen, zone }
    }

    /// Prints something that stays, above what is redrawn.
    pub fn say(&self, text: &str) {
        match &self.screen {
            Screen::Terminal { .. } => self.say_as_is(&wrapped(text, width())),
            Screen::Lines { .. } => print_line(text),
        }
    }

    /// The same for text with commands in it, which a person copies: the terminal alone breaks its lines.
    pub fn say_as_is(&self, text: &str) {
        match &self.screen {
            // Not by `println`, which fills lines up with spaces.
            Screen::Terminal { all, .. } => all.suspend(|| print_line(text)),
            Screen::Lines { .. } => print_line(text),
        }
    }

    /// Shows a state and the latest decision's reason: the bars until the worker is ready, the table from then on.
    pub fn show(&mut self, state: &WorkerState, decision: Option<&str>) {
        let preparing = state.phase == WorkerPhase::Preparing;
        match &mut self.screen {
            Screen::Lines { last } => {
                let key = if preparing { preparing_line(state, 10.0) } else { change_key(state) };
                if *last != key {
                    print_line(&if preparing { preparing_line(state, 1.0) } else { line(state) });
                    *last = key;
                }
            }
            Screen::Terminal { all, bars, block } if preparing => {
                block.take().inspect(ProgressBar::finish_and_clear);
                while bars.len() < state.profiles.len() {
                    bars.push(all.add(ProgressBar::new(1000).with_style(bar_style(width()))));
                }
                for (bar, profile) in bars.iter().zip(&state.profiles) {
                    bar.set_prefix(profile.name.clone());
                    bar.set_message(profile.activity.clone());
                    bar.set_position((profile.prepared_percent * 10.0) as u64);
                }
            }
            Screen::Terminal { all, bars, block } => {
                bars.drain(..).for_each(|bar| bar.finish_and_clear());
                let block = block.get_or_insert_with(|| all.add(ProgressBar::new(1).with_style(block_style())));
                let mut text = table(state, &self.zone);
                if let Some(decision) = decision {
                    text.push_str("\n  ");
                    text.push_str(decision);
                }
                block.set_message(wrapped(&text, width()));
                // The block moves with its message, not with a position.
                block.tick();
            }
        }
    }
}

fn print_line(text: &str) {
    use std::io::Write;
    // Written as a whole and flushed: whoever reads a pipe must see a change when it happens. A reader that has gone is no
    // reason to stop serving.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Columns of the terminal; a terminal that does not tell gets the usual 80.
fn width() -> usize {
    rustix::termios::tcgetwinsize(std::io::stdout()).map_or(80, |size| usize::from(size.ws_col).max(20))
}

/// The text with its lines broken between words, at most `width` characters each; what follows a break is indented like
/// its line and two more. A word that is longer stays whole.
fn wrapped(text: &str, width: usize) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let mut rest = line.to_owned();
        while rest.chars().count() > width {
            let start = rest.len() - rest.trim_start().len();
            let end = rest.char_indices().nth(width).map_or(rest.len(), |(at, _)| at + 1);
            let space = |(at, c): &(usize, char)| *at > start && *c == ' ';
            // The last space within the width, else the first one after it.
            let fitting = rest.char_indices().take_while(|(at, _)| *at < end).filter(space).last();
            let Some((at, _)) = fitting.or_else(|| rest.char_indices().find(space)) else { break };
            lines.push(rest[..at].trim_end().to_owned());
            rest = format!("{:1$}{2}", "", indent + 2, rest[at..].trim_start());
        }
        lines.push(rest);
    }
    lines.join("\n")
}

fn bar_style(width: usize) -> ProgressStyle {
    // What is being done matters more than a long bar.
    let bar = if width < 80 { 10 } else { 20 };
    ProgressStyle::with_template(&format!("  {{prefix:10}} [{{bar:{bar}}}] {{percent:>3}} %  {{wide_msg}}"))
        .map_or_else(|_| ProgressStyle::default_bar(), |style| style.progress_chars("=> "))
}

fn block_style() -> ProgressStyle {
    ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// What a new plain line is printed for. Numbers that move all the time are in the line, but make none.
fn change_key(state: &WorkerState) -> String {
    let WorkerState { phase, active_profile, target_profile, requests, last_switch, message, .. } = state;
    let switched = last_switch.as_ref().map(|switch| &switch.start_time);
    let load = (requests.running > 0, requests.waiting > 0);
    format!("{phase:?} {message} {active_profile:?} {target_profile:?} {switched:?} {load:?}")
}

/// One line on preparation, percentages cut to steps of `step`.
fn preparing_line(state: &WorkerState, step: f64) -> String {
    let one = |profile: &modelprofile_api::worker::WorkerProfile| {
        let percent = (profile.prepared_percent / step).floor() * step;
        // A profile is quantized first and measured then: its percentage starts anew.
        let measuring = if profile.activity.starts_with("measuring") { " measured" } else { "" };
        format!("{} {percent:.0} %{measuring}", profile.name)
    };
    let profiles: Vec<String> = state.profiles.iter().map(one).collect();
    format!("preparing: {}", if profiles.is_empty() { "reading the model".to_owned() } else { profiles.join(", ") })
}

/// The state as one line.
fn line(state: &WorkerState) -> String {
    let phase = match state.phase {
        WorkerPhase::Preparing => "preparing",
        WorkerPhase::Blocked => "blocked",
        WorkerPhase::Ready => "serving",
        WorkerPhase::Draining => "draining",
        WorkerPhase::Failed => "failed",
    };
    let message = if state.message.is_empty() { String::new() } else { format!(" ({})", state.message) };
    format!("{phase}: {}, {}{message}", profile(state), load(state))
}

/// The state as a block of lines.
fn table(state: &WorkerState, zone: &TimeZone) -> String {
    let measured = state.profiles.iter().any(|rung| rung.quality.is_some());
    let head = if measured { format!(" {:>12}", "PERPLEXITY") } else { String::new() };
    let mut lines = vec![String::new(), format!("  {:16} {:>12} {:>12}{head}", "PROFILE", "WEIGHTS", "KV TOKENS")];
    for rung in &state.profiles {
        let mark = if state.active_profile.as_ref() == Some(&rung.name) { '>' } else { ' ' };
        let weights = format!("{} MB", rung.weight_bytes / 1_000_000);
        let increase = rung.quality.as_ref().map(modelprofile_api::MeasuredQuality::perplexity_increase_percent);
        let increase = increase.map_or_else(String::new, |percent| format!(" {:>12}", format!("{percent:+.2} %")));
        lines.push(format!("{mark} {:16} {weights:>12} {:>12}{increase}", rung.name, grouped(rung.kv_tokens)));
    }
    lines.extend([String::new(), format!("  {}   {}", profile(state), load(state))]);
    if let Some(switch) = &state.last_switch {
        lines.push(format!("  last switch {}: {}", clock(&switch.start_time, zone), sentence(switch)));
    }
    if !state.message.is_empty() {
        lines.push(format!("  {}", state.message));
    }
    lines.join("\n")
}

fn profile(state: &WorkerState) -> String {
    let active = state.active_profile.as_deref().unwrap_or("no profile");
    match &state.target_profile {
        Some(target) if target != active => format!("profile {active} -> {target}"),
        _ => format!("profile {active}"),
    }
}

fn load(state: &WorkerState) -> String {
    let kv = &state.kv;
    // A worker that has no pool yet has none in use.
    let used = if kv.blocks_total == 0 { 0.0 } else { 100.0 * kv.blocks_used as f64 / kv.blocks_total as f64 };
    let requests = &state.requests;
    format!(
        "KV {used:.1} %, running {}, waiting {}, {:.1} tokens/s",
        requests.running, requests.waiting, requests.tokens_per_second
    )
}

/// Time of day in `zone`; the text itself if it is not a timestamp.
fn clock(time: &str, zone: &TimeZone) -> String {
    time.parse::<jiff::Timestamp>()
        .map_or_else(|_| time.to_owned(), |time| time.to_zoned(zone.clone()).strftime("%H:%M:%S").to_string())
}

/// Digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use modelprofile_api::worker::{SwitchOutcome, SwitchReport, WorkerKv, WorkerProfile, WorkerRequests};

    use super::super::gate::tests::measured;
    use super::*;

    fn serving() -> WorkerState {
        let rung = |name: &str, weight_bytes, kv_tokens| WorkerProfile {
            name: name.to_owned(),
            weight_bytes,
            kv_tokens,
            prepared_percent: 100.0,
            ..WorkerProfile::default()
        };
        WorkerState {
            phase: WorkerPhase::Ready,
            active_profile: Some("density".to_owned()),
            profiles: vec![rung("quality", 163_000_000, 9_984), rung("density", 109_500_000, 1_012_992)],
            kv: WorkerKv { blocks_total: 800, blocks_used: 100, ..WorkerKv::default() },
            requests: WorkerRequests {
                running: 16,
                waiting: 2,
                tokens_per_second: 152.34,
                ..WorkerRequests::default()
            },
            last_switch: Some(SwitchReport {
                from: "quality".to_owned(),
                to: "density".to_owned(),
                start_time: "2026-03-01T12:00:05Z".to_owned(),
                duration_millis: 83,
                pause_millis: 11.6,
                preempted: 0,
                outcome: SwitchOutcome::Completed,
                message: String::new(),
            }),
            ..WorkerState::default()
        }
    }

    #[test]
    fn the_table_marks_the_active_profile() {
        assert_eq!(
            table(&serving(), &TimeZone::UTC),
            "
  PROFILE               WEIGHTS    KV TOKENS
  quality                163 MB        9,984
> density                109 MB    1,012,992

  profile density   KV 12.5 %, running 16, waiting 2, 152.3 tokens/s
  last switch 12:00:05: switched from quality to density in 83 ms (paused 12 ms)"
        );
    }

    #[test]
    fn the_table_shows_by_how_much_perplexity_rose_where_that_was_measured() {
        let mut state = serving();
        state.profiles[1].quality = Some(measured(0.25));
        let table = table(&state, &TimeZone::UTC);
        let rows: Vec<&str> = table.lines().skip(1).take(3).collect();
        let expected = [
            "  PROFILE               WEIGHTS    KV TOKENS   PERPLEXITY",
            "  quality                163 MB        9,984",
            "> density                109 MB    1,012,992      +0.25 %",
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn a_line_says_where_a_switch_is_going() {
        let state = WorkerState { target_profile: Some("quality".to_owned()), ..serving() };
        assert_eq!(
            line(&state),
            "serving: profile density -> quality, KV 12.5 %, running 16, waiting 2, 152.3 tokens/s"
        );
    }

    #[test]
    fn moving_numbers_make_no_new_line_and_changes_do() {
        let mut state = serving();
        let key = change_key(&state);
        state.requests.running = 7;
        state.requests.tokens_per_second = 3.0;
        assert_eq!(change_key(&state), key);
        state.requests.running = 0;
        assert_ne!(change_key(&state), key);
    }

    #[test]
    fn lines_break_between_words_and_keep_their_indentation() {
        assert_eq!(wrapped("short\n\n  as it is", 20), "short\n\n  as it is");
        assert_eq!(wrapped("  one two three four", 12), "  one two\n    three\n    four");
        assert_eq!(wrapped("  one two three", 9), "  one two\n    three", "a space may stand at the edge");
        assert_eq!(wrapped("/a/long/path/without/end and", 10), "/a/long/path/without/end\n  and");
        assert_eq!(wrapped("ééé éé", 4), "ééé\n  éé");
    }

    #[test]
    fn the_table_fits_a_narrow_terminal() {
        let text = wrapped(&table(&serving(), &TimeZone::UTC), 60);
        assert!(text.lines().all(|line| line.chars().count() <= 60), "{text}");
    }

    #[test]
    fn preparation_is_shown_for_every_profile() {
        let mut state = serving();
        state.profiles[0].prepared_percent = 47.9;
        assert_eq!(preparing_line(&state, 1.0), "preparing: quality 47 %, density 100 %");
        assert_eq!(preparing_line(&state, 10.0), "preparing: quality 40 %, density 100 %");
        state.profiles[0].activity = "measuring quality of quality, window 3 of 16".to_owned();
        assert_eq!(preparing_line(&state, 1.0), "preparing: quality 47 % measured, density 100 %");
        assert_eq!(preparing_line(&WorkerState::default(), 1.0), "preparing: reading the model");
    }
}
