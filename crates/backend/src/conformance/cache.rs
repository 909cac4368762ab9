//! Promises about the paged cache that a target keeps bit for bit, without asking the reference.

use super::TestBackend;
use super::attention::{AttentionCase, HEADS, KV_TYPES, NUM_LAYERS, Outputs};
use super::compare::assert_same_bits;
use super::scene::{MIXED, Scene, Span, features, span};
use crate::{BLOCK_SIZE, BlockCopy, BlockId};

/// A spread of what the promises are checked for: every layout of heads, with a window and a cap on
/// every other one.
fn cases<B: TestBackend>(target: &B) -> Vec<AttentionCase> {
    let mut cases = Vec::new();
    for (i, (num_heads, num_kv_heads, head_dim)) in HEADS.iter().enumerate() {
        for types in KV_TYPES.into_iter().filter(|types| target.keeps(*types)) {
            let mut case = AttentionCase::new(*num_heads, *num_kv_heads, *head_dim, types);
            if i % 2 == 1 {
                case.spec.window = Some(17);
                case.spec.soft_cap = Some(3.0);
            }
            cases.push(case);
        }
    }
    cases
}

fn assert_same_outputs(found: &Outputs, expected: &Outputs, case: &AttentionCase, what: &str) {
    assert!(found.keys().eq(expected.keys()), "{what}: {case:?}");
    for (place, expected) in expected {
        assert_same_bits(&found[place], expected, (what, place, case));
    }
}

/// A prompt computed in chunks of any size has the same attention as the whole prompt.
pub fn chunks_equal_the_whole<B: TestBackend>(target: &mut B) {
    let whole = [span(0, 0, 101)];
    let scene = Scene::new(&whole, 7);
    for case in cases(target) {
        let expected = case.run(target, &scene, &[whole.to_vec()]);
        for size in [1, 7, 31, 32, 33, 64] {
            let chunks: Vec<Vec<Span>> = (0..101)
                .step_by(size)
                .map(|start| vec![span(0, start, (start + size).min(101))])
                .collect();
            let found = case.run(target, &scene, &chunks);
            assert_same_outputs(&found, &expected, &case, &format!("chunks of {size}"));
        }
    }
}

/// A sequence has the same attention alone and among others, whatever their order in the batch.
pub fn sequences_do_not_see_each_other<B: TestBackend>(target: &mut B) {
    let scene = Scene::new(MIXED, 7);
    let reversed: Vec<Span> = MIXED.iter().rev().copied().collect();
    for case in cases(target) {
        let together = case.after_history(target, &scene, MIXED);
        let turned = case.after_history(target, &scene, &reversed);
        assert_same_outputs(&turned, &together, &case, "order");
        let mut alone = Outputs::new();
        for s in MIXED {
            alone.extend(case.after_history(target, &scene, &[*s]));
        }
        assert_same_outputs(&alone, &together, &case, "alone");
    }
}

/// Which blocks hold a sequence changes nothing.
pub fn placement_does_not_matter<B: TestBackend>(target: &mut B) {
    for case in cases(target) {
        let expected = case.after_history(target, &Scene::new(MIXED, 7), MIXED);
        for stride in [2, 5] {
            let found = case.after_history(target, &Scene::new(MIXED, stride), MIXED);
            assert_same_outputs(&found, &expected, &case, "placement");
        }
    }
}

/// What an earlier owner left in a block is never read, not even times zero: its NaN stays its own.
pub fn stale_slots_are_never_read<B: TestBackend>(target: &mut B) {
    let spans = [span(0, 0, 3), span(1, 0, 40)];
    let scene = Scene::new(&spans, 7);
    for case in cases(target) {
        let expected = case.run(target, &scene, &[spans.to_vec()]);
        let mut cache = case.alloc(target, scene.num_blocks);
        fill_with_nan(target, &case, &mut cache, &scene);
        let found = case.step(target, &mut cache, &scene, &spans);
        assert_same_outputs(&found, &expected, &case, "stale slots");
    }
}

fn fill_with_nan<B: TestBackend>(
    target: &mut B,
    case: &AttentionCase,
    cache: &mut B::KvCache,
    scene: &Scene,
) {
    let rows = scene.num_blocks * BLOCK_SIZE;
    let everything = Scene {
        tables: vec![(0..scene.num_blocks as BlockId).collect()],
        num_blocks: scene.num_blocks,
    };
    let step = target
        .begin_step(&everything.batch(&[span(0, 0, rows)]))
        .expect("the batch is valid");
    let nan = target.upload(
        rows,
        case.kv_width(),
        &vec![f32::NAN; rows * case.kv_width()],
    );
    for layer in 0..NUM_LAYERS {
        target
            .store_kv(cache, layer, &nan, &nan, &step)
            .expect("the shapes fit");
    }
}

/// `copy_blocks` copies every layer, in order, and later writes to the source do not show.
pub fn block_copies_are_complete_and_ordered<B: TestBackend>(target: &mut B) {
    let prompt = [span(0, 0, 70)];
    let next = [span(0, 70, 72)];
    // The first sequence owns blocks 0 to 2; the second shares none of them.
    let scene = |table: [BlockId; 3]| Scene {
        tables: vec![table.to_vec()],
        num_blocks: 8,
    };
    let copy = |from, to| BlockCopy { from, to };
    for case in cases(target) {
        let mut cache = case.alloc(target, 8);
        case.step(target, &mut cache, &scene([0, 1, 2]), &prompt);
        // Block 3 is passed on to block 4 before it is overwritten.
        let copies = [copy(0, 3), copy(3, 4), copy(1, 3), copy(2, 7), copy(5, 0)];
        target
            .copy_blocks(&mut cache, &copies)
            .expect("the blocks exist");
        overwrite(target, &case, &mut cache, &scene([0, 1, 2]), &prompt);
        let found = case.step(target, &mut cache, &scene([4, 3, 7]), &next);
        let steps = [prompt.to_vec(), next.to_vec()];
        let mut expected = case.run(target, &scene([0, 1, 2]), &steps);
        expected.retain(|(_, position), _| *position >= 70);
        assert_same_outputs(&found, &expected, &case, "copied blocks");
    }
}

/// Blocks come back from the host as they went there, to other places, through other host blocks and among
/// copies inside the cache, whatever happened to their old places meanwhile.
pub fn host_blocks_keep_what_they_are_given<B: TestBackend>(target: &mut B) {
    let (prompt, next) = ([span(0, 0, 70)], [span(0, 70, 72)]);
    let scene = |table: [BlockId; 3]| Scene {
        tables: vec![table.to_vec()],
        num_blocks: 8,
    };
    let copy = |(from, to)| BlockCopy { from, to };
    for case in cases(target) {
        let mut cache = case.alloc_with_host(target, 8, 3);
        case.step(target, &mut cache, &scene([0, 1, 2]), &prompt);
        // Host blocks are 8 to 10. Block 6 is passed on to block 8 and back before the rest.
        let out = [(0, 6), (6, 8), (1, 9), (2, 10)].map(copy);
        target.copy_blocks(&mut cache, &out).expect("they exist");
        overwrite(target, &case, &mut cache, &scene([0, 1, 2]), &prompt);
        overwrite(target, &case, &mut cache, &scene([4, 5, 6]), &prompt);
        let back = [(10, 7), (9, 10), (10, 3), (8, 4), (4, 5), (0, 8), (8, 4)].map(copy);
        target.copy_blocks(&mut cache, &back).expect("they exist");
        let found = case.step(target, &mut cache, &scene([5, 3, 7]), &next);
        let steps = [prompt.to_vec(), next.to_vec()];
        let mut expected = case.run(target, &scene([0, 1, 2]), &steps);
        expected.retain(|(_, position), _| *position >= 70);
        assert_same_outputs(&found, &expected, &case, "host blocks");
        assert!(
            target.copy_blocks(&mut cache, &[copy((11, 0))]).is_err(),
            "there are three host blocks"
        );
    }
}

fn overwrite<B: TestBackend>(
    target: &mut B,
    case: &AttentionCase,
    cache: &mut B::KvCache,
    scene: &Scene,
    spans: &[Span],
) {
    let data = features(77, spans, case.kv_width());
    let step = target
        .begin_step(&scene.batch(spans))
        .expect("the batch is valid");
    let other = target.upload(data.len() / case.kv_width(), case.kv_width(), &data);
    for layer in 0..NUM_LAYERS {
        target
            .store_kv(cache, layer, &other, &other, &step)
            .expect("the shapes fit");
    }
}
