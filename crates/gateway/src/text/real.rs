//! Tokenizers of real models on a thousand awkward strings, against transformers, and the vocabularies of
//! GGUF files against the tokenizer of the same model. The files are fetched by `cargo xtask assets`;
//! `fixtures/tokenizers/make.py` wrote the strings and the expected hashes.

use std::path::Path;

use model::{Checkpoint, TextFiles};

use super::*;
use crate::tests::support::{asset, asset_path};

fn fixture(file: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizers");
    std::fs::read_to_string(folder.join(file)).expect("the fixture is committed")
}

fn strings() -> Vec<String> {
    let strings: Vec<String> = serde_json::from_str(&fixture("strings.json")).expect("strings");
    assert_eq!(strings.len(), 1000);
    strings
}

fn tokenizer(name: &str) -> Option<Tokenizer> {
    let files = TextFiles {
        tokenizer_json: asset(&format!("tokenizers/{name}.json"))?,
        ..TextFiles::default()
    };
    Some(Tokenizer::new(&files).unwrap_or_else(|error| panic!("{name}: {error}")))
}

fn vocabulary(name: &str) -> Option<Tokenizer> {
    let path = asset_path(&format!("vocabularies/{name}.gguf"))?;
    let checkpoint = Checkpoint::open(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
    let tokenizer = Tokenizer::new(checkpoint.text());
    Some(tokenizer.unwrap_or_else(|error| panic!("{name}: {error}")))
}

/// The 32-bit hash of Fowler, Noll and Vo, variant 1a.
fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> String {
    let hash = bytes.into_iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    format!("{hash:08x}")
}

/// The text of tokens that arrive one at a time.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let pieces = tokenizer.pieces();
    let mut detokenizer = Detokenizer::new(pieces, LeadingSpace::Decode, false);
    let mut text: String = ids.iter().map(|id| detokenizer.push(pieces, *id)).collect();
    text.push_str(&detokenizer.flush());
    text
}

#[test]
fn ids_and_streamed_text_equal_those_of_transformers() {
    let strings = strings();
    for name in [
        "gpt-2",
        "mistral",
        "llama-3.1",
        "qwen-2.5",
        "qwen-3",
        "gemma-3",
    ] {
        let Some(tokenizer) = tokenizer(name) else {
            return;
        };
        let expected = fixture(&format!("{name}.txt"));
        let mut lines = expected.lines();
        let mut faults = Vec::new();
        for text in &strings {
            let line = lines.next().expect("a line for each string");
            let (ids_hash, text_hash) = line.split_once(' ').expect("two hashes");
            let ids = tokenizer
                .encode_rendered(text)
                .expect("any text is encoded");
            if fnv1a(ids.iter().flat_map(|id| id.to_le_bytes())) != ids_hash {
                faults.push(format!("{text:?} has the ids {ids:?}"));
            }
            let decoded = streamed(&tokenizer, &ids);
            if fnv1a(decoded.bytes()) != text_hash {
                faults.push(format!(
                    "{text:?} with ids {ids:?} is decoded to {decoded:?}"
                ));
            }
        }
        assert!(
            faults.is_empty(),
            "{name}: {} faults\n{}",
            faults.len(),
            faults[..faults.len().min(20)].join("\n")
        );
    }
}

#[test]
fn vocabularies_of_gguf_files_give_the_ids_of_the_models_tokenizer() {
    let strings = strings();
    for (gguf, json) in [
        ("gpt-2", "gpt-2"),
        ("llama-3", "llama-3.1"),
        ("qwen-2", "qwen-2.5"),
    ] {
        let (Some(rebuilt), Some(own)) = (vocabulary(gguf), tokenizer(json)) else {
            return;
        };
        let mut faults = Vec::new();
        for text in &strings {
            let (found, expected) = (rebuilt.encode_rendered(text), own.encode_rendered(text));
            if found != expected {
                faults.push(format!("{text:?}: {found:?}, expected {expected:?}"));
            }
            let ids = found.expect("any text is encoded");
            let (found, expected) = (streamed(&rebuilt, &ids), streamed(&own, &ids));
            if found != expected {
                faults.push(format!("{text:?}: {found:?}, expected {expected:?}"));
            }
        }
        assert!(
            faults.is_empty(),
            "{gguf}: {} faults\n{}",
            faults.len(),
            faults[..faults.len().min(20)].join("\n")
        );
    }
}

/// llama.cpp carries texts with the ids that transformers gives for them, beside its vocabularies.
#[test]
fn vocabularies_of_gguf_files_give_the_ids_that_llama_cpp_expects() {
    for name in ["falcon", "gpt-2", "llama-2", "llama-3", "phi-3", "qwen-2"] {
        let file = |end: &str| asset(&format!("vocabularies/{name}.{end}"));
        let (Some(texts), Some(ids)) = (file("inp"), file("out")) else {
            return;
        };
        let (texts, ids) = (String::from_utf8(texts), String::from_utf8(ids));
        let (texts, ids) = (texts.expect("UTF-8"), ids.expect("UTF-8"));
        let vocabulary = vocabulary(name).expect("it is fetched with its texts");
        let texts = texts.split("\n__ggml_vocab_test__\n");
        let mut compared = 0;
        for (text, ids) in texts.zip(ids.lines()) {
            let expected: Vec<u32> = ids
                .split_whitespace()
                .map(|id| id.parse().expect("an id"))
                .collect();
            let found = vocabulary
                .encode_rendered(text)
                .expect("any text is encoded");
            assert_eq!(found, expected, "{name}: {text:?}");
            compared += 1;
        }
        assert!(compared >= 40, "{name}: {compared}");
    }
}

const PRE: &[u8] = b"tokenizer.ggml.pre";

/// A GGUF file with another name for the rule by which it cuts texts.
fn with_rule(file: &[u8], name: &str) -> Result<Checkpoint, String> {
    let key = file.windows(PRE.len()).position(|bytes| bytes == PRE);
    let (head, rest) = file.split_at(key.expect("the key is there") + PRE.len() + 4);
    let (len, rest) = rest.split_first_chunk().expect("a length");
    let len = u64::from_le_bytes(*len) as usize;
    let new_len = (name.len() as u64).to_le_bytes();
    let bytes = [head, &new_len, name.as_bytes(), &rest[len..]].concat();
    let file = ("model.gguf".to_owned(), bytes.into());
    Checkpoint::from_bytes(vec![file]).map_err(|error| error.to_string())
}

/// Holds the ids of all strings to a column of hashes.
fn compare_rule(name: &str, files: &TextFiles, strings: &[String], column: usize, hashes: &str) {
    let tokenizer = Tokenizer::new(files).expect("it loads");
    let mut compared = 0;
    for (text, line) in strings.iter().zip(hashes.lines()) {
        let expected = line.split(' ').nth(column).expect("a hash for each rule");
        if expected == "-" {
            continue;
        }
        let ids = tokenizer
            .encode_rendered(text)
            .expect("any text is encoded");
        let found = fnv1a(ids.iter().flat_map(|id| id.to_le_bytes()));
        assert_eq!(found, expected, "{name}: {text:?} has the ids {ids:?}");
        compared += 1;
    }
    assert!(compared > 950, "{name}: {compared}");
}

/// The rules that a GGUF file can name, each with Llama 3's vocabulary, against llama.cpp
/// (`fixtures/tokenizers/make_pre.py`); the vocabularies above check some of them with their own.
#[test]
fn every_named_rule_cuts_as_llama_cpp_does() {
    let Some(vocabulary) = asset("vocabularies/llama-3.gguf") else {
        return;
    };
    let strings = strings();
    let expected = fixture("pre.txt");
    let (names, hashes) = expected.split_once('\n').expect("a line of names");
    let mut checked = Vec::new();
    for (column, names) in names.split(' ').enumerate() {
        // Some names give one and the same tokenizer, which need not be compared twice.
        let mut compared: Vec<Checkpoint> = Vec::new();
        for name in names.split(',') {
            let checkpoint = with_rule(&vocabulary, name).expect("the rule is known");
            let json = &checkpoint.text().tokenizer_json;
            let is_known = |known: &Checkpoint| known.text().tokenizer_json == *json;
            if !compared.iter().any(is_known) {
                compare_rule(name, checkpoint.text(), &strings, column, hashes);
                compared.push(checkpoint);
            }
            checked.push(name);
        }
    }
    // The refusal lists what is known: nothing that was not compared.
    let refusal = with_rule(&vocabulary, "unheard-of").err();
    let refusal = refusal.expect("it is unknown");
    let known = refusal.split_once(": ").expect("a list").1;
    let known = known.split(" are;").next().expect("names");
    let names = |list: &str| -> Vec<String> {
        let names = list.split([',', ' ']).filter(|name| !name.is_empty());
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort();
        names
    };
    assert_eq!(names(known), names(&checked.join(",")), "{refusal}");
}

/// Every place in a JSON text, as pointers.
fn places(value: &serde_json::Value, at: String, found: &mut Vec<String>) {
    use serde_json::Value::{Array, Object};
    found.push(at.clone());
    match value {
        Array(items) => {
            for (i, item) in items.iter().enumerate().take(8) {
                places(item, format!("{at}/{i}"), found);
            }
        }
        Object(fields) => {
            for (key, value) in fields.iter().take(16) {
                let key = key.replace('~', "~0").replace('/', "~1");
                places(value, format!("{at}/{key}"), found);
            }
        }
        _ => {}
    }
}

#[test]
fn damaged_tokenizers_are_refused_or_work_but_never_panic() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/gguf");
    for file in ["llama.gguf", "sentencepiece.gguf"] {
        let checkpoint = Checkpoint::open(&folder.join(file)).expect("the fixture is right");
        let whole: serde_json::Value =
            serde_json::from_slice(&checkpoint.text().tokenizer_json).expect("JSON");
        let mut pointers = Vec::new();
        places(&whole, String::new(), &mut pointers);
        let (mut tried, mut refused) = (0, 0);
        for pointer in &pointers {
            for value in [
                "null",
                "-1",
                "1e300",
                "4294967296",
                "\"\"",
                "\"(\"",
                "[]",
                "{}",
                "true",
            ] {
                let mut damaged = whole.clone();
                let place = damaged.pointer_mut(pointer).expect("it was found");
                *place = serde_json::from_str(value).expect("JSON");
                let files = TextFiles {
                    tokenizer_json: damaged.to_string().into_bytes(),
                    ..checkpoint.text().clone()
                };
                let encode = || TextTokens::encode(&files, "Héllo <s> 12  世界").is_err();
                let outcome = std::panic::catch_unwind(encode);
                tried += 1;
                refused += usize::from(outcome.unwrap_or_else(|_| {
                    panic!("{file}: {pointer} = {value} panics");
                }));
            }
        }
        assert!(
            tried > 500 && refused > tried / 10,
            "{file}: {refused} of {tried}"
        );
    }
}
