//! What a user sees once the server is ready.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::load::Loaded;

/// One block: model, device, precision, context, defaults, address, and a request to paste.
pub fn ready(config: &Config, loaded: &Loaded, address: SocketAddr, took: Duration) -> String {
    let address = callable(address);
    let target = &loaded.target;
    let info = loaded.engine.info().expect("the model is loaded");
    let tokens = info.num_blocks * backend::BLOCK_SIZE;
    let step = loaded.engine.max_num_batched_tokens().unwrap_or_default();
    let gateway = &config.gateway;
    let has_key = config.asks_for_key;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        writeln!(text, "  {name:<10} {value}").expect("strings take any text");
    };
    let names = gateway.served_model_names.join(", ");
    let source = config.model.to_string();
    let source = if source == names {
        String::new()
    } else {
        format!(": {source}")
    };
    line("model", format!("{names}{source} ({})", loaded.format));
    line("device", format!("{}: {}", target.device, target.found));
    line(
        "precision",
        format!("{} ({})", target.precision, target.why),
    );
    line(
        "context",
        format!(
            "{} tokens; KV cache {} for {tokens} tokens; steps of up to {step} tokens",
            info.max_model_len, target.kv_dtype
        ),
    );
    if let Some(beside) = &loaded.beside {
        line("embeddings", beside.clone());
    }
    line(
        "API key",
        if has_key { "required" } else { "none needed" }.to_owned(),
    );
    line("page", format!("http://{address}/"));
    let key = key_header(has_key);
    writeln!(
        text,
        "\ncurl -s http://{address}/v1/chat/completions {key}-d '{{\"messages\": [{{\"role\": \"user\", \
         \"content\": \"What is 12 + 30?\"}}]}}'\n"
    )
    .expect("strings take any text");
    writeln!(text, "ready after {:.1} s", took.as_secs_f64()).expect("strings take any text");
    text
}

/// The same for a server of nothing but an embedding model.
pub fn embeddings(
    config: &Config,
    description: &str,
    address: SocketAddr,
    started: Instant,
) -> String {
    let address = callable(address);
    let has_key = config.asks_for_key;
    format!(
        "  embeddings {description}
  API key    {}

curl -s http://{address}/v1/embeddings {}-d '{{\"input\": \"What is 12 + 30?\"}}'

ready after {:.1} s
",
        if has_key { "required" } else { "none needed" },
        key_header(has_key),
        started.elapsed().as_secs_f64()
    )
}

/// Nobody can call an unspecified address.
fn callable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        ip if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
        _ => address,
    }
}

fn key_header(has_key: bool) -> &'static str {
    if has_key {
        "-H 'Authorization: Bearer YOUR_KEY' "
    } else {
        ""
    }
}

/// A size for people.
pub fn bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}
