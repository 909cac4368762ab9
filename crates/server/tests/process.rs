//! The real process with the bundled model: start, answer, client loss, signals, bad configuration.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::process::Command;

use serde_json::{Value, json};
use support::{Server, read_response};

/// Linux's value.
const O_NONBLOCK: i32 = 0o4000;
const CANCELLED: &str = "octet_requests_finished_total{finish_reason=\"cancelled\"";

fn chat(question: &str, extra: Value) -> String {
    let mut body = json!({"messages": [{"role": "user", "content": question}], "temperature": 0});
    body.as_object_mut()
        .expect("an object")
        .extend(extra.as_object().expect("an object").clone());
    body.to_string()
}

/// A request that streams until its connection is closed.
fn endless() -> String {
    chat(
        "Repeat: apple",
        json!({"stream": true, "ignore_eos": true, "max_completion_tokens": 900}),
    )
}

#[test]
fn the_printed_curl_line_works_and_the_sum_is_right() {
    let server = Server::start(&[]);
    let line = server
        .banner
        .lines()
        .find(|line| line.trim_start().starts_with("curl "))
        .expect("the banner shows a curl line");
    let output = Command::new("sh")
        .args(["-c", line])
        .output()
        .expect("sh starts");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("curl prints JSON");
    assert!(
        answer["choices"][0]["message"]["content"].is_string(),
        "{answer}"
    );

    let answer = server.request(
        "POST",
        "/v1/chat/completions",
        &chat("What is 12 + 30?", json!({})),
    );
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answer: Value = serde_json::from_str(&answer.body).expect("JSON");
    let text = answer["choices"][0]["message"]["content"]
        .as_str()
        .expect("text");
    assert!(text.contains("42"), "{text}");
}

#[test]
fn a_client_that_leaves_gives_its_blocks_back() {
    // The slow target: the answer must not end before its client has left.
    let server = Server::start(&["--device", "reference"]);
    let stream = server.send("POST", "/v1/chat/completions", &endless());
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while !line.contains("\"content\":\"") || line.contains("\"content\":\"\"") {
        line.clear();
        assert!(
            reader.read_line(&mut line).expect("the stream is readable") > 0,
            "the stream ended"
        );
    }
    server.wait_until("the use of blocks", |server| {
        server.metric("octet_kv_cache_blocks_used") > 0.0
    });
    drop(reader);
    server.wait_until("the cancellation", |server| server.metric(CANCELLED) == 1.0);
    server.wait_until("freeing", |server| {
        server.metric("octet_kv_cache_blocks_used") == 0.0
    });
    assert_eq!(server.metric("octet_requests_running"), 0.0);
}

#[test]
fn sigterm_lets_running_streams_finish_and_refuses_new_work() {
    let server = Server::start(&[]);
    let body = chat(
        "What is 1 + 1?",
        json!({"stream": true, "ignore_eos": true, "max_completion_tokens": 400}),
    );
    let stream = server.send("POST", "/v1/chat/completions", &body);
    server.wait_until("the start", |server| {
        server.metric("octet_requests_running") > 0.0
    });
    server.signal("TERM");
    let response = read_response(stream);
    assert_eq!(response.status, 200);
    assert!(
        response.body.contains("\"finish_reason\":\"length\""),
        "{}",
        response.body
    );
    assert!(response.body.trim_end().ends_with("data: [DONE]"));
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_streams_with_an_error_event() {
    let server = Server::start(&["--shutdown-timeout", "600"]);
    let streams: Vec<_> = (0..8)
        .map(|_| server.send("POST", "/v1/chat/completions", &endless()))
        .collect();
    server.wait_until("the start", |server| {
        server.metric("octet_requests_running") == 8.0
    });
    server.signal("TERM");
    server.signal("INT");
    for stream in streams {
        let body = read_response(stream).body;
        let complete = body.contains("\"finish_reason\":\"length\"");
        assert!(
            complete || body.contains("\"error\":{"),
            "a stream was cut without an event: {body}"
        );
        assert!(body.trim_end().ends_with("data: [DONE]"));
    }
    assert_eq!(server.wait().code(), Some(0));
}

/// A new file counts for whom comes then; a bad one, and one that everybody may read, change nothing.
#[test]
fn a_hangup_has_the_keys_read_again_and_running_requests_go_on() {
    let file = concat!(env!("CARGO_TARGET_TMPDIR"), "/keys");
    let write = |text: &str, mode: u32| {
        std::fs::write(file, text).expect("written");
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(file, mode).expect("its owner");
    };
    write("old\nboth\n", 0o600);
    let flags = ["--api-key-file", file, "--api-key", "flag"];
    let (mut log, writer) = std::io::pipe().expect("a pipe");
    let server = Server::start_logging_to(writer.into(), &flags);
    let mut log = BufReader::new(&mut log).lines();
    let mut reload = |said: &str| {
        server.signal("HUP");
        let line = log.find(|line| line.as_ref().is_ok_and(|line| line.contains("API keys")));
        let line = line.expect("a line about keys").expect("text");
        assert!(line.contains(said), "{line}");
    };
    let status = |key: &str| server.with_key(key, "GET", "/v1/models", "").0;
    let statuses = || ["flag", "old", "both", "new"].map(status);
    assert_eq!(statuses(), [200, 200, 200, 401]);
    let (head, running) = server.with_key("old", "POST", "/v1/chat/completions", &endless());
    assert_eq!(head, 200);
    write("# rotated\nboth\nnew\n", 0o600);
    reload("keys=2");
    assert_eq!(statuses(), [200, 401, 200, 200]);
    for (text, mode, said) in [
        ("# nothing\n", 0o600, "holds no key"),
        ("everybodys\n", 0o644, "mode 644"),
    ] {
        write(text, mode);
        reload(said);
        assert_eq!(statuses(), [200, 401, 200, 200], "{said}");
    }
    std::fs::remove_file(file).expect("written above");
    reload("No such file");
    assert_eq!(statuses(), [200, 401, 200, 200]);
    let rest = std::io::read_to_string(running).expect("text");
    assert!(rest.contains("\"finish_reason\":\"length\""), "{rest}");
    server.signal("TERM");
    assert!(server.wait().success());
}

/// A pipe that nobody writes to keeps a reader for ever, but not the process.
#[test]
fn keys_that_never_come_do_not_delay_the_end() {
    let pipe = concat!(env!("CARGO_TARGET_TMPDIR"), "/pipe-of-keys");
    let _ = std::fs::remove_file(pipe);
    let made = Command::new("mkfifo").args(["-m", "600", pipe]).status();
    assert!(made.expect("mkfifo runs").success());
    // Opened without waiting, which fails until somebody is there to read.
    let writer = || {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).custom_flags(O_NONBLOCK);
        options.open(pipe).ok()
    };
    let first = std::thread::spawn(move || std::fs::write(pipe, "key\n"));
    let server = Server::start(&["--api-key-file", pipe]);
    first.join().expect("no panic").expect("it was read");
    assert_eq!(server.with_key("key", "GET", "/v1/models", "").0, 200);
    server.signal("HUP");
    let mut held = None;
    server.wait_until("the pipe is read", |_| {
        held = writer();
        held.is_some()
    });
    server.signal("TERM");
    assert!(server.wait().success());
}

#[test]
fn metrics_have_a_port_of_their_own_where_asked_for() {
    let server = Server::start(&["--metrics-port", "0"]);
    let port = server
        .banner
        .lines()
        .find_map(|line| line.strip_prefix("  metrics    http://127.0.0.1:"))
        .and_then(|rest| rest.strip_suffix("/metrics"))
        .and_then(|port| port.parse().ok());
    let port: u16 = port.expect("the banner says where");
    assert_eq!(server.request("GET", "/metrics", "").status, 404);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    let request = "GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("sent");
    let answer = read_response(stream);
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.body.contains("octet_build_info"), "{}", answer.body);
    server.signal("TERM");
    assert!(server.wait().success());
}

/// Whatever is asked, answered or refused: the log at its most talkative and the metrics hold none of it.
#[test]
fn nothing_of_a_request_shows_in_log_or_metrics() {
    const CANARY: &str = "zebracrossing";
    let key = format!("key-{CANARY}-0123456789");
    let file = concat!(env!("CARGO_TARGET_TMPDIR"), "/talkative");
    let log = std::fs::File::create(file).expect("a file");
    let flags = ["--api-key", &key, "--log-level", "trace"];
    let server = Server::start_logging_to(log.into(), &flags);
    let asked = |key: &str, path: &str, body: &str| {
        let (status, rest) = server.with_key(key, "POST", path, body);
        (status, std::io::read_to_string(rest).expect("text"))
    };
    let question = format!("Repeat: {CANARY}");
    for (path, body, wanted) in [
        ("/v1/chat/completions", chat(&question, json!({})), 200),
        (
            "/v1/chat/completions",
            chat(&question, json!({"stream": true})),
            200,
        ),
        (
            "/v1/chat/completions",
            chat(&question, json!({"temperature": CANARY})),
            400,
        ),
        (
            "/v1/chat/completions",
            chat(&question, json!({"model": CANARY})),
            404,
        ),
        (
            "/v1/chat/completions",
            chat(&question, json!({CANARY: 1})),
            200,
        ),
        (
            "/v1/completions",
            json!({"prompt": CANARY, "stop": CANARY}).to_string(),
            200,
        ),
        ("/v1/completions", format!("{{\"prompt\": \"{CANARY}"), 400),
        ("/v1/embeddings", json!({"input": CANARY}).to_string(), 400),
        ("/tokenize", json!({"prompt": CANARY}).to_string(), 200),
        (&format!("/{CANARY}?{CANARY}"), String::new(), 404),
    ] {
        let (status, text) = asked(&key, path, &body);
        assert_eq!(status, wanted, "{body}: {text}");
    }
    assert_eq!(asked(&format!("{key}x"), "/v1/completions", "{}").0, 401);
    let metrics = server.request("GET", "/metrics", "").body;
    server.signal("TERM");
    assert!(server.wait().success());
    let log = std::fs::read_to_string(file).expect("text");
    assert!(
        log.contains("TRACE") && log.contains("/v1/completions"),
        "{log}"
    );
    for (what, text) in [("the log", log), ("the metrics", metrics)] {
        let line = text.lines().find(|line| line.contains(CANARY));
        assert!(line.is_none(), "{what}: {line:?}");
    }
}

#[test]
fn an_idle_server_exits_at_once() {
    for signal in ["TERM", "INT"] {
        let server = Server::start(&[]);
        server.signal(signal);
        assert_eq!(server.wait().code(), Some(0), "{signal}");
    }
}

#[test]
fn bad_configuration_is_refused_with_its_reason() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let secret = "do-not-print-me";
    let keys = concat!(env!("CARGO_TARGET_TMPDIR"), "/everybodys-keys");
    std::fs::write(keys, secret).expect("written");
    let everybody = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(keys, everybody).expect("its owner");
    for (flags, reason) in [
        (vec!["--port", &port], "in use"),
        (vec!["--model", "./no/such/model"], "no such file"),
        (vec!["--host", "0.0.0.0"], "--api-key"),
        (
            vec!["--max-num-seqs", "0", "--api-key", secret],
            "--max-num-seqs",
        ),
        (vec!["--no-such-flag"], "--no-such-flag"),
        (vec!["--api-key-file", keys], "mode 644"),
        (vec!["--max-model-len", "1000000"], "1000000"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_octet"))
            .arg("serve")
            .args(&flags)
            // Where a flag does not say, no port that somebody else may use.
            .env("OCTET_PORT", "0")
            .output()
            .expect("the binary starts");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{flags:?} was accepted");
        assert!(text.contains(reason), "{flags:?}: {text}");
        assert!(
            !text.contains(secret) && !text.contains("panicked"),
            "{flags:?}: {text}"
        );
    }
}

/// Without a driver the reason is told, by `devices` and by a server that was asked for a GPU; with one
/// the GPU is described.
#[test]
fn a_missing_gpu_is_told_with_its_reason() {
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_octet"))
            .args(args)
            .env("OCTET_PORT", "0")
            .output()
            .expect("the binary starts");
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    };
    let (ok, text) = run(&["devices"]);
    assert!(ok && text.starts_with("cuda"), "{text}");
    if text.contains("no NVIDIA driver") {
        assert!(text.contains("\nchosen: cpu"), "{text}");
        for args in [
            &["devices", "--device", "cuda"][..],
            &["serve", "--device", "cuda"],
            // Without a device named, half precision asks for a GPU too.
            &["serve", "-q", "f16"],
        ] {
            let (ok, text) = run(args);
            assert!(!ok && text.contains("no NVIDIA driver"), "{text}");
            assert!(!text.contains("panicked"), "{text}");
            assert!(!text.contains("http://"), "nothing was bound: {text}");
        }
    }
    let (ok, text) = run(&["devices", "--device", "cpu", "-q", "f16"]);
    assert!(!ok && text.contains("f16 is for GPUs"), "{text}");
}

#[test]
fn models_and_devices_describe_themselves() {
    for (command, expected) in [
        (
            "models",
            vec!["LlamaForCausalLM", "qwen3", "gguf", "modernbert"],
        ),
        ("devices", vec!["cpu", "threads", "int8"]),
        (
            "devices --quantization int8",
            vec!["for int8", "int8 (asked for"],
        ),
        (
            "devices -q int8-fast",
            vec!["for int8", "int8-fast (asked for"],
        ),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_octet"))
            .args(command.split(' '))
            .output()
            .expect("the binary starts");
        assert!(output.status.success());
        let text = String::from_utf8_lossy(&output.stdout).to_lowercase();
        for word in expected {
            assert!(
                text.contains(&word.to_lowercase()),
                "{command} does not name {word}: {text}"
            );
        }
    }
}

/// A small embedding model of the encoder's tests.
const ENCODER: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../encoder/tests/fixtures/bert"
);

#[test]
fn an_embedding_model_is_served_alone() {
    let server = Server::start(&["--model", ENCODER]);
    let line = server.banner.lines().find(|line| line.starts_with("curl "));
    let output = Command::new("sh")
        .args(["-c", line.expect("the banner shows a curl line")])
        .output()
        .expect("sh starts");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("curl prints JSON");
    assert_eq!(
        answer["data"][0]["embedding"].as_array().map(Vec::len),
        Some(32),
        "{answer}"
    );
    assert_eq!(answer["model"], "bert");
    let answer = server.request("POST", "/v1/chat/completions", &chat("hello", json!({})));
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("/v1/embeddings"), "{}", answer.body);
    assert_eq!(server.request("GET", "/health", "").status, 200);
    server.signal("TERM");
    assert!(server.wait().success());
}

#[test]
fn an_embedding_model_is_served_beside_a_language_model() {
    let server = Server::start(&["--embedding-model", ENCODER]);
    assert!(
        server.banner.contains("embeddings bert"),
        "{}",
        server.banner
    );
    let answer = server.request("POST", "/v1/embeddings", r#"{"input": [[5, 6], [7]]}"#);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answer = server.request(
        "POST",
        "/v1/chat/completions",
        &chat("What is 1 + 1?", json!({})),
    );
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[test]
fn version_and_metrics_name_the_same_features() {
    let server = Server::start(&[]);
    let version = server.request("GET", "/version", "").body;
    let version: Value = serde_json::from_str(&version).expect("JSON");
    let features = version["features"].as_array().expect("a list");
    let features: Vec<&str> = features.iter().filter_map(Value::as_str).collect();
    let label = format!("features=\"{}\"", features.join(","));
    let metrics = server.request("GET", "/metrics", "").body;
    assert!(metrics.contains(&label), "{label} is not in the metrics");
}

#[test]
fn health_names_the_address_that_does_not_answer() {
    let output = Command::new(env!("CARGO_BIN_EXE_octet"))
        .args(["health", "--port", "1"])
        .output()
        .expect("the binary starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(error.contains("http://127.0.0.1:1/"), "{error}");
}

#[test]
fn a_log_that_nobody_reads_holds_up_nobody() {
    for is_gone in [true, false] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let server = Server::start_logging_to(writer.into(), &["--log-level", "debug"]);
        // Gone, or there and never read.
        let reader = (!is_gone).then_some(reader);
        let body = json!({"prompt": "a", "max_tokens": 1}).to_string();
        // More lines than a pipe holds.
        for _ in 0..500 {
            let answer = server.request("POST", "/v1/completions", &body);
            assert_eq!(answer.status, 200, "{}", answer.body);
        }
        server.signal("TERM");
        assert!(server.wait().success());
        drop(reader);
    }
}
