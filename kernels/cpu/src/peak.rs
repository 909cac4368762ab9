//! What this machine can do at the moment: multiply-accumulate rates of registers alone, and the rate at
//! which memory is read. Shares of these figures are comparable between runs, times are not: machines
//! that are shared drift by a factor of two.
//!
//! The loops are assembly over sixteen accumulators, enough to hide the latency of the instruction:
//! compilers spill the form written with intrinsics and report less than half of the rate.

use std::hint::black_box;
use std::thread;
use std::time::Instant;

use crate::isa::Kernel;
use crate::simd::Simd;
use crate::sum::{Term, sum};
use crate::{AlignedBuf, Isa};

/// Turns of a loop of sixteen instructions: some tens of milliseconds.
const TURNS: u64 = 2_000_000;
/// Runs of which the best counts.
const PASSES: usize = 5;
/// Bytes that each thread reads: far more than any cache holds.
const READ_BYTES: usize = 256 << 20;

/// Rates of one measurement, over all its threads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peak {
    /// 8-bit multiplications and additions per second; none without an instruction for them.
    pub int8_ops: Option<f64>,
    /// 16-bit floating-point multiplications and additions per second; none without an instruction for
    /// them.
    pub bf16_ops: Option<f64>,
    /// 32-bit floating-point multiplications and additions per second.
    pub f32_ops: Option<f64>,
    /// Bytes read per second; zero where there is no memory for the test.
    pub read_bytes: f64,
}

/// Measures with `threads` threads at a level of instructions.
pub fn measure(isa: Isa, threads: usize) -> Peak {
    Peak {
        int8_ops: int8_loop(isa).map(|(run, ops)| best(threads, ops * TURNS as f64, run)),
        bf16_ops: bf16_loop(isa).map(|(run, ops)| best(threads, ops * TURNS as f64, run)),
        f32_ops: f32_loop(isa).map(|(run, ops)| best(threads, ops * TURNS as f64, run)),
        read_bytes: read(isa, threads).unwrap_or(0.0),
    }
}

/// The best rate of several passes in which every thread does `work` once.
fn best(threads: usize, work: f64, run: fn()) -> f64 {
    let pass = || {
        let start = Instant::now();
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(run);
            }
        });
        work * threads as f64 / start.elapsed().as_secs_f64()
    };
    (0..PASSES).map(|_| pass()).fold(0.0, f64::max)
}

/// The best rate at which threads together read memory, each its own, which lies in large pages as
/// weights do; none where there is no memory for it.
fn read(isa: Isa, threads: usize) -> Option<f64> {
    let buffers: Option<Vec<_>> = (0..threads)
        .map(|_| AlignedBuf::zeroed_for_streaming(READ_BYTES / size_of::<f32>()))
        .collect();
    let mut buffers = buffers?;
    // Pages that nobody wrote are one page of zeros.
    buffers.iter_mut().for_each(|buffer| buffer.fill(1.0));
    let pass = || {
        let start = Instant::now();
        thread::scope(|scope| {
            for buffer in &buffers {
                scope.spawn(|| isa.dispatch(Read(buffer)));
            }
        });
        (threads * READ_BYTES) as f64 / start.elapsed().as_secs_f64()
    };
    Some((0..PASSES).map(|_| pass()).fold(0.0, f64::max))
}

/// Reads numbers once, in sixteen running sums.
struct Read<'a>(&'a [f32]);

impl Kernel for Read<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        black_box(sum(s, self.0, Term::Value, 0.0));
    }
}

/// A loop and the operations of one turn.
type Loop = (fn(), f64);

#[cfg(not(target_arch = "x86_64"))]
fn int8_loop(_: Isa) -> Option<Loop> {
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn bf16_loop(_: Isa) -> Option<Loop> {
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn f32_loop(_: Isa) -> Option<Loop> {
    None
}

#[cfg(target_arch = "x86_64")]
use x86::{bf16_loop, f32_loop, int8_loop};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;

    use super::{Loop, TURNS};
    use crate::Isa;

    /// Repeats an instruction over sixteen accumulators; the operands are zero, so nothing saturates.
    macro_rules! turns {
        ($width:literal, $instruction:literal) => {
            // SAFETY: the caller picked the loop by what the processor has; only registers named as
            // clobbered change.
            unsafe {
                asm!(
                    concat!("vxorps ", $width, "mm14, ", $width, "mm14, ", $width, "mm14"),
                    concat!("vxorps ", $width, "mm15, ", $width, "mm15, ", $width, "mm15"),
                    "2:",
                    concat!($instruction, " ", $width, "mm0, ", $width, "mm14, ", $width, "mm15"),
                    concat!($instruction, " ", $width, "mm1, ", $width, "mm14, ", $width, "mm15"),
                    concat!($instruction, " ", $width, "mm2, ", $width, "mm14, ", $width, "mm15"),
                    concat!($instruction, " ", $width, "mm3, ", $width, "mm14, ", $width, "mm15"),
                    concat!($instruction, " ", $width, "mm4, ", $width, "mm14, ", $width, "mm15"),
                    concat!($instruction, " ", $width, "mm5, ", $width, "mm14, ", $width, "mm15"),
                    concat!($instruction, " ", $width, "mm6, ", $width, "mm14, ", $width, "mm15"),
                    concat!($instruction, " ", $width, "mm7, ", $width, "mm14, ", $width, "mm15"),
                    concat!($instruction, " ", $width, "mm8, ", $width, "mm14, ", $width, "mm15"),
                    concat!($instruction, " ", $width, "mm9, ", $width, "mm14, ", $width, "mm15"),
                    concat!($instruction, " ", $width, "mm10, ", $width, "mm14, ", $width, "mm15"),
                    concat!($instruction, " ", $width, "mm11, ", $width, "mm14, ", $width, "mm15"),
                    "dec {turns}",
                    "jnz 2b",
                    turns = inout(reg) TURNS => _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                    out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                    out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                    out("xmm14") _, out("xmm15") _,
                    options(nomem, nostack),
                );
            }
        };
    }
    /// Instructions of one turn.
    const UNROLL: f64 = 12.0;

    fn vpdpbusd() {
        turns!("z", "vpdpbusd");
    }

    fn vpmaddubsw() {
        turns!("y", "vpmaddubsw");
    }

    fn vdpbf16ps() {
        turns!("z", "vdpbf16ps");
    }

    fn fma512() {
        turns!("z", "vfmadd231ps");
    }

    fn fma256() {
        turns!("y", "vfmadd231ps");
    }

    /// AVX-512 multiplies and adds 64 bytes at once; AVX2 32 bytes into 16 bits, and needs further
    /// instructions to widen, which a kernel can hardly avoid and this figure leaves out.
    pub(super) fn int8_loop(isa: Isa) -> Option<Loop> {
        match isa {
            Isa::Avx512 | Isa::Avx512Bf16 if is_x86_feature_detected!("avx512vnni") => {
                Some((vpdpbusd as fn(), UNROLL * 128.0))
            }
            Isa::Avx512Bf16 | Isa::Avx512 | Isa::Avx2 if is_x86_feature_detected!("avx2") => {
                Some((vpmaddubsw as fn(), UNROLL * 64.0))
            }
            _ => None,
        }
    }

    pub(super) fn bf16_loop(isa: Isa) -> Option<Loop> {
        let found = isa == Isa::Avx512Bf16 && isa.is_supported();
        found.then_some((vdpbf16ps as fn(), UNROLL * 64.0))
    }

    pub(super) fn f32_loop(isa: Isa) -> Option<Loop> {
        match isa {
            Isa::Avx512 | Isa::Avx512Bf16 if is_x86_feature_detected!("avx512f") => {
                Some((fma512 as fn(), UNROLL * 32.0))
            }
            Isa::Avx512Bf16 | Isa::Avx512 | Isa::Avx2 if is_x86_feature_detected!("fma") => {
                Some((fma256 as fn(), UNROLL * 16.0))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_has_positive_rates() {
        for isa in Isa::supported() {
            let int8 = int8_loop(isa).map(|(run, ops)| best(1, ops * TURNS as f64, run));
            let f32 = f32_loop(isa).map(|(run, ops)| best(1, ops * TURNS as f64, run));
            let bf16 = bf16_loop(isa).map(|(run, ops)| best(1, ops * TURNS as f64, run));
            assert_eq!(int8.is_some(), isa != Isa::Scalar);
            assert_eq!(bf16.is_some(), isa == Isa::Avx512Bf16);
            assert!(
                int8.into_iter()
                    .chain(bf16)
                    .chain(f32)
                    .all(|rate| rate > 1e9),
                "{isa}"
            );
        }
    }
}
