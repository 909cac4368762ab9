//! Server-sent events. The body is made as the connection takes it: nothing is buffered between the
//! engine's bounded channel and the socket, and dropping the body cancels the request.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures::{FutureExt, Stream, StreamExt, stream};
use tokio::time::{Instant, sleep_until};

use crate::answer::{Answer, error_event};
use crate::error::ApiError;
use crate::gateway::Gateway;
use crate::generation::{Event, Generation, Output};
use crate::serve::LastAnswer;

/// Waits until the answer may begin: the first piece is there, or a comment is due.
///
/// # Errors
/// A failure before that, which so gets its own status.
pub(crate) async fn begin(
    gateway: &Gateway,
    generation: &mut Generation,
) -> Result<Option<Output>, ApiError> {
    let mut started: Option<Instant> = None;
    loop {
        let ping = async {
            match started {
                Some(at) => sleep_until(at + gateway.config.timeouts.sse_ping).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            event = generation.next() => match event? {
                Some(Event::Output(output)) => return Ok(Some(output)),
                Some(Event::Started) if gateway.config.stream_early_headers => return Ok(None),
                Some(Event::Started) => started = started.or_else(|| Some(Instant::now())),
                None => return Ok(None),
            },
            () = ping => return Ok(None),
        }
    }
}

/// The response that streams a generation; `first` is what [`begin`] returned.
pub(crate) fn respond(
    gateway: &Gateway,
    answer: Answer,
    generation: Generation,
    first: Option<Output>,
    connection: Option<LastAnswer>,
) -> Response {
    let mut events: VecDeque<Bytes> = answer
        .opening(generation.usage())
        .iter()
        .map(|e| data(e))
        .collect();
    let mut state = Events {
        generation,
        ping: gateway.config.timeouts.sse_ping,
        has_ended: false,
        connection,
        ready: VecDeque::new(),
        answer,
    };
    match first {
        Some(output) => state.push(output),
        None => events.push_back(comment()),
    }
    events.append(&mut state.ready);
    state.ready = events;
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    let mut response = (headers, Body::from_stream(state.into_stream())).into_response();
    let buffering = HeaderValue::from_static("no");
    response
        .headers_mut()
        .insert("x-accel-buffering", buffering);
    response
}

/// The state of a stream's body.
struct Events {
    generation: Generation,
    answer: Answer,
    /// Events not yet taken by the connection.
    ready: VecDeque<Bytes>,
    ping: Duration,
    has_ended: bool,
    /// Where there is a connection: it closes after a failure.
    connection: Option<LastAnswer>,
}

impl Events {
    fn into_stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
        stream::unfold(self, |mut events| async {
            let next = events.next().await?;
            Some((next, events))
        })
        .map(Ok)
    }

    /// The next event; none after `[DONE]`.
    async fn next(&mut self) -> Option<Bytes> {
        while self.ready.is_empty() && !self.has_ended {
            let event = AssertUnwindSafe(self.generation.next()).catch_unwind();
            match tokio::time::timeout(self.ping, event).await {
                Err(_) => return Some(comment()),
                Ok(Ok(Ok(Some(Event::Output(output))))) => self.push(output),
                Ok(Ok(Ok(Some(Event::Started)))) => {}
                Ok(Ok(Ok(None))) => {
                    let usage = self.answer.usage_chunk(self.generation.usage());
                    self.end(usage);
                }
                Ok(Ok(Err(error))) => self.fail(&error.into()),
                // The panic hook has logged where.
                Ok(Err(_)) => {
                    self.fail(&ApiError::internal("panic in a stream"));
                }
            }
        }
        self.ready.pop_front()
    }

    fn push(&mut self, output: Output) {
        let chunks = self.answer.chunks(output, self.generation.usage());
        self.ready.extend(chunks.iter().map(|chunk| data(chunk)));
    }

    fn fail(&mut self, error: &ApiError) {
        self.end(Some(error_event(error)));
        if let Some(connection) = &self.connection {
            connection.declare();
        }
    }

    fn end(&mut self, last: Option<String>) {
        self.has_ended = true;
        self.ready.extend(last.iter().map(|event| data(event)));
        self.ready.push_back(data("[DONE]"));
    }
}

/// An event. JSON has no raw line breaks, so one line holds it.
fn data(event: &str) -> Bytes {
    Bytes::from(format!("data: {event}\n\n"))
}

/// A comment that keeps the connection open and finds out whether it still is.
fn comment() -> Bytes {
    Bytes::from_static(b": ping\n\n")
}
