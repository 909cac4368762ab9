//! Operations that work on rows alone: tables, norms, projections, rotation, element-wise functions.

use super::compare::{assert_close, assert_same_bits, row_scales};
use super::scene::{
    MIXED, Scene, VOCAB_SIZE, WEIGHT_TYPES, WeightType, features, host, matrix, plain_step, span,
    weight,
};
use super::{TestBackend, Tolerances};
use crate::{
    Activation, Expert, Experts, HostTensor, Ids, LinearWeight, Norm, NormKind, ReferenceBackend,
    Rope, Routing, WeightData,
};

/// `embed` by token and by position, from tables of every type.
pub fn embed_matches_reference<B: TestBackend>(target: &mut B, tolerances: &Tolerances) {
    for kind in WEIGHT_TYPES {
        for columns in [1, 7, 64, 100] {
            for ids in [Ids::Tokens, Ids::Positions] {
                let found = embed(target, kind, columns, ids);
                let expected = embed(&mut ReferenceBackend, kind, columns, ids);
                let scales = row_scales(&expected, columns);
                let case = (kind, columns, ids);
                assert_close(&found, &expected, &scales, tolerances.embed, case);
            }
        }
    }
}

fn embed<B: TestBackend>(backend: &mut B, kind: WeightType, columns: usize, ids: Ids) -> Vec<f32> {
    let table = host(kind, VOCAB_SIZE, columns, matrix(1, VOCAB_SIZE, columns));
    let table = backend.load_tensor(table).expect("the table loads");
    let step = backend
        .begin_step(&Scene::new(MIXED, 7).batch(MIXED))
        .expect("the batch is valid");
    let rows = backend.embed(&table, ids, &step).expect("every id exists");
    backend.read(&rows)
}

/// `select` keeps order and repeats, `split` cuts where it is told; both copy bits.
pub fn select_and_split_are_exact<B: TestBackend>(target: &mut B) {
    let (rows, columns) = (6, 19);
    let data = matrix(2, rows, columns);
    for logit_rows in [vec![5], vec![0, 1, 2, 3, 4, 5], vec![4, 1, 1, 5, 0, 1]] {
        let step = plain_step(target, rows, logit_rows.clone());
        let x = target.upload(rows, columns, &data);
        let selected = target.select(&x, &step).expect("the rows exist");
        let expected: Vec<f32> = logit_rows
            .iter()
            .flat_map(|row| data[row * columns..(row + 1) * columns].to_vec())
            .collect();
        assert_same_bits(&target.read(&selected), &expected, ("select", logit_rows));
    }
    for widths in [vec![19], vec![16, 3], vec![1, 17, 1], vec![8, 4, 7]] {
        let x = target.upload(rows, columns, &data);
        let parts = target.split(x, &widths).expect("the widths add up");
        assert_eq!(parts.len(), widths.len(), "parts of {widths:?}");
        let mut start = 0;
        for (part, width) in parts.iter().zip(&widths) {
            let expected: Vec<f32> = data
                .chunks(columns)
                .flat_map(|row| row[start..start + width].to_vec())
                .collect();
            assert_same_bits(&target.read(part), &expected, ("split", &widths, start));
            start += width;
        }
    }
}

/// `norm` over whole rows and over heads, with and without a bias, on the step's rows and on
/// selected ones; and rows of one value, whose variance is zero.
pub fn norm_matches_reference<B: TestBackend>(target: &mut B, tolerances: &Tolerances) {
    for (columns, width) in [
        (1, 1),
        (7, 7),
        (64, 64),
        (100, 100),
        (576, 576),
        (96, 32),
        (15, 5),
    ] {
        for kind in [NormKind::Rms, NormKind::Layer] {
            for (with_bias, eps) in [(false, 1e-5), (true, 1e-6)] {
                let case = NormCase {
                    columns,
                    width,
                    kind,
                    with_bias,
                    eps,
                };
                for rows in [1, 3, 66] {
                    let mut data = matrix(3, rows, columns);
                    data[..columns].fill(0.25);
                    let found = case.run(target, rows, &data);
                    let expected = case.run(&mut ReferenceBackend, rows, &data);
                    let scales = row_scales(&expected, columns);
                    let context = (&case, rows);
                    assert_close(&found, &expected, &scales, tolerances.norm, context);
                }
            }
        }
    }
}

#[derive(Debug)]
struct NormCase {
    columns: usize,
    width: usize,
    kind: NormKind,
    with_bias: bool,
    eps: f32,
}

impl NormCase {
    /// Rows need not be as many as the step's tokens: the final norm sees selected ones.
    fn run<B: TestBackend>(&self, backend: &mut B, rows: usize, data: &[f32]) -> Vec<f32> {
        let mut vector = |seed| {
            backend
                .load_tensor(HostTensor::vector(matrix(seed, 1, self.columns)))
                .expect("the vector loads")
        };
        let norm = Norm {
            kind: self.kind,
            width: self.width,
            weight: vector(4),
            bias: self.with_bias.then(|| vector(5)),
            eps: self.eps,
        };
        let step = plain_step(backend, 5, vec![0; rows]);
        let x = backend.upload(rows, self.columns, data);
        let y = backend.norm(&x, &norm, &step).expect("the shapes fit");
        backend.read(&y)
    }
}

/// `linear` for every weight type, odd shapes and numbers of rows, with rows of zeros and outliers.
pub fn linear_matches_reference<B: TestBackend>(target: &mut B, tolerances: &Tolerances) {
    const SHAPES: &[(usize, usize)] = &[
        (1, 1),
        (3, 5),
        (16, 16),
        (17, 33),
        (64, 48),
        (100, 7),
        (255, 257),
        (576, 49),
    ];
    for kind in WEIGHT_TYPES {
        let bound = match kind {
            WeightType::F32 => tolerances.linear_f32,
            WeightType::Bf16 => tolerances.linear_bf16,
            WeightType::F16 => tolerances.linear_f16,
        };
        for (i, (inputs, outputs)) in SHAPES.iter().enumerate() {
            let weight = weight(kind, *inputs, *outputs, i % 2 == 0);
            for rows in [1, 2, 3, 5, 8, 17, 33, 66] {
                let mut x = matrix(6, rows, *inputs);
                x[0] = 50.0;
                x[(rows - 1) * inputs..].fill(0.0);
                let found = linear(target, &weight, rows, &x);
                let expected = linear(&mut ReferenceBackend, &weight, rows, &x);
                let magnitudes: Vec<f32> = x.iter().map(|x| x.abs()).collect();
                let scales = linear(&mut ReferenceBackend, &absolute(&weight), rows, &magnitudes);
                let case = ("linear", kind, inputs, outputs, rows);
                assert_close(&found, &expected, &scales, bound, case);
            }
        }
    }
}

fn linear<B: TestBackend>(
    backend: &mut B,
    weight: &LinearWeight,
    rows: usize,
    x: &[f32],
) -> Vec<f32> {
    let inputs = weight.weight.columns;
    let weight = backend.load_linear(weight.clone()).expect("weights load");
    let step = plain_step(backend, rows, Vec::new());
    let x = backend.upload(rows, inputs, x);
    let y = backend.linear(&x, &weight, &step).expect("the shapes fit");
    backend.read(&y)
}

/// The same weight with every sign removed: it turns `linear` into the scale of its error.
fn absolute(weight: &LinearWeight) -> LinearWeight {
    let magnitudes = |data: Vec<f32>| data.into_iter().map(f32::abs).collect::<Vec<_>>();
    LinearWeight {
        weight: HostTensor {
            data: WeightData::F32(magnitudes(weight.weight.data.clone().into_f32())),
            ..weight.weight
        },
        bias: weight.bias.clone().map(magnitudes),
        role: weight.role,
    }
}

/// `rope` over whole and partly turning heads, one head and several, positions from 0 on.
pub fn rope_matches_reference<B: TestBackend>(target: &mut B, tolerances: &Tolerances) {
    let far = [span(0, 0, 1), span(1, 199, 200)];
    for (head_dim, rotary_dim) in [
        (2, 2),
        (6, 2),
        (8, 8),
        (40, 16),
        (64, 64),
        (80, 20),
        (128, 96),
    ] {
        for num_heads in [1, 3] {
            for spans in [MIXED, &far] {
                let case = RopeCase {
                    head_dim,
                    rotary_dim,
                    num_heads,
                };
                let found = case.run(target, spans);
                let expected = case.run(&mut ReferenceBackend, spans);
                let scales = row_scales(&expected, num_heads * head_dim);
                assert_close(&found, &expected, &scales, tolerances.rope, &case);
            }
        }
    }
}

#[derive(Debug)]
struct RopeCase {
    head_dim: usize,
    rotary_dim: usize,
    num_heads: usize,
}

impl RopeCase {
    fn run<B: TestBackend>(&self, backend: &mut B, spans: &[super::scene::Span]) -> Vec<f32> {
        let width = self.num_heads * self.head_dim;
        let rope = load_rope(backend, self.head_dim, self.rotary_dim, 200);
        let step = backend
            .begin_step(&Scene::new(spans, 7).batch(spans))
            .expect("the batch is valid");
        let data = features(7, spans, width);
        let mut x = backend.upload(data.len() / width, width, &data);
        backend.rope(&mut x, &rope, &step).expect("the shapes fit");
        backend.read(&x)
    }
}

/// A rotation table for the first `max_positions` positions, cosines and sines times 1.19.
pub(super) fn load_rope<B: TestBackend>(
    backend: &mut B,
    head_dim: usize,
    rotary_dim: usize,
    max_positions: usize,
) -> Rope<B::Tensor> {
    let angle = |position: usize, i: usize| {
        position as f64 * 10_000f64.powf(-2.0 * i as f64 / rotary_dim as f64)
    };
    let table = (0..max_positions)
        .flat_map(|position| {
            let angles = move |i| angle(position, i);
            let cos = (0..rotary_dim / 2).map(move |i| (1.19 * angles(i).cos()) as f32);
            let sin = (0..rotary_dim / 2).map(move |i| (1.19 * angles(i).sin()) as f32);
            cos.chain(sin)
        })
        .collect();
    let table = HostTensor::new(max_positions, rotary_dim, WeightData::F32(table))
        .expect("the table is well formed");
    Rope {
        head_dim,
        rotary_dim,
        table: backend.load_tensor(table).expect("the table loads"),
    }
}

/// Every activation of the suite.
pub(super) const ACTIVATIONS: [Activation; 6] = [
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::SoftCap(1.0),
    Activation::SoftCap(30.0),
];

/// `activate` from the smallest to the largest inputs; NaN is not hidden.
pub fn activations_match_reference<B: TestBackend>(target: &mut B, tolerances: &Tolerances) {
    let mut data: Vec<f32> = (-400..=400).map(|i| i as f32 * 0.03).collect();
    data.extend([-0.0, 1e-30, -1e-30, 1e-4, 1e4, -1e4, 1e30, -1e30, f32::NAN]);
    let magnitudes: Vec<f32> = data.iter().map(|x| x.abs()).collect();
    for activation in ACTIVATIONS {
        // One long row, and as many short ones.
        for (rows, columns) in [(1, data.len()), (data.len(), 1)] {
            let found = activate(target, rows, columns, &data, activation);
            let expected = activate(&mut ReferenceBackend, rows, columns, &data, activation);
            let bound = tolerances.activate;
            assert_close(&found, &expected, &magnitudes, bound, (activation, rows));
        }
    }
}

fn activate<B: TestBackend>(
    backend: &mut B,
    rows: usize,
    columns: usize,
    data: &[f32],
    activation: Activation,
) -> Vec<f32> {
    let mut x = backend.upload(rows, columns, data);
    backend
        .activate(&mut x, activation)
        .expect("activations have no shape");
    backend.read(&x)
}

/// `route` and `mix_experts`: one expert and several, with tokens that share none; and each row the
/// same bits as alone.
pub fn experts_match_reference<B: TestBackend>(target: &mut B, tolerances: &Tolerances) {
    for (num_experts, top_k) in [(1, 1), (3, 1), (5, 2), (8, 8)] {
        for renormalise in [false, true] {
            for rows in [1, 2, 17] {
                let case = ExpertsCase {
                    num_experts,
                    routing: Routing { top_k, renormalise },
                };
                let (logits, x) = (
                    matrix(21, rows, num_experts),
                    matrix(22, rows, ExpertsCase::HIDDEN),
                );
                let found = case.run(target, &logits, &x);
                let expected = case.run(&mut ReferenceBackend, &logits, &x);
                let scales = row_scales(&expected, ExpertsCase::HIDDEN);
                let bound = 10.0 * tolerances.linear_f32;
                assert_close(&found, &expected, &scales, bound, (&case, rows));
                let last = rows - 1;
                let alone = case.run(
                    target,
                    &logits[last * num_experts..],
                    &x[last * ExpertsCase::HIDDEN..],
                );
                let together = &found[last * ExpertsCase::HIDDEN..];
                assert_same_bits(&alone, together, (&case, rows));
            }
        }
    }
}

#[derive(Debug)]
struct ExpertsCase {
    num_experts: usize,
    routing: Routing,
}

impl ExpertsCase {
    const HIDDEN: usize = 24;
    const WIDTH: usize = 40;

    fn run<B: TestBackend>(&self, backend: &mut B, logits: &[f32], x: &[f32]) -> Vec<f32> {
        let rows = x.len() / Self::HIDDEN;
        let mut load = |seed, inputs: usize, outputs: usize| {
            let weight = host(
                WeightType::F32,
                outputs,
                inputs,
                matrix(seed, outputs, inputs),
            );
            let weight = LinearWeight::new(weight, None).expect("there is no bias");
            backend.load_linear(weight).expect("weights load")
        };
        let experts = (0..self.num_experts as u64).map(|expert| Expert {
            gate_up: load(100 + expert, Self::HIDDEN, 2 * Self::WIDTH),
            down: load(200 + expert, Self::WIDTH, Self::HIDDEN),
        });
        let experts = Experts {
            experts: experts.collect(),
            width: Self::WIDTH,
            activation: Activation::Silu,
        };
        let step = plain_step(backend, rows, Vec::new());
        let logits = backend.upload(rows, self.num_experts, logits);
        let x = backend.upload(rows, Self::HIDDEN, x);
        let weights = backend
            .route(logits, &self.routing)
            .expect("no more experts than there are");
        let mixed = backend.mix_experts(&x, &weights, &experts, &step);
        backend.read(&mixed.expect("the shapes fit"))
    }
}

/// `mul` and `add`, NaN included.
pub fn mul_and_add_match_reference<B: TestBackend>(target: &mut B, tolerances: &Tolerances) {
    for (rows, columns) in [(1, 1), (1, 7), (3, 64), (33, 101)] {
        let mut x = matrix(8, rows, columns);
        x[rows * columns / 2] = f32::NAN;
        let y = matrix(9, rows, columns);
        let product: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x * y).collect();
        let sum: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();

        let right = target.upload(rows, columns, &y);
        let mut left = target.upload(rows, columns, &x);
        target.mul(&mut left, &right).expect("the shapes are equal");
        let (found, scales) = (target.read(&left), row_scales(&product, columns));
        let case = ("mul", rows, columns);
        assert_close(&found, &product, &scales, tolerances.elementwise, case);

        let mut left = target.upload(rows, columns, &x);
        target.add(&mut left, &right).expect("the shapes are equal");
        let (found, scales) = (target.read(&left), row_scales(&sum, columns));
        let case = ("add", rows, columns);
        assert_close(&found, &sum, &scales, tolerances.elementwise, case);
    }
}
