//! Starts the real binary and speaks to it over raw sockets, so that tests see what a client sees.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine; reached only when something is broken.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    port: u16,
    /// What it printed until it was ready.
    pub banner: String,
}

/// A response: status, head as sent, body with the transfer coding removed.
#[derive(Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// Body.
    pub body: String,
}

impl Server {
    /// Starts `octet serve` with the given flags on a free port and waits until it is ready.
    pub fn start(flags: &[&str]) -> Self {
        Self::start_logging_to(Stdio::inherit(), flags)
    }

    /// The same with another standard error.
    pub fn start_logging_to(log: Stdio, flags: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_octet"));
        command.args(["serve", "--port", "0"]).args(flags);
        Self::start_by(command.stderr(log))
    }

    /// Starts a server by a command of its own and waits until it is ready.
    pub fn start_by(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let (mut banner, mut port) = (String::new(), 0);
        let mut lines = BufReader::new(stdout).lines();
        for line in lines.by_ref() {
            let line = line.expect("the banner is text");
            banner.push_str(&line);
            banner.push('\n');
            if let Some(address) = line.split("http://127.0.0.1:").nth(1) {
                let digits: String = address.chars().take_while(char::is_ascii_digit).collect();
                port = digits.parse().expect("a port follows the host");
            }
            if line.trim_start().starts_with("ready") {
                break;
            }
        }
        assert!(port != 0, "no address in:\n{banner}");
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            port,
            banner,
        }
    }

    /// The most bytes of memory that the process has had so far.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kibibytes: u64 = kibibytes.and_then(|k| k.parse().ok()).expect("a number");
        1024 * kibibytes
    }

    /// Base URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A fresh connection with a read timeout.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the server accepts");
        stream
            .set_read_timeout(Some(DEADLINE))
            .expect("a positive timeout");
        stream
    }

    /// One request on its own connection.
    pub fn request(&self, method: &str, path: &str, body: &str) -> Response {
        read_response(self.send(method, path, body))
    }

    /// Sends a request and leaves the response unread.
    pub fn send(&self, method: &str, path: &str, body: &str) -> TcpStream {
        self.send_with(method, path, "", body)
    }

    /// Sends a request with a key; gives the status and what follows it, unread.
    pub fn with_key(
        &self,
        key: &str,
        method: &str,
        path: &str,
        body: &str,
    ) -> (u16, BufReader<TcpStream>) {
        let header = format!("authorization: Bearer {key}\r\n");
        let mut reader = BufReader::new(self.send_with(method, path, &header, body));
        let mut line = String::new();
        reader.read_line(&mut line).expect("a status line");
        let code = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        (code.expect("a status"), reader)
    }

    fn send_with(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut stream = self.connect();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("the request is sent");
        stream
    }

    /// The value of an unlabelled-but-for-the-model series, or of a series given with its labels.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.request("GET", "/metrics", "").body;
        let line = text
            .lines()
            .find(|line| !line.starts_with('#') && line.starts_with(series));
        let line = line.unwrap_or_else(|| panic!("{series} is not in\n{text}"));
        line.rsplit(' ')
            .next()
            .and_then(|value| value.parse().ok())
            .expect("a series has a value")
    }

    /// Waits until a condition holds; fails after [`DEADLINE`].
    pub fn wait_until(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(start.elapsed() < DEADLINE, "{what} did not happen");
            std::thread::yield_now();
        }
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([format!("-{name}"), self.child.id().to_string()])
            .status()
            .expect("kill exists");
        assert!(status.success());
    }

    /// Waits for the end of the process.
    pub fn wait(mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return status;
            }
            assert!(start.elapsed() < DEADLINE, "the server does not exit");
            std::thread::yield_now();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Reads a whole response from a connection that the server closes.
pub fn read_response(mut stream: TcpStream) -> Response {
    let mut bytes = Vec::new();
    stream
        .read_to_end(&mut bytes)
        .expect("the response arrives");
    let text = String::from_utf8(bytes).expect("responses are UTF-8");
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no head in {text:?}"));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .expect("a status line");
    let chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    Response {
        status,
        head: head.to_owned(),
        body: if chunked {
            dechunk(body)
        } else {
            body.to_owned()
        },
    }
}

fn dechunk(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk size");
        if size == 0 {
            return text;
        }
        text.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    panic!("the body ends without its last chunk");
}
