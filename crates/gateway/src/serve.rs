//! Connections: accepted under a limit, with timeouts, until the server is told to stop and nothing
//! is being answered any more.

mod socket;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::gateway::Gateway;
use crate::routes::{metrics_router, router};
use socket::Socket;
pub(crate) use socket::{Answering, Turn};

/// Wait after an accept that failed, for want of descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The smallest buffer that hyper takes.
const MIN_BUFFER: usize = 8 << 10;
/// Time in which connections may write their last bytes.
const CLOSE_TIME: Duration = Duration::from_secs(1);
/// Connections to the address of metrics.
const MAX_SCRAPES: usize = 64;
/// Time that answers have beyond the engine's own deadline to reach their clients.
const GRACE: Duration = Duration::from_secs(2);

/// Serves until `shutdown` resolves, then drains: probes are still answered, with 503, until every
/// running request has ended or the shutdown time is over.
pub async fn serve(gateway: Gateway, listener: TcpListener, shutdown: impl Future<Output = ()>) {
    let max_connections = gateway.config.max_connections;
    let router = router(gateway.clone());
    let mut door = Listening::new(gateway.clone(), listener, router, max_connections);
    tokio::select! {
        () = door.accept() => {}
        () = async {
            shutdown.await;
            gateway.drain();
            let deadline = Instant::now() + gateway.config.timeouts.shutdown + GRACE;
            gateway.idle(deadline).await;
        } => {}
    }
    door.close().await;
}

/// Serves `/metrics` and nothing else on a loopback address, for as long as it is polled.
pub async fn serve_metrics(gateway: Gateway, listener: TcpListener) {
    let router = metrics_router(gateway.clone());
    let mut door = Listening::new(gateway, listener, router, MAX_SCRAPES);
    door.accept().await;
}

/// A listener with the connections that it accepted.
struct Listening {
    gateway: Gateway,
    listener: TcpListener,
    router: Router,
    /// One for each connection that may be open.
    permits: Arc<Semaphore>,
    connections: JoinSet<()>,
    closing: watch::Sender<bool>,
}

impl Listening {
    fn new(gateway: Gateway, listener: TcpListener, router: Router, max: usize) -> Self {
        Self {
            gateway,
            listener,
            router,
            permits: Arc::new(Semaphore::new(max)),
            connections: JoinSet::new(),
            closing: watch::Sender::new(false),
        }
    }

    /// Accepts connections; never ends by itself.
    async fn accept(&mut self) {
        loop {
            let accept = async {
                let permit = Arc::clone(&self.permits).acquire_owned().await;
                let accepted = self.listener.accept().await;
                (permit.expect("nobody closes the semaphore"), accepted)
            };
            tokio::select! {
                Some(_) = self.connections.join_next() => {}
                (permit, accepted) = accept => match accepted {
                    Ok((stream, _)) => {
                        let connection = Connection {
                            gateway: self.gateway.clone(),
                            router: self.router.clone(),
                            closing: self.closing.subscribe(),
                            _permit: permit,
                        };
                        self.connections.spawn(connection.run(stream));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accepting a connection failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    /// Lets connections write their last bytes; what is still open after that is cut.
    async fn close(mut self) {
        self.closing.send_replace(true);
        let close = async { while self.connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(CLOSE_TIME, close).await;
    }
}

/// Lets an answer say that nothing follows it on its connection, which closes once the answer is sent.
#[derive(Debug, Clone, Default)]
pub(crate) struct LastAnswer(Arc<Notify>);

impl LastAnswer {
    /// This answer is the last one.
    pub(crate) fn declare(&self) {
        self.0.notify_one();
    }
}

struct Connection {
    gateway: Gateway,
    router: Router,
    closing: watch::Receiver<bool>,
    /// Makes room for another connection when this one ends.
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    async fn run(mut self, stream: TcpStream) {
        // Tokens are small and must not wait for more.
        let _ = stream.set_nodelay(true);
        let config = &self.gateway.config;
        let turn = Turn::default();
        let socket = Socket::new(stream, turn.clone(), &config.timeouts);
        let router = self.router;
        let last = LastAnswer::default();
        let declared = Arc::clone(&last.0);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(turn.clone());
            request.extensions_mut().insert(last.clone());
            router.clone().oneshot(request.map(Body::new))
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(config.timeouts.keep_alive)
            .max_headers(config.limits.max_headers)
            .max_header_size(config.limits.max_header_bytes)
            .max_buf_size(config.limits.max_header_bytes.max(MIN_BUFFER));
        let connection = builder.serve_connection(TokioIo::new(socket), service);
        tokio::pin!(connection);
        tokio::select! {
            // An answer that is the last one is looked for right after it was made, before another request is read.
            biased;
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            () = declared.notified() => {}
            _ = self.closing.wait_for(|closing| *closing) => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}
