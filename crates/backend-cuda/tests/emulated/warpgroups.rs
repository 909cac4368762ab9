//! Products of warpgroups: the bits of their definition on every border of a tile, a stage and the ring, under
//! every check, and what becomes of them on a device that computes them wrongly.

use backend_cuda::choice::{Wish, decide};
use backend_cuda::{Precision, probe};
use cuda_emulation::{Profile, SwappedLanes};

use crate::bits::{FORMS, check_linear};
use crate::device::{Emulated, target};

/// Tokens around both tiles, channels around one, K in half stages, whole ones and around the ring of four;
/// K divided among blocks, and shares that go round the ring.
const SHAPES: [[usize; 3]; 12] = [
    [33, 16, 64],
    [63, 127, 130],
    [64, 128, 128],
    [65, 129, 100],
    [64, 24, 512],
    [34, 130, 640],
    [127, 20, 320],
    [128, 256, 192],
    [129, 8, 700],
    [130, 140, 128],
    [193, 16, 260],
    [66, 16, 3000],
];

#[test]
fn products_follow_the_definition() {
    for order in [0, 1] {
        for (precision, x_by, w_by) in FORMS {
            let mut target = target(Profile::Fast90, order, precision);
            for shape in SHAPES {
                let case = format!("order {order} {precision:?} {w_by:?}");
                check_linear(&mut target, (x_by, w_by), shape, &case);
            }
        }
    }
}

#[test]
fn products_pass_every_check() {
    for order in [0, 1, 12_345] {
        // Groups with weights that have one scale, one scale for each token, and groups of both.
        for (precision, x_by, w_by) in FORMS.into_iter().take(3) {
            let mut target = target(Profile::Checked90, order, precision);
            for shape in SHAPES {
                let case = format!("order {order} {precision:?} {w_by:?}");
                check_linear(&mut target, (x_by, w_by), shape, &case);
            }
        }
    }
}

#[test]
fn a_device_that_is_right_uses_them() {
    let (findings, _) = probe::ask(Emulated::new(Profile::Checked90, 0), None).expect("it answers");
    let choice = decide(Wish::Auto(Precision::Int8), &findings).expect("it computes");
    assert_eq!((choice.reason, choice.warpgroups), ("tc-wgmma", true));
}

#[test]
fn a_device_with_wrong_sums_goes_without_them_and_says_so() {
    let mut device = Emulated::new(Profile::Fast90, 0);
    device.swapped_lanes = SwappedLanes::Warpgroups;
    let (findings, _) = probe::ask(device, None).expect("the device answers");
    assert_eq!(findings.int8_answers, Ok(()));
    let choice = decide(Wish::Auto(Precision::Int8), &findings).expect("it computes");
    assert_eq!(choice.precision, Precision::Int8);
    assert!(!choice.warpgroups);
    let words = "gemm_i8_wgmma_64x128 gives wrong answers on this device and is left out";
    assert!(choice.why.contains(words), "{}", choice.why);
}
