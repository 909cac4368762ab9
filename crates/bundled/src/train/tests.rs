use super::decode::generate;
use super::model::{Row, Shape, init, loss_and_gradient};
use super::ops::RopeTable;
use crate::prng::Prng;

const TINY: Shape = Shape {
    vocab: 11,
    width: 8,
    layers: 2,
    heads: 2,
    ffn: 12,
    context: 64,
};

fn random_params(prng: &mut Prng) -> Vec<f32> {
    // Every parameter is random, so that no gradient is hidden behind a zero.
    init(&TINY, 1)
        .iter()
        .map(|p| p + 0.3 * prng.normal())
        .collect()
}

fn random_row(prng: &mut Prng) -> Row {
    let lengths = vec![5, 1, 9];
    let tokens: Vec<u32> = (0..15).map(|_| prng.below(TINY.vocab) as u32).collect();
    let targets = vec![(1, 3), (3, 7), (5, 0), (8, 10), (14, 2)];
    Row {
        tokens,
        lengths,
        targets,
    }
}

fn loss(params: &[f32], row: &Row) -> f64 {
    let rope = RopeTable::new(TINY.context, TINY.head_dim());
    loss_and_gradient(&TINY, params, row, &rope, 1.0, &mut vec![0.0; params.len()])
}

#[test]
fn the_gradient_agrees_with_finite_differences() {
    let mut prng = Prng::new(11);
    let (params, row) = (random_params(&mut prng), random_row(&mut prng));
    let rope = RopeTable::new(TINY.context, TINY.head_dim());
    let mut grad = vec![0.0; params.len()];
    loss_and_gradient(&TINY, &params, &row, &rope, 1.0, &mut grad);
    for tensor in TINY.tensors() {
        let range = tensor.offset..tensor.offset + tensor.rows * tensor.cols;
        // Along the gradient itself the slope is its length: no cancellation can hide a mistake.
        let length = grad[range.clone()]
            .iter()
            .map(|g| f64::from(g * g))
            .sum::<f64>()
            .sqrt();
        let moved = |by: f64| {
            let mut moved = params.clone();
            for i in range.clone() {
                moved[i] += (by * f64::from(grad[i]) / length) as f32;
            }
            loss(&moved, &row)
        };
        let step = 4e-3;
        let slope = (moved(step) - moved(-step)) / (2.0 * step);
        assert!(
            (slope - length).abs() < 0.01 * length + 2e-3,
            "{}: slope {slope}, gradient {length}",
            tensor.name
        );
    }
}

#[test]
fn documents_of_a_row_do_not_see_each_other() {
    let mut prng = Prng::new(12);
    let (params, row) = (random_params(&mut prng), random_row(&mut prng));
    let mut start = 0;
    let mut apart = 0.0;
    for len in row.lengths.clone() {
        let inside = |at: usize| (start..start + len).contains(&at);
        let alone = Row {
            tokens: row.tokens[start..start + len].to_vec(),
            lengths: vec![len],
            targets: row
                .targets
                .iter()
                .filter(|t| inside(t.0))
                .map(|t| (t.0 - start, t.1))
                .collect(),
        };
        apart += loss(&params, &alone);
        start += len;
    }
    assert!((apart - loss(&params, &row)).abs() < 1e-4);
}

#[test]
fn decoding_follows_the_trained_distribution() {
    let mut prng = Prng::new(13);
    let params = random_params(&mut prng);
    let prompts: Vec<Vec<u32>> = [3, 7, 1]
        .iter()
        .map(|len| (0..*len).map(|_| prng.below(TINY.vocab) as u32).collect())
        .collect();
    for (prompt, answer) in prompts.iter().zip(generate(&TINY, &params, &prompts, 6)) {
        let mut tokens = prompt.clone();
        for token in answer {
            let of = |target: u32| {
                let row = Row {
                    tokens: tokens.clone(),
                    lengths: vec![tokens.len()],
                    targets: vec![(tokens.len() - 1, target)],
                };
                loss(&params, &row)
            };
            assert!((0..TINY.vocab as u32).all(|other| of(token) <= of(other) + 1e-4));
            tokens.push(token);
        }
    }
}
