//! Lengths of a file: one a line, or a span of them, each with a weight where they are not all alike. A plain list of what
//! was seen is an empirical distribution, one with weights a histogram.

use std::path::Path;

use crate::rng::Rng;

/// Lengths with their weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// The file without its folder.
    name: String,
    /// From and to, both included.
    spans: Vec<(u32, u32)>,
    /// The sum of the weights up to and with each span.
    sums: Vec<f64>,
}

impl Listed {
    /// Reads a file.
    ///
    /// # Errors
    /// A file that is not there, or a line that is not `LENGTH [WEIGHT]` or `MIN..MAX [WEIGHT]`.
    pub fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read the lengths {shown}: {error}"))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self::parse(&name, &text).map_err(|error| format!("the lengths {shown}: {error}"))
    }

    fn parse(name: &str, text: &str) -> Result<Self, String> {
        let (mut spans, mut sums, mut sum) = (Vec::new(), Vec::new(), 0.0);
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let (span, weight) =
                entry(line).ok_or_else(|| format!("line {number}: `{line}` is no length"))?;
            sum += weight;
            spans.push(span);
            sums.push(sum);
        }
        if sum <= 0.0 {
            return Err("there is no length with a weight above zero".into());
        }
        Ok(Self {
            name: name.to_owned(),
            spans,
            sums,
        })
    }

    /// The file without its folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Draws a length: a line by its weight, and every length of its span alike.
    pub fn draw(&self, rng: &mut Rng) -> u32 {
        let at = rng.unit() * self.sums.last().copied().unwrap_or(0.0);
        let place = self.sums.partition_point(|sum| *sum <= at);
        let (min, max) = self.spans[place.min(self.spans.len() - 1)];
        let span = u64::from(max) - u64::from(min) + 1;
        min + u32::try_from(rng.below(span)).expect("the span of two u32 fits")
    }

    /// The longest length that can be drawn.
    pub fn max(&self) -> u32 {
        self.spans.iter().map(|(_, max)| *max).max().unwrap_or(0)
    }
}

/// A span and its weight.
fn entry(line: &str) -> Option<((u32, u32), f64)> {
    let is_border = |c: char| c.is_whitespace() || c == ',';
    let mut cells = line.split(is_border).filter(|cell| !cell.is_empty());
    let span = cells.next()?;
    let (min, max) = span.split_once("..").unwrap_or((span, span));
    let (min, max) = (min.parse().ok()?, max.parse().ok()?);
    let weight: f64 = cells.next().map_or(Some(1.0), |cell| cell.parse().ok())?;
    let is_good = min > 0 && min <= max && weight.is_finite() && weight >= 0.0;
    (is_good && cells.next().is_none()).then_some(((min, max), weight))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    fn drawn(text: &str) -> Vec<u32> {
        let listed = Listed::parse("l", text).unwrap();
        let mut rng = Rng::new(3, Stream::Lengths(0));
        (0..20_000).map(|_| listed.draw(&mut rng)).collect()
    }

    #[test]
    fn lengths_come_as_often_as_their_weights_say() {
        let share = |drawn: &[u32], from, to| {
            let n = drawn.iter().filter(|n| (from..=to).contains(*n)).count();
            n as f64 / drawn.len() as f64
        };
        let seen = drawn("# seen\n7\n9\n7\n\n20\n");
        for (length, expected) in [(7, 0.5), (9, 0.25), (20, 0.25)] {
            assert!(
                (share(&seen, length, length) - expected).abs() < 0.02,
                "{length}"
            );
        }
        let bars = drawn("1..10, 1\n11..20 3\n21..30 0\n");
        assert!((share(&bars, 1, 10) - 0.25).abs() < 0.02);
        assert!((share(&bars, 11, 20) - 0.75).abs() < 0.02);
        assert!(
            (share(&bars, 15, 15) - 0.075).abs() < 0.01,
            "alike within a bar"
        );
    }

    #[test]
    fn what_is_no_length_is_named_with_its_line() {
        for (text, part) in [
            ("", "no length"),
            ("5 0\n", "no length"),
            ("5\nx\n", "line 2: `x`"),
            ("0\n", "line 1"),
            ("9..5\n", "line 1"),
            ("5 -1\n", "line 1"),
            ("5 1 2\n", "line 1"),
        ] {
            let error = Listed::parse("l", text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
