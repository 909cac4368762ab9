//! From values to places on an axis, and where its ticks stand.

/// How values are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// From zero.
    Linear,
    /// By powers of ten.
    Log,
    /// Shares from 0 to 1, with room for the tail: by −log₁₀(1 − share).
    Percentile,
}

/// An axis, once its range is known.
#[derive(Debug, Clone)]
pub struct Axis {
    pub label: &'static str,
    scale: Scale,
    is_time: bool,
    low: f64,
    high: f64,
    /// What lies beyond stands at the edge.
    cap: f64,
    /// Whether so little lies on a logarithmic axis that it takes closer ticks.
    is_short: bool,
}

/// The greatest ratio of what lies on a logarithmic axis that takes closer ticks.
const SHORT: f64 = 4.0;
/// Ticks of a percentile axis.
const SHARES: [f64; 7] = [0.0, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999];

impl Axis {
    /// An axis without values.
    pub fn new(label: &'static str, scale: Scale) -> Self {
        Self {
            label,
            scale,
            is_time: false,
            low: f64::INFINITY,
            high: f64::NEG_INFINITY,
            cap: f64::INFINITY,
            is_short: false,
        }
    }

    /// An axis of times, which are labelled with the unit that suits them.
    pub fn seconds(scale: Scale) -> Self {
        Self {
            is_time: true,
            ..Self::new("seconds", scale)
        }
    }

    /// The axis that ends at `cap`, where all that is beyond stands at the edge.
    pub fn up_to(self, cap: f64) -> Self {
        Self { cap, ..self }
    }

    /// A value for people.
    pub fn words(&self, value: f64) -> String {
        if self.is_time {
            super::milliseconds(Some(value))
        } else if self.scale == Scale::Percentile {
            percent(value)
        } else {
            super::number(value)
        }
    }

    /// A value for people, without digits that say nothing: beside its tick, which is as round as it looks.
    fn label(&self, value: f64) -> String {
        if value == 0.0 && self.is_time {
            return "0".to_owned();
        }
        let words = self.words(value);
        let (number, unit) = words.split_once(' ').unwrap_or((&words, ""));
        let number = match number.contains('.') {
            true => number.trim_end_matches('0').trim_end_matches('.'),
            false => number,
        };
        format!("{number} {unit}").trim_end().to_owned()
    }

    /// Widens the range to hold a value.
    pub fn include(&mut self, value: f64) {
        let value = value.min(self.cap);
        if self.scale != Scale::Log || value > 0.0 {
            self.low = self.low.min(value);
            self.high = self.high.max(value);
        }
    }

    /// Rounds the range outwards to where ticks stand.
    pub fn finish(&mut self) {
        if self.low > self.high {
            (self.low, self.high) = (0.1, 1.0);
        }
        match self.scale {
            Scale::Linear => {
                self.low = 0.0;
                let high = if self.high > 0.0 { self.high } else { 1.0 };
                let step = linear_step(high);
                self.high = (high / step).ceil() * step;
            }
            Scale::Log => {
                self.is_short = self.high / self.low <= SHORT;
                let ticks = round_values(self.low, self.high, self.is_short);
                self.low = ticks
                    .iter()
                    .rev()
                    .find(|t| **t <= self.low)
                    .copied()
                    .unwrap_or(self.low);
                self.high = ticks
                    .iter()
                    .find(|t| **t >= self.high)
                    .copied()
                    .unwrap_or(self.high);
                if self.high <= self.low {
                    self.high = self.low * 10.0;
                }
            }
            Scale::Percentile => self.low = 0.0,
        }
    }

    /// The place of a value, 0 to 1.
    pub fn place(&self, value: f64) -> f64 {
        let place = |f: fn(f64) -> f64| (f(value) - f(self.low)) / (f(self.high) - f(self.low));
        let place = match self.scale {
            Scale::Linear => place(|v| v),
            Scale::Log => place(|v| v.max(f64::MIN_POSITIVE).log10()),
            Scale::Percentile => place(|v| -(1.0 - v.min(0.999_999)).log10()),
        };
        if place.is_finite() {
            place.clamp(0.0, 1.0)
        } else {
            0.0
        }
    }

    /// Values with their labels; of a logarithmic axis powers of ten alone if there were more than `most`.
    pub fn ticks(&self, most: usize) -> Vec<(f64, String)> {
        match self.scale {
            Scale::Linear => {
                let step = linear_step(self.high);
                (0..)
                    .map(|i| f64::from(i) * step)
                    .take_while(|value| *value <= self.high * 1.000_001)
                    .map(|value| (value, self.label(value)))
                    .collect()
            }
            Scale::Log => {
                let mut ticks = round_values(self.low, self.high, self.is_short);
                ticks.retain(|tick| (self.low * 0.999..=self.high * 1.001).contains(tick));
                if ticks.len() > most {
                    ticks.retain(|tick| is_power_of_ten(*tick));
                }
                ticks
                    .into_iter()
                    .map(|value| (value, self.label(value)))
                    .collect()
            }
            Scale::Percentile => SHARES
                .into_iter()
                .filter(|share| *share <= self.high)
                .map(|share| (share, percent(share)))
                .collect(),
        }
    }
}

fn percent(share: f64) -> String {
    format!("{} %", (share * 1000.0).round() / 10.0)
}

/// 1, 2 and 5 times powers of ten around a range, and what is round between them around a short one.
fn round_values(low: f64, high: f64, is_short: bool) -> Vec<f64> {
    let digits: &[f64] = match is_short {
        true => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
        false => &[1.0, 2.0, 5.0],
    };
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    (first..=last)
        .flat_map(|power| digits.iter().map(move |digit| digit * 10f64.powi(power)))
        .collect()
}

fn is_power_of_ten(value: f64) -> bool {
    (value.log10() - value.log10().round()).abs() < 1e-9
}

/// A round step that gives four to eight ticks.
fn linear_step(high: f64) -> f64 {
    let rough = high / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let digit = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|d| d * power >= rough);
    digit.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(mut axis: Axis, values: [f64; 2]) -> Vec<String> {
        values.into_iter().for_each(|value| axis.include(value));
        axis.finish();
        axis.ticks(10).into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn labels_have_no_digits_that_say_nothing() {
        let plain = |scale| Axis::new("", scale);
        let shares = ["0", "0.2", "0.4", "0.6", "0.8", "1"];
        assert_eq!(labels(plain(Scale::Linear), [0.0, 1.0]), shares);
        assert_eq!(
            labels(plain(Scale::Linear), [0.0, 0.01])[..2],
            ["0", "0.002"]
        );
        let halves = ["0", "0.5", "1", "1.5", "2", "2.5"];
        assert_eq!(labels(plain(Scale::Linear), [0.0, 2.5]), halves);
        assert_eq!(
            labels(plain(Scale::Linear), [0.0, 500.0])[..2],
            ["0", "100"]
        );
        assert_eq!(labels(plain(Scale::Log), [0.1, 10.0])[..1], ["0.1"]);
        let times = ["10 ms", "20 ms", "50 ms", "100 ms"];
        assert_eq!(labels(Axis::seconds(Scale::Log), [0.01, 0.1]), times);
        assert_eq!(
            labels(Axis::seconds(Scale::Log), [1.0, 10.0])[..2],
            ["1 s", "2 s"]
        );
        let short = ["20 ms", "30 ms", "40 ms"];
        assert_eq!(labels(Axis::seconds(Scale::Log), [0.02, 0.036]), short);
        assert_eq!(labels(Axis::seconds(Scale::Linear), [0.0, 0.01])[0], "0");
        let long = ["10 ms", "100 ms", "1 s", "10 s", "100 s"];
        assert_eq!(labels(Axis::seconds(Scale::Log), [0.01, 100.0]), long);
        let shares = ["0 %", "50 %", "75 %", "90 %", "95 %", "99 %"];
        assert_eq!(labels(plain(Scale::Percentile), [0.2, 0.995]), shares);
    }
}
