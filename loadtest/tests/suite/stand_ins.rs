//! What stands in for a rig: checkpoints with random weights and the oddities of their families, and a program that
//! answers as the driver of a GPU.

use std::path::Path;

use serde_json::{Map, Value, json};

/// Layers of every checkpoint.
const LAYERS: usize = 2;

/// A checkpoint of GPT-NeoX with parallel residuals.
pub struct StandIn {
    pub name: &'static str,
    /// The tokens that tell its prompt format.
    tokens: &'static [&'static str],
    /// Tokens that this format puts around a question.
    pub format_tokens: f64,
    heads: usize,
    head_size: usize,
    /// Share of a head that is rotated.
    rotary: f64,
    /// Rows of the tables, more than there are tokens.
    vocabulary: usize,
    pub context: usize,
}

/// Dolly v2 3b has heads of 80 features; Dolly and Pythia end at 2048 tokens, StableLM alpha at 4096.
pub const ALL: [StandIn; 3] = [
    StandIn {
        name: "dolly",
        tokens: &["### Instruction:", "### End"],
        format_tokens: 22.0,
        heads: 2,
        head_size: 80,
        rotary: 0.25,
        vocabulary: 128,
        context: 2048,
    },
    StandIn {
        name: "stablelm",
        tokens: &["<|SYSTEM|>", "<|USER|>", "<|ASSISTANT|>"],
        format_tokens: 93.0,
        heads: 3,
        head_size: 32,
        rotary: 0.25,
        vocabulary: 112,
        context: 4096,
    },
    StandIn {
        name: "oasst",
        tokens: &["<|prompter|>", "<|assistant|>"],
        format_tokens: 2.0,
        heads: 2,
        head_size: 64,
        rotary: 0.25,
        vocabulary: 144,
        context: 2048,
    },
];

impl StandIn {
    /// Writes its files.
    pub fn write(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        let from =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/model/tests/fixtures/gpt-neox");
        let read = |name: &str| -> Value {
            serde_json::from_str(&std::fs::read_to_string(from.join(name)).unwrap()).unwrap()
        };
        let hidden = self.heads * self.head_size;
        let mut config = read("parallel.tf4.json");
        config["hidden_size"] = hidden.into();
        config["intermediate_size"] = (4 * hidden).into();
        config["num_attention_heads"] = self.heads.into();
        config["num_hidden_layers"] = LAYERS.into();
        config["rotary_pct"] = self.rotary.into();
        config["vocab_size"] = self.vocabulary.into();
        config["max_position_embeddings"] = self.context.into();
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        std::fs::write(folder.join("model.safetensors"), self.weights()).unwrap();
        let mut tokenizer = read("tokenizer.json");
        let first = tokenizer["model"]["vocab"].as_object().unwrap().len();
        assert!(first + self.tokens.len() < self.vocabulary, "no padding");
        let added = self.tokens.iter().enumerate().map(|(i, token)| {
            json!({"id": first + i, "content": token, "special": true, "single_word": false,
                   "lstrip": false, "rstrip": false, "normalized": false})
        });
        tokenizer["added_tokens"] = added.collect();
        std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        // A prompt format needs an end token.
        let settings = json!({"eos_token": "w2"});
        std::fs::write(folder.join("tokenizer_config.json"), settings.to_string()).unwrap();
    }

    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (h, v) = (self.heads * self.head_size, self.vocabulary);
        let mut shapes = vec![
            ("gpt_neox.embed_in.weight".to_owned(), vec![v, h]),
            ("embed_out.weight".to_owned(), vec![v, h]),
        ];
        let mut pair = |name: &str, rows: usize, columns: Option<usize>| {
            let shape = [rows].into_iter().chain(columns).collect();
            shapes.push((format!("gpt_neox.{name}.weight"), shape));
            shapes.push((format!("gpt_neox.{name}.bias"), vec![rows]));
        };
        pair("final_layer_norm", h, None);
        for layer in 0..LAYERS {
            let parts = [
                ("input_layernorm", h, None),
                ("post_attention_layernorm", h, None),
                ("attention.query_key_value", 3 * h, Some(h)),
                ("attention.dense", h, Some(h)),
                ("mlp.dense_h_to_4h", 4 * h, Some(h)),
                ("mlp.dense_4h_to_h", h, Some(4 * h)),
            ];
            for (name, rows, columns) in parts {
                pair(&format!("layers.{layer}.{name}"), rows, columns);
            }
        }
        shapes
    }

    /// A file of safetensors: the length of the header, the header, and the values in its order.
    fn weights(&self) -> Vec<u8> {
        let (mut header, mut values) = (Map::new(), Vec::new());
        let mut state = 1u32;
        for (name, shape) in self.shapes() {
            let begin = values.len();
            for _ in 0..shape.iter().product() {
                // The generator of Numerical Recipes, spread over -0.1 to 0.1.
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let value = (f64::from(state) / f64::from(u32::MAX) - 0.5) * 0.2;
                values.extend((value as f32).to_le_bytes());
            }
            let place = json!([begin, values.len()]);
            let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": place});
            header.insert(name, entry);
        }
        let header = Value::Object(header).to_string();
        let length = (header.len() as u64).to_le_bytes();
        [&length, header.as_bytes(), &values].concat()
    }
}

/// A GPU that is held back by its temperature, once a second as the real program tells.
pub fn gpu(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let script = r#"#!/bin/sh
case "$*" in
*driver_version*) echo "NVIDIA A10, 535.129.03, 23028, 150.00" ;;
*) while echo "0, 1695, 148.20, 86, 0x0000000000000020"; do sleep 1; done ;;
esac
"#;
    let program = folder.join("nvidia-smi");
    std::fs::write(&program, script).unwrap();
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(program, permissions).unwrap();
}
