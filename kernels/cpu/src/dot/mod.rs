//! Products of bytes, summed exactly in 32 bits: sixteen outputs by four inputs at a time.
//!
//! Activations are in ±127. Weights may be anything in −128…127 and are stored with 128 added, which
//! is the unsigned operand that VNNI wants. Every level gives the same integers; what differs is how
//! the offset is taken back.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512_vnni;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod vnni256;

use std::fmt;

use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::simd::Avx2;
use crate::simd::{Scalar, Simd};
#[cfg(target_arch = "x86_64")]
use avx512_vnni::Avx512Vnni;
#[cfg(target_arch = "x86_64")]
use vnni256::{Evex, Vex, Vnni256};

/// Inputs that one step covers.
pub(crate) const STEP: usize = 4;
/// What is added to a weight.
pub(crate) const OFFSET: u8 = 128;

/// Operations on sixteen 32-bit sums. A value is the proof that the CPU can execute them.
pub(crate) trait Dot: Copy {
    /// The level's floating-point half.
    type S: Simd;
    /// Sixteen sums.
    type Sums: Copy;
    /// Sixteen outputs by four inputs, ready to be multiplied.
    type Weights: Copy;

    /// Whether 32 registers of sixteen lanes exist; smaller tiles are used otherwise.
    const WIDE: bool = <Self::S as Simd>::WIDE;

    fn simd(self) -> Self::S;
    /// What sums start from; `offset` is −128 times the sum of the activations that will be taken.
    fn start(self, offset: i32) -> Self::Sums;
    /// # Safety
    /// 64 bytes can be read at `from`.
    unsafe fn load(self, from: *const u8) -> Self::Weights;
    /// Asks for the cache line at an address, which need not be ours.
    fn prefetch(self, from: *const u8);
    /// Adds the products of four inputs, the bytes of `x`, to the sums.
    fn add(self, sums: Self::Sums, weights: Self::Weights, x: i32) -> Self::Sums;
    fn to_f32(self, sums: Self::Sums) -> <Self::S as Simd>::F;
}

/// The instructions that multiply bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Int8Level {
    /// No vector instructions.
    Scalar,
    /// AVX2: signs moved to the activations, so that 16-bit sums of pairs cannot saturate.
    Avx2,
    /// AVX2 with AVX-VNNI.
    AvxVnni,
    /// AVX2, and of AVX-512 the form of [`Self::AvxVnni`]'s instruction: chosen by nobody, it runs that
    /// level's code on machines that lack it.
    AvxVnniEvex,
    /// AVX-512 with VNNI.
    Avx512Vnni,
}

impl Int8Level {
    /// The best there is on this machine below or at a level of vector instructions.
    pub fn of(isa: Isa) -> Self {
        match isa {
            Isa::Scalar => Self::Scalar,
            Isa::Avx512 | Isa::Avx512Bf16 if Self::Avx512Vnni.is_supported() => Self::Avx512Vnni,
            _ if Self::AvxVnni.is_supported() => Self::AvxVnni,
            _ => Self::Avx2,
        }
    }

    /// The levels this machine can execute, lowest first.
    pub fn supported() -> impl Iterator<Item = Self> {
        [
            Self::Scalar,
            Self::Avx2,
            Self::AvxVnni,
            Self::AvxVnniEvex,
            Self::Avx512Vnni,
        ]
        .into_iter()
        .filter(|level| level.is_supported())
    }

    /// Whether this machine can execute the level.
    pub fn is_supported(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Avx2::new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => Vex::new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnniEvex => Evex::new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => Avx512Vnni::<false>::new().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Runs a kernel compiled for this level.
    ///
    /// # Panics
    /// When the machine cannot execute the level.
    pub(crate) fn dispatch<K: DotKernel>(self, kernel: K) {
        match self {
            Self::Scalar => kernel.run(Scalar),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                let level = Avx2::new().expect("the level was checked when it was chosen");
                // SAFETY: an `Avx2` exists only where the CPU has the features (`Avx2::new`).
                unsafe { run_avx2(level, kernel) }
            }
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => {
                let level = Vex::new().expect("the level was checked when it was chosen");
                // SAFETY: the value exists only where the CPU has the features (`Vex::new`).
                unsafe { run_avx_vnni(Vnni256(level), kernel) }
            }
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnniEvex => {
                let level = Evex::new().expect("the level was checked when it was chosen");
                // SAFETY: the value exists only where the CPU has the features (`Evex::new`).
                unsafe { run_avx_vnni_evex(Vnni256(level), kernel) }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                let level = Avx512Vnni::new().expect("the level was checked when it was chosen");
                // SAFETY: the value exists only where the CPU has the features (`Avx512Vnni::new`).
                unsafe { run_avx512_vnni(level, kernel) }
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => panic!("{self} cannot run on this machine"),
        }
    }

    /// Runs a kernel that multiplies bfloat16 numbers beside bytes, on the best instructions of a level
    /// for both.
    ///
    /// # Panics
    /// When the machine cannot execute the level.
    pub(crate) fn dispatch_bf16<K: DotKernel>(isa: Isa, kernel: K) {
        let level = Self::of(isa);
        #[cfg(target_arch = "x86_64")]
        if isa == Isa::Avx512Bf16 && level == Self::Avx512Vnni {
            let level = Avx512Vnni::new().expect("the level was checked when it was chosen");
            // SAFETY: the value exists only where the CPU has the features (`Avx512Vnni::new`).
            return unsafe { run_avx512_vnni_bf16(level, kernel) };
        }
        level.dispatch(kernel);
    }
}

impl fmt::Display for Int8Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::AvxVnniEvex => "avx-vnni-evex",
            Self::Avx512Vnni => "avx512-vnni",
        })
    }
}

/// A piece of work that is compiled once per level, under the rules of `isa::Kernel`.
pub(crate) trait DotKernel {
    fn run<D: Dot>(self, level: D);
}

/// # Safety
/// The CPU has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2<K: DotKernel>(level: Avx2, kernel: K) {
    kernel.run(level);
}

/// # Safety
/// The CPU has AVX-VNNI, AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avxvnni,avx2,fma")]
unsafe fn run_avx_vnni<K: DotKernel>(level: Vnni256<Vex>, kernel: K) {
    kernel.run(level);
}

/// # Safety
/// The CPU has AVX-512 F, VL and VNNI, AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512vnni,avx2,fma")]
unsafe fn run_avx_vnni_evex<K: DotKernel>(level: Vnni256<Evex>, kernel: K) {
    kernel.run(level);
}

/// # Safety
/// The CPU has AVX-512 F, BW, DQ, VL and VNNI, AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn run_avx512_vnni<K: DotKernel>(level: Avx512Vnni<false>, kernel: K) {
    kernel.run(level);
}

/// # Safety
/// The CPU has AVX-512 F, BW, DQ, VL, VNNI and BF16, AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma")]
unsafe fn run_avx512_vnni_bf16<K: DotKernel>(level: Avx512Vnni<true>, kernel: K) {
    kernel.run(level);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::LANES;

    struct Products<'a> {
        x: [i8; STEP],
        weights: &'a [u8; LANES * STEP],
        out: &'a mut [f32; LANES],
    }

    impl DotKernel for Products<'_> {
        #[inline(always)]
        fn run<D: Dot>(self, d: D) {
            let mut sum = 0;
            for x in self.x {
                sum += i32::from(x);
            }
            // SAFETY: the array holds 64 bytes.
            let weights = unsafe { d.load(self.weights.as_ptr()) };
            let x = i32::from_ne_bytes(self.x.map(|x| x as u8));
            let sums = d.add(d.start(-i32::from(OFFSET) * sum), weights, x);
            d.simd().store(self.out, d.to_f32(sums));
        }
    }

    #[test]
    fn the_chosen_level_can_run() {
        for isa in Isa::supported() {
            let level = Int8Level::of(isa);
            assert!(level.is_supported() && level != Int8Level::AvxVnniEvex);
        }
        assert!(Int8Level::supported().any(|level| level == Int8Level::Scalar));
    }

    /// Every weight against the activations where products are largest and cancel least.
    #[test]
    fn every_level_is_exact_at_the_ends_of_the_range() {
        for x in [[127; 4], [-127; 4], [127, -127, 127, -127], [0, 1, -1, 126]] {
            for first in 0..=255u8 {
                let weights: [u8; LANES * STEP] =
                    std::array::from_fn(|i| if i < 40 { first } else { (i * 5) as u8 ^ first });
                let expected: [f32; LANES] = std::array::from_fn(|lane| {
                    let products = weights[STEP * lane..].iter().zip(&x);
                    let sum: i32 = products
                        .map(|(w, x)| (i32::from(*w) - 128) * i32::from(*x))
                        .sum();
                    sum as f32
                });
                for level in Int8Level::supported() {
                    let mut out = [0.0; LANES];
                    level.dispatch(Products {
                        x,
                        weights: &weights,
                        out: &mut out,
                    });
                    assert_eq!(out, expected, "{level}, {x:?}, weights {first} − 128");
                }
            }
        }
    }
}
