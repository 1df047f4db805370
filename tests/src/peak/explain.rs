//! Whether the load explains each switch: what the picture shows, checked.

use super::run::{AutoSwitch, Run};

/// Pressure and status are seen a little after they change, in seconds.
const SLACK: f64 = 1.0;

/// What the manifest says about moves.
#[derive(Clone, Debug, PartialEq)]
pub struct Moves {
    /// Profiles, best quality first.
    pub ladder: Vec<String>,
    /// Seconds of too much pressure before a move up.
    pub up_seconds: f64,
    /// Seconds of low pressure before a move down.
    pub down_seconds: f64,
    /// What low is, as a share of the target.
    pub low: f64,
}

/// A sentence for each switch that the pressure before it does not explain, and one if the last profile is not the first.
pub fn unexplained(run: &Run, moves: &Moves) -> Vec<String> {
    let mut wrong: Vec<String> =
        run.switches.iter().filter_map(|switch| wrong(switch, &run.outcome.pressure, moves)).collect();
    if let Some(last) = run.switches.last().filter(|last| moves.ladder.first() != Some(&last.to)) {
        wrong.push(format!("the model stayed in {} after the switch at {:.1} s", last.to, last.at));
    }
    wrong
}

fn wrong(switch: &AutoSwitch, pressure: &[(f64, f64)], moves: &Moves) -> Option<String> {
    let place = |name: &str| moves.ladder.iter().position(|other| other == name);
    let up = place(&switch.to) > place(&switch.from);
    let window = if up { moves.up_seconds } else { moves.down_seconds };
    let before = pressure.iter().filter(|(at, _)| (switch.at - window + SLACK..switch.at).contains(at));
    // On the denser profile the pressure is lower than it is predicted to be on the other.
    let fits = |value: f64| if up { value >= 1.0 } else { value < moves.low };
    let odd = before.clone().find(|(_, value)| !fits(*value));
    match odd {
        Some((at, value)) => Some(format!(
            "the switch to {} at {:.1} s is odd: the pressure was {value:.2} at {at:.1} s",
            switch.to, switch.at
        )),
        None if before.count() == 0 => {
            Some(format!("no pressure was seen before the switch to {} at {:.1} s", switch.to, switch.at))
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn switch(at: f64, from: &str, to: &str) -> AutoSwitch {
        AutoSwitch { at, from: from.to_owned(), to: to.to_owned(), reason: String::new(), message: String::new() }
    }

    fn moves() -> Moves {
        let ladder = vec!["quality".to_owned(), "density".to_owned()];
        Moves { ladder, up_seconds: 3.0, down_seconds: 20.0, low: 0.7 }
    }

    /// Pressure by the second: low, then high from 10 to 40 s, then low.
    fn pressure() -> Vec<(f64, f64)> {
        (0..80).map(|second| (f64::from(second), if (10..40).contains(&second) { 1.5 } else { 0.2 })).collect()
    }

    #[test]
    fn a_switch_fits_the_pressure_of_its_window_or_is_odd() {
        let up = |at| wrong(&switch(at, "quality", "density"), &pressure(), &moves());
        assert_eq!(up(13.0), None);
        assert_eq!(up(10.5).unwrap(), "the switch to density at 10.5 s is odd: the pressure was 0.20 at 9.0 s");
        let down = |at| wrong(&switch(at, "density", "quality"), &pressure(), &moves());
        assert_eq!(down(60.0), None);
        assert!(down(50.0).unwrap().contains("the pressure was 1.50 at 31.0 s"));
        assert_eq!(up(500.0).unwrap(), "no pressure was seen before the switch to density at 500.0 s");
    }
}
