//! From an opened checkpoint to a decoder on a target.

use backend::{BLOCK_SIZE, Backend, KvCacheSpec, KvDtype, KvTypes};

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
    /// Bytes of host memory that preempted sequences are moved to.
    pub swap_bytes: u64,
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
    // Settled before anything large is read, in case it cannot be.
    let types = kv_types(options.kv_dtype, &vec![0.0; shape.num_layers]);
    let (max_model_len, _) = cache_size(&shape, options, types)?;
    let tensors = Tensors::new(checkpoint.source());
    let mut progress = Progress::new(report, shape.num_layers + 1);
    let (weights, vocab) =
        architecture.load(&tensors, &mut backend, max_model_len, &mut progress)?;
    tensors.finish()?;
    let types = kv_types(options.kv_dtype, &weights.key_bias_norms);
    let (max_model_len, cache) = cache_size(&shape, options, types)?;
    let info = ModelInfo {
        logit_width: vocab,
        vocab_size: checkpoint.vocab_size().unwrap_or(vocab).min(vocab),
        max_model_len,
        num_blocks: cache.num_blocks,
        num_host_blocks: cache.num_host_blocks,
        active_weights: weights.active_weights,
    };
    Ok(Decoder::new(backend, info, weights, cache)?)
}

/// How far above the median layer's the key biases of a layer are when 8 bits no longer hold its keys:
/// most of the range would go to the bias. Qwen 2 and 2.5 have such layers.
const LARGE_KEY_BIAS: f32 = 5.0;

/// The types of each layer's cache. In an 8-bit cache, layers whose keys mostly consist of biases keep
/// them in bfloat16.
fn kv_types(dtype: KvDtype, key_bias_norms: &[f32]) -> Vec<KvTypes> {
    let mut sorted = key_bias_norms.to_vec();
    sorted.sort_by(f32::total_cmp);
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
    let wide = |norm: f32| dtype == KvDtype::Int8 && norm > LARGE_KEY_BIAS * median;
    let types = |(layer, norm): (usize, &f32)| {
        let mut types = KvTypes::both(dtype);
        if wide(*norm) {
            tracing::info!(
                layer,
                bias = norm,
                median,
                "keys of this layer stay in bf16: their biases are too large for 8 bits"
            );
            types.keys = KvDtype::Bf16;
        }
        types
    };
    key_bias_norms.iter().enumerate().map(types).collect()
}

/// As many blocks as fit the budget and the running sequences can fill. A context that does not fit is
/// shortened, unless it was asked for.
fn cache_size(
    shape: &Shape,
    options: &LoadOptions,
    layers: Vec<KvTypes>,
) -> Result<(usize, KvCacheSpec)> {
    let mut spec = KvCacheSpec {
        num_kv_heads: shape.num_kv_heads,
        head_dim: shape.head_dim,
        num_blocks: 0,
        num_host_blocks: 0,
        layers,
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
    let swappable = usize::try_from(options.swap_bytes / block_bytes).unwrap_or(usize::MAX);
    spec.num_host_blocks = swappable.min(fillable);
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
            swap_bytes: 0,
            max_num_seqs: 3,
            kv_dtype: KvDtype::F32,
        }
    }

    fn sized(options: &LoadOptions) -> Result<(usize, KvCacheSpec)> {
        cache_size(&SHAPE, options, kv_types(options.kv_dtype, &[0.0; 2]))
    }

    #[test]
    fn the_cache_is_bounded_by_memory_and_by_use() {
        let (len, spec) = sized(&options(None, 7)).expect("fits");
        assert_eq!((len, spec.num_blocks), (100, 7));
        let (len, spec) = sized(&options(Some(64), 1000)).expect("fits");
        assert_eq!((len, spec.num_blocks, spec.num_host_blocks), (64, 6, 0));
        for (blocks, expected) in [(4, 4), (1000, 6)] {
            let mut options = options(Some(64), 1000);
            options.swap_bytes = blocks * BLOCK_BYTES + 1;
            let (_, spec) = sized(&options).expect("fits");
            assert_eq!(spec.num_host_blocks, expected);
        }
    }

    #[test]
    fn a_context_is_shortened_only_when_nobody_asked_for_it() {
        let (len, spec) = sized(&options(None, 2)).expect("shortened");
        assert_eq!((len, spec.num_blocks), (64, 2));
        for error in [
            sized(&options(Some(100), 2)).expect_err("asked for"),
            sized(&options(None, 0)).expect_err("nothing fits"),
        ] {
            assert!(error.to_string().contains("bytes of cache"), "{error}");
        }
        let error = sized(&options(Some(101), 1000)).expect_err("longer than the model");
        assert!(
            error.to_string().contains("101") && error.to_string().contains("100"),
            "{error}"
        );
    }

    #[test]
    fn eight_bits_and_scales_take_their_share() {
        let mut options = options(None, 0);
        options.kv_dtype = KvDtype::Int8;
        let types = kv_types(KvDtype::Int8, &[0.0; 2]);
        // Two layers, keys and values, 32 tokens: 8 bytes and a scale.
        let block = 2 * 2 * 32 * (8 + 4);
        options.kv_cache_bytes = 5 * block;
        let (_, spec) = cache_size(&SHAPE, &options, types).expect("fits");
        assert_eq!((spec.num_blocks, spec.block_bytes() as u64), (5, block));
    }

    #[test]
    fn keys_with_large_biases_stay_wide_in_an_8_bit_cache_only() {
        let norms = [605.0, 22.0, 20.0, 100.0, 25.0, 921.0, 22.0];
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            assert_eq!(kv_types(dtype, &norms), [KvTypes::both(dtype); 7]);
        }
        let wide: Vec<usize> = kv_types(KvDtype::Int8, &norms)
            .iter()
            .enumerate()
            .filter(|(_, types)| types.keys == KvDtype::Bf16)
            .map(|(layer, _)| layer)
            .collect();
        assert_eq!(wide, [0, 5], "100 is below five times 22");
        let none = kv_types(KvDtype::Int8, &[0.0; 4]);
        assert_eq!(none, [KvTypes::both(KvDtype::Int8); 4]);
    }
}
