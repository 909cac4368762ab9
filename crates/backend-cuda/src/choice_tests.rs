//! Every outcome of the choice, from tables.

use super::*;

const GB: u64 = 1_000_000_000;

/// An A10 on which everything is well.
fn a10() -> Findings {
    Findings {
        capability: (8, 6),
        int8_answers: Ok(()),
        warpgroups: None,
        f16_answers: Ok(()),
        w8a16_answers: Ok(()),
        answered_in: Duration::ZERO,
        timings: timings(1.8, 1.7),
        memory: Memory {
            free: 23 * GB,
            total: 24 * GB,
        },
        needs: Some(Needs {
            int8: 8 * GB,
            f16: 16 * GB,
            rest: GB,
        }),
    }
}

/// Few and many tokens, by how much 8 bits gain.
fn timings(few: f64, many: f64) -> Vec<Timing> {
    [(16, few), (512, many)]
        .map(|(tokens, gain)| Timing {
            tokens,
            kernel: "gemm_i8_some",
            int8: 10.0,
            f16: 10.0 * gain,
        })
        .to_vec()
}

fn wrong(kernel: &str) -> Result<(), String> {
    Err(kernel.to_owned())
}

/// Pythia 12B: 11.9e9 weights, as the reference page counts them.
const PYTHIA_12B: Needs = Needs {
    int8: 12_100_000_000,
    f16: 23_700_000_000,
    rest: GB,
};

#[test]
fn what_was_found_decides() {
    type Change = fn(&mut Findings);
    let cases: [(&str, Change, Precision, &str, &str); 14] = [
        (
            "a10",
            |_| {},
            Precision::Int8,
            "tc-m16n8k32",
            "1.80 times f16 at 16 tokens (gemm_i8_some), 1.70 times f16 at 512",
        ),
        (
            "t4",
            |f| f.capability = (7, 5),
            Precision::Int8,
            "tc-m8n8k16",
            "m8n8k16",
        ),
        (
            "newer than known",
            |f| f.capability = (12, 0),
            Precision::Int8,
            "tc-m16n8k32",
            "m16n8k32",
        ),
        (
            "nothing timed",
            |f| f.timings.clear(),
            Precision::Int8,
            "tc-m16n8k32",
            "not timed",
        ),
        (
            "one gain, no loss",
            |f| f.timings = timings(1.1, 0.95),
            Precision::Int8,
            "tc-m16n8k32",
            "0.95",
        ),
        (
            "v100",
            |f| f.capability = (7, 0),
            Precision::F16,
            "no-int8-tc",
            "7.0 has no 8-bit tensor cores",
        ),
        (
            "wrong lanes",
            |f| f.int8_answers = wrong("gemm_i8_tile"),
            Precision::F16,
            "known-answer",
            "gemm_i8_tile gives wrong answers",
        ),
        (
            "gtx 16",
            |f| f.timings = timings(0.7, 0.4),
            Precision::F16,
            "speed",
            "0.70 times f16 at 16 tokens",
        ),
        (
            "no gain",
            |f| f.timings = timings(1.05, 1.09),
            Precision::F16,
            "speed",
            "1.05",
        ),
        (
            "a gain and a loss",
            |f| f.timings = timings(2.0, 0.94),
            Precision::F16,
            "speed",
            "0.94",
        ),
        (
            "no model yet",
            |f| f.needs = None,
            Precision::Int8,
            "tc-m16n8k32",
            "m16n8k32",
        ),
        (
            "slower, but only 8 bits fit",
            |f| {
                f.timings = timings(0.9, 0.9);
                f.needs = Some(PYTHIA_12B);
            },
            Precision::Int8,
            "memory",
            "only 8 bits fit into its memory, although 0.90",
        ),
        (
            "wrong lanes, and half precision does not fit",
            |f| {
                f.int8_answers = wrong("gemm_i8_tile");
                f.needs = Some(PYTHIA_12B);
            },
            Precision::W8A16,
            "known-answer",
            "gemm_i8_tile gives wrong answers on this device; the model needs 24.7 GB in f16 \
             (23.7 GB of weights), 23.0 GB are free, so weights keep 8 bits",
        ),
        (
            "v100 of 16 GB",
            |f| {
                f.capability = (7, 0);
                f.memory.free = 15 * GB;
            },
            Precision::W8A16,
            "no-int8-tc",
            "the model needs 17.0 GB in f16 (16.0 GB of weights), 15.0 GB are free",
        ),
    ];
    for (case, change, precision, reason, why) in cases {
        let mut found = a10();
        change(&mut found);
        let choice = decide(Wish::Auto(Precision::Int8), &found)
            .unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(
            (choice.precision, choice.reason),
            (precision, reason),
            "{case}"
        );
        assert!(choice.why.contains(why), "{case}: {}", choice.why);
    }
}

#[test]
fn what_cannot_compute_is_refused_with_the_reason() {
    type Change = fn(&mut Findings);
    let cases: [(&str, Change, &[&str]); 6] = [
        ("pascal", |f| f.capability = (6, 1), &["6.1 is too old"]),
        (
            "nothing right",
            |f| {
                f.int8_answers = wrong("gemm_i8_tile");
                f.f16_answers = wrong("attention");
            },
            &["gemm_i8_tile", "attention gives wrong answers as well"],
        ),
        (
            "pythia 12b in half precision on 24 GB, and 8-bit weights are wrong as well",
            |f| {
                f.int8_answers = wrong("gemm_i8_tile");
                f.w8a16_answers = wrong("gemm_w8a16_tile");
                f.needs = Some(PYTHIA_12B);
            },
            &[
                "24.7 GB in f16 (23.7 GB of weights)",
                "23.0 GB are free",
                "gemm_w8a16_tile gives wrong answers as well",
            ],
        ),
        (
            "half precision must run, and neither form fits",
            |f| {
                f.int8_answers = wrong("gemm_i8_tile");
                f.needs = Some(PYTHIA_12B);
                f.memory.free = 12 * GB;
            },
            &[
                "the model needs 24.7 GB in f16 (23.7 GB of weights), 12.0 GB are free",
                "and the model needs 13.1 GB in w8a16 (12.1 GB of weights), 12.0 GB are free",
            ],
        ),
        (
            "8 bits lose, and nothing fits",
            |f| {
                f.timings = timings(0.9, 0.9);
                f.needs = Some(PYTHIA_12B);
                f.memory.free = 12 * GB;
            },
            &["8 bits do not gain", "24.7 GB in f16", "13.1 GB in w8a16"],
        ),
        (
            "too large in any form",
            |f| {
                f.needs = Some(Needs {
                    int8: 70 * GB,
                    f16: 140 * GB,
                    rest: GB,
                });
            },
            &["71.0 GB in int8 (70.0 GB of weights)", "23.0 GB are free"],
        ),
    ];
    for (case, change, words) in cases {
        let mut found = a10();
        change(&mut found);
        let error = decide(Wish::Auto(Precision::Int8), &found).expect_err(case);
        for word in words {
            assert!(error.contains(word), "{case}: {error}");
        }
    }
}

#[test]
fn what_is_asked_for_is_obeyed_or_fails() {
    for precision in [
        Precision::Int8,
        Precision::Int8Fast,
        Precision::W8A16,
        Precision::F16,
        Precision::Bf16,
    ] {
        let mut found = a10();
        // Somebody who asks knows: speed is not held against it.
        found.timings = timings(0.5, 0.5);
        let choice = decide(Wish::Exactly(precision), &found).expect("obeyed");
        assert_eq!((choice.precision, choice.reason), (precision, "asked"));
    }
    type Change = fn(&mut Findings);
    let cases: [(Precision, Change, &str); 6] = [
        (
            Precision::Int8,
            |f| f.capability = (7, 0),
            "7.0 has no 8-bit tensor cores",
        ),
        (
            Precision::Bf16,
            |f| f.capability = (7, 5),
            "7.5 has none, f16 is there",
        ),
        (
            Precision::Int8Fast,
            |f| f.int8_answers = wrong("gemm_i8_stream"),
            "gemm_i8_stream gives wrong",
        ),
        (
            Precision::W8A16,
            |f| f.w8a16_answers = wrong("gemm_w8a16_tile"),
            "w8a16 was asked for: gemm_w8a16_tile gives wrong",
        ),
        (
            Precision::F16,
            |f| f.f16_answers = wrong("gemm_16_tile"),
            "gemm_16_tile gives wrong",
        ),
        (
            Precision::F16,
            |f| f.needs = Some(PYTHIA_12B),
            "24.7 GB in f16",
        ),
    ];
    for (precision, change, words) in cases {
        let mut found = a10();
        change(&mut found);
        let error = decide(Wish::Exactly(precision), &found).expect_err(words);
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn the_cache_gets_what_is_really_free() {
    let memory = Memory {
        free: 22 * GB,
        total: 24 * GB,
    };
    let left = kv_cache_bytes(memory, 0.9, 8 * GB, GB).expect("room");
    assert_eq!(left, 21_600_000_000 - 2 * GB - 9 * GB);
    let error = kv_cache_bytes(memory, 0.9, 23_700_000_000, GB).expect_err("no room");
    for figure in ["21.6 GB of 24.0 GB", "0.9", "others use 2.00 GB", "23.7 GB"] {
        assert!(error.contains(figure), "{error}");
    }
}

/// Warpgroups are used where they are there, right and, if anything was timed, the fastest; nothing else depends on
/// them.
#[test]
fn products_of_warpgroups_are_left_out_where_they_are_wrong_or_slower() {
    let mut found = a10();
    found.capability = (9, 0);
    let fastest = |kernel: &'static str| {
        let mut timings = timings(1.8, 1.7);
        timings[1].kernel = kernel;
        timings
    };
    let [wgmma, mma] = [
        fastest("gemm_i8_wgmma_128x128"),
        fastest("gemm_i8_tile_128x128"),
    ];
    let is_wrong = wrong("gemm_i8_wgmma_64x128");
    for (warpgroups, timings, reason, words) in [
        (None, &mma, "tc-m16n8k32", "(m16n8k32), 1.80"),
        (
            Some(Ok(())),
            &wgmma,
            "tc-wgmma",
            "(m16n8k32 and wgmma), 1.80",
        ),
        (
            Some(Ok(())),
            &Vec::new(),
            "tc-wgmma",
            "(m16n8k32 and wgmma), not timed",
        ),
        (
            Some(Ok(())),
            &mma,
            "tc-m16n8k32",
            "(m16n8k32; wgmma is right and not faster), 1.80",
        ),
        (
            Some(is_wrong),
            &mma,
            "tc-m16n8k32",
            "gemm_i8_wgmma_64x128 gives wrong answers on this device and is left out",
        ),
    ] {
        (found.warpgroups, found.timings) = (warpgroups, timings.clone());
        let choice = decide(Wish::Auto(Precision::Int8), &found).expect("it computes");
        assert_eq!((choice.precision, choice.reason), (Precision::Int8, reason));
        assert!(choice.why.contains(words), "{}", choice.why);
        assert_eq!(choice.warpgroups, reason == "tc-wgmma");
        let asked = decide(Wish::Exactly(Precision::Int8), &found).expect("it computes");
        assert_eq!(asked.warpgroups, choice.warpgroups);
        let f16 = decide(Wish::Exactly(Precision::F16), &found).expect("it computes");
        assert!(!f16.warpgroups);
    }
}

#[test]
fn figures_have_three_digits() {
    for (bytes, words) in [
        (0, "0.000 GB"),
        (5_300_000, "0.005 GB"),
        (1_073_741_824, "1.07 GB"),
        (9_990_000_000, "9.99 GB"),
        (24_700_000_000, "24.7 GB"),
        (140_100_000_000, "140.1 GB"),
    ] {
        assert_eq!(gigabytes(bytes), words);
    }
}
