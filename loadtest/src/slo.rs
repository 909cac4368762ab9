//! Service-level objectives: what a request must keep to be good, and how large a share of the requests
//! was. A request that failed, or was never sent, is not good.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use crate::args::duration;
use crate::clock::Nanos;
use crate::record::RequestRecord;
use crate::stats::wilson;

/// Share of good requests that is asked for unless said otherwise.
const DEFAULT_ATTAINMENT: f64 = 0.99;

/// Limits of one request, and the share of the requests that must keep all of them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Slo {
    /// First token, from the planned start.
    #[serde(rename = "ttft_seconds", serialize_with = "as_seconds")]
    #[cfg_attr(test, schemars(with = "Option<f64>"))]
    pub ttft: Option<Duration>,
    /// Time per output token after the first.
    #[serde(rename = "tpot_seconds", serialize_with = "as_seconds")]
    #[cfg_attr(test, schemars(with = "Option<f64>"))]
    pub tpot: Option<Duration>,
    /// Longest gap between two events.
    #[serde(rename = "stall_seconds", serialize_with = "as_seconds")]
    #[cfg_attr(test, schemars(with = "Option<f64>"))]
    pub stall: Option<Duration>,
    /// End of the text, from the planned start.
    #[serde(rename = "e2e_seconds", serialize_with = "as_seconds")]
    #[cfg_attr(test, schemars(with = "Option<f64>"))]
    pub e2e: Option<Duration>,
    /// From zero to one.
    pub attainment: f64,
}

/// How much of a request's times may be the client's own delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delay {
    /// From the planned start to the first byte sent.
    pub sending: Nanos,
    /// How much later than it came a part of the answer may have been stamped.
    pub stamping: Nanos,
}

fn as_seconds<S: Serializer>(limit: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
    limit.map(|limit| limit.as_secs_f64()).serialize(s)
}

impl Slo {
    /// Whether the request succeeded within every limit. A value that an answer of one token does not
    /// have cannot be too large.
    pub fn is_kept_by(&self, record: &RequestRecord) -> bool {
        self.is_kept_but_for(record, Delay::default())
    }

    /// Whether it would have been within every limit without the client's own delay.
    pub fn is_kept_but_for(&self, record: &RequestRecord, delay: Delay) -> bool {
        let within = |value: Option<Nanos>, late: Nanos, limit: Option<Duration>| {
            let Some((value, limit)) = value.zip(limit) else {
                return true;
            };
            u128::from(value.saturating_sub(late)) <= limit.as_nanos()
        };
        let Delay { sending, stamping } = delay;
        let late = sending + stamping;
        // An answer without text is known to be one when it ends.
        let ended = || Some(record.t_end.saturating_sub(record.t_plan));
        record.outcome.is_success()
            && within(record.ttft().or_else(ended), late, self.ttft)
            && within(record.tpot_but_for(stamping), 0, self.tpot)
            && within(record.longest_stall(), stamping, self.stall)
            && within(record.e2e().or_else(ended), late, self.e2e)
    }
}

impl FromStr for Slo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut slo = Self {
            ttft: None,
            tpot: None,
            stall: None,
            e2e: None,
            attainment: DEFAULT_ATTAINMENT,
        };
        for pair in text.split(',') {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("`{pair}`: an objective is written ttft=1s,tpot=80ms"))?;
            let limit = match key.trim() {
                "ttft" => &mut slo.ttft,
                "tpot" => &mut slo.tpot,
                "stall" => &mut slo.stall,
                "e2e" => &mut slo.e2e,
                "attainment" => {
                    slo.attainment = share(value.trim())?;
                    continue;
                }
                other => {
                    return Err(format!(
                        "unknown objective `{other}`: ttft, tpot, stall, e2e or attainment"
                    ));
                }
            };
            *limit = Some(duration(value.trim())?);
        }
        if [slo.ttft, slo.tpot, slo.stall, slo.e2e] == [None; 4] {
            return Err(format!("`{text}` has no limit: ttft, tpot, stall or e2e"));
        }
        Ok(slo)
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(share),
        _ => Err(format!(
            "attainment {text} is not a number between 0 and 1, both left out"
        )),
    }
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits = [
            ("ttft", self.ttft),
            ("tpot", self.tpot),
            ("stall", self.stall),
            ("e2e", self.e2e),
        ];
        for (name, limit) in limits {
            if let Some(limit) = limit {
                write!(f, "{name}={}ms,", limit.as_secs_f64() * 1e3)?;
            }
        }
        write!(f, "attainment={}", self.attainment)
    }
}

/// How much of the load was served within the objectives.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Goodput {
    /// What was asked for.
    pub slo: Slo,
    /// Requests planned inside the window that kept every limit.
    pub good: u64,
    /// All requests planned inside it, failures, refusals and requests never sent included.
    pub planned: u64,
    /// `good / planned`, with its 95 % interval by Wilson's formula.
    pub attainment: Share,
    /// Good requests per second of the window.
    pub requests_per_second: f64,
}

/// A share and the interval in which it lies with 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Share {
    /// As counted; none of nothing.
    pub value: Option<f64>,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Share {
    /// Of `good` among `n`.
    pub fn new(good: u64, n: u64) -> Self {
        let (low, high) = wilson(good, n);
        Self {
            value: (n > 0).then(|| good as f64 / n as f64),
            low,
            high,
        }
    }
}

impl Goodput {
    /// Counts among the requests planned inside a window of `seconds`.
    pub fn new(slo: Slo, measured: &[&RequestRecord], seconds: f64) -> Self {
        let planned = measured.len() as u64;
        let good = measured.iter().filter(|r| slo.is_kept_by(r)).count() as u64;
        Self {
            slo,
            good,
            planned,
            attainment: Share::new(good, planned),
            requests_per_second: if seconds > 0.0 {
                good as f64 / seconds
            } else {
                0.0
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Outcome;
    use crate::record::tests::{failure, success};

    #[test]
    fn the_spelling_goes_both_ways() {
        let slo: Slo = "ttft=1s, tpot=80ms,stall=0.5s,e2e=2m,attainment=0.95"
            .parse()
            .unwrap();
        assert_eq!(slo.ttft, Some(Duration::from_secs(1)));
        assert_eq!(slo.e2e, Some(Duration::from_secs(120)));
        assert_eq!(slo.to_string().parse::<Slo>().unwrap(), slo);
        assert_eq!("ttft=1s".parse::<Slo>().unwrap().attainment, 0.99);
        for text in [
            "",
            "ttft",
            "ttft=",
            "ttft=-1s",
            "speed=1s",
            "attainment=0.9",
            "ttft=1s,attainment=1",
            "ttft=1s,attainment=nan",
        ] {
            assert!(text.parse::<Slo>().is_err(), "{text}");
        }
    }

    /// The records have a first token after 100 ns, one more every 10 ns and five tokens.
    #[test]
    fn each_limit_alone_makes_a_request_bad() {
        let record = success(0, 0, 7, 5);
        let limits = [("ttft", 100), ("tpot", 10), ("stall", 10), ("e2e", 140)];
        for (name, exact) in limits {
            let at = |nanos: u64| {
                let mut slo: Slo = format!("{name}=1s").parse().unwrap();
                for limit in [&mut slo.ttft, &mut slo.tpot, &mut slo.stall, &mut slo.e2e] {
                    *limit = limit.map(|_| Duration::from_nanos(nanos));
                }
                slo.is_kept_by(&record)
            };
            assert!(at(exact), "{name}: the limit itself is kept");
            assert!(!at(exact - 1), "{name}");
        }
    }

    /// The same records with limits that only the client's delay breaks: by sending 5 ns late and stamping 20 ns late.
    #[test]
    fn what_the_client_took_itself_is_taken_off_each_limit() {
        let record = success(0, 0, 7, 5);
        let both = Delay {
            sending: 5,
            stamping: 20,
        };
        // 40 ns over four tokens, of which 20 ns may be a late stamp.
        let limits = [("ttft", 75), ("tpot", 5), ("stall", 0), ("e2e", 115)];
        for (name, exact) in limits {
            let at = |nanos: u64, delay| {
                let mut slo: Slo = format!("{name}=1s").parse().unwrap();
                for limit in [&mut slo.ttft, &mut slo.tpot, &mut slo.stall, &mut slo.e2e] {
                    *limit = limit.map(|_| Duration::from_nanos(nanos));
                }
                slo.is_kept_but_for(&record, delay)
            };
            assert!(at(exact, both), "{name}");
            assert!(!at(exact, Delay::default()), "{name}");
            assert!(exact == 0 || !at(exact - 1, both), "{name}");
        }
        let refused = failure(1, 0, 429, Outcome::Refused429);
        let slo: Slo = "ttft=1s".parse().unwrap();
        assert!(!slo.is_kept_but_for(&refused, both));
    }

    #[test]
    fn an_answer_without_text_is_as_late_as_its_end() {
        let mut record = success(0, 0, 7, 5);
        record.outcome = Outcome::OkEmpty;
        (record.stream.t_first, record.stream.t_last) = (None, None);
        let within = |nanos: u64| {
            let mut slo: Slo = "ttft=1s".parse().unwrap();
            slo.ttft = Some(Duration::from_nanos(nanos));
            slo.is_kept_by(&record)
        };
        assert!(within(record.t_end) && !within(record.t_end - 1));
    }

    #[test]
    fn failures_are_never_good_and_single_tokens_have_no_gap() {
        let slo: Slo = "tpot=1ms,stall=1ms".parse().unwrap();
        assert!(slo.is_kept_by(&success(0, 0, 7, 1)));
        let refused = failure(1, 0, 429, Outcome::Refused429);
        assert!(!slo.is_kept_by(&refused));
        let records = [success(0, 0, 7, 1), refused];
        let found = Goodput::new(slo, &records.iter().collect::<Vec<_>>(), 2.0);
        assert_eq!((found.good, found.planned), (1, 2));
        assert_eq!(
            (found.attainment.value, found.requests_per_second),
            (Some(0.5), 0.5)
        );
        let none = Goodput::new(slo, &[], 0.0);
        assert_eq!(
            (none.attainment.value, none.requests_per_second),
            (None, 0.0)
        );
        assert_eq!((none.attainment.low, none.attainment.high), (0.0, 1.0));
    }
}
