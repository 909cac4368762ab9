//! Which level to probe next, a rate or a number of users: a bracket first, then its geometric middle, then the same
//! level three times more. Knows nothing of time or servers.

use serde::{Deserialize, Serialize};

/// What a search climbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Over {
    /// Requests per second of an open loop.
    #[default]
    Rate,
    /// Users of a closed loop.
    Concurrency,
}

impl Over {
    /// The level above `level`.
    fn above(self, level: f64) -> f64 {
        match self {
            Self::Rate => level * STRIDE,
            Self::Concurrency => (level * STRIDE).round().max(level + 1.0),
        }
    }

    /// The level that is lower by `factor`; below one user there is none.
    fn below(self, level: f64, factor: f64) -> Option<f64> {
        match self {
            Self::Rate => Some(level / factor),
            Self::Concurrency => {
                Some((level / factor).floor().min(level - 1.0)).filter(|n| *n >= 1.0)
            }
        }
    }

    /// The geometric middle, which is neither end.
    fn between(self, low: f64, high: f64) -> f64 {
        let middle = (low * high).sqrt();
        match self {
            Self::Rate => middle,
            Self::Concurrency => middle.round().clamp(low + 1.0, high - 1.0),
        }
    }

    /// Whether there is nothing left to find between two levels.
    fn is_narrow(self, low: f64, high: f64, tolerance: f64) -> bool {
        high / low <= 1.0 + tolerance || (self == Self::Concurrency && high - low <= 1.0)
    }
}

/// A bracket widens by this factor.
const STRIDE: f64 = 1.4;
/// Passes that confirm a rate.
const CONFIRMATIONS: u32 = 3;
/// Steps down from a rate that is not confirmed.
const MAX_STEPS_DOWN: u32 = 2;

/// What a probe says about its level, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeVerdict {
    /// The objectives are not kept, or the server fell behind.
    Fail,
    /// The sample does not say; the search treats it as failed.
    Undecided,
    /// They are kept.
    Pass,
}

/// Why a search ended. Only `Converged` says what the highest rate is; otherwise it is at least the one
/// that is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The bracket is narrow and its lower end confirmed.
    Converged,
    /// No probes are left.
    MaxProbes,
    /// No time is left.
    MaxTime,
    /// One user alone does not get answers within the limits.
    SoloFails,
    /// The limits were missed by no more than the client's own delay.
    Ceiling,
    /// The rate was not confirmed, nor were two lower ones.
    Unstable,
}

impl StopReason {
    /// For a sentence.
    pub fn words(self) -> &'static str {
        match self {
            Self::Converged => "confirmed by three more runs",
            Self::MaxProbes => "no probes were left",
            Self::MaxTime => "no time was left",
            Self::SoloFails => "not even one user alone is served within the limits",
            Self::Ceiling => "the client was late, and the limits were missed by no more than that",
            Self::Unstable => "it was not confirmed, nor were two lower ones",
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Next {
    /// Probe a level.
    Probe(f64),
    /// Probe the level found once more.
    Confirm(f64),
    /// End.
    Stop(StopReason),
}

/// What was found at a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The objectives are kept.
    Kept,
    /// They are not, by the server.
    Missed,
    /// They are not, but by the client's own delay: the server's part is hidden behind it.
    Hidden,
}

/// A search in motion.
#[derive(Debug, Clone)]
pub struct Hunt {
    over: Over,
    first: f64,
    tolerance: f64,
    /// Highest level that passed, if none failed below it.
    low: Option<f64>,
    /// Lowest level that failed.
    high: Option<f64>,
    confirming: Option<Confirming>,
    steps_down: u32,
    is_at_ceiling: bool,
}

#[derive(Debug, Clone, Copy)]
struct Confirming {
    level: f64,
    passes: u32,
}

impl Hunt {
    /// A search that begins at `first` and ends when the bracket's ends differ by `tolerance`.
    pub fn new(over: Over, first: f64, tolerance: f64) -> Self {
        Self {
            over,
            first,
            tolerance,
            low: None,
            high: None,
            confirming: None,
            steps_down: 0,
            is_at_ceiling: false,
        }
    }

    /// The highest level that passed and did not fail since.
    pub fn level(&self) -> Option<f64> {
        self.low
    }

    /// What to do.
    pub fn next(&self) -> Next {
        if self.is_at_ceiling {
            return Next::Stop(StopReason::Ceiling);
        }
        if let Some(Confirming { level, passes }) = self.confirming {
            return match passes {
                CONFIRMATIONS => Next::Stop(StopReason::Converged),
                _ if self.steps_down > MAX_STEPS_DOWN => Next::Stop(StopReason::Unstable),
                _ => Next::Confirm(level),
            };
        }
        match (self.low, self.high) {
            (None, None) => Next::Probe(self.first),
            (Some(low), None) => Next::Probe(self.over.above(low)),
            (None, Some(high)) => match self.over.below(high, STRIDE) {
                Some(lower) => Next::Probe(lower),
                None => Next::Stop(StopReason::SoloFails),
            },
            (Some(low), Some(high)) => Next::Probe(self.over.between(low, high)),
        }
    }

    /// Takes what was found at the level that `next` named.
    pub fn record(&mut self, level: f64, found: Found) {
        let passed = found == Found::Kept;
        if found == Found::Hidden {
            self.is_at_ceiling = true;
            return;
        }
        match &mut self.confirming {
            Some(confirming) if passed => {
                confirming.passes += 1;
                self.low = Some(level);
            }
            Some(confirming) => {
                self.steps_down += 1;
                match self.over.below(level, 1.0 + self.tolerance) {
                    Some(level) => *confirming = Confirming { level, passes: 0 },
                    None => self.steps_down = MAX_STEPS_DOWN + 1,
                }
                (self.low, self.high) = (None, Some(level));
            }
            None if passed => self.low = Some(level),
            None => self.high = Some(level),
        }
        if let (None, Some(low), Some(high)) = (self.confirming, self.low, self.high)
            && self.over.is_narrow(low, high, self.tolerance)
        {
            self.confirming = Some(Confirming {
                level: low,
                passes: 0,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays a server whose probes pass up to a limit that `limit` names for each probe in turn.
    fn play(first: f64, limit: impl Fn(usize) -> f64) -> (Hunt, StopReason, usize) {
        play_over(Over::Rate, first, limit)
    }

    fn play_over(
        over: Over,
        first: f64,
        limit: impl Fn(usize) -> f64,
    ) -> (Hunt, StopReason, usize) {
        let mut hunt = Hunt::new(over, first, 0.05);
        for count in 0..200 {
            match hunt.next() {
                Next::Stop(reason) => return (hunt, reason, count),
                Next::Probe(rate) | Next::Confirm(rate) => {
                    let found = match rate <= limit(count) {
                        true => Found::Kept,
                        false => Found::Missed,
                    };
                    hunt.record(rate, found);
                }
            }
        }
        panic!("the search does not end: {hunt:?}");
    }

    #[test]
    fn the_limit_is_found_from_above_and_below() {
        for first in [0.01, 1.0, 9.9, 10.0, 400.0] {
            let (hunt, reason, probes) = play(first, |_| 10.0);
            let rate = hunt.level().unwrap();
            assert_eq!(reason, StopReason::Converged, "from {first}");
            assert!(rate <= 10.0 && rate * 1.05 >= 10.0, "{rate} from {first}");
            assert!(probes < 40, "{probes} probes from {first}");
        }
    }

    #[test]
    fn a_rate_near_the_limit_takes_few_probes() {
        let (_, _, probes) = play(8.0, |_| 10.0);
        assert!(probes <= 8, "{probes}");
    }

    /// Every limit from every beginning, in whole users.
    #[test]
    fn users_are_found_exactly_unless_they_are_many() {
        for limit in (1..60).map(f64::from) {
            for first in [1.0, 3.0, 8.0, 64.0] {
                let (hunt, reason, _) = play_over(Over::Concurrency, first, |_| limit);
                let users = hunt.level().unwrap();
                assert_eq!(reason, StopReason::Converged, "{limit} from {first}");
                assert!(users.fract() == 0.0 && users <= limit);
                assert!(
                    users + 1.0 > limit || users * 1.05 >= limit,
                    "{users} of {limit}"
                );
            }
        }
        let (hunt, reason, _) = play_over(Over::Concurrency, 5.0, |_| 0.5);
        assert_eq!((reason, hunt.level()), (StopReason::SoloFails, None));
        let gone = |count| if count < 4 { 1.0 } else { 0.0 };
        let (hunt, reason, _) = play_over(Over::Concurrency, 2.0, gone);
        assert_eq!((reason, hunt.level()), (StopReason::Unstable, None));
    }

    /// The machine becomes slower once the rate has been found.
    #[test]
    fn what_is_not_confirmed_steps_down() {
        let slower = |count| if count < 5 { 10.0 } else { 9.2 };
        let (hunt, reason, _) = play(8.0, slower);
        assert_eq!(reason, StopReason::Converged);
        assert!(hunt.level().unwrap() <= 9.2);
        let (hunt, reason, _) = play(8.0, |count| if count < 5 { 10.0 } else { 1.0 });
        assert_eq!((reason, hunt.level()), (StopReason::Unstable, None));
    }

    #[test]
    fn a_client_behind_whose_delay_the_server_is_hidden_ends_the_search() {
        let mut hunt = Hunt::new(Over::Rate, 5.0, 0.05);
        hunt.record(5.0, Found::Kept);
        assert_eq!(hunt.next(), Next::Probe(7.0));
        hunt.record(7.0, Found::Hidden);
        assert_eq!(hunt.next(), Next::Stop(StopReason::Ceiling));
        assert_eq!(hunt.level(), Some(5.0));
    }
}
