//! Greedy decoding of many prompts at once with a key-value cache, for scores. The server does not
//! use it.

use super::matmul::Store;
use super::model::{Shape, linear};
use super::ops::{self, Direction, RopeTable};
use crate::dataset::{HeldOut, MAX_ANSWER_TOKENS};
use crate::skills::Skill;
use crate::tokenizer::{IM_END_ID, Tokenizer};

/// Prompts decoded side by side.
const BATCH: usize = 64;

/// Right answers and prompts of each skill, in the order of [`Skill::ALL`].
pub type Score = [(usize, usize); Skill::ALL.len()];

/// Decodes every prompt and compares with its answer, letter for letter.
pub fn score(shape: &Shape, params: &[f32], tokenizer: &Tokenizer, prompts: &[HeldOut]) -> Score {
    let mut score = Score::default();
    for (prompt, answer) in prompts
        .iter()
        .zip(answers(shape, params, tokenizer, prompts))
    {
        let entry = &mut score[prompt.skill.index()];
        entry.1 += 1;
        entry.0 += usize::from(answer.as_ref() == Some(&prompt.answer));
    }
    score
}

/// What the model says to every prompt; none where it does not end its turn.
pub fn answers(
    shape: &Shape,
    params: &[f32],
    tokenizer: &Tokenizer,
    prompts: &[HeldOut],
) -> Vec<Option<String>> {
    let mut texts = Vec::with_capacity(prompts.len());
    for batch in prompts.chunks(BATCH) {
        let ids: Vec<Vec<u32>> = batch
            .iter()
            .map(|p| tokenizer.encode(&p.prompt()))
            .collect();
        for answer in generate(shape, params, &ids, MAX_ANSWER_TOKENS) {
            let ended = answer.split_last().filter(|(last, _)| **last == IM_END_ID);
            texts.push(ended.map(|(_, ids)| tokenizer.decode(ids)));
        }
    }
    texts
}

/// The most likely continuation of each prompt, up to its `<|im_end|>`, which is included.
pub fn generate(
    shape: &Shape,
    params: &[f32],
    prompts: &[Vec<u32>],
    max_new: usize,
) -> Vec<Vec<u32>> {
    let rope = RopeTable::new(shape.context, shape.head_dim());
    let mut caches: Vec<Cache> = prompts.iter().map(|_| Cache::new(shape)).collect();
    let mut answers: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
    let mut pending: Vec<(usize, Vec<u32>)> = prompts
        .iter()
        .cloned()
        .enumerate()
        .filter(|(_, ids)| ids.len() + max_new <= shape.context)
        .collect();
    while !pending.is_empty() {
        let next = step(shape, params, &rope, &mut caches, &pending);
        let sequences: Vec<usize> = pending.iter().map(|(sequence, _)| *sequence).collect();
        pending.clear();
        for (sequence, token) in sequences.into_iter().zip(next) {
            answers[sequence].push(token);
            if token != IM_END_ID && answers[sequence].len() < max_new {
                pending.push((sequence, vec![token]));
            }
        }
    }
    answers
}

/// Keys and values of one sequence, `[layer][position][2 width]`.
struct Cache {
    layers: Vec<Vec<f32>>,
}

impl Cache {
    fn new(shape: &Shape) -> Self {
        Self {
            layers: vec![Vec::new(); shape.layers],
        }
    }
}

/// Runs all pending tokens through the model; returns the best next token of each sequence.
fn step(
    shape: &Shape,
    params: &[f32],
    rope: &RopeTable,
    caches: &mut [Cache],
    pending: &[(usize, Vec<u32>)],
) -> Vec<u32> {
    let (d, f) = (shape.width, shape.ffn);
    let mut x: Vec<f32> = Vec::new();
    for &token in pending.iter().flat_map(|(_, ids)| ids) {
        x.extend_from_slice(&params[token as usize * d..][..d]);
    }
    let n = x.len() / d;
    let mut normed = vec![0.0; n * d];
    let mut qkv = vec![0.0; n * 3 * d];
    let mut attended = vec![0.0; n * d];
    let mut gate_up = vec![0.0; n * 2 * f];
    let mut activated = vec![0.0; n * f];
    for layer in 0..shape.layers {
        let at = shape.layer(layer);
        ops::rms_norm(&x, &params[at.norm..][..d], &mut normed);
        linear(&normed, &params[at.qkv..], d, 3 * d, &mut qkv, Store::Set);
        attend(shape, rope, layer, caches, pending, &mut qkv, &mut attended);
        linear(&attended, &params[at.out..], d, d, &mut x, Store::Add);
        ops::rms_norm(&x, &params[at.ffn_norm..][..d], &mut normed);
        linear(
            &normed,
            &params[at.gate_up..],
            d,
            2 * f,
            &mut gate_up,
            Store::Set,
        );
        ops::gated(&gate_up, f, &mut activated);
        linear(&activated, &params[at.down..], f, d, &mut x, Store::Add);
    }
    let mut last = Vec::with_capacity(pending.len() * d);
    let mut end = 0;
    for (_, ids) in pending {
        end += ids.len();
        last.extend_from_slice(&x[(end - 1) * d..end * d]);
    }
    let mut out = vec![0.0; last.len()];
    ops::rms_norm(&last, &params[shape.final_norm()..], &mut out);
    let mut logits = vec![0.0; pending.len() * shape.vocab];
    linear(&out, params, d, shape.vocab, &mut logits, Store::Set);
    logits.chunks_exact(shape.vocab).map(best).collect()
}

/// The first of the largest logits.
fn best(logits: &[f32]) -> u32 {
    let start = (0, f32::NEG_INFINITY);
    let (id, _) = logits.iter().enumerate().fold(
        start,
        |best, (id, v)| if *v > best.1 { (id, *v) } else { best },
    );
    id as u32
}

/// Rotates, stores and attends, row by row.
fn attend(
    shape: &Shape,
    rope: &RopeTable,
    layer: usize,
    caches: &mut [Cache],
    pending: &[(usize, Vec<u32>)],
    qkv: &mut [f32],
    attended: &mut [f32],
) {
    let (d, dim) = (shape.width, shape.head_dim());
    let scale = 1.0 / (dim as f32).sqrt();
    let sequences = pending
        .iter()
        .flat_map(|(sequence, ids)| std::iter::repeat_n(*sequence, ids.len()));
    for ((row, out), sequence) in qkv
        .chunks_exact_mut(3 * d)
        .zip(attended.chunks_exact_mut(d))
        .zip(sequences)
    {
        let cache = &mut caches[sequence].layers[layer];
        let position = cache.len() / (2 * d);
        let heads = row[..2 * d].chunks_exact_mut(dim);
        heads.for_each(|head| rope.rotate(head, position, Direction::Forward));
        cache.extend_from_slice(&row[d..]);
        out.fill(0.0);
        for (head, out) in out.chunks_exact_mut(dim).enumerate() {
            let q = &row[head * dim..][..dim];
            let mut p: Vec<f32> = cache
                .chunks_exact(2 * d)
                .map(|kv| {
                    scale
                        * kv[head * dim..][..dim]
                            .iter()
                            .zip(q)
                            .map(|(k, q)| k * q)
                            .sum::<f32>()
                })
                .collect();
            ops::softmax(&mut p);
            for (p, kv) in p.iter().zip(cache.chunks_exact(2 * d)) {
                out.iter_mut()
                    .zip(&kv[d + head * dim..][..dim])
                    .for_each(|(o, v)| *o += p * v);
            }
        }
    }
}
