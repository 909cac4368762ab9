//! How long a user thinks before the next question, and the spelling that has on the command line.

use std::fmt;
use std::str::FromStr;

use crate::args::duration;
use crate::clock::Nanos;
use crate::lengths::Lengths;
use crate::rng::Rng;

const MILLISECOND: Nanos = 1_000_000;

/// A distribution of pauses, kept in whole milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Think(Option<Lengths>);

impl Think {
    /// Draws one pause; nothing is drawn where there is none.
    pub fn draw(&self, rng: &mut Rng) -> Nanos {
        self.0.map_or(0, |milliseconds| {
            Nanos::from(milliseconds.draw(rng)) * MILLISECOND
        })
    }
}

impl fmt::Display for Think {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("0"),
            Some(Lengths::Fixed(ms)) => write!(f, "{ms}ms"),
            Some(Lengths::Uniform { min, max }) => write!(f, "uniform:{min}ms..{max}ms"),
            // Its further pairs are times, too: `normal:mean=5,sd=2,min=1,max=9`.
            Some(drawn) => {
                let text = format!("{drawn},").replace(',', "ms,");
                f.write_str(text.trim_end_matches(','))
            }
        }
    }
}

impl FromStr for Think {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "0" {
            return Ok(Self(None));
        }
        let milliseconds = |text: &str| -> Result<String, String> {
            let milliseconds = duration(text.trim())?.as_millis();
            match u32::try_from(milliseconds) {
                Ok(0) => Err(format!("`{text}` is shorter than a millisecond")),
                Ok(ms) => Ok(ms.to_string()),
                Err(_) => Err(format!("`{text}` is longer than {} ms", u32::MAX)),
            }
        };
        let spelled = match text.split_once(':') {
            None => milliseconds(text)?,
            Some(("uniform", range)) => {
                let (min, max) = range
                    .split_once("..")
                    .ok_or_else(|| format!("`{text}`: write uniform:MIN..MAX"))?;
                format!("uniform:{}..{}", milliseconds(min)?, milliseconds(max)?)
            }
            Some((kind, pairs)) => {
                let pair = |pair: &str| -> Result<String, String> {
                    let (key, value) = pair
                        .split_once('=')
                        .ok_or_else(|| format!("`{pair}`: write median=TIME,p95=TIME"))?;
                    Ok(format!("{key}={}", milliseconds(value)?))
                };
                let pairs: Vec<String> = pairs.split(',').map(pair).collect::<Result<_, _>>()?;
                format!("{kind}:{}", pairs.join(","))
            }
        };
        Ok(Self(Some(spelled.parse()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn spellings_are_read_and_printed_alike() {
        for text in [
            "0",
            "1500ms",
            "uniform:100ms..2000ms",
            "lognormal:median=2000ms,p95=8000ms",
            "gamma:mean=2000ms,sd=1000ms",
        ] {
            let think: Think = text.parse().unwrap();
            let told = think.to_string();
            assert!(told.starts_with(text), "{told}");
            assert_eq!(told.parse(), Ok(think), "{told}");
        }
        assert_eq!("2s".parse::<Think>().unwrap().to_string(), "2000ms");
        for text in [
            "",
            "0.1ms",
            "2d",
            "uniform:1s",
            "lognormal:1s",
            "pareto:a=1s",
        ] {
            assert!(text.parse::<Think>().is_err(), "{text}");
        }
    }

    #[test]
    fn pauses_are_drawn_in_nanoseconds() {
        let mut rng = Rng::new(0, Stream::Lengths(0));
        assert_eq!(Think::default().draw(&mut rng), 0);
        let fixed: Think = "2s".parse().unwrap();
        assert_eq!(fixed.draw(&mut rng), 2_000_000_000);
    }
}
