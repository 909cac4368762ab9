//! Promises about rows that a target keeps bit for bit, without asking the reference.

use super::TestBackend;
use super::attention::{AttentionCase, KV_TYPES};
use super::compare::assert_same_bits;
use super::operations::{ACTIVATIONS, load_rope};
use super::scene::{MIXED, Scene, Span, WEIGHT_TYPES, features, matrix, plain_step, span, weight};
use crate::{HostTensor, Norm, NormKind, Result};

/// Columns of the rows under test; odd, and longer than any vector register.
const WIDTH: usize = 90;
/// Numbers of rows around the sizes that kernels are tiled by.
const ROWS: [usize; 13] = [2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33, 64, 65];

/// Every operation gives a row the same bits alone and in a batch of any size, and a row of NaN
/// leaves the others as they are.
pub fn rows_alone_equal_rows_in_a_batch<B: TestBackend>(target: &mut B) {
    for kind in WEIGHT_TYPES {
        for outputs in [1, 47, 64] {
            let weight = target
                .load_linear(weight(kind, WIDTH, outputs, true))
                .expect("weights load");
            check(target, ("linear", kind, outputs), |target, x, step| {
                target.linear(&x, &weight, step)
            });
            check(target, ("linear_add", kind, outputs), |target, x, step| {
                // The residual may be anything that belongs to the row.
                let mut residual = target.linear(&x, &weight, step)?;
                target.linear_add(&mut residual, &x, &weight, step)?;
                Ok(residual)
            });
        }
    }
    for kind in [NormKind::Rms, NormKind::Layer] {
        let norm = load_norm(target, kind, 30);
        check(target, ("norm", kind), |target, x, step| {
            target.norm(&x, &norm, step)
        });
        check(target, ("norm_quant", kind), |target, x, step| {
            target.norm_quant(&x, &norm, step)
        });
    }
    for activation in ACTIVATIONS {
        check(target, ("activate", activation), |target, mut x, _| {
            target.activate(&mut x, activation)?;
            Ok(x)
        });
        check(target, ("gated", activation), |target, x, _| {
            target.gated(x, WIDTH / 2, activation)
        });
    }
    let rope = load_rope(target, 30, 20, 200);
    check(target, "rope", |target, mut x, step| {
        target.rope(&mut x, &rope, step)?;
        Ok(x)
    });
}

/// Runs one operation on batches and on each of their rows.
fn check<B: TestBackend>(
    target: &mut B,
    case: impl std::fmt::Debug,
    mut operation: impl FnMut(&mut B, B::Tensor, &B::Step) -> Result<B::Tensor>,
) {
    let mut run = |target: &mut B, spans: &[Span], poison: Option<usize>| {
        let rows: usize = spans.iter().map(|s| s.end - s.start).sum();
        let mut data = features(31, spans, WIDTH);
        if let Some(row) = poison {
            data[row * WIDTH..(row + 1) * WIDTH].fill(f32::NAN);
        }
        let step = target
            .begin_step(&Scene::new(spans, 7).batch(spans))
            .expect("the batch is valid");
        let x = target.upload(rows, WIDTH, &data);
        let y = operation(target, x, &step).expect("the shapes fit");
        target.read(&y)
    };
    let most = ROWS[ROWS.len() - 1];
    let alone: Vec<Vec<f32>> = (0..most)
        .map(|row| run(target, &[span(0, 3 + row, 4 + row)], None))
        .collect();
    for rows in ROWS {
        let spans = [span(0, 3, 3 + rows)];
        let poisoned = rows / 2;
        let batch = run(target, &spans, None);
        let with_nan = run(target, &spans, Some(poisoned));
        let columns = batch.len() / rows;
        for (row, alone) in alone.iter().take(rows).enumerate() {
            let features = row * columns..(row + 1) * columns;
            assert_same_bits(&batch[features.clone()], alone, (&case, rows, row));
            if row != poisoned {
                assert_same_bits(&with_nan[features], alone, (&case, rows, row, "beside NaN"));
            }
        }
    }
}

fn load_norm<B: TestBackend>(target: &mut B, kind: NormKind, width: usize) -> Norm<B::Tensor> {
    let mut vector = |seed| {
        target
            .load_tensor(HostTensor::vector(matrix(seed, 1, WIDTH)))
            .expect("the vector loads")
    };
    Norm {
        kind,
        width,
        weight: vector(32),
        bias: Some(vector(33)),
        eps: 1e-5,
    }
}

/// The provided operations give the bits of the primitives they stand for.
pub fn fusions_equal_primitives<B: TestBackend>(target: &mut B) {
    for rows in [1, 5, 33] {
        norm_quant_equals_norm(target, rows);
        linear_add_equals_linear_and_add(target, rows);
        gated_equals_split_activate_mul(target, rows);
    }
    rope_store_kv_equals_rope_and_store(target);
}

fn norm_quant_equals_norm<B: TestBackend>(target: &mut B, rows: usize) {
    let data = matrix(34, rows, WIDTH);
    let step = plain_step(target, rows, Vec::new());
    for kind in WEIGHT_TYPES {
        let weight = target
            .load_linear(weight(kind, WIDTH, 47, true))
            .expect("weights load");
        let norm = load_norm(target, NormKind::Rms, WIDTH);
        let x = target.upload(rows, WIDTH, &data);
        let plain = target.norm(&x, &norm, &step).expect("the shapes fit");
        let fused = target.norm_quant(&x, &norm, &step).expect("the shapes fit");
        let (found, expected) = (target.read(&fused), target.read(&plain));
        assert_same_bits(&found, &expected, ("norm_quant", rows));
        // What counts is the linear it feeds.
        let plain = target.linear(&plain, &weight, &step).expect("shapes fit");
        let fused = target.linear(&fused, &weight, &step).expect("shapes fit");
        let (found, expected) = (target.read(&fused), target.read(&plain));
        assert_same_bits(&found, &expected, ("linear of norm_quant", kind, rows));
    }
}

fn linear_add_equals_linear_and_add<B: TestBackend>(target: &mut B, rows: usize) {
    let step = plain_step(target, rows, Vec::new());
    for kind in WEIGHT_TYPES {
        for with_bias in [false, true] {
            let weight = target
                .load_linear(weight(kind, WIDTH, 47, with_bias))
                .expect("weights load");
            let x = target.upload(rows, WIDTH, &matrix(35, rows, WIDTH));
            let residual = matrix(36, rows, 47);
            let mut plain = target.upload(rows, 47, &residual);
            let y = target.linear(&x, &weight, &step).expect("the shapes fit");
            target.add(&mut plain, &y).expect("the shapes fit");
            let mut fused = target.upload(rows, 47, &residual);
            target
                .linear_add(&mut fused, &x, &weight, &step)
                .expect("the shapes fit");
            let (found, expected) = (target.read(&fused), target.read(&plain));
            assert_same_bits(&found, &expected, ("linear_add", kind, with_bias, rows));
        }
    }
}

fn gated_equals_split_activate_mul<B: TestBackend>(target: &mut B, rows: usize) {
    for activation in ACTIVATIONS {
        for width in [1, 17, 64] {
            let data = matrix(37, rows, 2 * width);
            let x = target.upload(rows, 2 * width, &data);
            let mut parts = target.split(x, &[width, width]).expect("the widths add up");
            let up = parts.pop().expect("two parts");
            let mut gate = parts.pop().expect("two parts");
            target
                .activate(&mut gate, activation)
                .expect("activations have no shape");
            target.mul(&mut gate, &up).expect("the shapes are equal");
            let x = target.upload(rows, 2 * width, &data);
            let fused = target.gated(x, width, activation).expect("the width fits");
            let (found, expected) = (target.read(&fused), target.read(&gate));
            assert_same_bits(&found, &expected, ("gated", activation, width, rows));
        }
    }
}

/// Compared are the rotated queries and the attention over what was stored; whether a fused form
/// leaves rotated keys behind is its own affair.
fn rope_store_kv_equals_rope_and_store<B: TestBackend>(target: &mut B) {
    for types in KV_TYPES {
        if !target.keeps(types) {
            continue;
        }
        for rotary_dim in [None, Some(16), Some(8)] {
            let case = AttentionCase::new(6, 2, 16, types);
            let plain = rotated_attention(target, &case, rotary_dim, Form::Primitives);
            let fused = rotated_attention(target, &case, rotary_dim, Form::Fused);
            assert_same_bits(&fused, &plain, ("rope_store_kv", types, rotary_dim));
        }
    }
}

#[derive(Clone, Copy)]
enum Form {
    Primitives,
    Fused,
}

/// Queries after rotation, then attention output.
fn rotated_attention<B: TestBackend>(
    target: &mut B,
    case: &AttentionCase,
    rotary_dim: Option<usize>,
    form: Form,
) -> Vec<f32> {
    let scene = Scene::new(MIXED, 7);
    let mut cache = case.alloc(target, scene.num_blocks);
    let rope = rotary_dim.map(|dim| load_rope(target, case.spec.head_dim, dim, 200));
    let step = target
        .begin_step(&scene.batch(MIXED))
        .expect("the batch is valid");
    let mut rows = |seed, width| {
        let data = features(seed, MIXED, width);
        target.upload(data.len() / width, width, &data)
    };
    let mut q = rows(38, case.q_width());
    let mut k = rows(39, case.kv_width());
    let v = rows(40, case.kv_width());
    match form {
        Form::Fused => target
            .rope_store_kv(&mut cache, 1, &mut q, &mut k, &v, rope.as_ref(), &step)
            .expect("the shapes fit"),
        Form::Primitives => {
            if let Some(rope) = &rope {
                target.rope(&mut q, rope, &step).expect("the shapes fit");
                target.rope(&mut k, rope, &step).expect("the shapes fit");
            }
            target
                .store_kv(&mut cache, 1, &k, &v, &step)
                .expect("the shapes fit");
        }
    }
    let out = target
        .attention(&q, &cache, 1, &case.spec, &step)
        .expect("the shapes fit");
    let mut result = target.read(&q);
    result.extend(target.read(&out));
    result
}
