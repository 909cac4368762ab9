//! The paged cache's kernels: rotation, keys and values stored, and attention over them.

use ::backend::{AttentionSpec, BLOCK_SIZE, BackendError, Result, Rope};

use crate::CudaBackend;
use crate::device::{Arg, Device, Launch};
use crate::kv_cache::CudaKvCache;
use crate::linear::int;
use crate::rows::{ROW_THREADS, expect_equal};
use crate::step::{Column, CudaStep, SPLIT};
use crate::tensor::CudaTensor;

const _: () = assert!(SPLIT.is_multiple_of(BLOCK_SIZE), "splits are whole blocks");

impl<D: Device> CudaBackend<D> {
    pub(crate) fn check_rope(
        x: &CudaTensor<D>,
        rope: &Rope<CudaTensor<D>>,
        step: &CudaStep<D>,
    ) -> Result<()> {
        expect_equal("rotated tokens", x.rows, step.num_tokens)?;
        expect_equal("rope table", rope.table.columns, rope.rotary_dim)?;
        let fits = rope.head_dim > 0 && x.columns.is_multiple_of(rope.head_dim);
        if !fits || rope.rotary_dim > rope.head_dim || !rope.rotary_dim.is_multiple_of(2) {
            return Err(BackendError::Shape(format!(
                "{} rotated of {} in rows of {}",
                rope.rotary_dim, rope.head_dim, x.columns
            )));
        }
        if step.max_position >= rope.table.rows {
            return Err(BackendError::Shape(format!(
                "position {} of {}",
                step.max_position, rope.table.rows
            )));
        }
        Ok(())
    }

    /// Stores keys and values, rotating queries in place and keys on their way where asked.
    pub(crate) fn store(
        &self,
        cache: &CudaKvCache<D>,
        layer: usize,
        rows: [Option<&CudaTensor<D>>; 3],
        rope: Option<&Rope<CudaTensor<D>>>,
        step: &CudaStep<D>,
    ) -> Result<()> {
        let width = cache.num_kv_heads * cache.head_dim;
        let (layer, memory) = cache.layer(layer)?;
        let [q, Some(k), Some(v)] = rows else {
            return Err(BackendError::Shape("keys without values".into()));
        };
        for (what, rows) in [("keys", k), ("values", v)] {
            expect_equal(what, rows.columns, width)?;
            expect_equal("stored tokens", rows.rows, step.num_tokens)?;
        }
        check_block(step, cache.num_blocks)?;
        if let Some(rope) = rope {
            Self::check_rope(k, rope, step)?;
            expect_equal("rotated head", rope.head_dim, cache.head_dim)?;
            if let Some(q) = q {
                Self::check_rope(q, rope, step)?;
                q.twin.replace(None);
            }
        }
        let args = [
            q.map_or(Ok(Arg::Null), CudaTensor::arg)?,
            k.arg()?,
            v.arg()?,
            rope.map_or(Ok(Arg::Null), |rope| rope.table.arg())?,
            step.arg(Column::Positions),
            step.arg(Column::Slots),
            memory,
            int(q.map_or(0, |q| q.pitch))?,
            int(k.pitch)?,
            int(v.pitch)?,
            int(q.map_or(0, |q| q.columns / cache.head_dim))?,
            int(cache.num_kv_heads)?,
            int(cache.head_dim)?,
            int(rope.map_or(0, |rope| rope.rotary_dim / 2))?,
        ];
        self.launch_rows(layer.kernels.store, [step.num_tokens, 1], &args)
    }

    /// Scores, softmax and sums of values; splits side by side where one block each would leave processors idle.
    pub(crate) fn attend(
        &self,
        q: &CudaTensor<D>,
        cache: &CudaKvCache<D>,
        layer: usize,
        spec: &AttentionSpec,
        step: &CudaStep<D>,
    ) -> Result<CudaTensor<D>> {
        let (found, _) = cache.layer(layer)?;
        expect_equal("query tokens", q.rows, step.num_tokens)?;
        expect_equal("query width", q.columns, spec.num_heads * spec.head_dim)?;
        expect_equal("head features", spec.head_dim, cache.head_dim)?;
        expect_equal("key/value heads", spec.num_kv_heads, cache.num_kv_heads)?;
        if !spec.num_heads.is_multiple_of(spec.num_kv_heads) || spec.window == Some(0) {
            return Err(BackendError::Shape(format!("{spec:?}")));
        }
        check_block(step, cache.num_blocks)?;
        // A window beyond everything that the cache can hold is none.
        let spec = &AttentionSpec {
            window: spec
                .window
                .filter(|window| *window <= cache.num_blocks * BLOCK_SIZE),
            ..spec.clone()
        };
        let blocks = step.num_tiles * spec.num_kv_heads;
        let slots = 2 * self.device.properties().multiprocessors as usize;
        if step.max_split > 0 && blocks < slots {
            return self.attend_in_parts(q, cache, layer, spec, step);
        }
        let out = CudaTensor::new(&self.device, q.rows, q.columns)?;
        let (mut args, sizes) = attention_args(q, cache, layer, spec, step)?;
        args.push(out.arg()?);
        args.extend(sizes);
        let grid = [step.num_tiles, spec.num_heads];
        self.launch_rows(found.kernels.attention, grid, &args)?;
        drop(args);
        Ok(out)
    }

    /// Splits on blocks of their own, for few rows with long contexts: partial results, then the merge.
    fn attend_in_parts(
        &self,
        q: &CudaTensor<D>,
        cache: &CudaKvCache<D>,
        layer: usize,
        spec: &AttentionSpec,
        step: &CudaStep<D>,
    ) -> Result<CudaTensor<D>> {
        let splits = step.max_split + 1;
        let parts = q.rows * spec.num_heads * splits;
        let stats = self.device.scratch(parts * 8, "attention")?;
        let values = self
            .device
            .scratch(parts * spec.head_dim * 4, "attention")?;
        let (found, _) = cache.layer(layer)?;
        let (inputs, sizes) = attention_args(q, cache, layer, spec, step)?;
        let mut args = inputs;
        args.extend([Arg::Buffer(&stats, 0), Arg::Buffer(&values, 0)]);
        args.extend(sizes);
        args.extend([int(splits)?, Arg::Int(0)]);
        self.device.launch(&Launch {
            kernel: found.kernels.partial,
            threads: ROW_THREADS,
            grid: [step.num_tiles as u32, spec.num_heads as u32, splits as u32],
            dynamic_bytes: 0,
            args: &args,
        })?;
        let form = self.produced_form();
        self.produce(
            q.rows,
            q.columns,
            form,
            |[out, twin, scales], [pitch, kind]| {
                let args = [
                    Arg::Buffer(&stats, 0),
                    Arg::Buffer(&values, 0),
                    step.arg(Column::Positions),
                    out,
                    twin,
                    scales,
                    int(spec.num_heads)?,
                    int(spec.head_dim)?,
                    int(spec.window.unwrap_or(0))?,
                    int(splits)?,
                    Arg::Int(0),
                    pitch,
                    kind,
                ];
                self.launch_rows("attention_combine", [q.rows, 1], &args)
            },
        )
    }
}

/// What both forms of attention begin with, and the sizes that follow their outputs.
type AttentionArgs<'a, B> = (Vec<Arg<'a, B>>, Vec<Arg<'a, B>>);

fn attention_args<'a, D: Device>(
    q: &'a CudaTensor<D>,
    cache: &'a CudaKvCache<D>,
    layer: usize,
    spec: &AttentionSpec,
    step: &'a CudaStep<D>,
) -> Result<AttentionArgs<'a, D::Buffer>> {
    // Scores become powers of two; a soft cap comes before, so its factor is the other one.
    let (scale, cap) = match spec.soft_cap {
        Some(cap) => (spec.scale / cap, cap * std::f32::consts::LOG2_E),
        None => (spec.scale * std::f32::consts::LOG2_E, 0.0),
    };
    let inputs = vec![
        q.arg()?,
        cache.layer(layer)?.1,
        step.arg(Column::Tiles),
        step.arg(Column::Tables),
    ];
    let sizes = vec![
        int(spec.num_heads)?,
        int(spec.num_kv_heads)?,
        int(spec.head_dim)?,
        int(q.pitch)?,
        int(spec.window.unwrap_or(0))?,
        Arg::Float(scale),
        Arg::Float(cap),
    ];
    Ok((inputs, sizes))
}

fn check_block<D: Device>(step: &CudaStep<D>, num_blocks: usize) -> Result<()> {
    if step.max_block < num_blocks {
        return Ok(());
    }
    Err(BackendError::Shape(format!(
        "block {} of {num_blocks}",
        step.max_block
    )))
}
