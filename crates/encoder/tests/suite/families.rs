//! Every architecture: ids and vectors of random checkpoints, alone and in batches, and mutants of them.

use std::collections::BTreeSet;

use encoder::{Encode, SUPPORTED};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::support::{alone, copy, difference, edit, fixtures, json, open, vector};

/// Vectors have length one; correct implementations in 32 bits differ by less than this.
const TOLERANCE: f32 = 1e-5;
/// What a mistake changes at least.
const VISIBLE: f32 = 1e-3;

const FAMILIES: [&str; 7] = [
    "bert",
    "distilbert",
    "jina",
    "modernbert",
    "nomic",
    "roberta",
    "xlm-roberta",
];

struct Expected {
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
    all: Value,
}

impl Expected {
    fn of(name: &str) -> Self {
        let all = json(&fixtures().join(name).join("expected.json"));
        let read = |key: &str| all[key].clone();
        Self {
            texts: serde_json::from_value(read("texts")).expect("texts"),
            ids: serde_json::from_value(read("ids")).expect("token ids"),
            all,
        }
    }

    fn vectors(&self, pooling: &str) -> Vec<Vec<f32>> {
        let vectors = self.all[pooling].as_array().expect("vectors");
        vectors.iter().map(vector).collect()
    }
}

#[test]
fn every_supported_architecture_has_a_fixture() {
    let config = |name: &&str| json(&fixtures().join(name).join("config.json"));
    let types = FAMILIES.iter().map(config);
    let types: BTreeSet<String> = types
        .map(|config| config["model_type"].as_str().expect("a name").to_owned())
        .collect();
    let supported = SUPPORTED.iter().map(|row| row.model_type.to_owned());
    assert_eq!(types, supported.collect());
}

#[test]
fn ids_and_vectors_are_those_of_sentence_transformers() {
    for name in FAMILIES {
        let expected = Expected::of(name);
        let mut loaded = open(&fixtures().join(name)).expect(name);
        for (text, ids) in expected.texts.iter().zip(&expected.ids) {
            assert_eq!(
                loaded.tokenizer.encode(text).as_ref(),
                Ok(ids),
                "{name}: {text:?}"
            );
        }
        let found = alone(&mut loaded.encoder, &expected.ids);
        let difference = difference(&found, &expected.vectors("mean"));
        assert!(difference < TOLERANCE, "{name}: {difference}");
    }
}

#[test]
fn a_text_in_a_batch_has_the_vector_it_has_alone() {
    for name in FAMILIES {
        let expected = Expected::of(name);
        let mut loaded = open(&fixtures().join(name)).expect(name);
        let own = alone(&mut loaded.encoder, &expected.ids);
        for (i, ids) in expected.ids.iter().enumerate() {
            // What takes no mask is only ever given equal lengths.
            let fits = |other: &&Vec<u32>| loaded.info.pads || other.len() == ids.len();
            let others = expected.ids.iter().filter(fits);
            let batch: Vec<&[u32]> = std::iter::once(ids)
                .chain(others)
                .map(|ids| &ids[..])
                .collect();
            let together = loaded.encoder.encode(&batch).expect("it computes");
            let difference = difference(&together[..1], &own[i..=i]);
            assert!(difference < TOLERANCE, "{name}, text {i}: {difference}");
        }
    }
}

#[test]
fn pooling_is_the_files() {
    let spellings = |mode: &str| {
        let old = match mode {
            "mean" => "pooling_mode_mean_tokens",
            "cls" => "pooling_mode_cls_token",
            _ => "pooling_mode_max_tokens",
        };
        [
            json!({"pooling_mode": mode}),
            json!({old: true, "pooling_mode_lasttoken": false}),
        ]
    };
    for name in FAMILIES.iter().filter(|name| **name != "jina") {
        let expected = Expected::of(name);
        for mode in ["mean", "cls", "max"] {
            for spelling in spellings(mode) {
                let dir = copy(name);
                edit(dir.path(), "1_Pooling/config.json", |config| {
                    *config = spelling
                });
                let mut loaded = open(dir.path()).expect(name);
                let found = alone(&mut loaded.encoder, &expected.ids);
                for other in ["mean", "cls", "max"] {
                    let difference = difference(&found, &expected.vectors(other));
                    let is_equal = difference < TOLERANCE;
                    assert_eq!(
                        is_equal,
                        other == mode,
                        "{name} {mode} {other}: {difference}"
                    );
                    assert!(is_equal || difference > VISIBLE);
                }
            }
        }
    }
}

#[test]
fn vectors_are_normalised_where_a_module_says_so() {
    let expected = Expected::of("bert");
    let dir = copy("bert");
    edit(dir.path(), "modules.json", |modules| {
        modules.as_array_mut().expect("a list").pop();
    });
    let mut loaded = open(dir.path()).expect("it loads");
    let mut found = alone(&mut loaded.encoder, &expected.ids);
    assert!(difference(&found, &expected.vectors("mean")) > VISIBLE);
    found
        .iter_mut()
        .for_each(|vector| encoder::normalize(vector));
    assert!(difference(&found, &expected.vectors("mean")) < TOLERANCE);
}

#[test]
fn without_the_files_the_mean_is_normalised() {
    let expected = Expected::of("bert");
    let dir = copy("bert");
    std::fs::remove_file(dir.path().join("modules.json")).expect("it was there");
    let mut loaded = open(dir.path()).expect("it loads");
    let found = alone(&mut loaded.encoder, &expected.ids);
    assert!(difference(&found, &expected.vectors("mean")) < TOLERANCE);
}

#[test]
fn the_network_may_lie_in_a_folder_of_its_own() {
    let expected = Expected::of("bert");
    let dir = copy("bert");
    let inner = dir.path().join("0_Transformer");
    std::fs::create_dir(&inner).expect("a folder");
    for file in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "sentence_bert_config.json",
    ] {
        std::fs::rename(dir.path().join(file), inner.join(file)).expect("moved");
    }
    edit(dir.path(), "modules.json", |modules| {
        modules[0]["path"] = json!("0_Transformer")
    });
    let mut loaded = open(dir.path()).expect("it loads");
    let found = alone(&mut loaded.encoder, &expected.ids);
    assert!(difference(&found, &expected.vectors("mean")) < TOLERANCE);
}

/// A change to a `config.json`.
type Spelling = fn(&mut Value);

/// Older spellings of the same settings.
#[test]
fn configurations_of_other_versions_mean_the_same() {
    let cases: [(&str, Spelling); 3] = [
        ("nomic", |config| {
            *config = json!({
                "model_type": "nomic_bert", "n_embd": 32, "n_head": 4, "n_layer": 3, "n_inner": 40,
                "n_positions": 48, "vocab_size": 72, "type_vocab_size": 2, "layer_norm_epsilon": 1e-12,
                "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "activation_function": "swiglu",
                "rotary_scaling_factor": null, "use_rms_norm": false, "prenorm": false,
            });
        }),
        ("modernbert", |config| {
            let fields = config.as_object_mut().expect("an object");
            for key in [
                "rope_parameters",
                "layer_types",
                "global_attn_every_n_layers",
            ] {
                fields.remove(key);
            }
            config["global_rope_theta"] = json!(160_000.0);
            config["local_rope_theta"] = json!(10_000.0);
            config["global_attn_every_n_layers"] = json!(3);
            config["id2label"] = json!({"0": "LABEL_0"});
        }),
        ("bert", |config| {
            let fields = config.as_object_mut().expect("an object");
            fields
                .retain(|key, _| !["pad_token_id", "initializer_range", "dtype"].contains(&&**key));
        }),
    ];
    for (name, spell) in cases {
        let expected = Expected::of(name);
        let dir = copy(name);
        edit(dir.path(), "config.json", spell);
        let mut loaded = open(dir.path()).expect(name);
        let found = alone(&mut loaded.encoder, &expected.ids);
        let difference = difference(&found, &expected.vectors("mean"));
        assert!(difference < TOLERANCE, "{name}: {difference}");
    }
}

/// A tensor that is lost, or has lost its meaning, changes the vectors or is refused.
#[test]
fn every_tensor_counts() {
    for name in FAMILIES {
        let expected = Expected::of(name);
        // A short and a long text are enough to see a change.
        let (ids, vectors) = (&expected.ids[..3], &expected.vectors("mean")[..3]);
        let path = fixtures().join(name).join("model.safetensors");
        let bytes = std::fs::read(path).expect("the fixture exists");
        let stored = SafeTensors::deserialize(&bytes).expect("valid");
        for tensor in stored.names().into_iter().filter(|tensor| is_used(tensor)) {
            for loses_it in [true, false] {
                let dir = copy(name);
                write_mutant(
                    &stored,
                    tensor,
                    loses_it,
                    &dir.path().join("model.safetensors"),
                );
                match open(dir.path()) {
                    Err(error) => assert!(loses_it, "{name} {tensor}: {error}"),
                    Ok(_) if loses_it => panic!("{name} loads without {tensor}"),
                    Ok(mut loaded) => {
                        let difference = difference(&alone(&mut loaded.encoder, ids), vectors);
                        assert!(difference > TOLERANCE, "{name} {tensor}: {difference}");
                    }
                }
            }
        }
    }
}

/// Parts that no vector depends on: heads, and the bias of keys, which moves all scores of a query alike.
fn is_used(tensor: &str) -> bool {
    let is_key = tensor.ends_with("key.bias") || tensor.ends_with("k_lin.bias");
    !is_key && !tensor.starts_with("pooler.")
}

fn write_mutant(stored: &SafeTensors, mutated: &str, loses_it: bool, path: &std::path::Path) {
    let zeros;
    let mut tensors: Vec<(String, TensorView)> = stored.tensors();
    if loses_it {
        tensors.retain(|(name, _)| name != mutated);
    } else {
        let view = &stored.tensor(mutated).expect("it exists");
        zeros = vec![0u8; view.data().len()];
        for (name, tensor) in &mut tensors {
            if name == mutated {
                *tensor =
                    TensorView::new(view.dtype(), view.shape().to_vec(), &zeros).expect("valid");
            }
        }
    }
    let bytes = safetensors::serialize(tensors, None).expect("it serialises");
    std::fs::write(path, bytes).expect("a file");
}
