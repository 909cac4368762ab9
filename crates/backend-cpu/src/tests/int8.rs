//! What 8-bit precisions promise: the arithmetic of `quant` bit for bit, a byte per weight, and no
//! number that is not finite served as a result.

use ::backend::{Int8Data, RowOutput};
use quant::{BLOCK, GROUP, Granularity, Quantised};

use super::*;

/// Activations of the suite lie between ±1 with one outlier of 50, whose group rounds the others to
/// steps of 0.4; a narrow matrix with a small weight under the outlier then errs by a tenth of what its
/// products add up to without signs. The tests below compare with `quant` bit for bit.
const INT8: Tolerances = Tolerances {
    linear_f32: 0.2,
    linear_bf16: 0.2,
    linear_f16: 0.2,
    ..EXACT
};

mod scalar {
    use super::*;
    ::backend::conformance_suite!(target(Isa::Scalar, Precision::Int8, 1), INT8);
}

mod avx2 {
    use super::*;
    ::backend::conformance_suite!(target(Isa::Avx2, Precision::Int8, 2), INT8);
}

mod avx512 {
    use super::*;
    ::backend::conformance_suite!(target(Isa::Avx512, Precision::Int8, 3), INT8);
}

mod scalar_fast {
    use super::*;
    ::backend::conformance_suite!(target(Isa::Scalar, Precision::Int8Fast, 3), INT8);
}

mod avx2_fast {
    use super::*;
    ::backend::conformance_suite!(target(Isa::Avx2, Precision::Int8Fast, 1), INT8);
}

mod avx512_blocks {
    use super::*;
    ::backend::conformance_suite!(target(Isa::Avx512, Precision::Int8Blocks, 2), INT8);
}

mod avx512_fast {
    use super::*;
    ::backend::conformance_suite!(target(Isa::Avx512, Precision::Int8Fast, 2), INT8);
}

const INPUTS: usize = 3 * GROUP + 5;
const OUTPUTS: usize = 45;

fn weight(data: WeightData) -> LinearWeight {
    let weight = HostTensor::new(OUTPUTS, INPUTS, data).expect("a matrix");
    LinearWeight::new(weight, Some(numbers(3, OUTPUTS))).expect("a bias")
}

/// What `quant` makes of the same numbers, with one scale per output.
fn definition(w: &[f32], x: &[f32], granularity: Granularity) -> Vec<f32> {
    product(w, x, [Granularity::Row, granularity])
}

/// What `quant` makes of weights and activations.
fn product(w: &[f32], x: &[f32], [of_w, of_x]: [Granularity; 2]) -> Vec<f32> {
    let w = Quantised::new(w, OUTPUTS, INPUTS, of_w).expect("finite");
    let x = Quantised::new(x, x.len() / INPUTS, INPUTS, of_x).expect("finite");
    quant::linear(&x, &w, Some(&numbers(3, OUTPUTS))).expect("fits")
}

#[test]
fn layers_follow_the_definition_in_every_checkpoint_type() {
    let rows = 7;
    let x = numbers(2, rows * INPUTS);
    let halves: Vec<bf16> = numbers(1, OUTPUTS * INPUTS)
        .into_iter()
        .map(bf16::from_f32)
        .collect();
    let wide: Vec<f32> = halves.iter().map(|w| w.to_f32()).collect();
    for (precision, granularity) in [
        (Precision::Int8, Granularity::Groups(GROUP)),
        (Precision::Int8Fast, Granularity::Row),
    ] {
        let mut backend = target(Isa::Avx512, precision, 2);
        let step = backend
            .begin_step(&batch(&[(0, rows, &[0])]))
            .expect("a step");
        let x_tensor = backend.upload(rows, INPUTS, &x);
        for data in [
            WeightData::F32(wide.clone()),
            WeightData::Bf16(halves.clone()),
            WeightData::F16(wide.iter().map(|w| half::f16::from_f32(*w)).collect()),
        ] {
            let expected = definition(&data.clone().into_f32(), &x, granularity);
            let linear = backend.load_linear(weight(data)).expect("memory");
            let y = backend.linear(&x_tensor, &linear, &step).expect("fits");
            assert_eq!(backend.read(&y), expected, "{precision}");
        }
        // The head has groups in both precisions, whatever form its input already has.
        let head = weight(WeightData::F32(wide.clone())).into_head();
        let head = backend.load_linear(head).expect("memory");
        let y = backend.linear(&x_tensor, &head, &step).expect("fits");
        let expected = definition(&wide, &x, Granularity::Groups(GROUP));
        assert_eq!(backend.read(&y), expected, "{precision}");
    }
}

/// Small models have blocks of 32 everywhere; in large ones a matrix with outliers gets groups, and only
/// that one.
#[test]
fn weights_get_the_scales_that_they_need() {
    let x = numbers(2, 3 * INPUTS);
    let even = numbers(1, OUTPUTS * INPUTS);
    let mut outliers = even.clone();
    outliers.iter_mut().step_by(INPUTS).for_each(|w| *w = 100.0);
    let [blocks, groups] = [BLOCK, GROUP].map(Granularity::Groups);
    for (precision, w, granularities) in [
        (Precision::Int8Blocks, &even, [blocks, blocks]),
        (Precision::Int8Guarded, &even, [Granularity::Row, groups]),
        (Precision::Int8Guarded, &outliers, [groups, groups]),
        (Precision::Int8, &outliers, [Granularity::Row, groups]),
    ] {
        for head in [false, true] {
            let mut backend = target(Isa::Avx512, precision, 2);
            let mut layer = weight(WeightData::F32(w.clone()));
            if head {
                layer = layer.into_head();
            }
            let linear = backend.load_linear(layer).expect("memory");
            let x_tensor = backend.upload(3, INPUTS, &x);
            let step = backend.begin_step(&batch(&[(0, 3, &[0])])).expect("a step");
            let y = backend.linear(&x_tensor, &linear, &step).expect("fits");
            assert_eq!(
                backend.read(&y),
                product(w, &x, granularities),
                "{precision}"
            );
            let in_groups = usize::from(granularities[0] != Granularity::Row);
            let found = backend.weights();
            assert_eq!((found.groups, found.rows), (in_groups, 1 - in_groups));
        }
    }
}

/// A tied table is there once, in 8 bits: tokens get the rows that the head multiplies with.
#[test]
fn a_tied_table_shares_the_bytes_of_the_head() {
    let w = numbers(1, OUTPUTS * INPUTS);
    let table = || {
        let data = WeightData::F32(w.clone());
        HostTensor::new(OUTPUTS, INPUTS, data).expect("a table")
    };
    let mut step = batch(&[(0, 3, &[0])]);
    step.token_ids = vec![0, 44, 33];
    for (precision, granularity) in [
        (Precision::Int8, Granularity::Row),
        (Precision::Int8Blocks, Granularity::Groups(BLOCK)),
    ] {
        let mut backend = target(Isa::Avx512, precision, 2);
        let (embedding, head) = backend.load_tied(table()).expect("memory");
        let shared = head.table().expect("8 bits");
        assert_eq!(std::rc::Rc::strong_count(&shared), 3);
        let step_ = backend.begin_step(&step).expect("a step");
        let found = backend
            .embed(&embedding, Ids::Tokens, &step_)
            .expect("fits");
        let rounded = Quantised::new(&w, OUTPUTS, INPUTS, granularity).expect("finite");
        let wide = rounded.dequantise();
        let rows = step.token_ids.iter().map(|id| *id as usize * INPUTS);
        let expected: Vec<f32> = rows.flat_map(|at| wide[at..at + INPUTS].to_vec()).collect();
        assert_eq!(backend.read(&found), expected, "{precision}");
    }
    let mut backend = target(Isa::Avx512, Precision::F32, 2);
    let (embedding, head) = backend.load_tied(table()).expect("memory");
    assert!(head.table().is_none());
    let step_ = backend.begin_step(&step).expect("a step");
    let found = backend
        .embed(&embedding, Ids::Tokens, &step_)
        .expect("fits");
    assert_eq!(backend.read(&found)[..INPUTS], w[..INPUTS]);
}

/// The form that a tensor carries is that of its elements as they are now.
#[test]
fn changed_elements_are_quantised_again() {
    let mut backend = target(Isa::Avx512, Precision::Int8, 1);
    let wide = numbers(1, OUTPUTS * INPUTS);
    let linear = weight(WeightData::F32(wide.clone()));
    let linear = backend.load_linear(linear).expect("memory");
    let step = backend.begin_step(&batch(&[(0, 2, &[0])])).expect("a step");
    let (x, more) = (numbers(4, 2 * INPUTS), numbers(5, 2 * INPUTS));
    let mut tensor = backend.upload(2, INPUTS, &x);
    backend.linear(&tensor, &linear, &step).expect("fits");
    let added = backend.upload(2, INPUTS, &more);
    backend.add(&mut tensor, &added).expect("fits");
    let y = backend.linear(&tensor, &linear, &step).expect("fits");
    let sum: Vec<f32> = x.iter().zip(&more).map(|(x, more)| x + more).collect();
    assert_eq!(
        backend.read(&y),
        definition(&wide, &sum, Granularity::Groups(GROUP))
    );
}

/// Every matrix of a layer and the head hold a byte per weight and a scale per output, and no copy in
/// another type.
#[test]
fn resident_weights_are_bytes() {
    for precision in [Precision::Int8, Precision::Int8Fast] {
        let mut backend = target(Isa::Avx512, precision, 1);
        let layer = Layer::load(&mut backend, KvDtype::F32);
        let linears = [
            &layer.qkv,
            &layer.out,
            &layer.gate_up,
            &layer.down,
            &layer.head,
        ];
        for linear in linears {
            let padded = linear.outputs().next_multiple_of(kernels_cpu::PANEL_WIDTH);
            assert_eq!(
                linear.bytes(),
                padded * (linear.inputs() + 4),
                "{precision}"
            );
        }
    }
}

#[test]
fn weights_that_are_not_finite_are_refused() {
    for precision in [Precision::Int8, Precision::Int8Fast] {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut data = numbers(1, OUTPUTS * INPUTS);
            data[7 * INPUTS] = bad;
            let mut backend = target(Isa::Avx512, precision, 1);
            let refused = backend.load_linear(weight(WeightData::F32(data)));
            let error = refused.expect_err("not finite");
            assert!(matches!(error, BackendError::InvalidWeights(_)));
            assert!(error.to_string().contains("output 7"), "{error}");
        }
    }
}

/// NaN in an embedding reaches the sampler as such: its row is reported, its neighbour is served.
#[test]
fn what_is_not_finite_is_reported() {
    for precision in [Precision::Int8, Precision::Int8Fast] {
        for bad in [bf16::NAN, bf16::INFINITY] {
            let mut backend = target(Isa::Avx512, precision, 2);
            let mut layer = Layer::load(&mut backend, KvDtype::F32);
            let mut table = numbers(6, VOCAB * HIDDEN);
            let mut batch = batch(&[(0, 1, &[0]), (0, 1, &[1])]);
            batch.token_ids = vec![5, 6];
            table[5 * HIDDEN + 9] = bad.to_f32();
            let table = HostTensor::new(VOCAB, HIDDEN, WeightData::F32(table));
            layer.embedding = backend
                .load_tensor(table.expect("a table"))
                .expect("memory");
            let rows = layer.sample(&mut backend, &batch).rows;
            assert!(matches!(rows[0], RowOutput::NonFinite), "{precision}");
            assert!(!matches!(rows[1], RowOutput::NonFinite), "{precision}");
        }
    }
}

/// Integers of a checkpoint reach the kernel as they are, −128 and scales by groups included; with one
/// scale for each token, groups are quantised again.
#[test]
fn stored_integers_are_not_quantised_again() {
    let x = numbers(2, 4 * INPUTS);
    let values: Vec<i8> = (0..OUTPUTS * INPUTS)
        .map(|i| (i * 89 % 256) as u8 as i8)
        .collect();
    assert!(values.contains(&-128));
    for group_len in [INPUTS, GROUP, BLOCK, 4] {
        let groups = INPUTS.div_ceil(group_len);
        let scales: Vec<f32> = (0..OUTPUTS * groups)
            .map(|i| 0.001 + (i % 7) as f32)
            .collect();
        let stored = Int8Data {
            values: values.clone(),
            scales: scales.clone(),
            columns: INPUTS,
            group_len,
        };
        let kept = match group_len {
            INPUTS => Some(Granularity::Row),
            4 => None,
            group_len => Some(Granularity::Groups(group_len)),
        };
        for precision in [Precision::Int8, Precision::Int8Fast] {
            let mut backend = target(Isa::Avx512, precision, 2);
            let linear = backend
                .load_linear(weight(WeightData::Int8(stored.clone())))
                .expect("memory");
            let x_tensor = backend.upload(4, INPUTS, &x);
            let step = backend.begin_step(&batch(&[(0, 4, &[0])])).expect("a step");
            let found = backend.linear(&x_tensor, &linear, &step).expect("fits");
            let wished = match precision {
                Precision::Int8Fast => Granularity::Row,
                _ => Granularity::Groups(GROUP),
            };
            let kept = kept.filter(|kept| *kept == Granularity::Row || wished != Granularity::Row);
            let (w, of_x) = match kept {
                Some(kept) => (
                    Quantised::from_parts(values.clone(), scales.clone(), OUTPUTS, INPUTS, kept),
                    kept.of_activations(wished),
                ),
                None => {
                    let wide = WeightData::Int8(stored.clone()).into_f32();
                    (
                        Quantised::new(&wide, OUTPUTS, INPUTS, Granularity::Row),
                        wished,
                    )
                }
            };
            let x = Quantised::new(&x, 4, INPUTS, of_x).expect("finite");
            let bias = numbers(3, OUTPUTS);
            let expected = quant::linear(&x, &w.expect("fits"), Some(&bias)).expect("fits");
            assert_eq!(backend.read(&found), expected, "{precision} {group_len}");
        }
    }
}
