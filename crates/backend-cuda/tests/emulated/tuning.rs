//! Ways of products: every one has the bits of the definition, and measuring takes what a clock says is fastest.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use backend::conformance::TestBackend;
use backend::{Backend, BackendError, KvCacheSpec, KvDtype, KvTypes};
use backend_cuda::Precision;
use backend_cuda::tuning::{
    BUCKETS, Key, Part, Problem, Tuned, Tuning, Way, Ways, by_table, candidates,
};
use cuda_emulation::Profile;
use quant::Granularity;

use crate::bits::{FORMS, bits, check_linear, matrix, numbers, tokens};
use crate::device::{Emulated, Target, target};

fn problem(x_by: Granularity, w_by: Granularity, [n, k]: [usize; 2]) -> Problem {
    Problem {
        outputs: n,
        inputs: k,
        group: match x_by {
            Granularity::Row => 0,
            Granularity::Groups(len) => len,
        },
        grouped_weights: w_by.num_groups(k) > 1,
    }
}

/// Checks a way on the fewest tokens of its bucket and on some that end inside a tile.
fn check_way(
    target: Target,
    form: (Granularity, Granularity),
    problem: Problem,
    (tokens, way): (usize, Way),
) -> Target {
    let mut ways = Ways::default();
    ways.insert(problem, tokens, way);
    let mut target = target.with_ways(ways);
    let before = BUCKETS.iter().rev().find(|bucket| **bucket < tokens);
    let fewest = before.map_or(1, |bucket| bucket + 1);
    for m in [fewest, (fewest + 70).min(tokens)] {
        let case = format!("{way} {form:?}");
        check_linear(
            &mut target,
            form,
            [m, problem.outputs, problem.inputs],
            &case,
        );
        // Nothing else was launched instead.
        let (kernel, [_, _, depth]) = target.device().last_launch.get();
        assert!(kernel.starts_with(way.kernel()), "{case}: {kernel}");
        assert!(depth as usize == way.split(), "{case} [{m}]: {depth}");
    }
    target
}

fn check_ways(profile: Profile, order: u32, shapes: &[[usize; 2]], buckets: &[usize]) -> usize {
    let mut num_ways = 0;
    for (precision, x_by, w_by) in FORMS {
        let mut target = target(profile, order, precision);
        let part = target.part();
        for (shape, tokens) in shapes
            .iter()
            .flat_map(|s| buckets.iter().map(move |b| (s, *b)))
        {
            let problem = problem(x_by, w_by, *shape);
            for way in candidates(&problem, tokens, part) {
                target = check_way(target, (x_by, w_by), problem, (tokens, way));
                num_ways += 1;
            }
        }
    }
    num_ways
}

#[test]
fn every_way_of_every_bucket_follows_the_definition() {
    for (profile, shapes, least) in [
        (Profile::Fast80, &[[40, 640], [34, 200]][..], 180),
        (Profile::Fast75, &[[20, 320]], 90),
        (Profile::Fast90, &[[130, 320]], 95),
    ] {
        let num_ways = check_ways(profile, 1, shapes, &BUCKETS);
        assert!(num_ways >= least, "{profile:?}: {num_ways}");
    }
}

#[test]
fn every_way_of_few_tokens_passes_every_check() {
    for (profile, order) in [(Profile::Checked80, 12_345), (Profile::Checked90, 1)] {
        check_ways(profile, order, &[[20, 320]], &[8, 32, 64]);
    }
}

fn spec() -> KvCacheSpec {
    KvCacheSpec {
        num_kv_heads: 1,
        head_dim: 8,
        num_blocks: 1,
        num_host_blocks: 0,
        layers: vec![KvTypes {
            keys: KvDtype::Bf16,
            values: KvDtype::Bf16,
        }],
    }
}

/// A device on which a launch takes what `cost` says.
fn device(profile: Profile, cost: fn(&str) -> Duration) -> (Emulated, Rc<Cell<Duration>>) {
    let mut device = Emulated::new(profile, 0);
    device.cost = cost;
    let time = Rc::clone(&device.time);
    (device, time)
}

fn tuning(known: Tuned, time: &Rc<Cell<Duration>>, limit: Duration) -> Tuning {
    let time = Rc::clone(time);
    Tuning {
        known,
        limit,
        clock: Rc::new(move || time.get()),
    }
}

/// Loads two matrices of one shape and one of another, then asks for a cache; the product of 20 tokens.
fn load_and_tune(target: &mut Target) -> Result<Vec<f32>, BackendError> {
    let linear = target.load_linear(matrix(48, 256, 1))?;
    target.load_linear(matrix(48, 256, 2))?;
    target.load_linear(matrix(16, 130, 3))?;
    target.alloc_kv_cache(&spec())?;
    let step = target.begin_step(&tokens(0, 20, &[0]))?;
    let x = target.upload(20, 256, &numbers(1, 20 * 256));
    let y = target.linear(&x, &linear, &step)?;
    Ok(target.read(&y))
}

fn backwards(kernel: &str) -> Duration {
    // The table's choice costs most.
    Duration::from_millis(match kernel {
        "gemm_i8_tile_128x128" => 4,
        "gemm_i8_tile_64x64" => 3,
        "gemm_i8_tile_32x64" => 5,
        name if name.starts_with("gemm_i8_wgmma") => 7,
        name if name.starts_with("gemm") => 6,
        _ => 0,
    })
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn what_a_clock_says_is_fastest_is_used_and_gives_the_same_bits() {
    for profile in [Profile::Fast80, Profile::Fast90] {
        let mut plain = target(profile, 0, Precision::Int8);
        let expected = load_and_tune(&mut plain).expect("memory");
        let (device, time) = device(profile, backwards);
        let key = Key::default();
        let mut tuned = backend_cuda::CudaBackend::new(device, Precision::Int8)
            .with_tuning(tuning(Tuned::new(key.clone()), &time, HOUR));
        let found = load_and_tune(&mut tuned).expect("memory");
        assert_eq!(bits(&found), bits(&expected));
        assert_eq!(tuned.device().last_launch.get().0, "gemm_i8_tile_64x64");
        let part = tuned.part();
        let first = tuned.tuned().expect("it was measured").clone();
        assert_eq!(
            (first.num_measured, first.num_known, first.num_left),
            (14, 0, 0)
        );
        assert!(first.took > Duration::from_millis(100) && first.took < HOUR);
        for ((problem, tokens), entry) in &first.entries {
            let ways = candidates(problem, *tokens, part);
            let cost = |way: &Way| backwards(way.kernel());
            let least = ways.iter().map(cost).min().expect("ways");
            assert_eq!(cost(&entry.way), least, "{problem:?} {tokens}");
            assert_eq!(entry.micros, least.as_secs_f64() * 1e6);
            let table = by_table(problem, *tokens, part);
            assert_eq!(entry.table_micros, cost(&table).as_secs_f64() * 1e6);
        }
        // The next start reads what this one wrote, and measures nothing.
        let known = Tuned::from_text(&first.to_text(), &key, part).expect("as it was written");
        let (device, time) = self::device(profile, backwards);
        let mut again = backend_cuda::CudaBackend::new(device, Precision::Int8)
            .with_tuning(tuning(known, &time, HOUR));
        let found = load_and_tune(&mut again).expect("memory");
        assert_eq!(bits(&found), bits(&expected));
        assert_eq!(again.device().last_launch.get().0, "gemm_i8_tile_64x64");
        let second = again.tuned().expect("it was known");
        assert_eq!((second.num_measured, second.num_known), (0, 14));
        assert_eq!((&second.entries, second.took), (&first.entries, first.took));
    }
}

#[test]
fn what_does_not_fit_into_the_time_is_left_to_the_table() {
    let (device, time) = device(Profile::Fast80, backwards);
    let limit = Duration::from_millis(300);
    let mut target = backend_cuda::CudaBackend::new(device, Precision::Int8).with_tuning(tuning(
        Tuned::default(),
        &time,
        limit,
    ));
    load_and_tune(&mut target).expect("memory");
    let tuned = target.tuned().expect("some");
    assert!(tuned.num_measured > 0 && tuned.num_left > 0);
    assert_eq!(tuned.num_measured + tuned.num_left, 14);
    assert!(tuned.took <= limit, "{:?}", tuned.took);
}

/// All ways take the same time, or the clock stands still: nothing but the table.
#[test]
fn times_that_say_nothing_change_nothing() {
    for cost in [|_: &str| Duration::from_millis(1), |_: &str| Duration::ZERO] {
        let (device, time) = device(Profile::Fast80, cost);
        let mut target = backend_cuda::CudaBackend::new(device, Precision::Int8)
            .with_tuning(tuning(Tuned::default(), &time, HOUR));
        load_and_tune(&mut target).expect("memory");
        assert_eq!(target.device().last_launch.get().0, "gemm_i8_tile_32x64");
        let tuned = target.tuned().expect("some");
        assert_eq!(tuned.others(target.part()).count(), 0);
    }
}

/// A known way that this start may not take, such as one of warpgroups whose answers are wrong now, is measured anew.
#[test]
fn known_ways_that_are_none_any_more_are_not_taken() {
    let (hopper, time) = device(Profile::Fast90, |_| Duration::from_millis(1));
    let mut target = backend_cuda::CudaBackend::new(hopper, Precision::Int8).with_tuning(tuning(
        Tuned::default(),
        &time,
        HOUR,
    ));
    load_and_tune(&mut target).expect("memory");
    let known = target.tuned().expect("some").clone();
    let is_wgmma = |tuned: &Tuned| {
        let mut entries = tuned.entries.values();
        entries.any(|entry| entry.way.kernel().starts_with("gemm_i8_wgmma"))
    };
    assert!(is_wgmma(&known));
    let (hopper, time) = device(Profile::Fast90, |_| Duration::from_millis(1));
    let mut target = backend_cuda::CudaBackend::new(hopper, Precision::Int8)
        .with_warpgroups(false)
        .with_tuning(tuning(known, &time, HOUR));
    assert_eq!(
        target.part(),
        Part {
            multiprocessors: 4,
            warpgroups: false
        }
    );
    load_and_tune(&mut target).expect("memory");
    assert!(!is_wgmma(target.tuned().expect("some")));
}
