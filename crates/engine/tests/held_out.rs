//! The bundled model on its held-out set, by exact match under greedy decoding. The same through the
//! engine as a user gets it. To see the score:
//! `cargo test --release -p engine --test held_out -- --nocapture`.
#![allow(clippy::print_stdout, reason = "the score is for whoever asks for it")]

mod support;

use backend_cpu::Precision;
use bundled::dataset::{HeldOut, MAX_ANSWER_TOKENS, held_out};
use bundled::prng::Prng;
use bundled::skills::Skill;
use bundled::tokenizer::{IM_END_ID, Tokenizer};
use serde_json::Value;
use support::{Setup, Subject, greedy};

/// Right answers of every skill and of all, in percent: what the model card promises.
const SKILL_FLOOR: f64 = 85.0;
const FLOOR: f64 = 95.0;
/// How far an 8-bit precision may be from 32 bits, over all prompts.
const INT8_DISTANCE: f64 = 1.0;

fn file(name: &str) -> &'static [u8] {
    let found = bundled::files().iter().find(|(known, _)| *known == name);
    found.expect("the file is bundled").1
}

/// Right answers and prompts of each skill.
fn score(subject: &Subject, prompts: &[HeldOut]) -> Vec<(Skill, usize, usize)> {
    let text = std::str::from_utf8(file("tokenizer.json")).expect("JSON is UTF-8");
    let tokenizer = Tokenizer::from_json(text).expect("the trainer wrote it");
    let rig = subject.start(&Setup {
        max_num_seqs: 64,
        max_num_batched_tokens: 1024,
        enable_prefix_caching: true,
        num_blocks: 2048,
        num_host_blocks: 0,
        max_model_len: 1024,
    });
    let request = |prompt: &HeldOut| {
        let ids = tokenizer.encode(&prompt.prompt());
        greedy(ids, MAX_ANSWER_TOKENS, vec![IM_END_ID])
    };
    let answers = rig.answers(prompts.iter().map(request).collect());
    let mut score: Vec<_> = Skill::ALL.iter().map(|skill| (*skill, 0, 0)).collect();
    for (prompt, tokens) in prompts.iter().zip(answers) {
        let ids: Vec<u32> = tokens.iter().map(|(id, _)| *id).collect();
        let entry = &mut score[prompt.skill.index()];
        entry.2 += 1;
        entry.1 += usize::from(prompt.is_answered_by(&ids, &tokenizer));
    }
    score
}

fn percent(right: usize, all: usize) -> f64 {
    100.0 * right as f64 / all as f64
}

fn overall(score: &[(Skill, usize, usize)]) -> f64 {
    let (right, all) = score.iter().fold((0, 0), |(r, a), s| (r + s.1, a + s.2));
    percent(right, all)
}

#[test]
fn the_score_is_what_the_model_card_promises() {
    let prompts = held_out();
    assert!(prompts.len() >= 1000);
    let full = score(&support::bundled(), &prompts);
    print_score(Precision::F32, &full);
    for (skill, right, all) in &full {
        assert!(
            percent(*right, *all) >= SKILL_FLOOR,
            "{} is too low",
            skill.name()
        );
    }
    assert!(overall(&full) >= FLOOR);
    for precision in [Precision::Int8Blocks, Precision::Int8, Precision::Int8Fast] {
        let score = score(&support::bundled().in_precision(precision), &prompts);
        print_score(precision, &score);
        let distance = overall(&full) - overall(&score);
        assert!(distance <= INT8_DISTANCE, "{precision}: {distance} lower");
    }
}

fn print_score(precision: Precision, score: &[(Skill, usize, usize)]) {
    for (skill, right, all) in score {
        let name = skill.name();
        let percent = percent(*right, *all);
        println!("{precision:<9} {name:<12} {right:>4} of {all:>4}  {percent:>5.1} %");
    }
    println!("{precision:<9} {:<12} {:>19.1} %", "all", overall(score));
}

/// If anything but the weights made the text, this would not matter.
#[test]
fn shuffling_one_layer_ruins_every_answer() {
    let mut weights = file("model.safetensors").to_vec();
    shuffle_layer(&mut weights, 0);
    let weights: &'static [u8] = weights.leak();
    let replace = |(name, bytes): &(&'static str, &'static [u8])| match *name {
        "model.safetensors" => (*name, weights),
        _ => (*name, *bytes),
    };
    let subject = support::with_files(bundled::files().iter().map(replace).collect());
    let sample: Vec<HeldOut> = held_out().into_iter().step_by(5).collect();
    let score = overall(&score(&subject, &sample));
    println!("with one layer shuffled: {score:.1} %");
    assert!(score < 10.0, "{score} %");
}

/// Permutes the 16-bit values of each of a layer's tensors.
fn shuffle_layer(safetensors: &mut [u8], layer: usize) {
    let (length, rest) = safetensors.split_at_mut(8);
    let length = u64::from_le_bytes((&*length).try_into().expect("eight bytes")) as usize;
    let (header, data) = rest.split_at_mut(length);
    let header: Value = serde_json::from_slice(header).expect("the header is JSON");
    let prefix = format!("model.layers.{layer}.");
    let mut prng = Prng::new(1);
    let mut num_shuffled = 0;
    for (name, tensor) in header.as_object().expect("an object") {
        if !name.starts_with(&prefix) {
            continue;
        }
        let at = |i: usize| tensor["data_offsets"][i].as_u64().expect("an offset") as usize;
        let (values, _) = data[at(0)..at(1)].as_chunks_mut::<2>();
        for i in (1..values.len()).rev() {
            values.swap(i, prng.below(i + 1));
        }
        num_shuffled += 1;
    }
    assert_eq!(num_shuffled, 9, "tensors of a layer");
}
