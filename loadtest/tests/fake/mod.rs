//! A server that plays a script: each streamed request gets the next behaviour, and every count is
//! kept exactly, so that its `/metrics` are what an honest server would show. Raw sockets, because
//! half of the behaviours are things that an HTTP library refuses to do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// What one streamed request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// `max_tokens` tokens, one event each.
    Ok,
    /// The same, and then the connection closes without saying so before.
    OkThenClose,
    /// One token, then finish reason stop.
    Short,
    /// Two tokens per event.
    Paired,
    /// A token, then an error event, then `[DONE]`.
    ErrorEvent,
    /// A token, then the connection closes in the middle of the body.
    CutStream,
    /// A complete answer but for `[DONE]`.
    NoDone,
    /// A status with an error code.
    Status(u16, &'static str),
    /// An event that is not JSON.
    BadJson,
    /// No usage chunk.
    NoUsage,
    /// A finish reason without any token.
    Empty,
    /// A token after `[DONE]`.
    AfterDone,
    /// No finish reason.
    NoFinish,
    /// JSON instead of a stream.
    NotAStream,
    /// The connection closes before the head.
    CloseBeforeHead,
    /// Bytes that are not HTTP.
    NotHttp,
    /// A token, and then nothing until the server is told to go on.
    Stall,
    /// No byte until so many requests have arrived, and then a complete answer.
    AfterArrivals(usize),
}

/// How the metrics page looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricsPage {
    /// Exact counts.
    Honest,
    /// One generated token too many.
    CountsOneTooMany,
    /// 404.
    Absent,
    /// Counters of a product that nobody knows.
    Foreign,
    /// Exact counts under the names of vLLM.
    Vllm,
    /// A line that is not in the format.
    Broken,
    /// One request more than was sent.
    SharedWithOthers,
}

/// How words become tokens, and who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokenizer {
    /// A token each; `/tokenize` is a path like any other.
    Hidden,
    /// A token each, and `/tokenize` counts them as vLLM's does, and says which they are.
    Single,
    /// The same, but prompts of tokens get one more.
    SingleWithBegin,
    /// A token each, no `/tokenize`, and a field that is not in OpenAI's interface is refused.
    Strict,
    /// Long words are two tokens, and `/tokenize` counts them.
    Vllm,
    /// The same; `/tokenize` as llama.cpp has it, beside `/apply-template`.
    LlamaCpp,
    /// `/tokenize` counts one token less than answers do.
    Wrong,
}

#[derive(Debug, Default)]
struct Counts {
    codes: BTreeMap<u16, u64>,
    finished: BTreeMap<&'static str, u64>,
    rejected: u64,
    prompt_tokens: u64,
    output_tokens: u64,
    between: u64,
    ended: u64,
    streamed: usize,
    connections: u64,
    bodies: Vec<Value>,
}

/// The running server.
pub struct FakeServer {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<State>,
}

struct State {
    script: Vec<Behaviour>,
    page: MetricsPage,
    tokenizer: Tokenizer,
    counts: Mutex<Counts>,
    go_on: Notify,
    stalled: Notify,
    arrived: Notify,
}

impl State {
    async fn arrivals(&self, wanted: usize) {
        loop {
            let next = self.arrived.notified();
            if self.counts.lock().unwrap().streamed >= wanted {
                return;
            }
            next.await;
        }
    }
}

impl FakeServer {
    /// Starts a server that plays `script` over and over.
    pub async fn start(script: &[Behaviour], page: MetricsPage) -> Self {
        Self::with_tokenizer(script, page, Tokenizer::Hidden).await
    }

    /// The same with a tokenizer that can be asked.
    pub async fn with_tokenizer(
        script: &[Behaviour],
        page: MetricsPage,
        tokenizer: Tokenizer,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            script: script.to_vec(),
            page,
            tokenizer,
            counts: Mutex::default(),
            go_on: Notify::new(),
            stalled: Notify::new(),
            arrived: Notify::new(),
        });
        let accepting = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(stream, Arc::clone(&accepting)));
            }
        });
        Self { address, state }
    }

    /// The bodies of the streamed requests in the order of their arrival.
    pub fn bodies(&self) -> Vec<Value> {
        self.state.counts.lock().unwrap().bodies.clone()
    }

    /// Connections that carried a streamed request.
    pub fn connections(&self) -> u64 {
        self.state.counts.lock().unwrap().connections
    }

    /// Waits until a request stalls.
    pub async fn stalled(&self) {
        self.state.stalled.notified().await;
    }
}

struct Request {
    method: String,
    path: String,
    body: Vec<u8>,
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Request> {
    let head_end = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer[..head_end].to_vec()).unwrap();
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.trim().parse::<usize>().unwrap());
    while buffer.len() < head_end + length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body = buffer[head_end..head_end + length].to_vec();
    buffer.drain(..head_end + length);
    let mut words = head.split(' ');
    Some(Request {
        method: words.next()?.into(),
        path: words.next()?.into(),
        body,
    })
}

async fn connection(mut stream: TcpStream, state: Arc<State>) {
    stream.set_nodelay(true).unwrap();
    let mut buffer = Vec::new();
    let mut is_first_stream = true;
    while let Some(request) = read_request(&mut stream, &mut buffer).await {
        let keep = match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/v1/models") => {
                reply(
                    &mut stream,
                    200,
                    &json!({ "data": [{ "id": "fake" }] }).to_string(),
                )
                .await
            }
            ("GET", "/metrics") => metrics(&mut stream, &state).await,
            ("POST", path) => {
                let body: Value = serde_json::from_slice(&request.body).unwrap();
                let is_refused =
                    state.tokenizer == Tokenizer::Strict && body.get("ignore_eos").is_some();
                if is_refused {
                    reply(&mut stream, 400, "{}").await
                } else if let Some(answer) = state.tokenizer.answer(path, &body) {
                    reply(&mut stream, 200, &answer.to_string()).await
                } else if body["stream"] == true {
                    let is_new = std::mem::replace(&mut is_first_stream, false);
                    state.counts.lock().unwrap().connections += u64::from(is_new);
                    streamed(&mut stream, &state, path, body).await
                } else {
                    calibration(&mut stream, &state, &body).await
                }
            }
            _ => reply(&mut stream, 404, "{}").await,
        };
        if !keep {
            return;
        }
    }
}

async fn send(stream: &mut TcpStream, text: &str) -> bool {
    stream.write_all(text.as_bytes()).await.is_ok()
}

async fn reply(stream: &mut TcpStream, status: u16, body: &str) -> bool {
    let length = body.len();
    send(stream, &format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")).await
}

impl Tokenizer {
    /// Tokens of the prompt and of a template of ten: what this server calls prompt tokens.
    fn prompt_tokens(self, body: &Value) -> u64 {
        if let Some(ids) = body["prompt"].as_array() {
            return ids.len() as u64 + u64::from(self == Self::SingleWithBegin);
        }
        let said = match body["messages"].as_array() {
            Some(messages) => messages.iter().map(|m| self.tokens(&m["content"])).sum(),
            None => self.tokens(&body["prompt"]),
        };
        said + 10
    }

    fn tokens(self, text: &Value) -> u64 {
        let words = text.as_str().unwrap().split_whitespace();
        let of_word = |word: &str| {
            let is_plain = matches!(
                self,
                Self::Hidden | Self::Single | Self::SingleWithBegin | Self::Strict
            );
            1 + u64::from(!is_plain && word.len() > 4)
        };
        words.map(of_word).sum()
    }

    fn answer(self, path: &str, body: &Value) -> Option<Value> {
        match (self, path) {
            (Self::Single | Self::SingleWithBegin, "/tokenize")
                if body["add_special_tokens"] == false =>
            {
                let words = body["prompt"].as_str().unwrap().split_whitespace();
                let id = |word: &str| {
                    word.bytes()
                        .fold(7u32, |id, b| id.wrapping_mul(31) + u32::from(b))
                };
                Some(json!({ "tokens": words.map(id).collect::<Vec<u32>>() }))
            }
            (Self::Vllm | Self::Single | Self::SingleWithBegin, "/tokenize") => {
                Some(json!({ "count": self.prompt_tokens(body) }))
            }
            (Self::Wrong, "/tokenize") => Some(json!({ "count": self.prompt_tokens(body) - 1 })),
            (Self::LlamaCpp, "/apply-template") => {
                let said = body["messages"][0]["content"].as_str().unwrap();
                Some(json!({ "prompt": format!("{} {said}", "user ".repeat(10)) }))
            }
            (Self::LlamaCpp, "/tokenize") => {
                let content = &body["content"];
                let tokens = content.as_str().map_or(0, |_| self.tokens(content));
                Some(json!({ "tokens": vec![0; tokens as usize] }))
            }
            _ => None,
        }
    }
}

async fn calibration(stream: &mut TcpStream, state: &State, body: &Value) -> bool {
    let prompt = state.tokenizer.prompt_tokens(body);
    {
        let mut counts = state.counts.lock().unwrap();
        *counts.codes.entry(200).or_default() += 1;
        counts.generation(prompt, 1, "length");
    }
    let usage =
        json!({ "prompt_tokens": prompt, "completion_tokens": 1, "total_tokens": prompt + 1 });
    reply(
        stream,
        200,
        &json!({ "model": "fake", "usage": usage }).to_string(),
    )
    .await
}

impl Counts {
    fn generation(&mut self, prompt: u64, output: u64, reason: &'static str) {
        *self.finished.entry(reason).or_default() += 1;
        self.prompt_tokens += prompt;
        self.output_tokens += output;
        self.between += output.saturating_sub(1);
        self.ended += 1;
    }
}

/// Plays the next behaviour; returns whether the connection stays open.
async fn streamed(stream: &mut TcpStream, state: &State, path: &str, body: Value) -> bool {
    let behaviour = {
        let mut counts = state.counts.lock().unwrap();
        counts.streamed += 1;
        counts.bodies.push(body.clone());
        state.script[(counts.streamed - 1) % state.script.len()]
    };
    state.arrived.notify_waiters();
    if let Behaviour::AfterArrivals(wanted) = behaviour {
        state.arrivals(wanted).await;
    }
    let asked = body["max_tokens"].as_u64().unwrap();
    let is_chat = path.ends_with("/chat/completions");
    let count_status = |status: u16| {
        *state
            .counts
            .lock()
            .unwrap()
            .codes
            .entry(status)
            .or_default() += 1
    };
    match behaviour {
        Behaviour::Status(status, code) => {
            count_status(status);
            state.counts.lock().unwrap().rejected += u64::from(matches!(status, 429 | 503));
            return reply(
                stream,
                status,
                &json!({ "error": { "message": "no", "code": code } }).to_string(),
            )
            .await;
        }
        Behaviour::CloseBeforeHead => return false,
        Behaviour::NotHttp => {
            send(stream, "HELLO\r\n\r\n").await;
            return false;
        }
        Behaviour::NotAStream => {
            count_status(200);
            return reply(stream, 200, "{}").await;
        }
        _ => count_status(200),
    }
    let (tokens, reason) = match behaviour {
        Behaviour::Short => (1, "stop"),
        Behaviour::Empty => (0, "stop"),
        Behaviour::ErrorEvent => (1, "error"),
        Behaviour::CutStream | Behaviour::Stall => (1, "cancelled"),
        _ => (asked, "length"),
    };
    let prompt = state.tokenizer.prompt_tokens(&body);
    state
        .counts
        .lock()
        .unwrap()
        .generation(prompt, tokens, reason);
    let answer = Answer {
        is_chat,
        tokens,
        reason,
        prompt,
    };
    answer.play(stream, state, behaviour).await
}

/// The pieces of a streamed answer.
struct Answer {
    is_chat: bool,
    tokens: u64,
    reason: &'static str,
    prompt: u64,
}

impl Answer {
    async fn play(&self, stream: &mut TcpStream, state: &State, behaviour: Behaviour) -> bool {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
        send(stream, head).await;
        if self.is_chat {
            event(
                stream,
                &self.chunk(&json!({ "role": "assistant", "content": "" }), "", None),
            )
            .await;
        }
        let per_event = if behaviour == Behaviour::Paired { 2 } else { 1 };
        for _ in 0..self.tokens / per_event {
            event(stream, &self.token()).await;
        }
        match behaviour {
            Behaviour::CutStream => return false,
            Behaviour::Stall => {
                state.stalled.notify_one();
                state.go_on.notified().await;
                return false;
            }
            Behaviour::ErrorEvent => {
                event(stream, &json!({ "error": { "message": "boom", "type": "server_error", "code": "internal_error" } }).to_string()).await;
            }
            Behaviour::BadJson => event(stream, "oops").await,
            _ => {}
        }
        if !matches!(behaviour, Behaviour::ErrorEvent | Behaviour::NoFinish) {
            event(stream, &self.chunk(&json!({}), "", Some(self.reason))).await;
        }
        if !matches!(behaviour, Behaviour::ErrorEvent | Behaviour::NoUsage) {
            event(stream, &self.usage()).await;
        }
        if behaviour != Behaviour::NoDone {
            event(stream, "[DONE]").await;
        }
        if behaviour == Behaviour::AfterDone {
            event(stream, &self.token()).await;
        }
        send(stream, "0\r\n\r\n").await && behaviour != Behaviour::OkThenClose
    }

    fn chunk(&self, delta: &Value, text: &str, finish_reason: Option<&str>) -> String {
        let choice = if self.is_chat {
            json!({ "index": 0, "delta": delta, "finish_reason": finish_reason })
        } else {
            json!({ "index": 0, "text": text, "finish_reason": finish_reason })
        };
        json!({ "id": "1", "model": "fake", "choices": [choice], "usage": null }).to_string()
    }

    fn token(&self) -> String {
        self.chunk(&json!({ "content": " word" }), " word", None)
    }

    fn usage(&self) -> String {
        let usage = json!({ "prompt_tokens": self.prompt, "completion_tokens": self.tokens, "total_tokens": self.prompt + self.tokens });
        json!({ "id": "1", "model": "fake", "choices": [], "usage": usage }).to_string()
    }
}

async fn event(stream: &mut TcpStream, data: &str) {
    let text = format!("data: {data}\n\n");
    send(stream, &format!("{:x}\r\n{text}\r\n", text.len())).await;
}

async fn metrics(stream: &mut TcpStream, state: &State) -> bool {
    if state.page == MetricsPage::Absent {
        return reply(stream, 404, "{}").await;
    }
    let page = match state.page {
        MetricsPage::Foreign => "other_requests_total 1\n".to_owned(),
        MetricsPage::Vllm => state.vllm_page(),
        MetricsPage::Broken => format!("{}octet_requests_running\n", state.page()),
        _ => state.page(),
    };
    reply(stream, 200, &page).await
}

impl State {
    fn vllm_page(&self) -> String {
        let counts = self.counts.lock().unwrap();
        [
            (
                "request_success_total{finished_reason=\"length\"}",
                counts.ended,
            ),
            ("prompt_tokens_total", counts.prompt_tokens),
            ("generation_tokens_total", counts.output_tokens),
            ("inter_token_latency_seconds_count", counts.between),
            ("num_requests_running", 0),
            ("num_requests_waiting", 0),
        ]
        .map(|(name, value)| format!("vllm:{name} {value}\n"))
        .concat()
    }

    fn page(&self) -> String {
        let counts = self.counts.lock().unwrap();
        let has_streamed = u64::from(counts.streamed > 0);
        let extra = |page| u64::from(self.page == page) * has_streamed;
        let mut page = String::new();
        for (code, count) in &counts.codes {
            let count = count
                + if *code == 200 {
                    extra(MetricsPage::SharedWithOthers)
                } else {
                    0
                };
            for (endpoint, count) in [("/v1/chat/completions", count), ("/v1/completions", 0)] {
                page += &format!(
                    "octet_requests_total{{endpoint=\"{endpoint}\",code=\"{code}\"}} {count}\n"
                );
            }
        }
        for reason in ["stop", "length", "tool_calls", "cancelled", "error"] {
            let count = counts.finished.get(reason).copied().unwrap_or(0);
            page += &format!(
                "octet_requests_finished_total{{model_name=\"fake\",finish_reason=\"{reason}\"}} {count}\n"
            );
        }
        let output = counts.output_tokens + extra(MetricsPage::CountsOneTooMany);
        let firsts = counts.ended;
        for (name, value) in [
            (
                "requests_rejected_total{reason=\"queue_full\"}",
                counts.rejected,
            ),
            ("requests_running", 0),
            ("requests_waiting", 0),
            ("kv_cache_blocks_used", 0),
            ("prompt_tokens_total", counts.prompt_tokens),
            ("prompt_tokens_cached_total", 0),
            ("generation_tokens_total", output),
            ("preemptions_total", 0),
            ("time_to_first_token_seconds_count", firsts),
            ("time_to_first_token_seconds_sum", 0),
            ("inter_token_latency_seconds_count", counts.between),
            ("e2e_request_latency_seconds_count", counts.ended),
            (
                "step_tokens_sum{phase=\"mixed\"}",
                counts.prompt_tokens + counts.between,
            ),
            ("build_info{version=\"1\"}", 1),
        ] {
            page += &format!("octet_{name} {value}\n");
        }
        page + "process_start_time_seconds 1000\n"
    }
}
