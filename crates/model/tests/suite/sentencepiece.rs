//! A SentencePiece vocabulary rebuilt from GGUF metadata against sentencepiece itself. The files are made
//! by `fixtures/make_gguf.py`.

use std::str::FromStr;

use crate::support::fixtures;
use model::Checkpoint;
use serde_json::Value;
use tokenizers::Tokenizer;

#[test]
fn token_ids_equal_those_of_sentencepiece() {
    let folder = fixtures().join("gguf");
    let checkpoint = Checkpoint::open(&folder.join("sentencepiece.gguf")).expect("the file opens");
    let json = std::str::from_utf8(&checkpoint.text().tokenizer_json).expect("UTF-8");
    let tokenizer = Tokenizer::from_str(json).expect("the rebuilt tokenizer loads");
    let cases = std::fs::read(folder.join("sentencepiece.json"))
        .expect("the expected values are committed");
    let cases: Vec<Value> = serde_json::from_slice(&cases).expect("JSON");
    assert_eq!(cases.len(), 7);
    for case in cases {
        let text = case["text"].as_str().expect("text");
        let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).expect("token ids");
        let found = tokenizer.encode(text, true).expect("text tokenises");
        assert_eq!(found.get_ids(), expected, "{text:?}");
        assert_eq!(tokenizer.decode(&expected, true).expect("ids decode"), text);
    }
}
