//! Checkpoint folders that are wrong in one place each: every one is refused with the place and the
//! reason. GGUF headers have their own table beside the parser.

use std::fs;
use std::path::Path;

use crate::support::{checkpoint_dir, edit_config, edit_tensors, options, write};
use backend::ReferenceBackend;
use model::{Checkpoint, load};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

/// Why a folder made from the `llama` fixture does not load after `edit`.
fn refusal(edit: impl FnOnce(&Path)) -> String {
    let dir = checkpoint_dir("llama", "default.tf5.json");
    edit(dir.path());
    let checkpoint = match Checkpoint::open(dir.path()) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return error.to_string(),
    };
    match load(
        &checkpoint,
        ReferenceBackend,
        &options(None),
        &mut |_, _| {},
    ) {
        Ok(_) => "it loads".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn check(found: &str, expected: &str) {
    assert!(
        found.contains(expected),
        "{found:?} does not say {expected:?}"
    );
}

#[test]
fn wrong_settings() {
    let rope = |kind: &str| json!({"rope_parameters": {"rope_type": kind, "rope_theta": 1e4}});
    let cases = [
        (
            json!({"model_type": "gpt_bigcode"}),
            "model type gpt_bigcode is not supported; supported are llama, mistral",
        ),
        (json!({"model_type": null}), "model_type is missing"),
        (json!({"hidden_size": 0}), "hidden_size is 0"),
        (json!({"hidden_size": -48}), "hidden_size is -48"),
        (json!({"hidden_size": 1e30}), "hidden_size is 1e+30"),
        (json!({"hidden_size": "48"}), "hidden_size is \"48\""),
        (
            json!({"hidden_size": 64}),
            "model.embed_tokens.weight: has shape [96, 48], expected [rows, 64]",
        ),
        (
            json!({"num_hidden_layers": 1u64 << 40}),
            "num_hidden_layers is 1099511627776",
        ),
        (
            json!({"num_hidden_layers": 5000}),
            "num_hidden_layers is 5000",
        ),
        (
            json!({"num_hidden_layers": 5}),
            "model.layers.4.input_layernorm.weight: is missing",
        ),
        (
            json!({"num_hidden_layers": 3}),
            "model.layers.3.input_layernorm.weight: is not used",
        ),
        (
            json!({"num_key_value_heads": 2}),
            "num_key_value_heads 2 does not divide 3",
        ),
        (json!({"head_dim": 7}), "head_dim gives 7 rotated features"),
        (
            json!({"head_dim": 48}),
            "model.layers.0.self_attn.q_proj.weight: has shape [72, 48]",
        ),
        (
            json!({"intermediate_size": 1 << 24}),
            "model.layers.0.mlp.gate_proj.weight: has shape [112, 48]",
        ),
        (
            json!({"max_position_embeddings": 1u64 << 40}),
            "max_position_embeddings is 1099511627776",
        ),
        (
            json!({"hidden_act": "xielu"}),
            "hidden_act = xielu is not supported",
        ),
        (json!({"alibi": true}), "alibi = true is not supported"),
        (json!({"clip_qkv": 8.0}), "clip_qkv = 8.0 is not supported"),
        (
            json!({"quantization_config": {"quant_method": "gptq"}}),
            "quantization_config.bits = null is not supported",
        ),
        (
            json!({"rope_parameters": {"rope_theta": "big"}}),
            "rope_theta is \"big\", not a number",
        ),
        (
            json!({"rope_parameters": [1]}),
            "rope_parameters is [1], not an object",
        ),
        (
            json!({"rope_parameters": {"full_attention": {}}}),
            "rope_parameters.full_attention",
        ),
        (rope("ntk"), "rope_type = ntk is not supported"),
        (rope("mrope"), "rope_type = mrope is not supported"),
        (rope("linear"), "factor is missing in the rope scaling"),
        (rope("llama3"), "factor is missing in the rope scaling"),
        (
            json!({"auto_map": {"AutoModelForCausalLM": "code.Model"}}),
            "it loads",
        ),
        (
            json!({"model_type": "mistral", "layer_types": ["full_attention"]}),
            "layer_types is not a list of 4 layers",
        ),
        (
            json!({"model_type": "mistral", "layer_types": [1, 2, 3, 4]}),
            "layer_types = 1 is not supported",
        ),
        (
            json!({"model_type": "qwen3", "attention_bias": true}),
            "self_attn.q_norm.weight: is missing",
        ),
    ];
    for (fields, expected) in cases {
        check(&refusal(|dir| edit_config(dir, &fields)), expected);
    }
    for (text, expected) in [
        ("", "config.json: EOF"),
        ("[1]", "config.json: not a JSON object"),
        ("{\"a\":", "config.json: EOF"),
    ] {
        check(&refusal(|dir| write(dir, "config.json", text)), expected);
    }
    let deep = "[".repeat(10_000);
    check(
        &refusal(|dir| write(dir, "config.json", &deep)),
        "config.json: recursion limit",
    );
}

#[test]
fn wrong_tensors() {
    const Q: &str = "model.layers.2.self_attn.q_proj.weight";
    let missing =
        refusal(|dir| edit_tensors(dir, |tensors| tensors.retain(|(name, ..)| name != Q)));
    check(&missing, &format!("tensor {Q}: is missing"));
    let bias = refusal(|dir| {
        edit_tensors(dir, |tensors| {
            tensors.retain(|(name, ..)| !name.ends_with("o_proj.bias"))
        })
    });
    check(&bias, "self_attn.o_proj.bias: is missing");
    let one = |name: &str, dtype, shape: &[usize], bytes| {
        (name.to_owned(), dtype, shape.to_vec(), vec![0; bytes])
    };
    let extra = refusal(|dir| {
        edit_tensors(dir, |tensors| {
            tensors.push(one("model.extra", Dtype::F32, &[1], 4))
        })
    });
    check(
        &extra,
        "tensor model.extra: is not used by this architecture (1 such tensors)",
    );
    let buffer = "model.layers.0.self_attn.rotary_emb.inv_freq";
    let ignored = refusal(|dir| {
        edit_tensors(dir, |tensors| {
            tensors.push(one(buffer, Dtype::F32, &[1], 4))
        })
    });
    check(&ignored, "it loads");
    let replaced = |dtype, shape: &'static [usize], bytes| {
        refusal(|dir| {
            edit_tensors(dir, |tensors| {
                tensors.retain(|(name, ..)| name != Q);
                tensors.push(one(Q, dtype, shape, bytes));
            });
        })
    };
    check(
        &replaced(Dtype::I64, &[72, 48], 72 * 48 * 8),
        &format!("{Q}: has type I64"),
    );
    check(
        &replaced(Dtype::F32, &[48, 72], 72 * 48 * 4),
        &format!("{Q}: has shape [48, 72], expected [72, 48]"),
    );
    check(
        &replaced(Dtype::F32, &[72, 6, 8], 72 * 48 * 4),
        &format!("{Q}: has shape [72, 6, 8]"),
    );
    check(
        &replaced(Dtype::F32, &[0, 48], 0),
        &format!("{Q}: has shape [0, 48]"),
    );
    let prefixed = refusal(|dir| {
        edit_tensors(dir, |tensors| {
            tensors
                .iter_mut()
                .for_each(|(name, ..)| *name = format!("_orig_mod.{name}"))
        });
    });
    check(&prefixed, "it loads");
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn wrong_safetensors_headers() {
    let length = |length: u64| [&length.to_le_bytes()[..], b"{}"].concat();
    let tensor = |shape: &str, start: i64, end: i64| {
        format!(r#"{{"a.b":{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}}}"#)
    };
    let two = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    let cases = [
        (Vec::new(), "the file is empty"),
        (b"abc".to_vec(), "3 bytes are too few for a header"),
        (length(0), "invalid JSON in header"),
        (
            length(1 << 63),
            "a header of 9223372036854775808 bytes in a file of 10",
        ),
        (length(3), "a header of 3 bytes in a file of 10"),
        (length(40 << 20), "a header of 41943040 bytes"),
        (safetensors("{\"a\":1}", 0), "invalid"),
        (
            safetensors(&format!("{{\"a\":{}", "[".repeat(10_000)), 0),
            "recursion limit",
        ),
        (safetensors(&tensor("[2]", 0, 8), 4), "not fully covered"),
        (safetensors(&tensor("[2]", 8, 16), 16), "a.b"),
        (safetensors(&tensor("[3]", 0, 8), 8), "tensor a.b:"),
        (safetensors(&tensor("[-1]", 0, 8), 8), "invalid value"),
        (
            safetensors(&tensor("[4294967296,4294967296]", 0, 8), 8),
            "tensor a.b:",
        ),
        (safetensors(&tensor("[2]", 8, 0), 8), "a.b"),
        (safetensors(two, 8), "b"),
        (b"PK\x03\x04 a zip file renamed".to_vec(), "a header of"),
    ];
    for (bytes, expected) in cases {
        let found = refusal(|dir| write(dir, "model.safetensors", bytes));
        check(&found, "model.safetensors: ");
        check(&found, expected);
    }
}

#[test]
fn wrong_files() {
    let remove =
        |dir: &Path, name: &str| fs::remove_file(dir.join(name)).expect("the file is there");
    check(
        &refusal(|dir| remove(dir, "model.safetensors")),
        "model.safetensors: is missing",
    );
    let pickled = refusal(|dir| {
        remove(dir, "model.safetensors");
        write(dir, "pytorch_model.bin", "pickle");
    });
    check(&pickled, "holds pickled weights");
    check(
        &refusal(|dir| remove(dir, "tokenizer.json")),
        "tokenizer.json: is missing",
    );
    check(
        &refusal(|dir| write(dir, "tokenizer.json", "[]")),
        "tokenizer.json: not a JSON object",
    );
    check(
        &refusal(|dir| remove(dir, "config.json")),
        "holds no config.json and no .gguf file",
    );
    check(
        &refusal(|dir| write(dir, "generation_config.json", "{")),
        "generation_config.json: EOF",
    );
    let eos = json!({"eos_token_id": "two"}).to_string();
    check(
        &refusal(|dir| write(dir, "generation_config.json", &eos)),
        "eos_token_id is \"two\", not a token id",
    );
    let renamed = tempfile::tempdir().expect("a temporary folder");
    write(renamed.path(), "model.gguf", "\u{80}pickle");
    let error = Checkpoint::open(&renamed.path().join("model.gguf"))
        .map(|_| ())
        .expect_err("not GGUF");
    check(&error.to_string(), "model.gguf: does not start with GGUF");
}

#[test]
fn shards_stay_in_their_folder() {
    let sharded = |weight_map: Value| {
        refusal(|dir| {
            fs::rename(dir.join("model.safetensors"), dir.join("part.safetensors"))
                .expect("a new name");
            let outside = dir
                .parent()
                .expect("temporary folders lie in one")
                .join("outside.safetensors");
            let _ = std::os::unix::fs::symlink(outside, dir.join("link.safetensors"));
            std::os::unix::fs::symlink("/etc/hostname", dir.join("out.safetensors"))
                .expect("a link");
            write(
                dir,
                "model.safetensors.index.json",
                json!({"weight_map": weight_map}).to_string(),
            );
        })
    };
    let cases = [
        (json!({"a": "part.safetensors"}), "it loads"),
        (json!({"a": "absent.safetensors"}), "absent.safetensors"),
        (json!({"a": "link.safetensors"}), "link.safetensors"),
        (
            json!({"a": "out.safetensors"}),
            "out.safetensors: is a link that leads out of the model's folder",
        ),
        (
            json!({"a": "../x.safetensors"}),
            "is not the name of a file in the model's folder",
        ),
        (
            json!({"a": "/etc/x.safetensors"}),
            "is not the name of a file in the model's folder",
        ),
        (
            json!({"a": "model.bin"}),
            "\"model.bin\" is not a safetensors file",
        ),
        (json!({"a": 1}), "1 is not a safetensors file"),
        (json!([]), "weight_map is not an object"),
    ];
    for (weight_map, expected) in cases {
        check(&sharded(weight_map), expected);
    }
    let twice = refusal(|dir| {
        fs::copy(dir.join("model.safetensors"), dir.join("b.safetensors")).expect("a copy");
        fs::rename(dir.join("model.safetensors"), dir.join("a.safetensors")).expect("a new name");
        let index = json!({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}});
        write(dir, "model.safetensors.index.json", index.to_string());
    });
    check(&twice, "stands in two shards");
}

#[test]
fn links_into_the_blobs_of_a_hub_cache_are_followed() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let (blobs, snapshot) = (
        cache.path().join("blobs"),
        cache.path().join("snapshots/main"),
    );
    fs::create_dir_all(&blobs).expect("a folder");
    fs::create_dir_all(&snapshot).expect("a folder");
    let dir = checkpoint_dir("llama", "default.tf5.json");
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(dir.path().join(name), blobs.join(name)).expect("a copy");
        std::os::unix::fs::symlink(format!("../../blobs/{name}"), snapshot.join(name))
            .expect("a link");
    }
    Checkpoint::open(&snapshot).expect("the snapshot opens");
}
