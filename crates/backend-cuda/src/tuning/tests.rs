use super::*;

const A10: Part = Part {
    multiprocessors: 72,
    warpgroups: false,
};
const H200: Part = Part {
    multiprocessors: 132,
    warpgroups: true,
};

fn problem(outputs: usize, inputs: usize, group: usize) -> Problem {
    Problem {
        outputs,
        inputs,
        group,
        grouped_weights: false,
    }
}

fn names(problem: Problem, tokens: usize, part: Part) -> Vec<String> {
    let ways = candidates(&problem, tokens, part);
    ways.iter().map(Way::to_string).collect()
}

#[test]
fn every_number_of_tokens_has_a_bucket_that_its_kernels_serve() {
    for tokens in 1..3000 {
        let bucket = bucket(tokens);
        assert!(bucket >= tokens || bucket == 1024);
        // What streams at the bucket's tokens streams at fewer.
        assert_eq!(bucket <= STREAM_TOKENS, tokens <= STREAM_TOKENS);
    }
}

#[test]
fn the_table_comes_first_and_its_neighbours_follow() {
    let o = problem(4096, 4096, 128);
    let rows = problem(4096, 4096, 0);
    let blocks = problem(4096, 4096, 32);
    for (problem, tokens, part, expected) in [
        (o, 8, A10, &["gemm_i8_stream", "gemm_i8_tile_32x64"][..]),
        (o, 32, A10, &["gemm_i8_tile_32x64", "gemm_i8_tile_64x64"]),
        (
            o,
            64,
            A10,
            &[
                "gemm_i8_tile_64x64",
                "gemm_i8_tile_32x64",
                "gemm_i8_tile_128x128",
            ],
        ),
        (
            o,
            1024,
            A10,
            &["gemm_i8_tile_128x128", "gemm_i8_tile_64x64"],
        ),
        (
            rows,
            16,
            A10,
            &[
                "gemm_i8_stream",
                "gemm_i8_tile_32x64 by 2",
                "gemm_i8_tile_32x64",
                "gemm_i8_tile_32x64 by 4",
            ],
        ),
        (
            rows,
            64,
            A10,
            &[
                "gemm_i8_tile_64x64 by 2",
                "gemm_i8_tile_32x64",
                "gemm_i8_tile_128x128 by 4",
                "gemm_i8_tile_64x64",
            ],
        ),
        (
            blocks,
            64,
            H200,
            &[
                "gemm_i8_blocks_64x64",
                "gemm_i8_blocks_32x64",
                "gemm_i8_blocks_128x128",
            ],
        ),
        (
            o,
            64,
            H200,
            &[
                "gemm_i8_wgmma_64x128",
                "gemm_i8_tile_64x64",
                "gemm_i8_tile_32x64",
                "gemm_i8_tile_128x128",
            ],
        ),
        (
            o,
            1024,
            H200,
            &[
                "gemm_i8_wgmma_128x128",
                "gemm_i8_wgmma_64x128",
                "gemm_i8_tile_128x128",
                "gemm_i8_tile_64x64",
            ],
        ),
    ] {
        assert_eq!(
            names(problem, tokens, part),
            expected,
            "{problem:?} {tokens}"
        );
    }
}

#[test]
fn every_way_fits_its_device_and_its_product() {
    let shapes = [
        [4096, 4096],
        [28_672, 4096],
        [128_256, 4096],
        [20, 130],
        [16, 64],
    ];
    for part in [
        A10,
        H200,
        Part {
            multiprocessors: 4,
            ..A10
        },
    ] {
        let all = shapes
            .into_iter()
            .flat_map(|shape| BUCKETS.map(|tokens| (shape, tokens)));
        for ([outputs, inputs], tokens) in all {
            for (group, grouped_weights) in
                [(0, false), (0, true), (32, true), (64, true), (128, false)]
            {
                let problem = Problem {
                    grouped_weights,
                    ..problem(outputs, inputs, group)
                };
                let ways = candidates(&problem, tokens, part);
                assert_eq!(ways[0], by_table(&problem, tokens, part));
                assert!(ways.len() <= MAX_WAYS);
                for (index, way) in ways.iter().enumerate() {
                    assert!(!ways[..index].contains(way), "{way} twice");
                    let split = way.division(&problem, tokens, 2 * part.multiprocessors as usize);
                    assert!(
                        split == 1 || problem.groups()[0] == 1 && !grouped_weights,
                        "{way}"
                    );
                    assert!(split <= MAX_SPLIT && split <= (problem.k_bytes() / 128).max(1));
                    assert_eq!(
                        way.kernel().contains("blocks"),
                        way.tile.is_some() && group == BLOCK
                    );
                }
            }
        }
    }
}

fn key() -> Key {
    Key {
        device: "NVIDIA A10 / half".to_owned(),
        multiprocessors: 72,
        driver: 12_080,
        kernels: "0123456789abcdef0123".to_owned(),
    }
}

fn tuned() -> Tuned {
    let mut tuned = Tuned::new(key());
    tuned.took = std::time::Duration::from_millis(840);
    for group in [0, 128] {
        for tokens in [16, 64, 1024] {
            let problem = problem(4096, 4096, group);
            let ways = candidates(&problem, tokens, A10);
            let rounds: Vec<_> = (0..ways.len()).map(|i| vec![10.25 - i as f64; 3]).collect();
            tuned
                .entries
                .insert((problem, tokens), Entry::new(&ways, &rounds));
        }
    }
    tuned
}

#[test]
fn what_is_kept_is_read_again() {
    let tuned = tuned();
    let text = tuned.to_text();
    assert_eq!(Tuned::from_text(&text, &key(), A10), Ok(tuned.clone()));
    assert_eq!(
        key().file_name(),
        "NVIDIA-A10---half-72-12080-0123456789abcdef.txt"
    );
    let others: Vec<_> = tuned
        .others(A10)
        .map(|(_, entry)| entry.way.to_string())
        .collect();
    assert_eq!(
        others.len(),
        6,
        "the last way was the fastest of each: {others:?}"
    );
}

/// Whatever a file holds, it is taken whole or not at all, and never an error that ends something.
#[test]
fn what_is_not_what_was_kept_is_refused() {
    let text = tuned().to_text();
    let read = |text: &str| Tuned::from_text(text, &key(), A10);
    // Cut off anywhere.
    for end in 0..text.len() {
        assert!(read(&text[..end]).is_err(), "{end}");
    }
    for (from, to) in [
        ("driver 12080", "driver 12090"),
        ("NVIDIA A10", "NVIDIA T4"),
        ("multiprocessors 72", "multiprocessors 36"),
        ("kernels 0", "kernels 1"),
        ("tuning 1", "tuning 2"),
        ("took 0.84", "took -1.84"),
        ("took 0.84", "took NaN"),
        ("gemm_i8_tile_64x64", "gemm_i8_tile_63x64"),
        ("4096 4096", "4096 4096 1"),
        ("4096 4096", "-4096 4096"),
        ("4096 4096", "4096 99999999999"),
        (" 1024 ", " 1000 "),
        (" 1 9.25", " 77 9.25"),
        (" 10.25\n", " inf\n"),
        (" 10.25\n", " 0\n"),
        ("end\n", "\nend\n"),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        assert!(read(&changed).is_err(), "{to}");
    }
    // Products of warpgroups are no way of a part that lacks them.
    let problem = problem(4096, 4096, 128);
    let ways = candidates(&problem, 64, H200);
    let mut hopper = Tuned::new(key());
    hopper
        .entries
        .insert((problem, 64), Entry::new(&ways, &vec![vec![1.0]; 4]));
    let text = hopper.to_text();
    assert_eq!(Tuned::from_text(&text, &key(), H200), Ok(hopper));
    assert!(read(&text).is_err());
}
