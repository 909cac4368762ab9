//! From an opened checkpoint to a decoder on a target.

use backend::{BLOCK_SIZE, Backend, KvCacheSpec, KvDtype};

use crate::ModelInfo;
use crate::arch::{Architecture, Shape};
use crate::checkpoint::Checkpoint;
use crate::decoder::Decoder;
use crate::error::{ModelError, Result};
use crate::tensors::Tensors;

/// How to size the context and the cache.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Longest sequence in tokens; when absent, the model's own context, or as much of it as the cache
    /// holds.
    pub max_model_len: Option<usize>,
    /// Bytes for cached keys and values.
    pub kv_cache_bytes: u64,
    /// Sequences that may run at once; more cache than they can fill is not allocated.
    pub max_num_seqs: usize,
    /// Type of cached keys and values.
    pub kv_dtype: KvDtype,
}

/// Reports parts loaded out of all parts.
pub(crate) struct Progress<'a> {
    report: &'a mut dyn FnMut(usize, usize),
    done: usize,
    total: usize,
}

impl<'a> Progress<'a> {
    fn new(report: &'a mut dyn FnMut(usize, usize), total: usize) -> Self {
        report(0, total);
        Self {
            report,
            done: 0,
            total,
        }
    }

    pub(crate) fn advance(&mut self, parts: usize) {
        self.done += parts;
        (self.report)(self.done, self.total);
    }
}

/// Loads a checkpoint onto a target. `report` is told how many of how many parts are loaded.
///
/// # Errors
/// Whatever is missing, malformed, unsupported or too large, by name.
pub fn load<B: Backend>(
    checkpoint: &Checkpoint,
    mut backend: B,
    options: &LoadOptions,
    report: &mut dyn FnMut(usize, usize),
) -> Result<Decoder<B>> {
    let architecture = Architecture::read(checkpoint.config())?;
    let shape = architecture.shape();
    let (max_model_len, cache) = cache_size(&shape, options)?;
    let tensors = Tensors::new(checkpoint.source());
    let mut progress = Progress::new(report, shape.num_layers + 1);
    let (weights, vocab) =
        architecture.load(&tensors, &mut backend, max_model_len, &mut progress)?;
    tensors.finish()?;
    let info = ModelInfo {
        logit_width: vocab,
        vocab_size: checkpoint.vocab_size().unwrap_or(vocab).min(vocab),
        max_model_len,
        num_blocks: cache.num_blocks,
    };
    Ok(Decoder::new(backend, info, weights, cache)?)
}

/// As many blocks as fit the budget and the running sequences can fill. A context that does not fit is
/// shortened, unless it was asked for.
fn cache_size(shape: &Shape, options: &LoadOptions) -> Result<(usize, KvCacheSpec)> {
    let mut spec = KvCacheSpec {
        num_layers: shape.num_layers,
        num_kv_heads: shape.num_kv_heads,
        head_dim: shape.head_dim,
        num_blocks: 0,
        dtype: options.kv_dtype,
    };
    if let Some(requested) = options
        .max_model_len
        .filter(|requested| *requested > shape.max_stretched)
    {
        return Err(ModelError::ContextTooLong {
            requested,
            max: shape.max_stretched,
        });
    }
    let block_bytes = spec.block_bytes() as u64;
    let affordable = usize::try_from(options.kv_cache_bytes / block_bytes).unwrap_or(usize::MAX);
    let mut max_model_len = options.max_model_len.unwrap_or(shape.max_positions);
    if affordable < max_model_len.div_ceil(BLOCK_SIZE) {
        if options.max_model_len.is_some() || affordable == 0 {
            return Err(ModelError::CacheTooSmall {
                max_model_len,
                needed: max_model_len.div_ceil(BLOCK_SIZE) as u64 * block_bytes,
                available: options.kv_cache_bytes,
            });
        }
        max_model_len = affordable * BLOCK_SIZE;
    }
    let fillable = options
        .max_num_seqs
        .saturating_mul(max_model_len.div_ceil(BLOCK_SIZE));
    spec.num_blocks = affordable.min(fillable);
    Ok((max_model_len, spec))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        num_layers: 2,
        num_kv_heads: 1,
        head_dim: 8,
        max_positions: 100,
        max_stretched: 100,
    };
    /// Keys and values of 2 layers, 8 features, 32 tokens, 4 bytes.
    const BLOCK_BYTES: u64 = 2 * 2 * 8 * 32 * 4;

    fn options(max_model_len: Option<usize>, blocks: u64) -> LoadOptions {
        LoadOptions {
            max_model_len,
            kv_cache_bytes: blocks * BLOCK_BYTES,
            max_num_seqs: 3,
            kv_dtype: KvDtype::F32,
        }
    }

    #[test]
    fn the_cache_is_bounded_by_memory_and_by_use() {
        let (len, spec) = cache_size(&SHAPE, &options(None, 7)).expect("fits");
        assert_eq!((len, spec.num_blocks), (100, 7));
        let (len, spec) = cache_size(&SHAPE, &options(Some(64), 1000)).expect("fits");
        assert_eq!((len, spec.num_blocks), (64, 6));
    }

    #[test]
    fn a_context_is_shortened_only_when_nobody_asked_for_it() {
        let (len, spec) = cache_size(&SHAPE, &options(None, 2)).expect("shortened");
        assert_eq!((len, spec.num_blocks), (64, 2));
        for error in [
            cache_size(&SHAPE, &options(Some(100), 2)).expect_err("asked for"),
            cache_size(&SHAPE, &options(None, 0)).expect_err("nothing fits"),
        ] {
            assert!(error.to_string().contains("bytes of cache"), "{error}");
        }
        let error =
            cache_size(&SHAPE, &options(Some(101), 1000)).expect_err("longer than the model");
        assert!(
            error.to_string().contains("101") && error.to_string().contains("100"),
            "{error}"
        );
    }
}
