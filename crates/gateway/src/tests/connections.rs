//! Connections over a real socket: what is no request, requests in a row, the end of the server.

use std::sync::mpsc::{Sender, channel};

use engine::fake::Fault;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::errors::CHAT;
use super::support::{Rig, chat, engine_config, model};
use crate::{GatewayConfig, serve};

/// A server on a port of its own.
struct Server {
    rig: Rig,
    address: String,
    shutdown: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl Server {
    async fn start(rig: Rig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (shutdown, told) = oneshot::channel::<()>();
        let told = async {
            told.await.ok();
        };
        let serving = tokio::spawn(serve(rig.gateway.clone(), listener, told));
        Self {
            rig,
            address,
            shutdown,
            serving,
        }
    }

    async fn connect(&self) -> Client {
        let stream = TcpStream::connect(&self.address).await.expect("it listens");
        Client {
            stream,
            read: Vec::new(),
        }
    }

    async fn stop(self) {
        self.shutdown.send(()).expect("it runs");
        self.serving.await.expect("no panic");
    }
}

/// One connection, read as text.
struct Client {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Client {
    async fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream
            .write_all(text.as_ref())
            .await
            .expect("it is open");
    }

    /// Reads until the text that has come contains `end`, and takes it off.
    async fn until(&mut self, end: &str) -> String {
        loop {
            let text = String::from_utf8_lossy(&self.read).into_owned();
            if let Some(at) = text.find(end) {
                return String::from_utf8(self.read.drain(..at + end.len()).collect())
                    .expect("text");
            }
            let mut buffer = [0; 4096];
            let n = self.stream.read(&mut buffer).await.expect("no reset");
            assert!(n > 0, "closed after {text:?}");
            self.read.extend(&buffer[..n]);
        }
    }

    /// One answer with a `content-length`: its head and its body.
    async fn answer(&mut self) -> (String, String) {
        let head = self.until("\r\n\r\n").await;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.expect("a length").parse().expect("a number");
        while self.read.len() < length {
            let mut buffer = [0; 4096];
            let n = self.stream.read(&mut buffer).await.expect("no reset");
            assert!(n > 0, "closed in a body");
            self.read.extend(&buffer[..n]);
        }
        let body = self.read.drain(..length).collect();
        (head, String::from_utf8(body).expect("text"))
    }

    /// Everything up to the end of the connection, which may be a reset.
    async fn rest(&mut self) -> String {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = self.stream.read(&mut buffer).await {
            self.read.extend(&buffer[..n]);
        }
        String::from_utf8_lossy(&self.read).into_owned()
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
}

fn post(body: &str) -> String {
    let length = body.len();
    format!("POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {length}\r\n\r\n{body}")
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_the_connection_closed() {
    let server = Server::start(Rig::new()).await;
    let body = chat(json!({})).to_string();
    let n = body.len();
    let smuggled = |headers: &str| {
        format!("POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1\r\n{headers}\r\n\r\n{body}")
    };
    for (request, status) in [
        ("garbage\r\n\r\n".to_owned(), 400),
        ("\u{16}\u{3}\u{1}\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), 400),
        ("GET /a b HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nhost : 127.0.0.1\r\n\r\n".to_owned(), 400),
        (
            "GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx: a\u{0}b\r\n\r\n".to_owned(),
            400,
        ),
        (
            smuggled(&format!("content-length: {n}\r\ncontent-length: {}", n + 1)),
            400,
        ),
        (smuggled("content-length: -1"), 400),
        (smuggled("content-length: 1, 2"), 400),
        (smuggled("transfer-encoding: chunked, identity"), 400),
        (
            format!(
                "GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx: {}\r\n\r\n",
                "y".repeat(33 << 10)
            ),
            431,
        ),
        (
            format!(
                "GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n{}\r\n",
                "x: y\r\n".repeat(101)
            ),
            431,
        ),
        (get(&format!("/{}", "y".repeat(9 << 10))), 414),
    ] {
        let mut client = server.connect().await;
        client.send(&request).await;
        let answer = client.rest().await;
        let shown = &request[..request.len().min(60)];
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{shown:?}: {answer:?}"
        );
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer:?}");
    }
    assert_eq!(server.rig.metric("octet_engine_steps_total").await, 0.0);
    server.stop().await;
}

#[tokio::test]
async fn a_request_that_breaks_off_leaves_nothing_behind() {
    let server = Server::start(Rig::new()).await;
    let whole = post(&chat(json!({})).to_string());
    for part in [1, 10, whole.len() / 2, whole.len() - 1] {
        let mut client = server.connect().await;
        client.send(&whole[..part]).await;
        client.stream.shutdown().await.expect("it is open");
        let answer = client.rest().await;
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let in_flight = format!("octet_http_requests_in_flight{{endpoint=\"{CHAT}\"");
    while server.rig.metric(&in_flight).await != 0.0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.rig.metric("octet_engine_steps_total").await, 0.0);
    server.stop().await;
}

#[tokio::test]
async fn requests_in_a_row_are_answered_in_order_on_one_connection() {
    let server = Server::start(Rig::new()).await;
    let mut client = server.connect().await;
    for _ in 0..3 {
        client.send(get("/version")).await;
        let (head, body) = client.answer().await;
        assert!(
            head.starts_with("HTTP/1.1 200") && body.contains("octet"),
            "{head}"
        );
        assert!(head.contains("x-request-id: "));
    }
    let body = chat(json!({"max_tokens": 2})).to_string();
    client
        .send(get("/health") + &post(&body) + &get("/nothing") + &post("{") + &get("/version"))
        .await;
    for (status, fragment) in [
        (200, "ready"),
        (200, "chat.completion"),
        (404, "unknown_url"),
        (400, "invalid_json"),
        (200, "octet"),
    ] {
        let (head, body) = client.answer().await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{head}{body}"
        );
        assert!(body.contains(fragment), "{body}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_head_is_counted_as_what_it_was_answered() {
    let server = Server::start(Rig::new()).await;
    let mut client = server.connect().await;
    for path in ["/health", "/v1/models", CHAT] {
        client.send(get(path).replace("GET", "HEAD")).await;
        client.until("\r\n\r\n").await;
    }
    for (path, code) in [("/health", 200), ("/v1/models", 200), (CHAT, 405)] {
        let series = format!("octet_requests_total{{code=\"{code}\",endpoint=\"{path}\"");
        let is_counted = |line: &str| line.starts_with(&series) && line.ends_with(" 1");
        // Counted when the connection is done with it, which may be after the client is.
        while !server
            .rig
            .get("/metrics")
            .await
            .text
            .lines()
            .any(is_counted)
        {
            tokio::task::yield_now().await;
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn an_announced_body_over_the_limit_is_refused_unread() {
    let server = Server::start(Rig::new()).await;
    let mut client = server.connect().await;
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        (32 << 20) + 1
    );
    client.send(head).await;
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("request_too_large") && answer.contains("connection: close"));
    server.stop().await;
}

#[tokio::test]
async fn a_connection_closes_after_a_stream_that_fails_and_no_other() {
    for fault in [None, Some(Fault::Error)] {
        let model = fault.iter().fold(model(), |m, f| m.with_fault(2, *f));
        let config = GatewayConfig::new("test-model");
        let server = Server::start(Rig::with(config, engine_config(), model)).await;
        let mut client = server.connect().await;
        let body = chat(json!({"stream": true, "ignore_eos": true})).to_string();
        client.send(post(&body)).await;
        // The chunk that ends the answer comes in either case.
        let stream = client.until("data: [DONE]\n\n\r\n0\r\n\r\n").await;
        assert_eq!(stream.contains("\"error\""), fault.is_some(), "{stream}");
        client.send(get("/health")).await;
        if fault.is_some() {
            assert_eq!(client.rest().await, "");
        } else {
            assert!(client.answer().await.0.starts_with("HTTP/1.1 200 "));
        }
        server.stop().await;
    }
}

/// A server whose engine makes one step per message, and a connection with a stream that has begun.
async fn streaming() -> (Server, Client, Sender<()>) {
    let (step, gate) = channel();
    let config = GatewayConfig::new("test-model");
    let rig = Rig::with(config, engine_config(), model().with_gate(gate));
    let server = Server::start(rig).await;
    let mut client = server.connect().await;
    let body = chat(json!({"stream": true, "ignore_eos": true})).to_string();
    (0..3).for_each(|_| step.send(()).expect("the model waits"));
    client.send(post(&body)).await;
    client.until("\"role\":\"assistant\"").await;
    (server, client, step)
}

#[tokio::test]
async fn a_connection_that_closes_in_mid_stream_frees_its_blocks() {
    let (server, client, step) = streaming().await;
    drop(client);
    // The connection notices when it writes.
    drop(step);
    while server.rig.metric("octet_kv_cache_blocks_used").await != 0.0 {
        tokio::task::yield_now().await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_running_stream_ends_before_the_server_does() {
    let (server, mut client, step) = streaming().await;
    server.shutdown.send(()).expect("it runs");
    // Probes and new requests are told meanwhile, on old connections and new ones.
    let address = server.address.clone();
    loop {
        let stream = TcpStream::connect(&address)
            .await
            .expect("it still listens");
        let mut probe = Client {
            stream,
            read: Vec::new(),
        };
        probe.send(get("/health")).await;
        let (head, body) = probe.answer().await;
        if head.starts_with("HTTP/1.1 503 ") {
            assert!(body.contains("draining"), "{body}");
            probe.send(post(&chat(json!({})).to_string())).await;
            let (head, body) = probe.answer().await;
            assert!(
                head.starts_with("HTTP/1.1 503 ") && body.contains("draining"),
                "{head}{body}"
            );
            break;
        }
    }
    assert!(!server.serving.is_finished());
    drop(step);
    let rest = client.until("data: [DONE]\n\n").await;
    assert!(rest.contains("\"finish_reason\":\"length\""), "{rest}");
    server.serving.await.expect("no panic");
    assert!(TcpStream::connect(&address).await.is_err());
}
