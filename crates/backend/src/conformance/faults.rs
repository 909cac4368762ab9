//! Operands that do not fit are refused with an error, and the target stays usable.

use super::TestBackend;
use super::attention::AttentionCase;
use super::operations::load_rope;
use super::scene::{WeightType, matrix, plain_step, weight};
use crate::{BackendError, HostTensor, KvDtype, KvTypes, Norm, NormKind, Result, SampleBatch};

/// Each method that has shapes to check returns [`BackendError::Shape`] when they do not fit.
pub fn operands_that_do_not_fit_are_errors<B: TestBackend>(target: &mut B) {
    let step = plain_step(target, 3, vec![0, 2]);
    let x = target.upload(3, 16, &matrix(1, 3, 16));
    let other = target.upload(3, 15, &matrix(1, 3, 15));

    let linear = target
        .load_linear(weight(WeightType::F32, 16, 8, true))
        .expect("weights load");
    refused("linear", target.linear(&other, &linear, &step));
    let mut residual = target.upload(3, 9, &matrix(1, 3, 9));
    let added = target.linear_add(&mut residual, &x, &linear, &step);
    refused("linear_add", added);

    for (columns, width) in [(15, 15), (16, 5), (16, 0)] {
        let vector = HostTensor::vector(matrix(2, 1, columns));
        let norm = Norm {
            kind: NormKind::Rms,
            width,
            weight: target.load_tensor(vector).expect("the vector loads"),
            bias: None,
            eps: 1e-5,
        };
        refused("norm", target.norm(&x, &norm, &step));
        refused("norm_quant", target.norm_quant(&x, &norm, &step));
    }

    let mut left = target.upload(3, 16, &matrix(1, 3, 16));
    refused("mul", target.mul(&mut left, &other));
    refused("add", target.add(&mut left, &other));
    refused("select", {
        let short = target.upload(2, 16, &matrix(1, 2, 16));
        target.select(&short, &step)
    });
    let whole = target.upload(3, 16, &matrix(1, 3, 16));
    refused("split", target.split(whole, &[8, 7]));

    refuse_heads(target, &step);

    let logits = target.upload(1, 16, &matrix(1, 1, 16));
    refused(
        "sample",
        target.sample(logits, &SampleBatch::default(), step),
    );

    let step = plain_step(target, 3, Vec::new());
    let y = target.linear(&x, &linear, &step).expect("the shapes fit");
    assert_eq!(target.read(&y).len(), 3 * 8, "usable after errors");
}

fn refuse_heads<B: TestBackend>(target: &mut B, step: &B::Step) {
    let mut x = target.upload(3, 16, &matrix(1, 3, 16));
    let rope = load_rope(target, 6, 4, 8);
    refused("rope", target.rope(&mut x, &rope, step));
    let rope = load_rope(target, 8, 4, 2);
    refused("position", target.rope(&mut x, &rope, step));

    let case = AttentionCase::new(4, 2, 8, KvTypes::both(KvDtype::F32));
    let mut cache = case.alloc(target, 16);
    let narrow = target.upload(3, 15, &matrix(1, 3, 15));
    let stored = target.store_kv(&mut cache, 0, &narrow, &x, step);
    refused("key width", stored);
    let stored = target.store_kv(&mut cache, 2, &x, &x, step);
    refused("layer of store_kv", stored);
    let q = target.upload(3, 32, &matrix(1, 3, 32));
    let attended = target.attention(&narrow, &cache, 0, &case.spec, step);
    refused("query width", attended);
    let attended = target.attention(&q, &cache, 2, &case.spec, step);
    refused("layer of attention", attended);
}

fn refused<T>(what: &str, result: Result<T>) {
    match result {
        Err(BackendError::Shape(_)) => {}
        Err(other) => panic!("{what}: {other} is not a shape error"),
        Ok(_) => panic!("{what} accepts operands that do not fit"),
    }
}
