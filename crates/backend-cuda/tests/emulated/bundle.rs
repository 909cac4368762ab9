//! The program that runs on a machine with a GPU, here on the emulated device: everything that it does
//! happens, with small sizes.

#[path = "../../examples/gpu/check.rs"]
#[expect(
    dead_code,
    reason = "the program alone uses the real sizes and the real clock"
)]
mod check;
#[path = "../../examples/gpu/clock.rs"]
#[expect(
    dead_code,
    reason = "the program alone uses the real sizes and the real clock"
)]
mod clock;
#[path = "../../examples/gpu/decoder.rs"]
pub mod decoder;
#[path = "../../examples/gpu/graphs.rs"]
#[expect(
    dead_code,
    reason = "the program alone uses the real sizes and the real clock"
)]
mod graphs;
#[path = "../../examples/gpu/guarded.rs"]
mod guarded;
#[path = "../../examples/gpu/inputs.rs"]
mod inputs;
#[path = "../../examples/gpu/repeat.rs"]
#[expect(
    dead_code,
    reason = "the program alone uses the real sizes and the real clock"
)]
mod repeat;
#[path = "../../examples/gpu/step.rs"]
#[expect(
    dead_code,
    reason = "the program alone uses the real sizes and the real clock"
)]
mod step;
#[path = "../../examples/gpu/time.rs"]
mod time;
#[path = "../../examples/gpu/wrappers.rs"]
pub mod wrappers;
#[path = "../../examples/gpu/wrappers_wgmma.rs"]
mod wrappers_wgmma;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use backend::{Backend, Result};
use backend_cuda::device::Device;
use backend_cuda::{CudaBackend, Precision};
use cuda_emulation::{Profile, SwappedLanes};

use crate::device::Emulated;

const MEMORY: time::Sizes = time::Sizes {
    tokens: &[1, 17],
    matrices: Some(&[[64, 128]]),
    rotated: 3 * 64 * 128,
    seconds: 0.0,
    attention: &[[40, 1], [300, 1]],
    memory: [2, 64],
};

fn open() -> Result<Emulated> {
    Ok(Emulated::new(Profile::Fast80, 0))
}

/// What the program would print.
fn lines(run: impl FnOnce(&mut dyn FnMut(String)) -> Result<bool>) -> (bool, Vec<String>) {
    let mut lines = Vec::new();
    let is_right = run(&mut |line| lines.push(line)).expect("the device works");
    (is_right, lines)
}

#[test]
fn the_comparisons_find_this_device_right() {
    let products = check::Products {
        tokens: &[1, 9, 33],
        matrices: &[[20, 300]],
    };
    let (is_right, found) = lines(|say| check::check(&open, &products, say));
    assert!(is_right, "{found:#?}");
    assert_eq!(found.len(), 7 + 4 * 3 + 3 * 4);
}

const REPEATS: repeat::Sizes = repeat::Sizes {
    repeats: 2,
    layers: 1,
    hidden: 128,
    prompt: 40,
    words: 256,
};

/// Beside another stream, and with threads and blocks in another order at every launch.
#[test]
fn repeated_steps_give_the_same_bits() {
    let shuffled = || {
        let mut device = open()?;
        device.shuffles = true;
        Ok(device)
    };
    let (is_right, found) = lines(|say| repeat::repeat(&shuffled, &REPEATS, say));
    assert!(is_right, "{found:#?}");
    assert_eq!(found.len(), 6);
}

/// A device whose products go wrong after a while: 8 bits differ from the first time.
#[test]
fn a_device_that_changes_its_answers_is_found() {
    let changing = || {
        let mut device = open()?;
        device.swapped_lanes = SwappedLanes::Int8;
        device.right_launches = Cell::new(60);
        Ok(device)
    };
    let (is_right, found) = lines(|say| repeat::repeat(&changing, &REPEATS, say));
    assert!(!is_right);
    let wrong = found.iter().filter(|line| line.starts_with("WRONG int8"));
    assert_eq!(wrong.count(), 3, "{found:#?}");
}

/// The emulator's instructions are those of the manual, on both architectures and under every check.
#[test]
fn every_wrapper_does_what_the_manual_says() {
    for (profile, count) in [
        (Profile::Checked80, 7),
        (Profile::Checked75, 8),
        (Profile::Checked90, 12),
    ] {
        for order in [0, 1, 99] {
            let device = Emulated::new(profile, order);
            let (is_right, found) = lines(|say| wrappers::check(&device, say));
            assert!(is_right, "{profile:?} {order}: {found:#?}");
            assert_eq!(found.len(), count);
        }
    }
    let mut device = Emulated::new(Profile::Fast80, 0);
    device.swapped_lanes = SwappedLanes::All;
    let (is_right, found) = lines(|say| wrappers::check(&device, say));
    assert!(!is_right);
    let wrong: Vec<&str> = found
        .iter()
        .filter_map(|line| line.strip_prefix("WRONG wrapper_"))
        .collect();
    assert_eq!(wrong, ["mma_s8", "mma_f16", "mma_bf16"]);
    let mut device = Emulated::new(Profile::Fast90, 0);
    device.swapped_lanes = SwappedLanes::Warpgroups;
    let (_, found) = lines(|say| wrappers::check(&device, say));
    let wrong = found.iter().filter(|line| line.starts_with("WRONG"));
    let is_wgmma = |line: &String| line.starts_with("WRONG wrapper_wgmma");
    assert_eq!(wrong.clone().count(), 5, "{found:#?}");
    assert!(wrong.into_iter().all(is_wgmma), "{found:#?}");
}

/// A device with a wrong matrix instruction is found wrong, by products and by the suite.
#[test]
fn the_comparisons_find_a_wrong_device_wrong() {
    let wrong = || {
        let mut device = open()?;
        device.swapped_lanes = SwappedLanes::Int8;
        Ok(device)
    };
    let products = check::Products {
        tokens: &[9],
        matrices: &[[20, 300]],
    };
    let (is_right, found) = lines(|say| check::check(&wrong, &products, say));
    assert!(!is_right);
    assert_eq!(
        found
            .iter()
            .filter(|line| line.starts_with("WRONG product"))
            .count(),
        4
    );
}

#[test]
fn the_suite_passes_between_fences() {
    // The other two differ in scales only.
    let suites = [check::SUITES[2], check::SUITES[3]];
    let (is_right, found) = lines(|say| guarded::conform(&open, &suites, say));
    assert!(is_right, "{found:#?}");
    assert_eq!(found.len(), 2 * 20);
}

/// One number too many, which the emulator's own fences behind the whole allocation do not see.
#[test]
fn a_kernel_that_writes_beside_its_buffer_is_found() {
    let broken = Rc::new(RefCell::new(Vec::new()));
    let device = guarded::Guarded::new(open().expect("emulated"), Rc::clone(&broken));
    let mut target = CudaBackend::new(device, Precision::Int8);
    let mut x = inputs::tensor(&mut target, 2, 64, 1).expect("memory");
    let y = inputs::tensor(&mut target, 2, 64, 2).expect("memory");
    target.add(&mut x, &y).expect("fits");
    drop((x, y));
    assert!(broken.borrow().is_empty());
    let device = target.device();
    let (inside, behind) = (
        device.alloc(256, "a buffer that is kept").expect("memory"),
        device
            .alloc(256, "a buffer that is overrun")
            .expect("memory"),
    );
    device.upload(&inside, 0, &[1; 256]).expect("fits");
    device
        .upload(&behind, 252, &[1; 8])
        .expect("into the fence");
    drop((inside, behind));
    assert_eq!(*broken.borrow(), ["a buffer that is overrun"]);
}

/// Every number of rows that has a graph, the padded ones too.
#[test]
fn replayed_steps_of_every_shape_give_the_bits_of_computed_ones() {
    let sizes = graphs::Sizes {
        layers: 1,
        splits: &[(8, 4), (16, 2), (64, 1)],
    };
    let replays = Rc::new(Cell::new(0));
    let open = || {
        let mut device = open()?;
        device.replays = Rc::clone(&replays);
        Ok(device)
    };
    let (is_right, found) = lines(|say| graphs::conform(&open, &sizes, say));
    assert!(is_right, "{found:#?}");
    // Eight exact numbers of rows over three numbers of splits, three padded ones; four replays of each shape.
    let shapes = 8 * 3 + 2 + 1 + 1;
    assert_eq!((found.len(), replays.get()), (2 * shapes, 2 * shapes * 4));
}

#[test]
fn every_kernel_is_timed() {
    let (_, found) = lines(|say| {
        time::time(open()?, &clock::Clock::none(), &MEMORY, say)?;
        Ok(true)
    });
    let of = |word: &str| found.iter().filter(|line| line.contains(word)).count();
    assert_eq!(
        (of("product"), of("norm"), of("attention")),
        (6, 2, 4),
        "{found:#?}"
    );
    assert_eq!(of("clock unknown"), 6);
}

/// All kinds of layers, decoding by graphs, and a prompt.
#[test]
fn whole_steps_are_timed_with_weights_made_on_the_device() {
    use decoder::Layers::{GptNeox, Llama, Qwen2};
    let models = [Llama, Qwen2, GptNeox].map(|kind| decoder::Model {
        name: "small",
        kind,
        hidden: 128,
        heads: [4, 2, 32],
        width: 256,
        layers: 2,
        vocab: 64,
    });
    let sizes = step::Sizes {
        batches: &[1, 9],
        context: 40,
        steps: 2,
        prompt: 20,
        memory: &MEMORY,
    };
    let early = || Ok(Emulated::new(Profile::Fast90, 0));
    let in_order = || {
        let mut device = early()?;
        device.properties.dependent_launches = false;
        Ok(device)
    };
    let (_, found) = lines(|say| {
        let clock = clock::Clock::none();
        step::steps(&open, None, &clock, &models, &sizes, say)?;
        step::steps(&early, Some(&in_order), &clock, &models[..1], &sizes, say)?;
        Ok(true)
    });
    let of = |word: &str| found.iter().filter(|line| line.contains(word)).count();
    assert_eq!(
        (of("ms a step"), of("prompt of 20"), of("launches in order")),
        (12 + 4 + 2, 6 + 2, 2),
        "{found:#?}"
    );
}

#[test]
fn random_weights_are_finite_and_differ() {
    for precision in [
        Precision::Int8,
        Precision::Int8Blocks,
        Precision::W8A16,
        Precision::F16,
        Precision::Bf16,
    ] {
        let mut target = CudaBackend::new(Emulated::new(Profile::Checked80, 0), precision);
        let step = target.begin_step(&inputs::tokens(0, 3)).expect("a step");
        let x = inputs::tensor(&mut target, 3, 128, 1).expect("memory");
        let linear =
            |seed| backend_cuda::CudaLinear::random(target.device(), precision, [32, 128], seed);
        let linears = [linear(1), linear(2)].map(|linear| linear.expect("whole panels"));
        let [a, b] = linears.map(|linear| {
            let y = target.linear(&x, &linear, &step).expect("fits");
            y.read(target.device()).expect("floats")
        });
        assert!(
            a.iter().all(|y| y.is_finite() && *y != 0.0),
            "{precision:?}"
        );
        assert!(a.iter().zip(&b).all(|(a, b)| a != b), "{precision:?}");
    }
}

#[test]
fn what_the_drivers_tool_prints_is_read() {
    let seen = clock::read("1695, 148.20").expect("a clock");
    assert_eq!((seen.hertz, seen.watts), (1.695e9, 148.2));
    assert!(clock::read("1695, [N/A]").expect("a clock").watts.is_nan());
    assert!(clock::read("[N/A], 1").is_none());
    let a10 = backend_cuda::device::Properties {
        name: "A10".to_owned(),
        capability: (8, 6),
        multiprocessors: 72,
        shared_memory: 101_376,
        warpgroups: false,
        dependent_launches: false,
    };
    let peak = |part, precision| clock::peak(part, 1.695e9, precision) * 1e-12;
    assert!((peak(&a10, Precision::Int8) - 250.0).abs() < 1.0);
    assert!((peak(&a10, Precision::F16) - 125.0).abs() < 1.0);
    let geforce = backend_cuda::device::Properties {
        name: "NVIDIA GeForce RTX 3090".to_owned(),
        multiprocessors: 82,
        ..a10
    };
    assert!((peak(&geforce, Precision::F16) - 71.0).abs() < 1.0);
}
