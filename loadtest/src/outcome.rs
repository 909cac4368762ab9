//! How a request ended: the named classes, and the rule that decides between them. A success needs
//! proof; everything without it is a failure of one class, and a failure never enters a latency.

use std::borrow::Cow;

use crate::observe::StreamFacts;

/// The phase of a request in which its time ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeoutPhase {
    /// Before the response head.
    Head,
    /// Before the first token-bearing event.
    First,
    /// Between two events.
    Gap,
    /// The whole request.
    Total,
}

/// How the exchange itself stopped, whatever was in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The response was read to its end.
    Complete,
    /// The connection failed or closed before the end of the response.
    Broken(String),
    /// What came is not HTTP.
    BadHttp(String),
    /// The client gave up.
    TimedOut(TimeoutPhase),
    /// No connection came about.
    NoConnection(String),
    /// The run was stopped while the request was in flight.
    Stopped,
    /// The client already had too many requests in flight and did not send this one.
    Shed,
}

/// The class of a finished request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A complete answer of the asked length.
    Ok,
    /// A complete answer that stopped before the asked length.
    OkShort,
    /// A complete answer whose tokens are none that a reader sees: the model ended at once, or went on
    /// with its end token. The server did the work, so this is no failure; it has no latency either.
    OkEmpty,
    /// Status 429.
    Refused429,
    /// Status 503, with the error code of the body.
    Refused503(String),
    /// Another status from 400 to 499.
    Http4xx,
    /// Another status from 500.
    Http5xx,
    /// No connection.
    Connect,
    /// The client gave up.
    Timeout(TimeoutPhase),
    /// An error object inside a 200 stream, whatever came before or after it.
    ErrorEvent,
    /// The stream ended without its terminator.
    Cut,
    /// Not the grammar: bad JSON, an event after the end, no finish reason, not HTTP.
    Protocol,
    /// A complete answer without a single token, by its events and by its usage.
    Empty,
    /// A complete answer without token counts.
    NoUsage,
    /// In flight when the run was stopped.
    Unfinished,
    /// Not sent, because the client had too many requests in flight.
    ShedByClient,
}

impl Outcome {
    /// Whether the request counts as a success.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Ok | Self::OkShort | Self::OkEmpty)
    }

    /// Whether the server refused the request before any work on it.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused429 | Self::Refused503(_) | Self::Http4xx)
    }

    /// The name of the class in reports.
    pub fn name(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Ok => "ok",
            Self::OkShort => "ok_short",
            Self::OkEmpty => "ok_empty",
            Self::Refused429 => "refused_429",
            Self::Refused503(code) => return Cow::Owned(format!("refused_503_{code}")),
            Self::Http4xx => "http_4xx",
            Self::Http5xx => "http_5xx",
            Self::Connect => "connect",
            Self::Timeout(TimeoutPhase::Head) => "timeout_head",
            Self::Timeout(TimeoutPhase::First) => "timeout_first",
            Self::Timeout(TimeoutPhase::Gap) => "timeout_gap",
            Self::Timeout(TimeoutPhase::Total) => "timeout_total",
            Self::ErrorEvent => "error_event",
            Self::Cut => "cut",
            Self::Protocol => "protocol",
            Self::Empty => "empty",
            Self::NoUsage => "no_usage",
            Self::Unfinished => "unfinished",
            Self::ShedByClient => "shed_by_client",
        })
    }
}

/// What is known of an answer when its class is decided.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// How the exchange stopped.
    pub end: &'a End,
    /// The status, once a head came.
    pub status: Option<u16>,
    /// The body of an answer that is not 2xx.
    pub error_body: &'a [u8],
    /// What the stream of a 2xx answer contained.
    pub stream: &'a StreamFacts,
    /// The output length that was asked for, in tokens.
    pub asked_output_tokens: u32,
}

/// Decides the class and says in a few words why, empty for a success.
pub fn classify(evidence: &Evidence<'_>) -> (Outcome, String) {
    match evidence.end {
        End::Stopped => return (Outcome::Unfinished, "the run was stopped".into()),
        End::Shed => return (Outcome::ShedByClient, "too many requests in flight".into()),
        End::NoConnection(reason) => return (Outcome::Connect, reason.clone()),
        _ => {}
    }
    match evidence.status {
        Some(status) if !(200..300).contains(&status) => {
            classify_refusal(status, evidence.error_body)
        }
        Some(_) => classify_stream(evidence),
        None => classify_silence(evidence.end),
    }
}

fn classify_silence(end: &End) -> (Outcome, String) {
    match end {
        End::TimedOut(phase) => timeout(*phase),
        End::BadHttp(reason) => (Outcome::Protocol, reason.clone()),
        End::Broken(reason) => (Outcome::Cut, format!("no response: {reason}")),
        _ => (Outcome::Cut, "no response".into()),
    }
}

fn classify_refusal(status: u16, body: &[u8]) -> (Outcome, String) {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &body["error"];
    let message = error["message"]
        .as_str()
        .or(body["message"].as_str())
        .or(error.as_str())
        .unwrap_or_default();
    let detail = shorten(&format!("{status} {message}"));
    let outcome = match status {
        429 => Outcome::Refused429,
        503 => Outcome::Refused503(error_code(&error["code"])),
        400..=499 => Outcome::Http4xx,
        500.. => Outcome::Http5xx,
        _ => Outcome::Protocol,
    };
    (outcome, detail)
}

fn classify_stream(evidence: &Evidence<'_>) -> (Outcome, String) {
    let stream = evidence.stream;
    if let Some(message) = &stream.error {
        return (Outcome::ErrorEvent, shorten(message));
    }
    if let End::TimedOut(phase) = evidence.end {
        return timeout(*phase);
    }
    if let Some(violation) = &stream.violation {
        return (Outcome::Protocol, shorten(violation));
    }
    match evidence.end {
        End::Broken(reason) => return (Outcome::Cut, shorten(reason)),
        End::BadHttp(reason) => return (Outcome::Protocol, shorten(reason)),
        _ => {}
    }
    if stream.t_done.is_none() {
        return (Outcome::Cut, "the stream ended without [DONE]".into());
    }
    let Some(finish_reason) = &stream.finish_reason else {
        return (Outcome::Protocol, "no finish reason".into());
    };
    let generated = stream.usage.map_or(0, |usage| usage.completion_tokens);
    if stream.events == 0 && generated > 0 {
        return (Outcome::OkEmpty, String::new());
    }
    if stream.events == 0 {
        return (
            Outcome::Empty,
            format!("no token before finish reason `{finish_reason}`"),
        );
    }
    let Some(usage) = stream.usage else {
        return (Outcome::NoUsage, "no token counts".into());
    };
    if usage.completion_tokens == 0 {
        return (
            Outcome::Protocol,
            "usage counts no token although text came".into(),
        );
    }
    if usage.completion_tokens < u64::from(evidence.asked_output_tokens) {
        (Outcome::OkShort, String::new())
    } else {
        (Outcome::Ok, String::new())
    }
}

fn timeout(phase: TimeoutPhase) -> (Outcome, String) {
    let what = match phase {
        TimeoutPhase::Head => "no response head in time",
        TimeoutPhase::First => "no token in time",
        TimeoutPhase::Gap => "the stream stalled",
        TimeoutPhase::Total => "the answer took too long",
    };
    (Outcome::Timeout(phase), what.into())
}

/// A server's error code as part of a class name: short and made of plain characters.
fn error_code(code: &serde_json::Value) -> String {
    let plain: String = code
        .as_str()
        .unwrap_or_default()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '_')
        .take(40)
        .collect();
    if plain.is_empty() {
        "unknown".into()
    } else {
        plain
    }
}

/// The first 200 characters of a server's text, on one line.
fn shorten(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(200)
        .collect::<String>()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::Usage;

    fn good() -> StreamFacts {
        let usage: Usage =
            serde_json::from_str(r#"{"prompt_tokens":5,"completion_tokens":8}"#).unwrap();
        StreamFacts {
            t_first: Some(10),
            t_last: Some(20),
            t_done: Some(30),
            events: 8,
            finish_reason: Some("length".into()),
            usage: Some(usage),
            ..StreamFacts::default()
        }
    }

    fn class(end: End, status: Option<u16>, body: &str, stream: &StreamFacts) -> String {
        let evidence = Evidence {
            end: &end,
            status,
            error_body: body.as_bytes(),
            stream,
            asked_output_tokens: 8,
        };
        let (outcome, detail) = classify(&evidence);
        assert_eq!(
            outcome.is_success(),
            detail.is_empty(),
            "a failure says why, a success needs no words"
        );
        outcome.name().into_owned()
    }

    #[test]
    fn answers_that_are_not_2xx() {
        let none = StreamFacts::default();
        let cases = [
            (
                429,
                r#"{"error":{"message":"m","code":"queue_full"}}"#,
                "refused_429",
            ),
            (
                503,
                r#"{"error":{"message":"m","code":"draining"}}"#,
                "refused_503_draining",
            ),
            (
                503,
                r#"{"error":{"message":"m","code":503}}"#,
                "refused_503_unknown",
            ),
            (503, "<html>", "refused_503_unknown"),
            (503, r#"{"error":{"code":"a b/../c"}}"#, "refused_503_abc"),
            (400, "{}", "http_4xx"),
            (500, r#"{"message":"boom"}"#, "http_5xx"),
            (504, "", "http_5xx"),
            (302, "", "protocol"),
        ];
        for (status, body, expected) in cases {
            assert_eq!(
                class(End::Complete, Some(status), body, &none),
                expected,
                "{status} {body}"
            );
            assert_eq!(
                class(End::Broken("reset".into()), Some(status), body, &none),
                expected
            );
        }
    }

    #[test]
    fn exchanges_without_an_answer() {
        let none = StreamFacts::default();
        let cases = [
            (End::NoConnection("refused".into()), "connect"),
            (End::TimedOut(TimeoutPhase::Head), "timeout_head"),
            (End::Broken("closed".into()), "cut"),
            (End::BadHttp("not a status line".into()), "protocol"),
            (End::Stopped, "unfinished"),
            (End::Shed, "shed_by_client"),
        ];
        for (end, expected) in cases {
            assert_eq!(class(end, None, "", &none), expected);
        }
    }

    #[test]
    fn streams() {
        let usage = |json| Some(serde_json::from_str::<Usage>(json).unwrap());
        let short = usage(r#"{"prompt_tokens":5,"completion_tokens":7}"#);
        let zero = usage(r#"{"prompt_tokens":5,"completion_tokens":0}"#);
        let broken = || End::Broken("reset".into());
        let cases = [
            (good(), End::Complete, "ok"),
            (
                StreamFacts {
                    usage: short,
                    ..good()
                },
                End::Complete,
                "ok_short",
            ),
            // An error event decides, whatever else holds.
            (
                StreamFacts {
                    error: Some("m".into()),
                    ..good()
                },
                End::Complete,
                "error_event",
            ),
            (
                StreamFacts {
                    error: Some("m".into()),
                    t_done: None,
                    ..good()
                },
                broken(),
                "error_event",
            ),
            (
                StreamFacts {
                    violation: Some("v".into()),
                    ..good()
                },
                End::Complete,
                "protocol",
            ),
            (
                StreamFacts {
                    t_done: None,
                    ..good()
                },
                End::Complete,
                "cut",
            ),
            (good(), broken(), "cut"),
            (good(), End::BadHttp("chunk size".into()), "protocol"),
            (
                StreamFacts {
                    finish_reason: None,
                    ..good()
                },
                End::Complete,
                "protocol",
            ),
            (
                StreamFacts {
                    events: 0,
                    t_first: None,
                    usage: zero,
                    ..good()
                },
                End::Complete,
                "empty",
            ),
            // Counted, but nothing that is shown: special tokens.
            (
                StreamFacts {
                    events: 0,
                    t_first: None,
                    ..good()
                },
                End::Complete,
                "ok_empty",
            ),
            (
                StreamFacts {
                    usage: None,
                    ..good()
                },
                End::Complete,
                "no_usage",
            ),
            (
                StreamFacts {
                    usage: zero,
                    ..good()
                },
                End::Complete,
                "protocol",
            ),
            (good(), End::TimedOut(TimeoutPhase::First), "timeout_first"),
            (good(), End::TimedOut(TimeoutPhase::Gap), "timeout_gap"),
            (good(), End::TimedOut(TimeoutPhase::Total), "timeout_total"),
        ];
        for (facts, end, expected) in cases {
            assert_eq!(class(end, Some(200), "", &facts), expected, "{facts:?}");
        }
    }
}
