//! Time limits that hyper does not have. It has one for the wait between requests and for a head on its
//! way; here the second is shorter: it runs from a head's first byte, or from the connection's beginning,
//! until the head is complete. And it writes for as long as a client takes nothing; here that is limited.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::config::Timeouts;

/// Whose turn it is on a connection: even while the client is to send a head, odd while the server
/// answers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turn(Arc<AtomicUsize>);

impl Turn {
    /// A head is complete; the turn goes back when the result is dropped.
    pub(crate) fn answering(&self) -> Answering {
        self.0.fetch_add(1, Ordering::AcqRel);
        Answering(self.clone())
    }

    fn number(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

/// The server's turn.
#[derive(Debug)]
pub(crate) struct Answering(Turn);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// A socket whose reads fail when a head takes too long, and whose writes when the other side takes
/// nothing for too long.
pub(crate) struct Socket<S> {
    stream: S,
    turn: Turn,
    head_limit: Duration,
    /// The turn in which bytes of a head have come, and when the rest of it must have.
    begun: Option<(usize, Pin<Box<Sleep>>)>,
    write_limit: Duration,
    /// When bytes that wait to be taken must have been.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Socket<S> {
    /// Limits heads and writes on `stream` from now on.
    pub(crate) fn new(stream: S, turn: Turn, timeouts: &Timeouts) -> Self {
        let head_limit = timeouts.header_read;
        Self {
            stream,
            begun: Some((turn.number(), Box::pin(sleep(head_limit)))),
            turn,
            head_limit,
            write_limit: timeouts.write,
            stalled: None,
        }
    }

    /// What came of a write, or that nothing has for too long.
    fn written(
        &mut self,
        context: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if result.is_ready() {
            self.stalled = None;
            return result;
        }
        let limit = self.write_limit;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
        stalled
            .as_mut()
            .poll(context)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let turn = this.turn.number();
        this.begun.take_if(|(begun, _)| *begun != turn);
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if turn.is_multiple_of(2) && this.begun.is_none() && buffer.filled().len() > before {
            this.begun = Some((turn, Box::pin(sleep(this.head_limit))));
        }
        if let (Poll::Pending, Some((_, limit))) = (&read, &mut this.begun) {
            return limit
                .as_mut()
                .poll(context)
                .map(|()| Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(context, result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.written(context, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::timeout;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn socket(stream: DuplexStream, turn: &Turn) -> Socket<DuplexStream> {
        let timeouts = Timeouts {
            header_read: LIMIT,
            write: LIMIT,
            ..Timeouts::default()
        };
        Socket::new(stream, turn.clone(), &timeouts)
    }

    /// How a read ends on a clock that jumps: with bytes, with a failure, or not within the time.
    async fn read(socket: &mut Socket<DuplexStream>, within: Duration) -> Option<bool> {
        let mut byte = [0];
        let read = timeout(within, socket.read(&mut byte)).await.ok()?;
        Some(read.is_ok())
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_is_limited_and_nothing_else() {
        let (mut client, server) = tokio::io::duplex(16);
        let turn = Turn::default();
        let mut socket = socket(server, &turn);
        client.write_all(b"a").await.unwrap();
        assert_eq!(read(&mut socket, LIMIT).await, Some(true));
        assert_eq!(read(&mut socket, LIMIT / 2).await, None);
        for _ in 0..2 {
            // Complete in time: bodies and answers take as long as they take.
            let answering = turn.answering();
            assert_eq!(read(&mut socket, 5 * LIMIT).await, None);
            client.write_all(b"b").await.unwrap();
            assert_eq!(read(&mut socket, LIMIT).await, Some(true));
            assert_eq!(read(&mut socket, 5 * LIMIT).await, None);
            drop(answering);
            // Then nothing is due until a next head begins.
            assert_eq!(read(&mut socket, 5 * LIMIT).await, None);
            client.write_all(b"c").await.unwrap();
            assert_eq!(read(&mut socket, LIMIT).await, Some(true));
        }
        assert_eq!(read(&mut socket, LIMIT / 2).await, None);
        client.write_all(b"d").await.unwrap();
        assert_eq!(read(&mut socket, LIMIT).await, Some(true));
        // More bytes do not give more time.
        assert_eq!(read(&mut socket, LIMIT / 2 + LIMIT / 10).await, Some(false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_ends() {
        let (_client, server) = tokio::io::duplex(16);
        let mut socket = socket(server, &Turn::default());
        assert_eq!(read(&mut socket, 2 * LIMIT).await, Some(false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut_and_a_slow_one_is_not() {
        let (mut client, server) = tokio::io::duplex(16);
        let mut socket = socket(server, &Turn::default());
        socket.write_all(&[0; 16]).await.unwrap();
        for _ in 0..3 {
            let write = timeout(LIMIT - Duration::from_secs(1), socket.write(&[1]));
            assert!(write.await.is_err(), "it waits");
            client.read_u8().await.unwrap();
            assert_eq!(socket.write(&[1]).await.unwrap(), 1);
        }
        let start = tokio::time::Instant::now();
        let failure = socket.write(&[1]).await.unwrap_err();
        assert_eq!(failure.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() >= LIMIT);
    }
}
