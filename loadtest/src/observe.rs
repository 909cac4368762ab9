//! What a streamed answer contained and when: a state machine over the bytes of a response body and
//! their time stamps. It performs no input or output and reads no clock.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::chunk::{Chunk, Usage, visible_text};
use crate::clock::Nanos;
use crate::sse::{SseEvent, SseParser};

/// The steady window `[w0, w1)` in which events count towards throughput. Both ends are unknown
/// until the run reaches them.
#[derive(Debug)]
pub struct Window {
    start: AtomicU64,
    end: AtomicU64,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            start: AtomicU64::new(Nanos::MAX),
            end: AtomicU64::new(Nanos::MAX),
        }
    }
}

impl Window {
    /// Opens the window at `start`, to close at `end` where that is known.
    pub fn open(&self, start: Nanos, end: Option<Nanos>) {
        self.end.store(end.unwrap_or(Nanos::MAX), Ordering::Relaxed);
        self.start.store(start, Ordering::Relaxed);
    }

    /// Whether `t` falls into the window, as far as it is known.
    pub fn contains(&self, t: Nanos) -> bool {
        t >= self.start.load(Ordering::Relaxed) && t < self.end.load(Ordering::Relaxed)
    }

    /// Start of the window, once it is open.
    pub fn start(&self) -> Option<Nanos> {
        Some(self.start.load(Ordering::Relaxed)).filter(|t| *t != Nanos::MAX)
    }

    /// End of the window, where it is bounded by time.
    pub fn end(&self) -> Option<Nanos> {
        Some(self.end.load(Ordering::Relaxed)).filter(|t| *t != Nanos::MAX)
    }
}

/// The facts of one stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamFacts {
    /// First token-bearing event.
    pub t_first: Option<Nanos>,
    /// First of them with more than reasoning.
    pub t_visible: Option<Nanos>,
    /// Last token-bearing event.
    pub t_last: Option<Nanos>,
    /// The `[DONE]` terminator.
    pub t_done: Option<Nanos>,
    /// Number of token-bearing events.
    pub events: u64,
    /// Those of them that came in one read with the one before.
    pub bundled: u64,
    /// Those of them that fell into the window.
    pub events_in_window: u64,
    /// Whether the first of them fell into the window.
    pub first_in_window: bool,
    /// Nanoseconds between consecutive token-bearing events.
    pub gaps: Vec<Nanos>,
    /// Tokens in the first event, where per-chunk usage tells.
    pub first_tokens: Option<u64>,
    /// Finish reason of the choice.
    pub finish_reason: Option<String>,
    /// The last token counts.
    pub usage: Option<Usage>,
    /// The model that the chunks name.
    pub model: Option<String>,
    /// The visible text, where it is kept.
    pub text: String,
    /// Message of the first error event.
    pub error: Option<String>,
    /// The first breach of the stream's grammar.
    pub violation: Option<String>,
}

impl StreamFacts {
    fn violate(&mut self, what: impl Into<String>) {
        self.violation.get_or_insert_with(|| what.into());
    }

    fn event(&mut self, t: Nanos, event: SseEvent<'_>, window: &Window) {
        if self.t_done.is_some() {
            return self.violate("an event after [DONE]");
        }
        if event.data == b"[DONE]" {
            self.t_done = Some(t);
            return;
        }
        let chunk: Chunk = match serde_json::from_slice(event.data) {
            Ok(chunk) => chunk,
            Err(_) if event.name == b"error" => {
                self.error
                    .get_or_insert_with(|| String::from_utf8_lossy(event.data).into_owned());
                return;
            }
            Err(error) => return self.violate(format!("an event is not a valid object: {error}")),
        };
        if chunk.error.is_some() || event.name == b"error" {
            let error = chunk.error.unwrap_or_default();
            let message = error["message"]
                .as_str()
                .or(error.as_str())
                .unwrap_or("an error without a message");
            self.error.get_or_insert_with(|| message.to_owned());
            return;
        }
        self.chunk(t, chunk, window);
    }

    fn chunk(&mut self, t: Nanos, chunk: Chunk, window: &Window) {
        if self.model.is_none() {
            self.model = chunk.model;
        } else if chunk.model.is_some() && chunk.model != self.model {
            self.violate("the model changes within an answer");
        }
        let mut bears_token = false;
        for choice in chunk.choices.unwrap_or_default() {
            if choice.index != 0 {
                self.violate(format!(
                    "choice {} although one was asked for",
                    choice.index
                ));
            }
            if self.finish_reason.is_some() {
                self.violate("a choice after its finish reason");
            }
            bears_token |= choice.bears_token();
            if choice.is_visible() {
                self.t_visible.get_or_insert(t);
            }
            self.finish_reason = choice.finish_reason.or(self.finish_reason.take());
        }
        if chunk.usage.is_some() {
            self.usage = chunk.usage;
        }
        if bears_token {
            self.token_event(t, window);
        }
    }

    fn token_event(&mut self, t: Nanos, window: &Window) {
        match self.t_last {
            Some(last) => {
                // Events of one read have its time.
                self.bundled += u64::from(t == last);
                self.gaps.push(t.saturating_sub(last));
            }
            None => {
                self.t_first = Some(t);
                self.first_in_window = window.contains(t);
                self.first_tokens = self.usage.map(|u| u.completion_tokens).filter(|n| *n > 0);
            }
        }
        self.t_last = Some(t);
        self.events += 1;
        self.events_in_window += u64::from(window.contains(t));
    }
}

/// Turns bytes into [`StreamFacts`].
#[derive(Debug, Default)]
pub struct StreamObserver {
    parser: SseParser,
    facts: StreamFacts,
    last_event: Option<Nanos>,
    keeps_text: bool,
}

impl StreamObserver {
    /// An observer before the first byte, which keeps the text for a next turn or not.
    pub fn new(keeps_text: bool) -> Self {
        Self {
            keeps_text,
            ..Self::default()
        }
    }

    /// Takes the bytes that one read brought at `t`.
    pub fn feed(&mut self, t: Nanos, bytes: &[u8], window: &Window) {
        let Self {
            parser,
            facts,
            last_event,
            keeps_text,
        } = self;
        let result = parser.feed(bytes, |event| {
            *last_event = Some(t);
            if *keeps_text && let Some(text) = visible_text(event.data) {
                facts.text.push_str(&text);
            }
            facts.event(t, event, window);
        });
        if result.is_err() {
            facts.violate("an event is too long");
        }
    }

    /// Notes a breach that lies outside the events.
    pub fn violate(&mut self, what: impl Into<String>) {
        self.facts.violate(what);
    }

    /// When the first token came.
    pub fn t_first(&self) -> Option<Nanos> {
        self.facts.t_first
    }

    /// When the last event of any kind came; comments are not events.
    pub fn last_event(&self) -> Option<Nanos> {
        self.last_event
    }

    /// The facts.
    pub fn into_facts(self) -> StreamFacts {
        self.facts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLE: &str = r#"{"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
    const FINISH: &str =
        r#"{"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#;
    const USAGE: &str = r#"{"model":"m","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8}}"#;

    fn token(text: &str) -> String {
        format!(
            r#"{{"model":"m","choices":[{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":null}}]}}"#
        )
    }

    fn observe(events: &[(Nanos, &str)], window: &Window) -> StreamFacts {
        let mut observer = StreamObserver::default();
        for (t, data) in events {
            observer.feed(*t, format!("data: {data}\n\n").as_bytes(), window);
        }
        observer.into_facts()
    }

    #[test]
    fn times_are_those_of_token_bearing_events() {
        let window = Window::default();
        window.open(25, Some(60));
        let (a, b, c) = (token("a"), token("b"), token("c"));
        let events = [
            (10, ROLE),
            (20, &*a),
            (30, &*b),
            (55, &*c),
            (60, FINISH),
            (61, USAGE),
            (70, "[DONE]"),
        ];
        let facts = observe(&events, &window);
        assert_eq!(
            (facts.t_first, facts.t_last, facts.t_done),
            (Some(20), Some(55), Some(70))
        );
        assert_eq!(facts.t_visible, Some(20));
        assert_eq!(facts.gaps, [10, 25]);
        assert_eq!(
            (facts.events, facts.events_in_window, facts.first_in_window),
            (3, 2, false)
        );
        assert_eq!(facts.finish_reason.as_deref(), Some("length"));
        assert_eq!(facts.usage.unwrap().completion_tokens, 3);
        assert_eq!(
            (facts.error, facts.violation, facts.model.as_deref()),
            (None, None, Some("m"))
        );
    }

    #[test]
    fn reasoning_is_a_token_but_nothing_that_is_seen() {
        let thought = r#"{"choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}"#;
        let facts = observe(
            &[(1, ROLE), (2, thought), (5, &token("a"))],
            &Window::default(),
        );
        assert_eq!((facts.t_first, facts.t_visible), (Some(2), Some(5)));
    }

    #[test]
    fn events_of_one_read_share_its_time() {
        let mut observer = StreamObserver::default();
        let both = format!("data: {}\n\ndata: {}\n\n: ping\n\n", token("a"), token("b"));
        let (head, tail) = both.as_bytes().split_at(30);
        observer.feed(5, head, &Window::default());
        observer.feed(9, tail, &Window::default());
        observer.feed(12, b": ping\n\n", &Window::default());
        assert_eq!(observer.last_event(), Some(9));
        let facts = observer.into_facts();
        assert_eq!(
            (facts.t_first, facts.t_last, facts.gaps),
            (Some(9), Some(9), vec![0])
        );
    }

    #[test]
    fn per_chunk_usage_tells_the_size_of_the_first_event() {
        let first = r#"{"choices":[{"index":0,"text":"abc","finish_reason":null}],"usage":{"prompt_tokens":5,"completion_tokens":4}}"#;
        let facts = observe(&[(1, first), (2, &token("d"))], &Window::default());
        assert_eq!(facts.first_tokens, Some(4));
        assert_eq!(
            observe(&[(1, &token("d"))], &Window::default()).first_tokens,
            None
        );
    }

    #[test]
    fn breaches_of_the_grammar() {
        let a = token("a");
        let second_choice = r#"{"choices":[{"index":1,"delta":{"content":"x"}}]}"#;
        let other_model = r#"{"model":"n","choices":[]}"#;
        let cases: [(&[&str], &str); 7] = [
            (&["not json"], "not a valid object"),
            (&[&a, "[DONE]", &a], "after [DONE]"),
            (&[FINISH, "[DONE]", "[DONE]"], "after [DONE]"),
            (&[FINISH, &a], "after its finish reason"),
            (&[FINISH, FINISH], "after its finish reason"),
            (&[second_choice], "choice 1"),
            (&[&a, other_model], "model changes"),
        ];
        for (events, part) in cases {
            let timed: Vec<(Nanos, &str)> = (1..).zip(events.iter().copied()).collect();
            let violation = observe(&timed, &Window::default()).violation;
            assert!(
                violation.as_deref().is_some_and(|v| v.contains(part)),
                "{events:?}: {violation:?}"
            );
        }
    }

    #[test]
    fn error_events_of_every_spelling() {
        let cases = [
            (
                r#"data: {"error":{"message":"boom","code":"internal_error"}}"#,
                "boom",
            ),
            (r#"data: {"error":"boom"}"#, "boom"),
            (r#"data: {"error":{}}"#, "an error without a message"),
            (
                "event: error\ndata: {\"error\":{\"message\":\"boom\"}}",
                "boom",
            ),
            ("event: error\ndata: boom", "boom"),
        ];
        for (event, message) in cases {
            let mut observer = StreamObserver::default();
            observer.feed(
                1,
                format!("data: {}\n\n{event}\n\ndata: [DONE]\n\n", token("a")).as_bytes(),
                &Window::default(),
            );
            let facts = observer.into_facts();
            assert_eq!(facts.error.as_deref(), Some(message), "{event}");
            assert!(facts.t_done.is_some() && facts.violation.is_none());
        }
    }
}
