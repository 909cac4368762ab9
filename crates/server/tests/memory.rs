//! Memory of a served model: about what its 8-bit weights take, also while they are made from a file
//! twice as large.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

mod support;

use serde_json::{Map, Value, json};
use support::Server;

const HIDDEN: usize = 1024;
const WIDTH: usize = 4096;
const LAYERS: usize = 16;
const KV_CACHE: u64 = 16 << 20;

/// Names and shapes of all tensors of a Llama with tied embeddings.
fn tensors(vocab: usize) -> Vec<(String, Vec<usize>)> {
    let mut all = vec![
        ("model.embed_tokens".to_owned(), vec![vocab, HIDDEN]),
        ("model.norm".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        for (part, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.v_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![WIDTH, HIDDEN]),
            ("mlp.up_proj", vec![WIDTH, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, WIDTH]),
        ] {
            all.push((format!("model.layers.{layer}.{part}"), shape));
        }
    }
    all
}

/// A checkpoint of zeros in bfloat16, with holes on disk instead of weights. Returns their number.
fn write_checkpoint(folder: &Path) -> u64 {
    fs::create_dir_all(folder).expect("a folder");
    let mut config = Value::Null;
    for (name, bytes) in bundled::files() {
        match *name {
            "config.json" => config = serde_json::from_slice(bytes).expect("JSON"),
            "model.safetensors" => {}
            _ => fs::write(folder.join(name), bytes).expect("a file is written"),
        }
    }
    for (key, value) in [
        ("hidden_size", HIDDEN),
        ("intermediate_size", WIDTH),
        ("num_hidden_layers", LAYERS),
        ("num_attention_heads", 16),
        ("num_key_value_heads", 16),
        ("head_dim", HIDDEN / 16),
    ] {
        config[key] = value.into();
    }
    config["tie_word_embeddings"] = true.into();
    let vocab = config["vocab_size"].as_u64().expect("a number") as usize;
    fs::write(folder.join("config.json"), config.to_string()).expect("a file is written");
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in tensors(vocab) {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
        header.insert(format!("{name}.weight"), entry);
    }
    let header = Value::Object(header).to_string();
    let mut file = File::create(folder.join("model.safetensors")).expect("a file");
    file.write_all(&(header.len() as u64).to_le_bytes())
        .and_then(|()| file.write_all(header.as_bytes()))
        .and_then(|()| file.set_len((8 + header.len() + end) as u64))
        .expect("a file is written");
    end as u64 / 2
}

#[test]
fn peak_memory_is_that_of_8_bit_weights() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("memory");
    let weights = write_checkpoint(&folder);
    let cache = KV_CACHE.to_string();
    let server = Server::start(&[
        &*folder.display().to_string(),
        "--kv-cache-memory",
        &*cache,
        "--max-model-len",
        "64",
        "--max-num-batched-tokens",
        "64",
    ]);
    assert!(server.banner.contains("int8-blocks"), "{}", server.banner);
    let peak = server.peak_memory();
    drop(server);
    fs::remove_dir_all(&folder).expect("the folder is there");
    // A byte for each weight and four for each 32.
    let int8 = weights + weights / 8;
    let limit = int8 * 115 / 100 + KV_CACHE + 300_000_000;
    assert!(int8 < peak && peak < limit, "{int8} < {peak} < {limit}");
}
