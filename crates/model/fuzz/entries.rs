//! One function per kind of file: bytes in, a model or a refusal out. The fuzz targets call them under
//! cargo-fuzz, and `tests/damage.rs` calls them with made inputs in the ordinary tests.

use std::borrow::Cow;
use std::path::Path;
use std::sync::LazyLock;

use backend::{KvDtype, ReferenceBackend};
use model::{Checkpoint, LoadOptions, load};

/// How it ended.
#[derive(Debug)]
pub enum Outcome {
    Loads,
    Refused(String),
}

/// The files of a whole tiny checkpoint, of which one is replaced.
struct Files {
    config: Vec<u8>,
    tokenizer: Vec<u8>,
    weights: Vec<u8>,
}

static FILES: LazyLock<Files> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = folder.ancestors().find_map(|above| {
        let fixtures = above.join("tests/fixtures/llama");
        fixtures.is_dir().then_some(fixtures)
    });
    let folder = folder.expect("the fixtures lie above");
    let read = |name: &str| std::fs::read(folder.join(name)).expect("the fixture is committed");
    Files {
        config: read("default.tf5.json"),
        tokenizer: read("tokenizer.json"),
        weights: read("model.safetensors"),
    }
});

/// `config.json` of a Llama.
pub fn config(bytes: &[u8]) -> Outcome {
    directory(bytes, &FILES.tokenizer, &FILES.weights)
}

/// `config.json` of anything: only the tensors can be missing.
pub fn config_only(bytes: &[u8]) -> Outcome {
    match directory(bytes, &FILES.tokenizer, &FILES.weights) {
        Outcome::Refused(error) if error.starts_with("tensor ") => Outcome::Loads,
        outcome => outcome,
    }
}

/// `tokenizer.json`.
pub fn tokenizer(bytes: &[u8]) -> Outcome {
    directory(&FILES.config, bytes, &FILES.weights)
}

/// `model.safetensors`.
pub fn safetensors(bytes: &[u8]) -> Outcome {
    directory(&FILES.config, &FILES.tokenizer, bytes)
}

/// A GGUF file. One that holds a vocabulary only counts as loading when its header and text are read.
pub fn gguf(bytes: &[u8]) -> Outcome {
    match run(vec![("model.gguf", bytes)]) {
        Outcome::Refused(error) if error == NO_TENSORS => Outcome::Loads,
        outcome => outcome,
    }
}

/// The first tensor that every loader asks for.
const NO_TENSORS: &str = "tensor model.embed_tokens.weight: is missing";

fn directory(config: &[u8], tokenizer: &[u8], weights: &[u8]) -> Outcome {
    run(vec![
        ("config.json", config),
        ("tokenizer.json", tokenizer),
        ("model.safetensors", weights),
    ])
}

fn run(files: Vec<(&str, &[u8])>) -> Outcome {
    let owned = files
        .into_iter()
        .map(|(name, bytes)| (name.to_owned(), Cow::Owned(bytes.to_vec())));
    let options = LoadOptions {
        max_model_len: None,
        kv_cache_bytes: 1 << 20,
        swap_bytes: 0,
        max_num_seqs: 2,
        kv_dtype: KvDtype::F32,
    };
    let loaded = Checkpoint::from_bytes(owned.collect())
        .and_then(|checkpoint| load(&checkpoint, ReferenceBackend, &options, &mut |_, _| {}));
    match loaded {
        Ok(_) => Outcome::Loads,
        Err(error) => Outcome::Refused(error.to_string()),
    }
}
