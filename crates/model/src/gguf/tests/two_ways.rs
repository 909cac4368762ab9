//! The same real weights in two containers: SmolLM2's GGUF file, and a Hugging Face folder written from
//! it. What is written is held to the hash of what the `gguf` package dequantises
//! (`tests/fixtures/smollm2_hash.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use backend::{
    Batch, BatchSequence, KvDtype, RowOutput, RowTask, SampleBatch, SampleRow, SamplingParams,
};
use backend_cpu::{CpuBackend, CpuConfig};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::*;
use crate::{CausalLm, Checkpoint, LoadOptions, load};

/// Of all tensors in the order of their names.
const HASH: &str = "1e7c8a1c726e693f3ef812fec44c0efdf79020fe1e36d5cd8a07e0341da3e3aa";

/// The file that `cargo xtask assets` fetches. Nothing where it is absent, except under `CI=true`.
fn smollm2() -> Option<PathBuf> {
    const FILE: &str = "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
    let assets = std::env::var_os("OCTET_ASSETS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/assets"),
        PathBuf::from,
    );
    let path = assets.join(FILE);
    let is_there = path.exists();
    assert!(
        is_there || std::env::var("CI").as_deref() != Ok("true"),
        "{FILE} is missing"
    );
    is_there.then_some(path)
}

/// Writes the tensors as 32-bit floats and returns their hash.
fn write_weights(source: &dyn TensorSource, path: &Path) -> String {
    let mut names = source.names();
    names.sort();
    let mut tensors = BTreeMap::new();
    let mut hash = Sha256::new();
    for name in names {
        let data = source.read(&name).expect("it is read").into_f32();
        let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        hash.update(&bytes);
        let shape = source.shape(&name).expect("it is listed").to_vec();
        tensors.insert(name, (shape, bytes));
    }
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        (name, view.expect("the size fits"))
    });
    safetensors::serialize_to_file(views, None, path).expect("writable");
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The log-probability of the best token after each position, in bits: it depends on all logits.
fn bits(checkpoint: &Checkpoint) -> Vec<(u32, u32)> {
    let target = CpuBackend::new(CpuConfig::default()).expect("the CPU target starts");
    let options = LoadOptions {
        max_model_len: Some(64),
        kv_cache_bytes: 64 << 20,
        swap_bytes: 0,
        max_num_seqs: 1,
        kv_dtype: KvDtype::F32,
    };
    let mut decoder = load(checkpoint, target, &options, &mut |_, _| {}).expect("loads");
    let token_ids: Vec<u32> = (0..24)
        .map(|i| (977 * i * i + 31 * i + 5) % 49_000)
        .collect();
    let positions = 0..token_ids.len();
    let batch = Batch {
        logit_rows: positions.clone().collect(),
        sequences: vec![BatchSequence {
            num_tokens: token_ids.len(),
            num_computed_tokens: 0,
            block_table: vec![0],
        }],
        token_ids,
        copies: Vec::new(),
    };
    let row = |position: usize| SampleRow {
        params: SamplingParams::greedy().into(),
        task: RowTask::Draw,
        seed: 0,
        position: position as u32 + 1,
        counts: Vec::new(),
        banned: [].into(),
    };
    let samples = SampleBatch {
        rows: positions.map(row).collect(),
        vocab_size: decoder.info().vocab_size,
    };
    let output = decoder.forward(&batch, &samples).expect("the step runs");
    let best = |row: &RowOutput| match row {
        RowOutput::Token(found) => (found.token_id, found.logprob.to_bits()),
        RowOutput::NonFinite => panic!("logits are not finite"),
    };
    output.rows.iter().map(best).collect()
}

#[test]
fn real_weights_give_the_same_bits_from_both_containers() {
    let Some(path) = smollm2() else { return };
    let gguf = Checkpoint::open(&path).expect("opens");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let hash = write_weights(gguf.source(), &folder.path().join("model.safetensors"));
    assert_eq!(hash, HASH);
    let config = json!({
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": true,
    });
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.path().join(name), bytes).expect("writable");
    };
    write("config.json", config.to_string().as_bytes());
    write("tokenizer.json", &gguf.text().tokenizer_json);
    let folder = Checkpoint::open(folder.path()).expect("opens");
    assert_eq!(folder.num_weights(), gguf.num_weights());
    let expected = bits(&gguf);
    assert_eq!(bits(&folder), expected);
    let distinct: std::collections::HashSet<_> = expected.iter().collect();
    assert!(distinct.len() > 12, "{expected:?}");
}
