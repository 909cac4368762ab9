//! Launches that may begin before the one before has ended, on compute capability 9.0: under every check, no kernel
//! reads what another still writes, writes anything before it has waited, or ends without having waited; and
//! the answers are those of launches one after the other, bit for bit.

use backend::{Result, RowOutput};
use backend_cuda::{CudaBackend, Precision};
use cuda_emulation::{Arg, Launch, Memory, Profile, SwappedLanes};

use crate::bits::{FORMS, check_linear, rows};
use crate::bundle::decoder::{Decoder, Layers, Model, Part, batch};
use crate::bundle::wrappers;
use crate::device::{Emulated, target};

/// Sequences of a step, and the tokens of each before it; fewer than seventeen stream their weights, more than
/// 32 use warpgroups, and the long ones are attended in parts.
const STEPS: [(usize, usize); 5] = [(1, 300), (2, 33), (9, 270), (17, 5), (34, 3)];

fn model(kind: Layers) -> Model {
    Model {
        name: "small",
        kind,
        hidden: 128,
        heads: [4, 2, 32],
        width: 256,
        layers: 1,
        vocab: 64,
    }
}

/// What steps answer: tokens and bits of their log-probabilities.
fn answers(
    device: Emulated,
    (kind, precision): (Layers, Precision),
    (sequences, context): (usize, usize),
    repeats: usize,
) -> Result<Vec<(u32, u32)>> {
    let most = context + repeats;
    let blocks = most.div_ceil(32) as u32;
    let target = CudaBackend::new(device, precision).with_graphs();
    let num_blocks = sequences * blocks as usize;
    let mut loaded = Decoder::new(target, (model(kind), precision), most, num_blocks)?;
    let mut answers = Vec::new();
    for step in 0..repeats {
        let part = |index: u32| Part {
            computed: context + step,
            count: 1,
            blocks: (index * blocks..(index + 1) * blocks).collect(),
        };
        let output = loaded.step(&batch((0..sequences as u32).map(part).collect()))?;
        answers.extend(output.rows.iter().map(|row| match row {
            RowOutput::Token(sampled) => (sampled.token_id, sampled.logprob.to_bits()),
            other => panic!("{other:?}"),
        }));
    }
    Ok(answers)
}

/// Steps computed, captured and replayed, with every kind of layer and of product.
#[test]
fn steps_give_the_bits_of_launches_in_order() {
    let int8 = [Precision::Int8, Precision::Int8Fast, Precision::Int8Blocks];
    for (index, kind) in [Layers::Llama, Layers::Qwen2, Layers::GptNeox]
        .into_iter()
        .enumerate()
    {
        for (at, sizes) in STEPS.into_iter().enumerate() {
            for precision in [int8[index], [Precision::W8A16, Precision::F16][at % 2]] {
                let in_order = Emulated::new(Profile::Fast80, 0);
                let expected = answers(in_order, (kind, precision), sizes, 3).expect("it runs");
                let early = Emulated::new(Profile::Checked90, at as u32);
                assert!(early.properties.dependent_launches);
                let found = answers(early, (kind, precision), sizes, 3);
                let case = format!("{kind:?} {precision:?} {sizes:?}");
                assert_eq!(
                    found.unwrap_or_else(|error| panic!("{case}: {error}")),
                    expected,
                    "{case}"
                );
            }
        }
    }
}

/// One step of each kind, for mistakes to be noticed.
#[test]
fn a_step_passes_every_check() {
    for (kind, precision, sizes) in [
        (Layers::Llama, Precision::Int8, (2, 300)),
        (Layers::Llama, Precision::Int8Fast, (17, 3)),
        (Layers::Llama, Precision::Int8, (34, 3)),
        (Layers::GptNeox, Precision::Int8, (1, 5)),
    ] {
        let device = Emulated::new(Profile::Checked90, 0);
        let step = answers(device, (kind, precision), sizes, 1);
        step.unwrap_or_else(|error| panic!("{kind:?} {precision:?} {sizes:?}: {error}"));
    }
}

/// Kernels that no step of these models has, and tiles where warpgroups are left out.
#[test]
fn single_operations_pass_every_check() {
    for precision in [Precision::Int8, Precision::Int8Fast, Precision::Int8Blocks] {
        rows(&mut target(Profile::Checked90, 1, precision), 300);
    }
    for (precision, x_by, w_by) in FORMS {
        let mut target = target(Profile::Checked90, 0, precision).with_warpgroups(false);
        for shape in [[1, 5, 7], [13, 20, 820], [20, 40, 512], [65, 128, 130]] {
            let case = format!("{precision:?} {w_by:?}");
            check_linear(&mut target, (x_by, w_by), shape, &case);
        }
    }
    let device = Emulated::new(Profile::Checked90, 0);
    let mut lines = Vec::new();
    let are_right = wrappers::check(&device, &mut |line| lines.push(line));
    assert!(are_right.expect("they run"), "{lines:#?}");
}

/// Kernels of older architectures wait for nothing, so that launching them early is refused.
#[test]
fn kernels_that_do_not_wait_are_found() {
    let x = Memory::new(1024, true).expect("memory");
    let y = Memory::new(1024, true).expect("memory");
    let add = |profile: Profile, dependent| {
        profile.launch(&Launch {
            kernel: "add",
            grid: [1, 1, 1],
            dynamic_bytes: 0,
            shared_limit: 49_152,
            order: 0,
            swapped_lanes: SwappedLanes::None,
            dependent,
            args: &[
                Arg::Pointer(x.address()),
                Arg::Pointer(y.address()),
                Arg::Word(256),
                Arg::Word(256),
                Arg::Word(256),
            ],
        })
    };
    assert_eq!(add(Profile::Checked90, true), Ok(()));
    assert_eq!(add(Profile::Checked80, false), Ok(()));
    let early = add(Profile::Checked80, true).expect_err("it reads at once");
    assert!(early.contains("add block (0,0,0)"), "{early}");
    let words = "global read, without a wait for earlier kernels, of what add writes";
    assert!(early.contains(words), "{early}");
    let early = add(Profile::Fast75, true).expect_err("it never waits");
    assert!(
        early.contains("returned without a wait for earlier kernels"),
        "{early}"
    );
}
