//! A server that streams tokens by the clock and remembers when it wrote each. It runs on a thread of
//! its own, so that a client that is late does not delay it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::Writes;
use crate::clock::Clock;

/// What every request gets.
#[derive(Debug, Clone, Copy)]
pub struct Script {
    /// From the request to the first token.
    pub first: Duration,
    /// From a token to the next.
    pub gap: Duration,
    /// How many there are.
    pub tokens: u32,
}

struct Shared {
    script: Script,
    clock: Clock,
    writes: Mutex<Writes>,
}

/// The running server.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Server {
    /// Starts it.
    pub fn start(script: Script, clock: Clock) -> Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            script,
            clock,
            writes: Mutex::default(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let serving = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = accept(listener, serving) => {}
                }
            });
        });
        Ok(Self {
            address,
            shared,
            stop,
            thread,
        })
    }

    /// Ends it and says what it wrote.
    pub fn stop(self) -> Writes {
        // A server that has ended by itself is gone already.
        let _ = self.stop.send(());
        self.thread.join().expect("the server does not panic");
        let mut writes = self
            .shared
            .writes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *writes)
    }
}

async fn accept(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let listener = TcpListener::from_std(listener).expect("the listener does not block");
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        // A client that leaves in the middle ends only its own connection.
        tokio::spawn(async move { drop(serve(stream, &shared).await) });
    }
}

async fn serve(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    while let Some(body) = read_body(&mut stream, &mut buffer).await? {
        let number = body["seed"].as_u64().unwrap_or_default();
        answer(&mut stream, shared, number).await?;
    }
    Ok(())
}

/// Reads one request; none at the end of the connection.
async fn read_body(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<Option<Value>> {
    loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&buffer[..at]).to_ascii_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"))
                .and_then(|value| value.trim().parse::<usize>().ok())
                .unwrap_or(0);
            let end = at + 4 + length;
            if buffer.len() >= end {
                let body = serde_json::from_slice(&buffer[at + 4..end]).unwrap_or_default();
                buffer.drain(..end);
                return Ok(Some(body));
            }
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

async fn answer(stream: &mut TcpStream, shared: &Shared, number: u64) -> std::io::Result<()> {
    let script = shared.script;
    let begun = tokio::time::Instant::now();
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await?;
    let token = chunk(
        &json!({ "model": "self-test", "choices": [{ "index": 0, "text": " x" }] }).to_string(),
    );
    let mut writes = Vec::new();
    for n in 0..script.tokens {
        tokio::time::sleep_until(begun + script.first + script.gap * n).await;
        writes.push(shared.clock.now());
        stream.write_all(&token).await?;
    }
    // Remembered before the end, after which the client may stop the server.
    shared
        .writes
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(number, writes);
    let last = json!({ "choices": [{ "index": 0, "text": "", "finish_reason": "length" }] });
    let usage = json!({ "choices": [], "usage": {
        "prompt_tokens": 8, "completion_tokens": script.tokens,
    } });
    let mut end = chunk(&last.to_string());
    end.extend(chunk(&usage.to_string()));
    end.extend(chunk("[DONE]"));
    end.extend(b"0\r\n\r\n");
    stream.write_all(&end).await
}

/// An event as a chunk of the body.
fn chunk(data: &str) -> Vec<u8> {
    let event = format!("data: {data}\n\n");
    format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
}
