//! What the emulated device is found to be, and what is chosen for it.

use backend_cuda::Precision;
use backend_cuda::choice::{Findings, Wish, decide};
use backend_cuda::probe;
use cuda_emulation::{Profile, SwappedLanes};

use crate::device::Emulated;

/// Asks a device; its times are the emulator's and say nothing, so they are left out.
fn ask(device: Emulated) -> Findings {
    let (findings, _) = probe::ask(device, None).expect("the device answers");
    findings
}

#[test]
fn a_device_that_knows_the_answers_computes_in_8_bits() {
    for (profile, reason) in [
        (Profile::Checked80, "tc-m16n8k32"),
        (Profile::Fast75, "tc-m8n8k16"),
    ] {
        let findings = ask(Emulated::new(profile, 0));
        let choice = decide(Wish::Auto(Precision::Int8), &findings).expect("it computes");
        assert_eq!((choice.precision, choice.reason), (Precision::Int8, reason));
    }
}

#[test]
fn a_device_with_one_wrong_lane_map_computes_in_half_precision_and_says_why() {
    let mut device = Emulated::new(Profile::Fast80, 0);
    device.swapped_lanes = SwappedLanes::Int8;
    let findings = ask(device);
    assert_eq!(findings.f16_answers, Ok(()));
    assert_eq!(findings.w8a16_answers, Ok(()));
    let choice = decide(Wish::Auto(Precision::Int8), &findings).expect("half precision is right");
    assert_eq!(
        (choice.precision, choice.reason),
        (Precision::F16, "known-answer")
    );
    assert!(
        choice.why.contains("gemm_i8_stream_8 gives wrong answers"),
        "{}",
        choice.why
    );
    let error = decide(Wish::Exactly(Precision::Int8), &findings).expect_err("asked for");
    assert!(error.contains("int8 was asked for"), "{error}");
}

#[test]
fn a_device_with_only_wrong_lane_maps_computes_nothing() {
    let mut device = Emulated::new(Profile::Fast80, 0);
    device.swapped_lanes = SwappedLanes::All;
    let findings = ask(device);
    assert_eq!(
        findings.w8a16_answers,
        Err("gemm_w8a16_tile_16x64".to_owned())
    );
    let error = decide(Wish::Auto(Precision::Int8), &findings).expect_err("nothing is right");
    assert!(
        error.contains("gemm_i8_stream_8 gives wrong answers")
            && error.contains("gemm_16_tile_16x64 gives wrong answers as well"),
        "{error}"
    );
}

#[test]
fn the_largest_product_is_timed_in_both_forms() {
    let (findings, _) =
        probe::ask(Emulated::new(Profile::Fast80, 0), Some([64, 128])).expect("the device answers");
    assert_eq!(findings.timings.len(), 2);
    assert!(findings.timings.iter().all(|t| t.int8 > 0.0 && t.f16 > 0.0));
}
