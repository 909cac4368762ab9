//! Checkpoints, batches and logits for the tests of this crate.

use std::fs;
use std::path::{Path, PathBuf};

use backend::{BLOCK_SIZE, Backend, Batch, BatchSequence, BlockId, KvDtype, ReferenceBackend};
use model::{Checkpoint, Decoder, LoadOptions, load};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use serde_json::Value;

/// The folder of the committed checkpoints.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Copies a fixture's weights with one of its configurations into a folder of their own.
pub fn checkpoint_dir(name: &str, config: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for entry in std::fs::read_dir(fixtures().join(name)).expect("the fixture is committed") {
        let path = entry.expect("a readable folder").path();
        let file = path
            .file_name()
            .expect("entries have names")
            .to_string_lossy()
            .into_owned();
        if file.starts_with("model") || file.starts_with("tokenizer") {
            std::fs::copy(&path, dir.path().join(file)).expect("a copy");
        }
    }
    let config = fixtures().join(name).join(config);
    std::fs::copy(config, dir.path().join("config.json")).expect("the configuration is committed");
    dir
}

/// Writes one file of a folder.
pub fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    fs::write(dir.join(name), bytes).expect("the folder is writable");
}

/// Puts fields into a folder's configuration.
pub fn edit_config(dir: &Path, fields: &Value) {
    let path = dir.join("config.json");
    let mut config: Value =
        serde_json::from_slice(&fs::read(&path).expect("readable")).expect("JSON");
    for (key, value) in fields.as_object().expect("fields") {
        config[key] = value.clone();
    }
    write(dir, "config.json", config.to_string());
}

/// Name, type, shape and bytes of one tensor.
pub type Stored = (String, Dtype, Vec<usize>, Vec<u8>);

/// Rewrites the weights after `edit` changed the list of names, types, shapes and bytes.
pub fn edit_tensors(dir: &Path, edit: impl FnOnce(&mut Vec<Stored>)) {
    let bytes = fs::read(dir.join("model.safetensors")).expect("readable");
    let mut tensors: Vec<_> = SafeTensors::deserialize(&bytes)
        .expect("the fixture is right")
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            (
                name,
                view.dtype(),
                view.shape().to_vec(),
                view.data().to_vec(),
            )
        })
        .collect();
    edit(&mut tensors);
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        let view = TensorView::new(*dtype, shape.clone(), data).expect("the edit keeps sizes");
        (name.clone(), view)
    });
    write(
        dir,
        "model.safetensors",
        serialize(views, None).expect("serialisable"),
    );
}

/// Room for a few short sequences.
pub fn options(max_model_len: Option<usize>) -> LoadOptions {
    LoadOptions {
        max_model_len,
        kv_cache_bytes: 64 << 20,
        swap_bytes: 0,
        max_num_seqs: 4,
        kv_dtype: KvDtype::F32,
    }
}

/// Loads a checkpoint on the reference target.
pub fn reference(path: &Path, max_model_len: Option<usize>) -> Decoder<ReferenceBackend> {
    let checkpoint = Checkpoint::open(path).expect("the checkpoint opens");
    load(
        &checkpoint,
        ReferenceBackend,
        &options(max_model_len),
        &mut |_, _| {},
    )
    .expect("the checkpoint loads")
}

/// Part of a sequence: tokens from `start` on, kept in blocks from `first_block` on.
pub struct Span<'a> {
    pub tokens: &'a [u32],
    pub start: usize,
    pub first_block: BlockId,
}

/// A batch that asks for the logits of every token.
pub fn batch(spans: &[Span]) -> Batch {
    let token_ids: Vec<u32> = spans
        .iter()
        .flat_map(|span| span.tokens.iter().copied())
        .collect();
    Batch {
        logit_rows: (0..token_ids.len()).collect(),
        token_ids,
        sequences: spans
            .iter()
            .map(|span| {
                let end = span.start + span.tokens.len();
                let blocks = end.div_ceil(BLOCK_SIZE) as BlockId;
                BatchSequence {
                    num_tokens: span.tokens.len(),
                    num_computed_tokens: span.start,
                    block_table: (span.first_block..span.first_block + blocks).collect(),
                }
            })
            .collect(),
        copies: Vec::new(),
    }
}

/// A target whose activations a test can read.
pub trait Readable: Backend {
    /// The elements, row-major.
    fn elements(tensor: Self::Tensor) -> Vec<f32>;
}

impl Readable for ReferenceBackend {
    fn elements(tensor: Self::Tensor) -> Vec<f32> {
        tensor.data
    }
}

/// The logits of every token of a batch.
pub fn logits<B: Readable>(decoder: &mut Decoder<B>, spans: &[Span]) -> Vec<f32> {
    let (logits, _) = decoder.logits(&batch(spans)).expect("the step runs");
    B::elements(logits)
}

/// The logits of one sequence fed in pieces.
pub fn logits_in_chunks<B: Readable>(
    decoder: &mut Decoder<B>,
    ids: &[u32],
    chunk: usize,
) -> Vec<f32> {
    let mut all = Vec::new();
    for (index, tokens) in ids.chunks(chunk).enumerate() {
        let span = Span {
            tokens,
            start: index * chunk,
            first_block: 0,
        };
        all.extend(logits(decoder, &[span]));
    }
    all
}

/// The lowest id among the largest of the first `vocab` logits.
pub fn argmax(row: &[f32], vocab: usize) -> u32 {
    let mut best = 0;
    for id in 1..vocab {
        if row[id] > row[best] {
            best = id;
        }
    }
    best as u32
}
