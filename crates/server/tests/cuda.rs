//! The real process with a GPU that the driver's stand-in emulates: it is found, it answers as the CPU does, and when
//! it fails for good the process ends in order.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use support::Server;

/// Small caches: the emulator's memory is the machine's.
const FLAGS: [&str; 6] = [
    "--max-num-seqs",
    "4",
    "--max-model-len",
    "512",
    "--swap-space",
    "0.01",
];

/// A folder in which the stand-in has the driver's name.
fn driver(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cuda-{test}"));
    std::fs::remove_dir_all(&folder).ok();
    std::fs::create_dir_all(&folder).expect("a folder for the driver");
    let library = cuda_driver::library().expect("the stand-in was built");
    std::os::unix::fs::symlink(library, folder.join("libcuda.so")).expect("a link");
    folder
}

fn octet(driver: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_octet"));
    command.args(args).env("LD_LIBRARY_PATH", driver);
    command.env("OCTET_EMULATED_FAULT", driver.join("fault"));
    // An emulator's times say nothing; where they are asked for, they are not kept for anybody else.
    command.env("OCTET_KERNEL_TUNING", "off");
    command.env("XDG_CACHE_HOME", driver);
    command
}

fn chat(extra: Value) -> String {
    let question = json!([{"role": "user", "content": "What is 12 + 30?"}]);
    let mut body = json!({"messages": question, "temperature": 0, "logprobs": true});
    let extra = extra.as_object().expect("an object").clone();
    body.as_object_mut().expect("an object").extend(extra);
    body.to_string()
}

#[test]
fn a_gpu_is_found_and_answers_as_the_cpu_does() {
    let folder = driver("answers");
    let devices = octet(&folder, &["devices"]).output().expect("it starts");
    let devices = String::from_utf8_lossy(&devices.stdout).into_owned();
    assert!(
        devices.contains("emulated, compute capability 8.0") && devices.contains("kernels sm_80"),
        "run `cargo xtask kernels` before this test: {devices}"
    );
    assert!(
        devices.contains("tuning     nothing measured yet"),
        "{devices}"
    );
    let gpu = Server::start_by(
        octet(
            &folder,
            &["serve", "--port", "0", "--device", "cuda", "-q", "int8"],
        )
        // Whatever the emulator's times make of the products, answers are the same.
        .env("OCTET_KERNEL_TUNING", "auto")
        .args(FLAGS),
    );
    let cpu = Server::start(&["--device", "cpu", "-q", "int8"]);
    assert!(gpu.metric("octet_build_info{").eq(&1.0));
    let answer = |server: &Server| {
        let body = chat(json!({"max_completion_tokens": 12}));
        let answer = server.request("POST", "/v1/chat/completions", &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer: Value = serde_json::from_str(&answer.body).expect("JSON");
        answer["choices"][0].clone()
    };
    let found = answer(&gpu);
    assert_eq!(found, answer(&cpu));
    let text = found["message"]["content"].as_str();
    assert!(text.is_some_and(|text| !text.is_empty()), "{found}");
    gpu.signal("TERM");
    assert_eq!(gpu.wait().code(), Some(0));
}

/// A device whose 8-bit matrix instruction is wired wrongly is found out, and everybody is told the same.
#[test]
fn a_gpu_with_a_wrong_lane_map_computes_in_half_precision_and_says_why() {
    let folder = driver("lanes");
    let with_lanes = |args: &[&str]| {
        let mut command = octet(&folder, args);
        command.env("OCTET_EMULATED_SWAPPED_LANES", "int8");
        command
    };
    let why = "gemm_i8_stream_8 gives wrong answers on this device";
    let devices = with_lanes(&["devices"]).output().expect("it starts");
    let devices = String::from_utf8_lossy(&devices.stdout).into_owned();
    assert!(
        devices.contains(&format!("weights    f16 ({why})")),
        "{devices}"
    );
    let asked = with_lanes(&["devices", "--device", "cuda", "-q", "int8"]);
    let asked = { asked }.output().expect("it starts");
    let error = String::from_utf8_lossy(&asked.stderr);
    assert!(
        !asked.status.success() && error.contains(&format!("int8 was asked for: {why}")),
        "{error}"
    );
    let args = ["serve", "--port", "0", "--device", "cuda"];
    let server = Server::start_by(with_lanes(&args).args(FLAGS));
    assert!(
        server.banner.contains(&format!("f16 ({why})")),
        "{}",
        server.banner
    );
    let metrics = server.request("GET", "/metrics", "").body;
    let info = metrics
        .lines()
        .find(|line| line.starts_with("octet_build_info{"))
        .expect("a series");
    for label in [
        "device=\"cuda\"",
        "quantization=\"f16\"",
        "reason=\"known-answer\"",
    ] {
        assert!(info.contains(label), "{info}");
    }
}

/// Half precision has to run and does not fit: weights keep 8 bits, or both figures are named.
#[test]
fn a_gpu_without_room_for_half_precision_keeps_weights_in_8_bits_or_refuses() {
    let folder = driver("memory");
    let with_memory = |bytes: u64| {
        let mut command = octet(&folder, &["serve", "--port", "0", "--device", "cuda"]);
        command
            .args(["--max-num-seqs", "2", "--max-model-len", "256"])
            .args(["--swap-space", "0.01", "--gpu-memory-utilization", "1.0"])
            .env("OCTET_EMULATED_SWAPPED_LANES", "int8")
            .env("OCTET_EMULATED_MEMORY", bytes.to_string());
        command
    };
    // What a step takes, and weights of which the model has about three million.
    let server = Server::start_by(&mut with_memory((1 << 30) + 5_300_000));
    assert!(
        server.banner.contains("w8a16 (gemm_i8_stream_8 gives")
            && server.banner.contains("so weights keep 8 bits"),
        "{}",
        server.banner
    );
    let answer = server.request(
        "POST",
        "/v1/chat/completions",
        &chat(json!({"max_completion_tokens": 3})),
    );
    assert_eq!(answer.status, 200, "{}", answer.body);
    let refused = with_memory(1 << 30).output().expect("it starts");
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success());
    for words in ["GB in f16", "GB in w8a16", "GB are free"] {
        assert!(error.contains(words), "{error}");
    }
}

/// After a kernel's wild access the driver refuses everything: streams end with an error event, nobody is told that
/// the server is ready, and the process ends with 1 for its supervisor.
#[test]
fn a_gpu_that_fails_for_good_ends_the_process() {
    let folder = driver("fault");
    let server = Server::start_by(
        octet(
            &folder,
            &["serve", "--port", "0", "--device", "cuda", "-q", "int8"],
        )
        .args(FLAGS),
    );
    assert_eq!(server.request("GET", "/readyz", "").status, 200);
    let endless = chat(json!({"stream": true, "ignore_eos": true, "max_completion_tokens": 400}));
    let mut streams: Vec<BufReader<TcpStream>> = (0..2)
        .map(|_| BufReader::new(server.send("POST", "/v1/chat/completions", &endless)))
        .collect();
    // Both have tokens before the device fails.
    for stream in &mut streams {
        next(stream, "\"content\":\"");
    }
    std::fs::write(folder.join("fault"), "").expect("a file");
    for stream in &mut streams {
        let event = next(stream, "\"error\":{");
        assert!(
            event.contains("\"code\":500") || event.contains("\"type\":"),
            "{event}"
        );
        next(stream, "data: [DONE]");
    }
    // Whoever asks from now on is told that it is not ready, until nobody answers any more.
    let address = server.url().replace("http://", "");
    while let Ok(mut stream) = TcpStream::connect(&address) {
        let mut answer = String::new();
        let asked = stream
            .write_all(b"GET /readyz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n");
        if asked.is_ok()
            && BufReader::new(stream)
                .read_line(&mut answer)
                .is_ok_and(|n| n > 0)
        {
            assert!(answer.contains(" 503 "), "{answer}");
        }
    }
    assert_eq!(server.wait().code(), Some(1));
}

/// The next line with `part` in it.
fn next(stream: &mut BufReader<TcpStream>, part: &str) -> String {
    loop {
        let mut line = String::new();
        let bytes = stream.read_line(&mut line).expect("the stream goes on");
        assert!(bytes > 0, "the stream ended before {part}");
        if line.contains(part) {
            return line;
        }
    }
}
