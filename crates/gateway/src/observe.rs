//! What happens to every HTTP request around its answer: an id, counts and times by route, a line in
//! the log, and a last resort against panics.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use hyper::body::{Frame, SizeHint};

use crate::auth::Permit;
use crate::error::ApiError;
use crate::gateway::Gateway;
use crate::routes::{Arrived, Route};
use crate::serve::{Answering, Turn};

/// The status that stands for a client that left before the answer was complete.
const CLIENT_LEFT: u16 = 499;
/// Characters of a request id.
const MAX_REQUEST_ID: usize = 128;
/// The endpoint label of paths that no route has.
const OTHER: &str = "other";

/// Wraps a request.
pub(crate) async fn observe(
    State(gateway): State<Gateway>,
    mut request: Request,
    next: Next,
) -> Response {
    let arrived = Instant::now();
    request.extensions_mut().insert(Arrived(arrived));
    let endpoint = Route::matched(&request).map_or(OTHER, |route| route.path);
    if is_retry(request.headers()) {
        gateway.metrics.request_retries_total.inc();
    }
    let id = request_id(request.headers());
    // Of the answer to a HEAD nothing but the head is taken.
    let is_head = request.method() == Method::HEAD;
    let mut exchange = Exchange::new(&gateway, endpoint, arrived, &id);
    exchange._turn = request.extensions().get().map(Turn::answering);
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let mut response = answer.unwrap_or_else(|_| {
        gateway.metrics.panics_total.inc();
        // The panic hook has logged where.
        ApiError::internal("panic in a handler").into_response()
    });
    exchange.status = response.status().as_u16();
    exchange._permit = response.extensions_mut().remove().flatten();
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert("x-request-id", value);
    }
    // Answers are one client's own, and of the type that they say.
    let no_store = HeaderValue::from_static("no-store");
    headers.entry(header::CACHE_CONTROL).or_insert(no_store);
    let no_sniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, no_sniff);
    let has_ended = is_head;
    response.map(|body| {
        Body::new(Observed {
            body,
            exchange,
            has_ended,
        })
    })
}

fn is_retry(headers: &HeaderMap) -> bool {
    let count = headers.get("x-stainless-retry-count");
    count.is_some_and(|count| count != "0")
}

/// The client's id where it is a harmless one, else a fresh one.
fn request_id(headers: &HeaderMap) -> String {
    let own = headers.get("x-request-id").and_then(|id| id.to_str().ok());
    let is_harmless = |id: &&str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
        (1..=MAX_REQUEST_ID).contains(&id.len()) && id.bytes().all(allowed)
    };
    match own.filter(is_harmless) {
        Some(id) => id.to_owned(),
        None => "req_".to_owned() + &crate::ids::random(24),
    }
}

/// One request with its answer. Counted when it is dropped: complete, or given up by the client.
struct Exchange {
    gateway: Gateway,
    endpoint: &'static str,
    arrived: Instant,
    id: String,
    /// The status sent; [`CLIENT_LEFT`] until there is one.
    status: u16,
    /// The server's turn on the connection, where there is one.
    _turn: Option<Answering>,
    /// What a request of a limited key holds.
    _permit: Permit,
}

impl Exchange {
    fn new(gateway: &Gateway, endpoint: &'static str, arrived: Instant, id: &str) -> Self {
        let in_flight = &gateway.metrics.http_requests_in_flight;
        in_flight.with_label_values(&[endpoint]).inc();
        gateway.in_flight.send_modify(|n| *n += 1);
        Self {
            gateway: gateway.clone(),
            endpoint,
            arrived,
            id: id.to_owned(),
            status: CLIENT_LEFT,
            _turn: None,
            _permit: None,
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let metrics = &self.gateway.metrics;
        let code = self.status.to_string();
        let labels = [self.endpoint, code.as_str()];
        let lasted = self.arrived.elapsed();
        metrics
            .http_requests_in_flight
            .with_label_values(&labels[..1])
            .dec();
        metrics.requests_total.with_label_values(&labels).inc();
        metrics
            .http_request_duration_seconds
            .with_label_values(&labels)
            .observe(lasted.as_secs_f64());
        self.gateway.in_flight.send_modify(|n| *n -= 1);
        tracing::debug!(
            request_id = self.id,
            endpoint = self.endpoint,
            status = self.status,
            seconds = lasted.as_secs_f64(),
            "request"
        );
    }
}

/// A body that ends its exchange when it is dropped.
struct Observed {
    body: Body,
    exchange: Exchange,
    /// The end was asked for and told, or nobody will ask.
    has_ended: bool,
}

impl HttpBody for Observed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        self.has_ended |= matches!(frame, Poll::Ready(None));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        // A body of known size may be taken whole without being asked for its end.
        if !self.has_ended && !self.body.is_end_stream() {
            self.exchange.status = CLIENT_LEFT;
        }
    }
}
