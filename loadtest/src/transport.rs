//! Connections: one per user over hyper, of HTTP/1.1 or of HTTP/2 by prior knowledge, with time stamps taken where bytes
//! cross the socket, before anything is parsed. Nothing here repeats a request.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::clock::{Clock, Nanos};

const UNSET: u64 = u64::MAX;

/// The protocol of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 without TLS, which the server must be known to speak.
    Http2,
}

/// The half of a connection that takes requests.
enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// What the socket of a connection saw last.
#[derive(Debug)]
pub struct Stamps {
    first_write: AtomicU64,
    last_read: AtomicU64,
    bytes_read: AtomicU64,
}

impl Stamps {
    fn new() -> Self {
        Self {
            first_write: AtomicU64::new(UNSET),
            last_read: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
        }
    }

    /// Forgets the previous request.
    pub fn begin_request(&self) {
        self.first_write.store(UNSET, Ordering::Relaxed);
        self.bytes_read.store(0, Ordering::Relaxed);
    }

    /// When the first byte of the request was written.
    pub fn first_write(&self) -> Option<Nanos> {
        Some(self.first_write.load(Ordering::Relaxed)).filter(|t| *t != UNSET)
    }

    /// When the last bytes were read.
    pub fn last_read(&self) -> Nanos {
        self.last_read.load(Ordering::Relaxed)
    }

    /// Whether any byte has been read since the request began.
    pub fn has_read(&self) -> bool {
        self.bytes_read.load(Ordering::Relaxed) > 0
    }
}

/// A byte stream that stamps its reads and the first write of a request.
struct Stamped<S> {
    inner: S,
    clock: Clock,
    stamps: Arc<Stamps>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Stamped<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        if read > 0 {
            self.stamps
                .last_read
                .store(self.clock.now(), Ordering::Relaxed);
            self.stamps
                .bytes_read
                .fetch_add(read as u64, Ordering::Relaxed);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> Stamped<S> {
    fn stamp_write(&self, at: Nanos, result: &Poll<io::Result<usize>>) {
        if matches!(result, Poll::Ready(Ok(n)) if *n > 0) {
            let _ = self.stamps.first_write.compare_exchange(
                UNSET,
                at,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stamped<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let at = self.clock.now();
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.stamp_write(at, &result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let at = self.clock.now();
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.stamp_write(at, &result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// An open connection that carries one request at a time. Dropping it closes the socket.
pub struct Connection {
    sender: Sender,
    stamps: Arc<Stamps>,
    driver: JoinHandle<()>,
    /// Whether a request has gone over it before.
    pub reused: bool,
}

impl Connection {
    /// Connects to `address` without Nagle's delay.
    pub async fn open(
        address: SocketAddr,
        protocol: Protocol,
        clock: Clock,
    ) -> Result<Self, String> {
        let stream = TcpStream::connect(address)
            .await
            .map_err(|error| error.to_string())?;
        stream
            .set_nodelay(true)
            .map_err(|error| error.to_string())?;
        Self::over(stream, protocol, clock).await
    }

    /// Speaks `protocol` over an open byte stream.
    pub async fn over<S>(stream: S, protocol: Protocol, clock: Clock) -> Result<Self, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stamps = Arc::new(Stamps::new());
        let io = TokioIo::new(Stamped {
            inner: stream,
            clock,
            stamps: Arc::clone(&stamps),
        });
        let told = |error: hyper::Error| error.to_string();
        // The error of a connection reaches the request that is in flight on it.
        let (sender, driver) = match protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(io).await.map_err(told)?;
                let driver = tokio::spawn(async move { drop(connection.await) });
                (Sender::Http1(sender), driver)
            }
            Protocol::Http2 => {
                let shaken = http2::handshake(TokioExecutor::new(), io).await;
                let (sender, connection) = shaken.map_err(told)?;
                let driver = tokio::spawn(async move { drop(connection.await) });
                (Sender::Http2(sender), driver)
            }
        };
        Ok(Self {
            sender,
            stamps,
            driver,
            reused: false,
        })
    }

    /// Waits until the previous response is out of the way; false when the peer has closed.
    pub async fn is_ready(&mut self) -> bool {
        match &mut self.sender {
            Sender::Http1(sender) => sender.ready().await.is_ok(),
            Sender::Http2(sender) => sender.ready().await.is_ok(),
        }
    }

    /// Starts a request.
    pub async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> hyper::Result<Response<Incoming>> {
        self.stamps.begin_request();
        match &mut self.sender {
            Sender::Http1(sender) => sender.send_request(request).await,
            Sender::Http2(sender) => sender.send_request(request).await,
        }
    }

    /// The socket's time stamps.
    pub fn stamps(&self) -> &Stamps {
        &self.stamps
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
