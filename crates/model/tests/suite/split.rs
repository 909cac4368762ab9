//! A model in several GGUF files. They are cut by the `gguf` package in `fixtures/make_gguf_split.py`.

use std::fs;
use std::path::Path;

use model::Checkpoint;

use crate::golden::expected;
use crate::support::{fixtures, logits_in_chunks, reference};

const PARTS: [&str; 3] = [
    "llama-00001-of-00003.gguf",
    "llama-00002-of-00003.gguf",
    "llama-00003-of-00003.gguf",
];

/// A folder with the three parts.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for part in PARTS {
        let from = fixtures().join("gguf-split").join(part);
        fs::copy(from, dir.path().join(part)).expect("the fixture is committed");
    }
    dir
}

#[test]
fn parts_make_the_same_bits_as_one_file() {
    let ids = expected("gguf", "llama").ids;
    let bits = |path: &Path| -> Vec<u32> {
        let mut decoder = reference(path, None);
        let logits = logits_in_chunks(&mut decoder, &ids, ids.len());
        logits.into_iter().map(f32::to_bits).collect()
    };
    let whole = bits(&fixtures().join("gguf/llama.gguf"));
    let dir = folder();
    assert_eq!(bits(dir.path()), whole, "a folder of parts");
    for part in PARTS {
        assert_eq!(bits(&dir.path().join(part)), whole, "{part}");
    }
}

/// Why the first part does not open after `edit`.
fn refusal(edit: impl FnOnce(&Path)) -> String {
    let dir = folder();
    edit(dir.path());
    let error = Checkpoint::open(&dir.path().join(PARTS[0])).map(|_| ());
    error.expect_err("something is wrong").to_string()
}

#[test]
fn missing_and_foreign_parts_are_refused_by_name() {
    let copy = |from: &'static str, to: &'static str| {
        move |dir: &Path| {
            fs::copy(dir.join(from), dir.join(to)).expect("a copy");
        }
    };
    for (found, expected) in [
        (
            refusal(|dir| fs::remove_file(dir.join(PARTS[1])).expect("it is there")),
            "llama-00002-of-00003.gguf: is missing; the model has 3 parts",
        ),
        (
            refusal(copy(PARTS[2], PARTS[1])),
            "llama-00002-of-00003.gguf: is part 3 of 3 by its metadata and part 2 of 3 by its name",
        ),
        (
            refusal(|dir| {
                fs::copy(fixtures().join("gguf/qwen2.gguf"), dir.join(PARTS[2])).expect("a copy");
            }),
            "llama-00003-of-00003.gguf: is part 1 of 1 by its metadata and part 3 of 3 by its name",
        ),
        (
            refusal(|dir| {
                // The part of another model with the same number: it has tensors of the first one.
                let number = b"split.no\x02\0\0\0";
                let mut bytes = fs::read(dir.join(PARTS[0])).expect("readable");
                let at = bytes
                    .windows(number.len())
                    .position(|window| window == number);
                bytes[at.expect("its number") + number.len()] = 1;
                fs::write(dir.join(PARTS[1]), bytes).expect("writable");
            }),
            "llama-00002-of-00003.gguf: tensor ",
        ),
    ] {
        assert!(
            found.contains(expected),
            "{found:?} does not say {expected:?}"
        );
    }
    let dir = folder();
    fs::copy(dir.path().join(PARTS[1]), dir.path().join("x.gguf")).expect("a copy");
    let error = Checkpoint::open(&dir.path().join("x.gguf")).map(|_| ());
    let error = error.expect_err("a part under another name").to_string();
    assert!(
        error.contains("x.gguf: is part 2 of 3 by its metadata"),
        "{error}"
    );
}
