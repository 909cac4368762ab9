//! Stop strings, matched across the borders of tokens and chunks.
//!
//! The text is taken to arrive byte by byte: the first stop string to be complete ends it, the longest
//! one if several are complete at the same byte. So the result does not depend on how the text was cut
//! into pieces. What could still become a stop string is held back, and nothing else.

/// Finds stop strings in text that arrives in pieces.
#[derive(Debug, Clone)]
pub(crate) struct StopMatcher {
    stops: std::sync::Arc<[String]>,
    /// The end of the text so far that begins some stop string.
    held: String,
}

/// What came of a piece of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pushed {
    /// Text that is certainly not part of a stop string.
    pub(crate) text: String,
    /// The stop string that is complete, by index.
    pub(crate) matched: Option<usize>,
}

impl StopMatcher {
    /// Stop strings must not be empty.
    pub(crate) fn new(stops: std::sync::Arc<[String]>) -> Self {
        debug_assert!(stops.iter().all(|s| !s.is_empty()));
        Self {
            stops,
            held: String::new(),
        }
    }

    /// Takes the next piece. After a match nothing more may be pushed.
    pub(crate) fn push(&mut self, piece: &str) -> Pushed {
        if self.stops.is_empty() {
            return Pushed {
                text: piece.to_owned(),
                matched: None,
            };
        }
        let mut text = std::mem::take(&mut self.held);
        let first_new = text.len() + 1;
        text.push_str(piece);
        for end in first_new..=text.len() {
            if let Some(index) = self.complete_at(&text.as_bytes()[..end]) {
                text.truncate(end - self.stops[index].len());
                return Pushed {
                    text,
                    matched: Some(index),
                };
            }
        }
        self.held = text.split_off(text.len() - self.held_len(text.as_bytes()));
        Pushed {
            text,
            matched: None,
        }
    }

    /// What is still held back; the text is over, so it was no stop string.
    pub(crate) fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    fn complete_at(&self, bytes: &[u8]) -> Option<usize> {
        (0..self.stops.len())
            .filter(|i| bytes.ends_with(self.stops[*i].as_bytes()))
            .max_by_key(|i| (self.stops[*i].len(), std::cmp::Reverse(*i)))
    }

    /// The length of the longest end of `bytes` that begins a stop string. It starts where a
    /// character starts, because stop strings do.
    fn held_len(&self, bytes: &[u8]) -> usize {
        self.stops
            .iter()
            .map(|stop| {
                let stop = stop.as_bytes();
                let longest = bytes.len().min(stop.len() - 1);
                (1..=longest)
                    .rev()
                    .find(|len| bytes.ends_with(&stop[..*len]))
                    .unwrap_or(0)
            })
            .max()
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Character by character over the whole text.
    fn oracle(text: &str, stops: &[String]) -> (String, Option<usize>) {
        for end in 1..=text.len() {
            let complete = stops
                .iter()
                .enumerate()
                .filter(|(_, stop)| text.as_bytes()[..end].ends_with(stop.as_bytes()))
                .max_by_key(|(i, stop)| (stop.len(), std::cmp::Reverse(*i)));
            if let Some((index, stop)) = complete {
                return (text[..end - stop.len()].to_owned(), Some(index));
            }
        }
        (text.to_owned(), None)
    }

    fn run(pieces: &[String], stops: &[String]) -> (String, Option<usize>, Vec<String>) {
        let mut matcher = StopMatcher::new(stops.to_vec().into());
        let mut out = String::new();
        let mut after_each = Vec::new();
        for piece in pieces {
            let pushed = matcher.push(piece);
            out.push_str(&pushed.text);
            after_each.push(out.clone());
            if pushed.matched.is_some() {
                return (out, pushed.matched, after_each);
            }
        }
        out.push_str(&matcher.flush());
        (out, None, after_each)
    }

    #[test]
    fn known_cases() {
        let s = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        for (pieces, stops, text, matched) in [
            (s(&["ab", "cd"]), s(&["bc"]), "a", Some(0)),
            (s(&["a", "b", "c"]), s(&["abd"]), "abc", None),
            (s(&["abab", "c"]), s(&["ababd", "babc"]), "a", Some(1)),
            (s(&["xyzw"]), s(&["xyzw", "yz"]), "x", Some(1)),
            (s(&["abc"]), s(&["c", "bc"]), "a", Some(1)),
            (s(&["é", "è"]), s(&["è"]), "é", Some(0)),
            (s(&["aa", "a"]), s(&["aaaa"]), "aaa", None),
            (s(&["stop"]), s(&["stop"]), "", Some(0)),
        ] {
            let (out, found, _) = run(&pieces, &stops);
            assert_eq!(
                (out.as_str(), found),
                (text, matched),
                "{pieces:?} {stops:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn equals_the_oracle_however_the_text_is_cut(
            pieces in prop::collection::vec("[abé😀]{0,4}", 0..12),
            stops in prop::collection::vec("[abé😀]{1,5}", 0..4),
        ) {
            let whole = pieces.concat();
            let (expected, matched) = oracle(&whole, &stops);
            let (out, found, after_each) = run(&pieces, &stops);
            prop_assert_eq!(&out, &expected);
            prop_assert_eq!(found, matched);
            // Nothing leaks early, and nothing is withheld that cannot become a stop string.
            let mut read = String::new();
            for (piece, emitted) in pieces.iter().zip(&after_each) {
                read.push_str(piece);
                prop_assert!(expected.starts_with(emitted.as_str()));
                let held = &read[emitted.len()..];
                let stopped = emitted.len() == expected.len() && matched.is_some();
                prop_assert!(
                    stopped || held.is_empty() || stops.iter().any(|s| s.starts_with(held)),
                    "held {:?}", held
                );
            }
        }
    }
}
