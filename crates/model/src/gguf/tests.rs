//! Block types against the `gguf` package, and headers that lie. Files are made by
//! `tests/fixtures/make_gguf.py`; the lying ones are made here.

mod two_ways;

use std::borrow::Cow;
use std::path::Path;

use safetensors::SafeTensors;

use super::*;
use crate::safetensors_files::elements;

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/gguf")
        .join(name);
    std::fs::read(path).expect("the fixture is committed")
}

fn open(bytes: Vec<u8>) -> Result<GgufFile> {
    GgufFile::open(vec![(
        "made.gguf".to_owned(),
        FileBytes::Memory(Cow::Owned(bytes)),
    )])
}

#[test]
fn rows_return_to_half_pairing() {
    // Two heads of four rows, stored in the converter's order 0 2 1 3.
    let stored = [0.0, 2.0, 1.0, 3.0, 10.0, 12.0, 11.0, 13.0];
    let rows = half_paired(&stored, 2, 1, "blk.0.attn_q.weight").expect("eight rows for two heads");
    assert_eq!(rows, [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0]);
    assert!(half_paired(&stored, 3, 1, "blk.0.attn_q.weight").is_err());
}

#[test]
fn every_block_type_equals_the_gguf_package() {
    let file = open(fixture("blocks.gguf")).expect("the file opens");
    let bytes = fixture("blocks.expected.safetensors");
    let expected = SafeTensors::deserialize(&bytes).expect("valid safetensors");
    assert_eq!(expected.len(), 10);
    for (name, tensor) in expected.tensors() {
        let found = file.read(&name).expect("the type is read").into_f32();
        let expected: Vec<f32> = elements(tensor.data(), f32::from_le_bytes);
        assert_eq!(found.len(), expected.len());
        // The last bit may differ where one implementation multiplies scales first.
        let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() <= 1e-6 * largest, "{name}: {a} for {b}");
        }
    }
}

/// Writes GGUF piece by piece, right or wrong.
#[derive(Default, Clone)]
struct Made(Vec<u8>);

impl Made {
    fn header(version: u32, tensors: u64, keys: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(version).u64(tensors).u64(keys)
    }

    fn u32(mut self, x: u32) -> Self {
        self.0.extend(x.to_le_bytes());
        self
    }

    fn u64(mut self, x: u64) -> Self {
        self.0.extend(x.to_le_bytes());
        self
    }

    fn string(mut self, text: &str) -> Self {
        self = self.u64(text.len() as u64);
        self.0.extend(text.as_bytes());
        self
    }

    fn text_key(self, key: &str, value: &str) -> Self {
        self.string(key).u32(8).string(value)
    }

    fn count_key(self, key: &str, value: u32) -> Self {
        self.string(key).u32(4).u32(value)
    }

    fn tensor(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        self = self.string(name).u32(dims.len() as u32);
        for dim in dims {
            self = self.u64(*dim);
        }
        self.u32(kind).u64(offset)
    }

    fn data(mut self, bytes: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32) + bytes, 0);
        self
    }
}

/// A file with one key and the given tensors.
fn with_tensors(tensors: &[(&str, &[u64], u32, u64)], data: usize) -> Made {
    let mut made =
        Made::header(3, tensors.len() as u64, 1).text_key("general.architecture", "llama");
    for (name, dims, kind, offset) in tensors {
        made = made.tensor(name, dims, *kind, *offset);
    }
    made.data(data)
}

fn with_value(kind: u32) -> Made {
    Made::header(3, 0, 1).string("some.key").u32(kind)
}

#[test]
fn a_well_formed_header_is_read() {
    let made = with_tensors(&[("a", &[8, 2], 0, 0), ("b", &[32], 8, 64)], 98);
    let file = open(made.0).expect("the file is right");
    assert_eq!(file.shape("a"), Some(&[2, 8][..]));
    assert_eq!(
        file.read("b").expect("a block of zeros").into_f32(),
        [0.0; 32]
    );
}

#[test]
fn lying_headers_are_refused_with_a_reason() {
    let far = u64::MAX;
    let aligned = |value: u32| {
        Made::header(3, 0, 2)
            .text_key("general.architecture", "llama")
            .count_key("general.alignment", value)
            .data(0)
    };
    let nested = (0..8).fold(with_value(9), |made, _| made.u32(9).u64(1));
    let cases = [
        (Made(Vec::new()), "the magic needs 4 bytes"),
        (Made(b"\x80\x02}q\x00".to_vec()), "does not start with GGUF"),
        (Made(b"PK\x03\x04....".to_vec()), "does not start with GGUF"),
        (Made(b"#!/bin/sh\n".to_vec()), "does not start with GGUF"),
        (Made::header(0, 0, 0), "has version 0"),
        (Made::header(1, 0, 0), "has version 1"),
        (Made::header(4, 0, 0), "has version 4"),
        (Made::header(1 << 31, 0, 0), "has version 2147483648"),
        (Made::header(3u32.swap_bytes(), 0, 0), "big-endian"),
        (
            Made::header(3, far, 0),
            "tensors: 18446744073709551615 do not fit",
        ),
        (
            Made::header(3, u64::from(u32::MAX), 0),
            "tensors: 4294967295 do not fit",
        ),
        (
            Made::header(3, 0, far),
            "metadata keys: 18446744073709551615 do not fit",
        ),
        (
            Made::header(3, 0, 70_000).data(1 << 20),
            "70000 metadata keys, more than 65536",
        ),
        (Made::header(3, 0, 0), "general.architecture is missing"),
        (
            Made::header(3, 0, 1).count_key("general.architecture", 1),
            "general.architecture is missing",
        ),
        (
            Made::header(3, 0, 1).text_key("general.architecture", "mamba"),
            "model type mamba is not supported",
        ),
        (
            Made::header(3, 0, 1).u64(far).data(64),
            "a metadata key is 18446744073709551615 bytes long",
        ),
        (
            Made::header(3, 0, 1).u64(100).data(64),
            "a metadata key needs 100 bytes",
        ),
        (with_value(13), "some.key has the unknown type 13"),
        (with_value(u32::MAX), "some.key has the unknown type"),
        (with_value(7).data(1), "general.architecture is missing"),
        (
            Made(with_value(7).0.into_iter().chain([2]).collect()),
            "some.key is a boolean with value 2",
        ),
        (
            with_value(8).u64(far),
            "some.key is 18446744073709551615 bytes long",
        ),
        (with_value(8).u64(9).u32(0), "some.key needs 9 bytes"),
        (
            with_value(9).u32(4).u64(far),
            "some.key: 18446744073709551615 do not fit",
        ),
        (
            with_value(9).u32(8).u64(1 << 20),
            "some.key: 1048576 do not fit",
        ),
        (
            with_value(9).u32(0).u64(5 << 20).data(5 << 20),
            "makes more than 4194304 in all arrays",
        ),
        (nested, "some.key nests more than 4 arrays"),
        (aligned(0), "general.alignment"),
        (aligned(7), "general.alignment"),
        (aligned(1 << 31), "general.alignment"),
        (
            Made::header(3, 0, 2)
                .count_key("twice", 1)
                .count_key("twice", 2),
            "twice stands twice",
        ),
        (
            with_tensors(&[("t", &[], 0, 0)], 64),
            "tensor t has 0 dimensions",
        ),
        (
            with_tensors(&[("t", &[1; 5], 0, 0)], 64),
            "tensor t has 5 dimensions",
        ),
        (
            with_tensors(&[("t", &[4, 0], 0, 0)], 64),
            "tensor t has a dimension of 0",
        ),
        (
            with_tensors(&[("t", &[1 << 33, 1 << 33], 0, 0)], 64),
            "tensor t has a dimension of 8589934592",
        ),
        (
            with_tensors(&[("t", &[1 << 62], 0, 0)], 64),
            "tensor t is too large",
        ),
        (
            with_tensors(&[("t", &[1 << 40], 0, 0)], 64),
            "reaches beyond the file",
        ),
        (
            with_tensors(&[("t", &[16], 0, 32)], 64),
            "tensor t of 64 bytes at 32 reaches beyond the file",
        ),
        (
            with_tensors(&[("t", &[16], 0, far - 31)], 64),
            "reaches beyond the file",
        ),
        (
            with_tensors(&[("t", &[4], 0, 1)], 64),
            "tensor t starts at 1, not a multiple of 32",
        ),
        (
            with_tensors(&[("t", &[4], 4, 0)], 64),
            "tensor t has type 4, which is not read",
        ),
        (
            with_tensors(&[("t", &[4], 9, 0)], 64),
            "tensor t has type 9, which is not read",
        ),
        (
            with_tensors(&[("t", &[4], 99, 0)], 64),
            "tensor t has type 99, which is not read",
        ),
        (
            with_tensors(&[("t", &[33], 8, 0)], 64),
            "tensor t has rows of 33, not a multiple of 32",
        ),
        (
            with_tensors(&[("t", &[16, 2], 8, 0)], 64),
            "tensor t has rows of 16, not a multiple of 32",
        ),
        (
            with_tensors(&[("t", &[16], 0, 0), ("u", &[16], 0, 32)], 128),
            "tensors t and u overlap",
        ),
        (
            with_tensors(&[("t", &[8], 0, 0), ("t", &[8], 0, 32)], 64),
            "tensor t stands twice",
        ),
        (
            with_tensors(&[(&"n".repeat(300), &[8], 0, 0)], 64),
            "a tensor name is 300 bytes long",
        ),
    ];
    for (made, expected) in cases {
        let error = open(made.0).map(|_| ()).expect_err(expected).to_string();
        assert!(
            error.contains(expected),
            "{error:?} does not say {expected:?}"
        );
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = fixture("blocks.gguf");
    let header = parse::parse(&whole).expect("the whole file is right");
    let data_start = header
        .tensors
        .iter()
        .map(|tensor| tensor.start)
        .min()
        .expect("tensors");
    for len in (0..data_start).chain([whole.len() / 2, whole.len() - 32]) {
        assert!(
            open(whole[..len].to_vec()).is_err(),
            "{len} of {} bytes",
            whole.len()
        );
    }
}

#[test]
fn settings_that_make_no_model_are_refused() {
    let sizes = [
        ("llama.block_count", 1),
        ("llama.context_length", 64),
        ("llama.embedding_length", 8),
        ("llama.feed_forward_length", 16),
        ("llama.attention.head_count", 2),
    ];
    let config = |skip: &str, extra: &[(&str, u32)]| {
        let kept: Vec<_> = sizes
            .iter()
            .filter(|(key, _)| *key != skip)
            .chain(extra)
            .collect();
        let mut made = Made::header(3, 0, kept.len() as u64 + 2)
            .text_key("general.architecture", "llama")
            .string("llama.attention.layer_norm_rms_epsilon")
            .u32(6)
            .u32(1e-5f32.to_bits());
        for (key, value) in kept {
            made = made.count_key(key, *value);
        }
        let file = open(made.data(0).0).expect("the container is right");
        file.config().map(|_| ())
    };
    config("", &[]).expect("nothing is missing");
    let missing = sizes.map(|(key, _)| (config(key, &[]), key));
    for (result, key) in missing {
        let error = result.expect_err(key).to_string();
        assert!(error.contains(&format!("{key} is missing")), "{error}");
    }
    let wrong = [
        (
            config(
                "llama.attention.head_count",
                &[("llama.attention.head_count", 0)],
            ),
            "head_count is 0",
        ),
        (
            config("", &[("llama.expert_count", 8)]),
            "llama.expert_used_count is missing",
        ),
        (
            config("", &[("llama.attention.value_length", 7)]),
            "llama.attention.value_length = 7",
        ),
        (
            config(
                "",
                &[
                    ("llama.rope.freq_base.x", 1),
                    ("llama.rope.scaling.type", 3),
                ],
            ),
            "rope.scaling.type is not a string",
        ),
    ];
    for (result, expected) in wrong {
        let error = result.expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
}
