//! The record of one request: its plan, its times and its class, and the latencies defined on them.

use crate::clock::Nanos;
use crate::observe::StreamFacts;
use crate::outcome::{Outcome, TimeoutPhase};

/// The part of the run that a request belongs to by its planned start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before the window: counted for reconciliation only, plus what it emits inside the window.
    Warmup,
    /// Planned inside the window.
    Measured,
    /// Load that goes on after the window until the last measured request has ended.
    Background,
    /// An attempt that another one followed: it was work for the server, but is no request of its own.
    Retried,
}

/// How far a request got, as seen from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// No byte of it left.
    NotSent,
    /// Sent, but no response head came: the server may have counted it or not.
    Unknown,
    /// A head came, but the response was not read to its end.
    Partial,
    /// The whole response was read.
    Complete,
}

/// One request from plan to end.
#[derive(Debug, Clone)]
pub struct RequestRecord {
    /// Its number in the run; the workload is a function of it.
    pub index: u64,
    /// The conversation it belongs to, a number of its own for every single request.
    pub conversation: u64,
    /// Its place in the conversation, from zero.
    pub turn: u32,
    /// Which of the contents of the run it is of.
    pub content: usize,
    /// Which of the servers it went to.
    pub server: usize,
    /// Part of the run.
    pub phase: Phase,
    /// Scheduled start. In a closed loop the moment the user is ready.
    pub t_plan: Nanos,
    /// First byte of the request written.
    pub t_send: Option<Nanos>,
    /// Response head read.
    pub t_head: Option<Nanos>,
    /// `[DONE]`, or the end of the response, or the moment the client gave up.
    pub t_end: Nanos,
    /// Time spent opening a connection, zero on an open one.
    pub connect: Nanos,
    /// Time before the first byte was sent that is part of what is measured: opening a connection where every request
    /// opens one, and the attempts before the last.
    pub excused: Nanos,
    /// Prompt length aimed at, in tokens.
    pub asked_prompt_tokens: u32,
    /// Output length asked for, in tokens.
    pub asked_output_tokens: u32,
    /// Status of the response.
    pub status: Option<u16>,
    /// How far it got.
    pub reach: Reach,
    /// Its class.
    pub outcome: Outcome,
    /// Why it failed, empty for a success.
    pub detail: String,
    /// Times it was sent again because a reused connection had been closed under it.
    pub reconnects: u32,
    /// Its text, of a few answers that are made tokens again.
    pub text: Option<String>,
    /// What its stream contained.
    pub stream: StreamFacts,
}

impl RequestRecord {
    /// Generated tokens by usage.
    pub fn output_tokens(&self) -> u64 {
        self.stream.usage.map_or(0, |usage| usage.completion_tokens)
    }

    /// Prompt tokens by usage.
    pub fn prompt_tokens(&self) -> u64 {
        self.stream.usage.map_or(0, |usage| usage.prompt_tokens)
    }

    /// Prompt tokens from the prefix cache by usage.
    pub fn cached_tokens(&self) -> u64 {
        self.stream.usage.map_or(0, |usage| usage.cached_tokens())
    }

    /// `t_send - t_plan` but for what is excused: the client's own delay.
    pub fn send_lag(&self) -> Option<Nanos> {
        let lag = self.t_send?.saturating_sub(self.t_plan);
        Some(lag.saturating_sub(self.excused))
    }

    /// Whether it failed at the server, a proxy or the connection, and no token of it came.
    pub fn may_be_retried(&self) -> bool {
        let is_theirs = matches!(
            self.outcome,
            Outcome::Refused429
                | Outcome::Refused503(_)
                | Outcome::Http5xx
                | Outcome::Connect
                | Outcome::Cut
                | Outcome::Timeout(TimeoutPhase::Head)
        );
        is_theirs && self.stream.events == 0
    }

    /// TTFT from the planned start.
    pub fn ttft(&self) -> Option<Nanos> {
        Some(self.stream.t_first?.saturating_sub(self.t_plan))
    }

    /// First output that a reader sees, from the planned start; without reasoning the same as TTFT.
    pub fn ttfo(&self) -> Option<Nanos> {
        Some(self.stream.t_visible?.saturating_sub(self.t_plan))
    }

    /// TTFT from the first byte sent, the number other tools print.
    pub fn ttft_from_send(&self) -> Option<Nanos> {
        Some(self.stream.t_first?.saturating_sub(self.t_send?))
    }

    /// Time per output token after the first, in nanoseconds:
    /// `(t_last - t_1) / (n_out - n_first)`. None for fewer than two tokens.
    pub fn tpot(&self) -> Option<Nanos> {
        self.tpot_but_for(0)
    }

    /// The same of a last token that was stamped `late` nanoseconds too late.
    pub fn tpot_but_for(&self, late: Nanos) -> Option<Nanos> {
        let rest = self
            .output_tokens()
            .checked_sub(self.stream.first_tokens.unwrap_or(1))?;
        let span = self.stream.t_last?.saturating_sub(self.stream.t_first?);
        span.saturating_sub(late).checked_div(rest)
    }

    /// End-to-end latency: `t_last - t_plan`, to the end of the text.
    pub fn e2e(&self) -> Option<Nanos> {
        Some(self.stream.t_last?.saturating_sub(self.t_plan))
    }

    /// End-to-end latency over output tokens, in nanoseconds.
    pub fn normalised_latency(&self) -> Option<Nanos> {
        self.e2e()?.checked_div(self.output_tokens())
    }

    /// The longest gap between two events: the stall that a reader feels.
    pub fn longest_stall(&self) -> Option<Nanos> {
        self.stream.gaps.iter().copied().max()
    }

    /// `t_end - t_last`: what comes after the text.
    pub fn tail(&self) -> Option<Nanos> {
        Some(self.t_end.saturating_sub(self.stream.t_last?))
    }

    /// Generated tokens received in the window: the total spread over the events in proportion.
    pub fn output_tokens_in_window(&self) -> f64 {
        if self.stream.events == 0 {
            return 0.0;
        }
        self.output_tokens() as f64 * self.stream.events_in_window as f64
            / self.stream.events as f64
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::chunk::Usage;

    /// A successful request with `output` tokens, the first at `t_plan + 100`, then one every 10.
    pub fn success(index: u64, t_plan: Nanos, prompt: u64, output: u64) -> RequestRecord {
        let usage: Usage = serde_json::from_value(
            serde_json::json!({ "prompt_tokens": prompt, "completion_tokens": output }),
        )
        .unwrap();
        let t_last = t_plan + 100 + 10 * (output - 1);
        RequestRecord {
            index,
            conversation: index,
            turn: 0,
            content: 0,
            server: 0,
            phase: Phase::Measured,
            t_plan,
            t_send: Some(t_plan + 5),
            t_head: Some(t_plan + 90),
            t_end: t_last + 3,
            connect: 0,
            excused: 0,
            asked_prompt_tokens: u32::try_from(prompt).unwrap(),
            asked_output_tokens: u32::try_from(output).unwrap(),
            status: Some(200),
            reach: Reach::Complete,
            outcome: Outcome::Ok,
            detail: String::new(),
            reconnects: 0,
            text: None,
            stream: StreamFacts {
                t_first: Some(t_plan + 100),
                t_visible: Some(t_plan + 100),
                t_last: Some(t_last),
                t_done: Some(t_last + 3),
                events: output,
                events_in_window: output,
                first_in_window: true,
                gaps: vec![10; usize::try_from(output - 1).unwrap()],
                finish_reason: Some("length".into()),
                usage: Some(usage),
                ..StreamFacts::default()
            },
        }
    }

    /// The same request, refused.
    pub fn failure(index: u64, t_plan: Nanos, status: u16, outcome: Outcome) -> RequestRecord {
        RequestRecord {
            status: Some(status),
            outcome,
            detail: "refused".into(),
            t_end: t_plan + 50,
            stream: StreamFacts::default(),
            ..success(index, t_plan, 1, 1)
        }
    }

    #[test]
    fn latencies_follow_their_formulas() {
        let record = success(0, 1000, 7, 5);
        assert_eq!(record.send_lag(), Some(5));
        assert_eq!(record.ttft(), Some(100));
        assert_eq!(record.ttft_from_send(), Some(95));
        assert_eq!(record.tpot(), Some(10));
        assert_eq!(record.e2e(), Some(140));
        assert_eq!(record.normalised_latency(), Some(28));
        assert_eq!(record.longest_stall(), Some(10));
        assert_eq!(record.tail(), Some(3));
    }

    #[test]
    fn only_what_failed_elsewhere_and_before_a_token_is_tried_again() {
        let tried = |outcome: Outcome| failure(0, 0, 500, outcome).may_be_retried();
        for outcome in [
            Outcome::Refused429,
            Outcome::Refused503("draining".into()),
            Outcome::Http5xx,
            Outcome::Connect,
            Outcome::Cut,
        ] {
            assert!(tried(outcome.clone()), "{outcome:?}");
        }
        for outcome in [Outcome::Http4xx, Outcome::Protocol, Outcome::ErrorEvent] {
            assert!(!tried(outcome.clone()), "{outcome:?}");
        }
        let mut cut = success(0, 0, 7, 5);
        cut.outcome = Outcome::Cut;
        assert!(!cut.may_be_retried(), "tokens came");
        assert!(!success(0, 0, 7, 5).may_be_retried());
    }

    #[test]
    fn tpot_is_left_out_where_it_is_not_defined() {
        assert_eq!(success(0, 0, 7, 1).tpot(), None);
        let mut bundled = success(0, 0, 7, 5);
        bundled.stream.first_tokens = Some(5);
        assert_eq!(bundled.tpot(), None);
        bundled.stream.first_tokens = Some(3);
        assert_eq!(bundled.tpot(), Some(20));
    }

    #[test]
    fn tokens_are_credited_in_proportion_to_events() {
        let mut record = success(0, 0, 7, 10);
        record.stream.events = 5;
        record.stream.events_in_window = 2;
        assert_eq!(record.output_tokens_in_window(), 4.0);
        assert_eq!(
            failure(0, 0, 500, Outcome::Http5xx).output_tokens_in_window(),
            0.0
        );
    }
}
