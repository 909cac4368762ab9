//! Which instruction set a kernel runs on: detected once, forced where a test or a user wants it.

use std::fmt;
use std::str::FromStr;

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Scalar, Simd};

/// A level of vector instructions. Results have the same bits on every level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// No vector instructions: the twin of the other levels.
    Scalar,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// As [`Self::Avx512`], with the instructions for bfloat16.
    Avx512Bf16,
}

impl Isa {
    /// Every level, lowest first.
    pub const ALL: [Self; 4] = [Self::Scalar, Self::Avx2, Self::Avx512, Self::Avx512Bf16];

    /// The highest level of this machine.
    pub fn detect() -> Self {
        Self::supported().last().unwrap_or(Self::Scalar)
    }

    /// The levels this machine can execute, lowest first.
    pub fn supported() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_supported())
    }

    /// Whether this machine can execute the level.
    pub fn is_supported(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Avx2::new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Avx512::<false>::new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Avx512::<true>::new().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 | Self::Avx512Bf16 => false,
        }
    }

    /// Runs a kernel that multiplies no bfloat16 numbers; it is compiled once for AVX-512.
    ///
    /// # Panics
    /// When the machine cannot execute the level.
    pub(crate) fn dispatch<K: Kernel>(self, kernel: K) {
        match self {
            Self::Scalar => kernel.run(Scalar),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                let simd = Avx2::new().expect("the level was checked when it was chosen");
                // SAFETY: an `Avx2` exists only where the CPU has the features (`Avx2::new`).
                unsafe { run_avx2(simd, kernel) }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Bf16 => {
                let simd = Avx512::new().expect("the level was checked when it was chosen");
                // SAFETY: an `Avx512` exists only where the CPU has the features (`Avx512::new`).
                unsafe { run_avx512(simd, kernel) }
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 | Self::Avx512Bf16 => {
                panic!("{self} cannot run on this machine")
            }
        }
    }

    /// Runs a kernel that does.
    ///
    /// # Panics
    /// When the machine cannot execute the level.
    pub(crate) fn dispatch_bf16<K: Kernel>(self, kernel: K) {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Avx512Bf16 {
            let simd = Avx512::new().expect("the level was checked when it was chosen");
            // SAFETY: the value exists only where the CPU has the features (`Avx512::new`).
            return unsafe { run_avx512_bf16(simd, kernel) };
        }
        self.dispatch(kernel);
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
        })
    }
}

impl FromStr for Isa {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|isa| isa.to_string() == name)
            .ok_or_else(|| {
                format!("unknown instruction set {name:?}: scalar, avx2, avx512 or avx512-bf16")
            })
    }
}

/// A piece of work that is compiled once per level. Implementations mark `run` `#[inline(always)]`
/// and avoid closures, so that everything ends up inside the function that has the CPU features.
pub(crate) trait Kernel {
    fn run<S: Simd>(self, simd: S);
}

/// # Safety
/// The CPU has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2<K: Kernel>(simd: Avx2, kernel: K) {
    kernel.run(simd);
}

/// # Safety
/// The CPU has AVX-512 F, BW, DQ and VL, AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn run_avx512<K: Kernel>(simd: Avx512<false>, kernel: K) {
    kernel.run(simd);
}

/// # Safety
/// The CPU has AVX-512 F, BW, DQ, VL and BF16, AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn run_avx512_bf16<K: Kernel>(simd: Avx512<true>, kernel: K) {
    kernel.run(simd);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_levels_are_consistent() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
        assert!("sse9".parse::<Isa>().is_err());
        assert!(Isa::Scalar.is_supported());
        assert!(Isa::detect().is_supported());
        assert!(Isa::supported().is_sorted());
    }
}
