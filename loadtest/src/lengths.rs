//! Distributions of prompt and output lengths, in tokens, and the spelling they have on the command
//! line. Every distribution is truncated, and the drawn length is kept with its request.

mod listed;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::rng::Rng;
pub use listed::Listed;

/// The 95th percentile of the standard normal distribution.
const NORMAL_P95: f64 = 1.644_853_626_951_472_7;
/// Draws outside the bounds are drawn again this often before the value is clamped.
const MAX_REDRAWS: usize = 1000;

/// A distribution of lengths in tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Lengths {
    /// Always the same length.
    Fixed(u32),
    /// Every length from `min` to `max`, both included, equally likely.
    Uniform {
        /// Shortest length.
        min: u32,
        /// Longest length.
        max: u32,
    },
    /// A lognormal distribution given by its median and 95th percentile, truncated to `min..=max`.
    Lognormal {
        /// Half of the untruncated draws are below.
        median: f64,
        /// 95 % of the untruncated draws are below.
        p95: f64,
        /// Shortest length.
        min: u32,
        /// Longest length.
        max: u32,
    },
    /// A normal distribution, truncated to `min..=max`.
    Normal {
        /// Mean of the untruncated draws.
        mean: f64,
        /// Their standard deviation.
        sd: f64,
        /// Shortest length.
        min: u32,
        /// Longest length.
        max: u32,
    },
    /// A gamma distribution, truncated to `min..=max`.
    Gamma {
        /// Mean of the untruncated draws.
        mean: f64,
        /// Their standard deviation.
        sd: f64,
        /// Shortest length.
        min: u32,
        /// Longest length.
        max: u32,
    },
    /// Those of a file, which is kept to the end of the program.
    Listed(&'static Listed),
}

impl Lengths {
    /// Draws one length.
    pub fn draw(&self, rng: &mut Rng) -> u32 {
        match *self {
            Self::Fixed(tokens) => tokens,
            Self::Uniform { min, max } => {
                let span = u64::from(max) - u64::from(min) + 1;
                min + u32::try_from(rng.below(span)).expect("the span of two u32 fits")
            }
            Self::Lognormal {
                median,
                p95,
                min,
                max,
            } => {
                let sigma = (p95 / median).ln() / NORMAL_P95;
                truncated(min, max, || median * (sigma * rng.normal()).exp())
            }
            Self::Normal { mean, sd, min, max } => truncated(min, max, || mean + sd * rng.normal()),
            Self::Gamma { mean, sd, min, max } => {
                let shape = (mean / sd).powi(2);
                truncated(min, max, || rng.gamma(shape) * mean / shape)
            }
            Self::Listed(listed) => listed.draw(rng),
        }
    }

    /// The longest length that can be drawn.
    pub fn max(&self) -> u32 {
        match *self {
            Self::Fixed(tokens) => tokens,
            Self::Uniform { max, .. }
            | Self::Lognormal { max, .. }
            | Self::Normal { max, .. }
            | Self::Gamma { max, .. } => max,
            Self::Listed(listed) => listed.max(),
        }
    }
}

/// Draws until the rounded value lies inside, and clamps the first draw when that takes too long.
fn truncated(min: u32, max: u32, mut draw: impl FnMut() -> f64) -> u32 {
    let inside = |length: &f64| *length >= f64::from(min) && *length <= f64::from(max);
    let first = draw().round();
    let length = if inside(&first) {
        first
    } else {
        (0..MAX_REDRAWS)
            .map(|_| draw().round())
            .find(inside)
            .unwrap_or(first)
    };
    length.clamp(f64::from(min), f64::from(max)) as u32
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(tokens) => write!(f, "{tokens}"),
            Self::Uniform { min, max } => write!(f, "uniform:{min}..{max}"),
            Self::Lognormal {
                median,
                p95,
                min,
                max,
            } => {
                write!(f, "lognormal:median={median},p95={p95},min={min},max={max}")
            }
            Self::Normal { mean, sd, min, max } => {
                write!(f, "normal:mean={mean},sd={sd},min={min},max={max}")
            }
            Self::Gamma { mean, sd, min, max } => {
                write!(f, "gamma:mean={mean},sd={sd},min={min},max={max}")
            }
            Self::Listed(listed) => write!(f, "histogram:{}", listed.name()),
        }
    }
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse_in(text, Path::new(""))
    }
}

impl Lengths {
    /// Reads a spelling; the file of one is looked for in `folder`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse_in(text: &str, folder: &Path) -> Result<Self, String> {
        let (kind, rest) = text.split_once(':').unwrap_or(("fixed", text));
        match kind {
            "fixed" => Ok(Self::Fixed(positive(rest)?)),
            "uniform" => {
                let (min, max) = rest.split_once("..").ok_or_else(|| {
                    format!("`{text}`: a uniform length is written uniform:MIN..MAX")
                })?;
                let (min, max) = (positive(min)?, positive(max)?);
                ordered(text, min, max)?;
                Ok(Self::Uniform { min, max })
            }
            "lognormal" => {
                let [median, p95, min, max] = pairs(text, rest, ["median", "p95"])?;
                if p95 <= median {
                    return Err(format!(
                        "`{text}`: p95 {p95} must be above the median {median}"
                    ));
                }
                let (median, p95) = (f64::from(median), f64::from(p95));
                Ok(Self::Lognormal {
                    median,
                    p95,
                    min,
                    max,
                })
            }
            "normal" | "gamma" => {
                let [mean, sd, min, max] = pairs(text, rest, ["mean", "sd"])?;
                let (mean, sd) = (f64::from(mean), f64::from(sd));
                Ok(match kind {
                    "normal" => Self::Normal { mean, sd, min, max },
                    _ => Self::Gamma { mean, sd, min, max },
                })
            }
            "histogram" | "empirical" => {
                let listed = Listed::read(&folder.join(rest))?;
                Ok(Self::Listed(Box::leak(Box::new(listed))))
            }
            other => Err(format!(
                "unknown distribution `{other}`: fixed, uniform, lognormal, normal, gamma, histogram or empirical"
            )),
        }
    }
}

/// Two needed values, the least and the greatest length of a distribution.
fn pairs(text: &str, rest: &str, needed: [&str; 2]) -> Result<[u32; 4], String> {
    let [first, second] = needed;
    let (mut values, mut min, mut max) = ([None; 2], 1, None);
    for pair in rest.split(',') {
        let (key, value) = pair.split_once('=').ok_or_else(|| {
            format!("`{pair}`: write {first}=N,{second}=N and, where wanted, min=N,max=N")
        })?;
        let value = positive(value)?;
        match key.trim() {
            "min" => min = value,
            "max" => max = Some(value),
            key if key == first => values[0] = Some(value),
            key if key == second => values[1] = Some(value),
            other => {
                return Err(format!(
                    "unknown key `{other}`: {first}, {second}, min or max"
                ));
            }
        }
    }
    let [Some(a), Some(b)] = values else {
        return Err(format!("`{text}` needs {first} and {second}"));
    };
    // Four times their sum cuts less than one draw in a thousand for any usual spread.
    let max = max.unwrap_or_else(|| match second {
        "p95" => b.saturating_mul(4),
        _ => a.saturating_add(b).saturating_mul(4),
    });
    ordered(text, min, max)?;
    Ok([a, b, min, max])
}

fn positive(text: &str) -> Result<u32, String> {
    match text.trim().parse::<u32>() {
        Ok(value) if value > 0 => Ok(value),
        _ => Err(format!(
            "`{}` is not a whole number of tokens above zero",
            text.trim()
        )),
    }
}

fn ordered(text: &str, min: u32, max: u32) -> Result<(), String> {
    if min > max {
        Err(format!("`{text}`: {min} is above {max}"))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn spellings_are_read_and_printed_alike() {
        for text in [
            "64",
            "uniform:16..256",
            "lognormal:median=256,p95=900,min=16,max=1500",
            "normal:mean=256,sd=64,min=16,max=1500",
            "gamma:mean=256,sd=128,min=16,max=1500",
        ] {
            assert_eq!(text.parse::<Lengths>().unwrap().to_string(), text);
        }
        assert_eq!("fixed:8".parse(), Ok(Lengths::Fixed(8)));
        let open = "lognormal:median=10,p95=20".parse::<Lengths>().unwrap();
        assert_eq!(
            open,
            Lengths::Lognormal {
                median: 10.0,
                p95: 20.0,
                min: 1,
                max: 80
            }
        );
    }

    #[test]
    fn bad_spellings_name_what_is_wrong() {
        let cases = [
            ("0", "above zero"),
            ("uniform:5", "uniform:MIN..MAX"),
            ("uniform:9..5", "9 is above 5"),
            ("pareto:3", "unknown distribution"),
            ("lognormal:median=5", "needs median and p95"),
            ("lognormal:median=5,p95=5", "must be above"),
            ("lognormal:median=5,p95=9,mode=2", "unknown key"),
            ("lognormal:median=5,p95=9,min=20,max=10", "20 is above 10"),
        ];
        for (text, part) in cases {
            let error = text.parse::<Lengths>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn draws_stay_inside_and_follow_the_distribution() {
        let mut rng = Rng::new(3, Stream::Lengths(0));
        let uniform = Lengths::Uniform { min: 3, max: 5 };
        let mut seen = [0; 6];
        for _ in 0..3000 {
            seen[uniform.draw(&mut rng) as usize] += 1;
        }
        assert_eq!(seen[..3], [0, 0, 0]);
        assert!(seen[3..].iter().all(|n| *n > 900), "{seen:?}");

        let lognormal: Lengths = "lognormal:median=100,p95=400,min=10,max=5000"
            .parse()
            .unwrap();
        let mut drawn: Vec<u32> = (0..4000).map(|_| lognormal.draw(&mut rng)).collect();
        drawn.sort_unstable();
        assert!((90..=110).contains(&drawn[2000]), "{}", drawn[2000]);
        assert!((350..=450).contains(&drawn[3800]), "{}", drawn[3800]);
        assert!(drawn[0] >= 10 && drawn[3999] <= 5000);

        for kind in ["normal", "gamma"] {
            let text = format!("{kind}:mean=200,sd=50,max=5000");
            let lengths: Lengths = text.parse().unwrap();
            let drawn: Vec<f64> = (0..4000).map(|_| lengths.draw(&mut rng).into()).collect();
            let mean = drawn.iter().sum::<f64>() / 4000.0;
            let variance = drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 4000.0;
            assert!((mean - 200.0).abs() < 4.0, "{kind} {mean}");
            assert!((variance.sqrt() - 50.0).abs() < 4.0, "{kind} {variance}");
        }

        // Bounds that no draw reaches end in a clamped value instead of an endless loop.
        let far: Lengths = "lognormal:median=10,p95=11,min=900,max=901"
            .parse()
            .unwrap();
        assert_eq!(far.draw(&mut rng), 900);
    }
}
