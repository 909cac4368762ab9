//! Each check of the emulator on a kernel with one mistake, which it must report in these words, and on the same kernel
//! without, which it must let pass (`faults.cpp`).

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Arg, Kernels, Launch, Memory, SwappedLanes, complete, launch_of, list};

unsafe extern "C" {
    fn faults_kernels() -> *const std::ffi::c_void;
}

/// Words of both buffers.
const WORDS: usize = 64;

struct Buffers {
    data: Memory,
    other: Memory,
}

impl Buffers {
    fn new() -> Self {
        let memory = |zeroed| Memory::new(WORDS * 4, zeroed).expect("memory");
        Self {
            data: memory(false),
            other: memory(true),
        }
    }

    /// Runs a kernel of two blocks where it is about two, one otherwise.
    fn run(&self, kernel: &str, wrong: u32, (order, dependent): (u32, bool)) -> Result<(), String> {
        let blocks = if kernel.contains("between_blocks") {
            2
        } else {
            1
        };
        let kernels: Kernels = faults_kernels;
        launch_of(
            &list(kernels),
            true,
            &Launch {
                kernel,
                grid: [blocks, 1, 1],
                dynamic_bytes: if kernel == "warpgroup" { 25 * 1024 } else { 0 },
                shared_limit: 65_536,
                order,
                swapped_lanes: SwappedLanes::None,
                dependent,
                args: &[
                    Arg::Pointer(self.data.address()),
                    Arg::Pointer(self.other.address()),
                    Arg::Word(wrong),
                ],
            },
        )
    }
}

/// One test at a time: what may still run is one chain for all.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kernels with the report of each mistake.
const FAULTS: [(&str, &[&str]); 23] = [
    ("read_after_write", &["race: shared read of what thread"]),
    (
        "neighbours_in_a_warp",
        &["race: shared read of what thread 0 wrote"],
    ),
    ("write_after_read", &["race: shared write over what thread"]),
    (
        "write_after_write",
        &["race: shared write over what thread 0 wrote"],
    ),
    (
        "uninitialised_shared",
        &["read of uninitialised shared memory"],
    ),
    ("shared_bounds", &["shared access of 4 bytes out of range"]),
    (
        "global_bounds",
        &["global read of 4 bytes at offset 256, the allocation has 256"],
    ),
    (
        "global_bounds_of_writes",
        &["global write of 4 bytes at offset -4"],
    ),
    ("alignment", &["misaligned read of 8 bytes"]),
    (
        "uninitialised_global",
        &["global read of uninitialised memory"],
    ),
    ("global_race", &["race: global read of what thread 0 wrote"]),
    (
        "copy_not_awaited",
        &["while an asynchronous copy by thread"],
    ),
    (
        "copy_of_a_group_too_new",
        &["while an asynchronous copy by thread"],
    ),
    (
        "copy_without_a_barrier",
        &["race: shared read of what thread"],
    ),
    (
        "copy_left_behind",
        &["returned with asynchronous copies outstanding"],
    ),
    (
        "copy_from_nowhere",
        &["global copy of 16 bytes at offset 256"],
    ),
    ("barriers_apart", &["while others wait at line"]),
    ("barrier_of_some", &["deadlock"]),
    (
        "shuffles_apart",
        &["lanes of a warp at different operations"],
    ),
    ("shuffle_of_some", &["deadlock"]),
    ("between_blocks", &["race between blocks"; 3]),
    ("atomics_between_blocks", &["race between blocks"]),
    (
        "warpgroup",
        &[
            "without a fence of the proxy",
            "wrote without a barrier",
            "without a fence",
            "shared write while a warpgroup product that reads it",
            "read of sums whose warpgroup product is not complete",
            "returned with warpgroup products outstanding",
        ],
    ),
];

#[test]
fn every_check_reports_its_mistake_and_nothing_else() {
    let _alone = alone();
    for (kernel, reports) in FAULTS {
        for order in [0, 1, 77] {
            let right = Buffers::new().run(kernel, 0, (order, false));
            assert_eq!(right, Ok(()), "{kernel} in order {order}");
        }
        for (wrong, report) in (1..).zip(reports) {
            let found = Buffers::new().run(kernel, wrong, (0, false));
            let found = found.expect_err(kernel);
            assert!(found.contains(report), "{kernel} {wrong}: {found}");
            assert!(found.starts_with(kernel), "{found}");
        }
    }
}

#[test]
fn what_a_kernel_does_before_it_waits_is_reported() {
    let _alone = alone();
    for (wrong, report) in [
        (
            1,
            "global read, without a wait for earlier kernels, of what fills writes",
        ),
        (2, "global write without a wait for earlier kernels"),
        (3, "returned without a wait for earlier kernels"),
        (4, "global atomic without a wait for earlier kernels"),
        (
            5,
            "global read, without a wait for earlier kernels, of what fills writes",
        ),
    ] {
        let buffers = Buffers::new();
        assert_eq!(buffers.run("fills", 0, (0, false)), Ok(()));
        let found = buffers.run("early", wrong, (0, true));
        let found = found.expect_err("it comes too early");
        assert!(found.contains(report), "{wrong}: {found}");
        // In order nothing of it is a mistake.
        assert_eq!(buffers.run("fills", 0, (0, false)), Ok(()));
        assert_eq!(buffers.run("early", wrong, (0, false)), Ok(()));
    }
    let buffers = Buffers::new();
    for order in [0, 1, 77] {
        assert_eq!(buffers.run("fills", 0, (order, true)), Ok(()));
        assert_eq!(buffers.run("early", 0, (order, true)), Ok(()));
    }
}

/// Two kernels back: it has ended when the one in between waited before it let the next begin, and may still run
/// otherwise; and everything has when the host has waited.
#[test]
fn a_wait_reaches_back_through_those_who_waited() {
    let _alone = alone();
    for (lets_early, host_waits) in [(0, false), (1, false), (1, true)] {
        let (first, second) = (Buffers::new(), Buffers::new());
        assert_eq!(first.run("fills", 0, (0, false)), Ok(()));
        assert_eq!(second.run("fills", lets_early, (0, true)), Ok(()));
        if host_waits {
            complete();
        }
        let outcome = first.run("early", 1, (0, true));
        if lets_early == 1 && !host_waits {
            let found = outcome.expect_err("the first may still run");
            assert!(found.contains("of what fills writes"), "{found}");
        } else {
            assert_eq!(outcome, Ok(()), "{lets_early} {host_waits}");
        }
    }
}
