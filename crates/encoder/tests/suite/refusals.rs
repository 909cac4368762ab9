//! What does not load, and what it says.

use encoder::{Encoder, EncoderOptions, TruncationSide, is_encoder};
use serde_json::{Value, json};

use crate::support::{copy, edit, fixtures, open, options};

fn refusal(change: impl FnOnce(&std::path::Path)) -> String {
    let dir = copy("bert");
    change(dir.path());
    match open(dir.path()) {
        Ok(_) => panic!("it loads"),
        Err(error) => error,
    }
}

fn with_config(key: &str, value: Value) -> String {
    refusal(|dir| edit(dir, "config.json", |config| config[key] = value))
}

#[test]
fn an_unknown_architecture_is_named_with_what_is_supported() {
    let error = with_config("model_type", json!("mpnet"));
    for part in ["mpnet", "embeddings", "bert", "modernbert", "nomic_bert"] {
        assert!(error.contains(part), "{part} is missing in {error}");
    }
}

#[test]
fn settings_that_would_give_wrong_vectors_are_refused_by_name() {
    for (key, value) in [
        ("hidden_act", json!("silu")),
        ("position_embedding_type", json!("relative_key")),
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(5)),
        ("hidden_size", json!("large")),
        ("vocab_size", json!(71)),
        ("num_hidden_layers", json!(2)),
        ("num_hidden_layers", json!(4)),
    ] {
        let error = with_config(key, value.clone());
        assert!(!error.contains('\n'), "{key} = {value}: {error}");
    }
    assert!(with_config("hidden_act", json!("silu")).contains("hidden_act"));
    assert!(with_config("num_hidden_layers", json!(2)).contains("encoder.layer.2"));
    let error = refusal(|dir| {
        edit(dir, "1_Pooling/config.json", |config| {
            config["pooling_mode"] = json!("lasttoken")
        });
    });
    assert!(
        error.contains("lasttoken") && error.contains("mean"),
        "{error}"
    );
    let error = refusal(|dir| {
        edit(dir, "modules.json", |modules| {
            modules[2]["type"] = json!("a.b.Dense")
        });
    });
    assert!(error.contains("a.b.Dense"), "{error}");
    let error = refusal(|dir| {
        edit(dir, "modules.json", |modules| {
            modules[1]["path"] = json!("../1_Pooling")
        });
    });
    assert!(error.contains("../1_Pooling"), "{error}");
}

#[test]
fn missing_and_damaged_files_are_named() {
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let error = refusal(|dir| std::fs::remove_file(dir.join(file)).expect("it was there"));
        assert!(error.contains(file), "{error}");
        let error = refusal(|dir| std::fs::write(dir.join(file), "{").expect("a file"));
        assert!(error.contains(file), "{error}");
    }
}

#[test]
fn lengths_follow_the_files_and_the_operator() {
    let limit = |max_tokens| {
        let options = EncoderOptions {
            max_tokens,
            ..options()
        };
        Encoder::open(&fixtures().join("bert"), &options).map(|loaded| loaded.info.max_tokens)
    };
    assert_eq!(limit(None).expect("it loads"), 48);
    assert_eq!(limit(Some(16)).expect("it loads"), 16);
    assert!(limit(Some(49)).is_err());
    // The positions of real tokens begin behind that of padding.
    let dir = copy("xlm-roberta");
    std::fs::remove_file(dir.path().join("tokenizer_config.json")).expect("it was there");
    assert_eq!(open(dir.path()).expect("it loads").info.max_tokens, 48);
    let dir = copy("bert");
    edit(dir.path(), "sentence_bert_config.json", |config| {
        config["max_seq_length"] = json!(24)
    });
    assert_eq!(open(dir.path()).expect("it loads").info.max_tokens, 24);
}

#[test]
fn truncation_keeps_the_marks_of_beginning_and_end() {
    let tokenizer = open(&fixtures().join("bert")).expect("it loads").tokenizer;
    let text = "a b c d e f";
    let whole = tokenizer.encode(text).expect("it encodes");
    assert_eq!(whole.len(), 8);
    let cut = |max, side| {
        tokenizer
            .encode_truncated(text, max, side)
            .expect("it encodes")
    };
    let (first, last) = (whole[0], whole[7]);
    assert_eq!(
        cut(4, TruncationSide::Right),
        [first, whole[1], whole[2], last]
    );
    assert_eq!(
        cut(4, TruncationSide::Left),
        [first, whole[5], whole[6], last]
    );
    assert_eq!(cut(8, TruncationSide::Right), whole);
    assert!(tokenizer.min_tokens(text) <= whole.len());
}

#[test]
fn encoders_are_told_from_language_models() {
    let is = |name: &str| is_encoder(&fixtures().join(name)).expect("readable");
    assert!(is("bert") && is("jina"));
    let language = fixtures().join("../../../model/tests/fixtures/llama");
    assert!(!is_encoder(&language).expect("readable"));
    assert!(!is_encoder(&language.join("model.gguf")).expect("readable"));
}
