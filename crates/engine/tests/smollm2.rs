//! A real model through the whole engine: the same greedy tokens alone, in a batch, in chunks, with the
//! prefix cache on and off, and after preemption.

use std::path::PathBuf;
use std::time::Duration;

use backend::{KvDtype, ReferenceBackend};
use engine::{
    Engine, EngineConfig, EngineHandle, EngineStatus, GenerateRequest, SamplingParams, StreamEvent,
    TokenId,
};
use metrics::Metrics;
use model::{CausalLm, Checkpoint, LoadOptions, ModelError};

const NUM_TOKENS: usize = 8;

/// The checkpoint, or none where nobody fetched it; continuous integration must have it.
fn checkpoint() -> Option<PathBuf> {
    let assets = std::env::var_os("OCTET_ASSETS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/assets")),
        PathBuf::from,
    );
    let path = assets.join("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    if path.exists() {
        return Some(path);
    }
    assert!(
        std::env::var("CI").is_err(),
        "{} is missing",
        path.display()
    );
    eprintln!("skipped: `cargo xtask assets` fetches the model");
    None
}

/// An engine whose cache holds `kv_cache_bytes`, for sequences of `max_model_len` tokens.
fn start(
    path: PathBuf,
    config: EngineConfig,
    kv_cache_bytes: u64,
    max_model_len: usize,
) -> (EngineHandle, Metrics) {
    let metrics = Metrics::new("smollm2");
    let factory = move || -> Result<Box<dyn CausalLm>, ModelError> {
        let checkpoint = Checkpoint::open(&path)?;
        let options = LoadOptions {
            max_model_len: Some(max_model_len),
            kv_cache_bytes,
            max_num_seqs: 8,
            kv_dtype: KvDtype::F32,
        };
        Ok(Box::new(model::load(
            &checkpoint,
            ReferenceBackend,
            &options,
            &mut |_, _| {},
        )?))
    };
    let (handle, thread) = Engine::spawn(config, metrics.clone(), factory);
    while handle.status() == EngineStatus::Loading {
        std::thread::yield_now();
    }
    if handle.status() != EngineStatus::Ready {
        panic!("the model loads: {:?}", thread.join());
    }
    (handle, metrics)
}

fn config(max_num_batched_tokens: usize, enable_prefix_caching: bool) -> EngineConfig {
    EngineConfig {
        max_num_seqs: 8,
        max_num_batched_tokens: Some(max_num_batched_tokens),
        max_num_queued_reqs: 8,
        max_num_queued_tokens: 4096,
        enable_prefix_caching,
        queue_timeout: Duration::from_secs(3600),
        request_timeout: Duration::from_secs(3600),
        stream_write_timeout: Duration::from_secs(3600),
    }
}

/// Prompts that end just before a block border, so that decoding soon needs another block.
fn prompts() -> Vec<Vec<TokenId>> {
    (0..3)
        .map(|i| (0..30).map(|t| 500 + 37 * t + 11 * i).collect())
        .collect()
}

fn request(prompt: Vec<TokenId>) -> GenerateRequest {
    GenerateRequest {
        prompt,
        sampling: SamplingParams::greedy(),
        num_choices: 1,
        max_tokens: NUM_TOKENS,
        min_tokens: 0,
        stop_token_ids: Vec::new(),
        prompt_logprobs: None,
        seed: 0,
        cache_salt: 0,
    }
}

/// Submits all prompts at once and collects each answer, with its log-probabilities as bits.
fn answers(handle: &EngineHandle, prompts: Vec<Vec<TokenId>>) -> Vec<Vec<(TokenId, u32)>> {
    let streams: Vec<_> = prompts
        .into_iter()
        .map(|prompt| handle.submit(request(prompt)).expect("admitted"))
        .collect();
    streams
        .into_iter()
        .map(|mut stream| {
            let mut tokens = Vec::new();
            while let Some(event) = stream.blocking_recv() {
                match event {
                    StreamEvent::Token { token, .. } => {
                        tokens.push((token.token_id, token.logprob.to_bits()))
                    }
                    StreamEvent::Failed(error) => panic!("{error}"),
                    _ => {}
                }
            }
            tokens
        })
        .collect()
}

#[test]
fn greedy_answers_are_bit_identical_whatever_the_engine_does() {
    let Some(path) = checkpoint() else { return };
    // 30 layers, keys and values of 3 heads of 64 features, 32 tokens, 4 bytes.
    const BLOCK_BYTES: u64 = 2 * 30 * 3 * 64 * 32 * 4;
    let (handle, metrics) = start(path.clone(), config(64, true), 64 * BLOCK_BYTES, 128);
    let alone: Vec<_> = prompts()
        .into_iter()
        .flat_map(|prompt| answers(&handle, vec![prompt]))
        .collect();
    assert!(alone.iter().all(|tokens| tokens.len() == NUM_TOKENS));
    assert_ne!(
        alone[0], alone[1],
        "different prompts have different answers"
    );

    let long: Vec<TokenId> = prompts().concat();
    let cold = answers(&handle, vec![long.clone()]);
    let warm = answers(&handle, vec![long]);
    assert_eq!(
        metrics.prefix_cache_hits_total.get(),
        64,
        "two blocks of the long prompt were cached"
    );
    assert_eq!(cold, warm);
    assert_eq!(answers(&handle, prompts()), alone, "in a batch");
    drop(handle);

    let (handle, _) = start(path.clone(), config(7, false), 64 * BLOCK_BYTES, 64);
    assert_eq!(
        answers(&handle, prompts()),
        alone,
        "in chunks of seven tokens, without a prefix cache"
    );
    drop(handle);

    // Three sequences start with one block each and soon need a second one.
    let (handle, metrics) = start(path, config(64, false), 3 * BLOCK_BYTES, 64);
    assert_eq!(answers(&handle, prompts()), alone, "after preemption");
    assert!(
        metrics.preemptions_total.get() > 0,
        "the pool was not small enough"
    );
}
