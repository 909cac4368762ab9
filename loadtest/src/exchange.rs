//! One request over one connection, from its first byte to the end of its answer, under time
//! limits. Decides nothing: it returns what happened.

use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap};
use hyper::{Request, Response};
use tokio::time::Instant;

use crate::clock::{Clock, Nanos};
use crate::observe::{StreamFacts, StreamObserver, Window};
use crate::outcome::{End, TimeoutPhase};
use crate::transport::Connection;

/// The longest body of an error answer that is kept, in bytes.
const MAX_ERROR_BODY: usize = 64 << 10;

/// How long the parts of a request may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timeouts {
    /// Opening a connection.
    pub connect: Duration,
    /// From the start of the request to the response head.
    pub head: Duration,
    /// From the start of the request to the first token.
    pub first: Duration,
    /// Between two events.
    pub gap: Duration,
    /// The whole request.
    pub total: Duration,
}

/// What an exchange brought.
#[derive(Debug)]
pub struct Exchange {
    /// First byte of the request written.
    pub t_send: Option<Nanos>,
    /// Response head read.
    pub t_head: Option<Nanos>,
    /// Status of the head.
    pub status: Option<u16>,
    /// How it stopped.
    pub end: End,
    /// Body of an answer that is not 2xx.
    pub error_body: Vec<u8>,
    /// The stream of a 2xx answer.
    pub stream: StreamFacts,
    /// The connection was reused and closed before any byte of the response: the one case in which
    /// the request may be sent again.
    pub stale_connection: bool,
}

/// Sends `request` and reads the answer, with its text when `keeps_text`.
pub async fn exchange(
    connection: &mut Connection,
    request: Request<Full<Bytes>>,
    timeouts: &Timeouts,
    clock: Clock,
    window: &Window,
    keeps_text: bool,
) -> Exchange {
    let started = Instant::now();
    let reused = std::mem::replace(&mut connection.reused, true);
    let answer =
        tokio::time::timeout(timeouts.head.min(timeouts.total), connection.send(request)).await;
    let mut result = Exchange {
        t_send: connection.stamps().first_write(),
        t_head: None,
        status: None,
        end: End::Complete,
        error_body: Vec::new(),
        stream: StreamFacts::default(),
        stale_connection: false,
    };
    match answer {
        Err(_) => {
            let phase = if timeouts.total < timeouts.head {
                TimeoutPhase::Total
            } else {
                TimeoutPhase::Head
            };
            result.end = End::TimedOut(phase);
        }
        Ok(Err(error)) => {
            result.stale_connection = reused && !connection.stamps().has_read();
            result.end = end_of(&error);
        }
        Ok(Ok(response)) => {
            result.t_head = Some(connection.stamps().last_read());
            result.status = Some(response.status().as_u16());
            let reader = Reader {
                connection,
                timeouts,
                started,
                clock,
                keeps_text,
            };
            if response.status().is_success() {
                (result.end, result.stream) = reader.read_stream(response, window).await;
            } else {
                (result.end, result.error_body) = reader.read_error(response.into_body()).await;
            }
        }
    }
    result
}

struct Reader<'a> {
    connection: &'a Connection,
    timeouts: &'a Timeouts,
    started: Instant,
    clock: Clock,
    keeps_text: bool,
}

impl Reader<'_> {
    async fn read_stream(
        &self,
        response: Response<Incoming>,
        window: &Window,
    ) -> (End, StreamFacts) {
        let mut observer = StreamObserver::new(self.keeps_text);
        if !is_event_stream(response.headers()) {
            observer.violate("the answer is not a text/event-stream");
        }
        let mut body = response.into_body();
        let end = loop {
            let (deadline, phase) = self.deadline(&observer);
            match self.next_data(&mut body, deadline).await {
                Some(Ok(Some(bytes))) => {
                    observer.feed(self.connection.stamps().last_read(), &bytes, window)
                }
                Some(Ok(None)) => break End::Complete,
                Some(Err(error)) => break end_of(&error),
                None => break End::TimedOut(phase),
            }
        };
        (end, observer.into_facts())
    }

    async fn read_error(&self, mut body: Incoming) -> (End, Vec<u8>) {
        let mut kept = Vec::new();
        let deadline = self.started + self.timeouts.total;
        loop {
            match self.next_data(&mut body, deadline).await {
                Some(Ok(Some(bytes))) => {
                    let room = MAX_ERROR_BODY.saturating_sub(kept.len());
                    kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
                }
                Some(Ok(None)) => return (End::Complete, kept),
                Some(Err(error)) => return (end_of(&error), kept),
                None => return (End::TimedOut(TimeoutPhase::Total), kept),
            }
        }
    }

    /// The next bytes of a body: none at its end, and none at all when `deadline` passes first.
    async fn next_data(
        &self,
        body: &mut Incoming,
        deadline: Instant,
    ) -> Option<hyper::Result<Option<Bytes>>> {
        loop {
            let frame = tokio::time::timeout_at(deadline, body.frame()).await.ok()?;
            match frame {
                None => return Some(Ok(None)),
                Some(Err(error)) => return Some(Err(error)),
                Some(Ok(frame)) => {
                    // Trailers carry nothing of interest.
                    if let Ok(bytes) = frame.into_data() {
                        return Some(Ok(Some(bytes)));
                    }
                }
            }
        }
    }

    /// The next moment at which the request is given up, and what that would be called.
    fn deadline(&self, observer: &StreamObserver) -> (Instant, TimeoutPhase) {
        let total = (self.started + self.timeouts.total, TimeoutPhase::Total);
        let next = match (observer.t_first(), observer.last_event()) {
            (Some(_), Some(last)) => (
                self.clock.instant(last) + self.timeouts.gap,
                TimeoutPhase::Gap,
            ),
            _ => (self.started + self.timeouts.first, TimeoutPhase::First),
        };
        if next.0 < total.0 { next } else { total }
    }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| {
            value
                .trim_start()
                .to_ascii_lowercase()
                .starts_with("text/event-stream")
        })
}

fn end_of(error: &hyper::Error) -> End {
    let mut text = error.to_string();
    if let Some(source) = std::error::Error::source(error) {
        text = format!("{text}: {source}");
    }
    if error.is_parse() {
        End::BadHttp(text)
    } else {
        End::Broken(text)
    }
}

#[cfg(test)]
mod tests;
