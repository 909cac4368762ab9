//! Loading fixtures, and copies of them in which something differs.

use std::path::{Path, PathBuf};

use encoder::{Encode, Encoder, EncoderOptions, LoadedEncoder};
use serde_json::Value;
use tempfile::TempDir;

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

pub fn options() -> EncoderOptions {
    EncoderOptions {
        max_tokens: None,
        threads: 2,
        is_beside_language_model: false,
    }
}

pub fn open(path: &Path) -> Result<LoadedEncoder, String> {
    Encoder::open(path, &options()).map_err(|error| error.to_string())
}

pub fn json(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("valid JSON")
}

pub fn vector(value: &Value) -> Vec<f32> {
    serde_json::from_value(value.clone()).expect("numbers")
}

/// A copy of a fixture.
pub fn copy(name: &str) -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    copy_into(&fixtures().join(name), dir.path());
    dir
}

fn copy_into(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("the fixture exists") {
        let entry = entry.expect("readable");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir(&to).expect("a folder");
            copy_into(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), &to).expect("a copy");
        }
    }
}

/// Changes a JSON file of a copy.
pub fn edit(dir: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let mut value = json(&dir.join(file));
    change(&mut value);
    std::fs::write(dir.join(file), value.to_string()).expect("a file");
}

/// Vectors of inputs that are computed each alone.
pub fn alone(encoder: &mut Encoder, inputs: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let each = |input: &Vec<u32>| encoder.encode(&[input]).expect("it computes").remove(0);
    inputs.iter().map(each).collect()
}

/// The largest difference between two lists of vectors.
pub fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b).flat_map(|(a, b)| {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b)
    });
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
