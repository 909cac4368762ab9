//! Real models through the whole engine: a request has the same greedy tokens and the same bits of
//! log-probability alone, in a batch, in chunks, with the prefix cache, and after preemption.

mod support;

use backend::KvDtype;
use backend_cpu::{Isa, Precision};
use engine::TokenId;
use support::{Drawn, Rig, Setup, Subject, greedy};

const NUM_TOKENS: usize = 40;
const NUM_PROMPTS: u32 = 3;
const MAX_MODEL_LEN: usize = 192;

/// Prompts that end just before a block border, so that decoding soon needs another block.
fn prompt(i: u32) -> Vec<TokenId> {
    (0..30).map(|t| (137 + 37 * t + 11 * i) % 1000).collect()
}

fn answer(rig: &Rig, prompt: Vec<TokenId>) -> Vec<Drawn> {
    let answers = rig.answers(vec![greedy(prompt, NUM_TOKENS, Vec::new())]);
    answers.into_iter().next().expect("one answer per request")
}

fn together(rig: &Rig) -> Vec<Vec<Drawn>> {
    let request = |i| greedy(prompt(i), NUM_TOKENS, Vec::new());
    rig.answers((0..NUM_PROMPTS).map(request).collect())
}

fn check(subject: &Subject) {
    let roomy = Setup {
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        enable_prefix_caching: false,
        num_blocks: 48,
        num_host_blocks: 0,
        max_model_len: MAX_MODEL_LEN,
    };
    let rig = subject.start(&roomy);
    let alone: Vec<_> = (0..NUM_PROMPTS).map(|i| answer(&rig, prompt(i))).collect();
    assert!(alone.iter().all(|tokens| tokens.len() == NUM_TOKENS));
    assert_ne!(alone[0], alone[1], "{}: prompts differ", subject.name);
    assert_eq!(together(&rig), alone, "{}: in a batch", subject.name);
    drop(rig);

    let chunks = Setup {
        max_num_batched_tokens: 7,
        ..roomy
    };
    let rig = subject.start(&chunks);
    assert_eq!(
        together(&rig),
        alone,
        "{}: in chunks of seven",
        subject.name
    );
    drop(rig);

    check_prefix_cache(subject);
    for num_host_blocks in [0, 8] {
        check_preemption(subject, &alone, num_host_blocks);
    }
    check_full_pool(subject);
}

/// Requests that share a prefix in a pool too small for them: blocks are shared, taken back, filled
/// by others and computed anew or brought back from the host, and whatever belongs to a block goes with it.
fn check_full_pool(subject: &Subject) {
    let setup = |num_blocks| Setup {
        max_num_seqs: 4,
        max_num_batched_tokens: 64,
        enable_prefix_caching: true,
        num_blocks,
        // Room for some of what is preempted.
        num_host_blocks: 3,
        max_model_len: 128,
    };
    let request = |i: u32| {
        // Two whole blocks in common, then a tail of its own.
        let tail = prompt(7 * i).into_iter().take(5 + i as usize);
        let tokens = prompt(0)
            .into_iter()
            .chain(prompt(1))
            .chain(prompt(2).into_iter().take(4));
        greedy(tokens.chain(tail).collect(), 30, Vec::new())
    };
    let requests = || (0..6).map(request).collect::<Vec<_>>();
    let roomy = subject.start(&setup(48));
    let expected: Vec<_> = requests()
        .into_iter()
        .flat_map(|request| roomy.answers(vec![request]))
        .collect();
    drop(roomy);
    let rig = subject.start(&setup(6));
    for round in 0..2 {
        let found = rig.answers(requests());
        assert_eq!(
            found, expected,
            "{}: a full pool, round {round}",
            subject.name
        );
    }
    let (hits, preemptions) = (
        rig.metrics.prefix_cache_hits_total.get(),
        rig.metrics.preemptions_total.get(),
    );
    assert!(hits > 0, "{}: prefixes were shared", subject.name);
    assert!(preemptions > 0, "{}: the pool was too small", subject.name);
}

/// What is in the cache is not computed again, and changes nothing.
fn check_prefix_cache(subject: &Subject) {
    let setup = |enable_prefix_caching| Setup {
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        enable_prefix_caching,
        num_blocks: 48,
        num_host_blocks: 0,
        max_model_len: MAX_MODEL_LEN,
    };
    let long: Vec<TokenId> = (0..NUM_PROMPTS).flat_map(prompt).collect();
    let off = subject.start(&setup(false));
    let expected = answer(&off, long.clone());
    drop(off);
    let rig = subject.start(&setup(true));
    let before = rig.computed_tokens();
    assert_eq!(
        answer(&rig, long.clone()),
        expected,
        "{}: a cold cache",
        subject.name
    );
    let cold = rig.computed_tokens() - before;
    assert_eq!(rig.metrics.prefix_cache_hits_total.get(), 0);
    assert_eq!(
        answer(&rig, long),
        expected,
        "{}: a warm cache",
        subject.name
    );
    let warm = rig.computed_tokens() - before - cold;
    let cached = rig.metrics.prefix_cache_hits_total.get();
    assert_eq!(
        cached, 64,
        "{}: two whole blocks of 90 tokens",
        subject.name
    );
    assert_eq!(
        cold - warm,
        cached,
        "{}: cached tokens were computed",
        subject.name
    );
}

/// The younger of two requests loses its blocks; every prompt has its turn at being the younger. With host
/// blocks, what it computed comes back and is not computed again.
fn check_preemption(subject: &Subject, alone: &[Vec<Drawn>], num_host_blocks: u64) {
    let tight = Setup {
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        enable_prefix_caching: false,
        // Both start with one block; each needs three in the end.
        num_blocks: 4,
        num_host_blocks,
        max_model_len: 96,
    };
    let rig = subject.start(&tight);
    for (i, expected) in alone.iter().enumerate() {
        let before = rig.metrics.preemptions_total.get();
        let computed = rig.computed_tokens();
        let older: Vec<TokenId> = prompt(100);
        let prompt_len = older.len();
        let answers = rig.answers(vec![
            greedy(older, NUM_TOKENS, Vec::new()),
            greedy(prompt(i as u32), NUM_TOKENS, Vec::new()),
        ]);
        let preemptions = rig.metrics.preemptions_total.get() - before;
        assert!(
            preemptions > 0,
            "{}: request {i} kept its blocks",
            subject.name
        );
        assert_eq!(answers[1], *expected, "{}: after preemption", subject.name);
        let once = 2 * (prompt_len + NUM_TOKENS - 1) as u64;
        assert_eq!(
            rig.computed_tokens() - computed == once,
            num_host_blocks > 0,
            "{}: tokens computed again",
            subject.name
        );
    }
}

const PRECISIONS: [Precision; 4] = [
    Precision::F32,
    Precision::Int8,
    Precision::Int8Fast,
    Precision::Int8Blocks,
];

/// In every precision. Precisions differ from each other: each has its own numbers.
fn check_precisions(subject: &Subject) {
    for precision in PRECISIONS {
        check(&subject.in_precision(precision));
    }
    let small = subject.in_precision(Precision::Int8Blocks);
    check(&small.with_kv(KvDtype::Int8));
}

#[test]
fn the_bundled_model_gives_the_same_bits() {
    check_precisions(&support::bundled());
}

#[test]
fn smollm2_gives_the_same_bits() {
    if let Some(subject) = support::smollm2() {
        check_precisions(&subject);
    }
}

/// Every level that this machine can execute gives the bits of the level without vectors.
#[test]
fn levels_of_instructions_give_the_same_bits() {
    let setup = Setup {
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        enable_prefix_caching: false,
        num_blocks: 48,
        num_host_blocks: 0,
        max_model_len: MAX_MODEL_LEN,
    };
    for precision in PRECISIONS {
        let subject = support::bundled().in_precision(precision);
        let expected = together(&subject.on(Isa::Scalar).start(&setup));
        for isa in Isa::supported() {
            let subject = subject.on(isa);
            let found = together(&subject.start(&setup));
            assert_eq!(found, expected, "{}", subject.name);
        }
    }
}
