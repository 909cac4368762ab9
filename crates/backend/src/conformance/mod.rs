//! The conformance suite: one body per operation, run for every target against the reference.
//!
//! A target lists itself once with [`conformance_suite!`](crate::conformance_suite), which makes one
//! test of every body. Bodies that compare with the reference take their bounds from the target's
//! [`Tolerances`]; bodies about a target agreeing with itself (a row alone and in a batch, a prompt
//! whole and in chunks, a fusion and its primitives) compare bits. A broken promise is a panic that
//! names the operation and the case. Tests call it, and the program that does on a machine with a GPU.

mod attention;
mod bits;
mod cache;
mod compare;
mod faults;
mod operations;
mod sampling;
mod scene;

use crate::{Backend, HostTensor, KvTypes, ReferenceBackend, WeightData};

pub use attention::attention_matches_reference;
pub use bits::{fusions_equal_primitives, rows_alone_equal_rows_in_a_batch};
pub use cache::{
    block_copies_are_complete_and_ordered, chunks_equal_the_whole,
    host_blocks_keep_what_they_are_given, placement_does_not_matter,
    sequences_do_not_see_each_other, stale_slots_are_never_read,
};
pub use faults::operands_that_do_not_fit_are_errors;
pub use operations::{
    activations_match_reference, embed_matches_reference, experts_match_reference,
    linear_matches_reference, mul_and_add_match_reference, norm_matches_reference,
    rope_matches_reference, select_and_split_are_exact,
};
pub use sampling::{sample_matches_reference, sampled_rows_do_not_depend_on_each_other};

/// A target whose tensors a test can fill and read.
///
/// The suite drops steps without sampling from them and keeps several tensors of one step alive.
pub trait TestBackend: Backend {
    /// The elements of a tensor, row-major.
    fn read(&mut self, x: &Self::Tensor) -> Vec<f32>;

    /// Whether its cache can have these types; others are refused when the cache is asked for.
    fn keeps(&self, _types: KvTypes) -> bool {
        true
    }

    /// Activations with these elements, as an operation of this target would have left them.
    /// The default serves targets whose activations are loaded like tables of 32-bit floats.
    fn upload(&mut self, rows: usize, columns: usize, data: &[f32]) -> Self::Tensor {
        let tensor = HostTensor::new(rows, columns, WeightData::F32(data.to_vec()))
            .expect("the suite's activations are well formed");
        self.load_tensor(tensor).expect("activations fit in memory")
    }
}

impl TestBackend for ReferenceBackend {
    fn read(&mut self, x: &Self::Tensor) -> Vec<f32> {
        x.data.clone()
    }
}

/// How far one target may be from the reference, for each operation and type. Zero asks for equality.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerances {
    /// `embed`: share of the largest element of the row.
    pub embed: f32,
    /// `linear` with 32-bit weights: share of `Σ|x·w| + |bias|`.
    pub linear_f32: f32,
    /// `linear` with bfloat16 weights, same measure.
    pub linear_bf16: f32,
    /// `linear` with half-precision weights, same measure.
    pub linear_f16: f32,
    /// `norm`: share of the largest element of the row.
    pub norm: f32,
    /// `rope`: share of the largest element of the row.
    pub rope: f32,
    /// `attention` over a 32-bit cache: share of the largest element of the row.
    pub attention_f32: f32,
    /// `attention` over a bfloat16 cache, same measure.
    pub attention_bf16: f32,
    /// `attention` over an 8-bit cache, same measure. The reference rounds keys and values as the
    /// cache does; a target may round queries to 8 bits as well.
    pub attention_int8: f32,
    /// `activate`: share of `|x|`.
    pub activate: f32,
    /// `mul` and `add`: share of the largest element of the row.
    pub elementwise: f32,
    /// Log-probabilities: absolute.
    pub logprob: f32,
}

impl Tolerances {
    /// For targets that read and accumulate 32-bit floats and differ in the order of sums and in the
    /// last bits of elementary functions. The bounds are some ten times what such targets show.
    pub const F32: Self = Self {
        embed: 0.0,
        linear_f32: 2e-6,
        linear_bf16: 2e-6,
        linear_f16: 2e-6,
        norm: 4e-6,
        rope: 1e-6,
        attention_f32: 1e-5,
        attention_bf16: 1e-5,
        attention_int8: 3e-2,
        activate: 2e-6,
        elementwise: 0.0,
        logprob: 2e-5,
    };
}

/// Makes a `#[test]` of every body of the suite, in the module it is called in.
///
/// The first argument is an expression that makes the target, evaluated once per test; the second is
/// its [`Tolerances`].
///
/// ```text
/// mod scalar {
///     backend::conformance_suite!(CpuBackend::new(SimdLevel::Scalar), Tolerances::F32);
/// }
/// ```
#[macro_export]
macro_rules! conformance_suite {
    ($target:expr, $tolerances:expr $(,)?) => {
        $crate::conformance_bodies!(conformance_suite, $target, $tolerances);
    };
    (@bodies $target:expr, $tolerances:expr; [$($compared:ident,)*] [$($exact:ident,)*]) => {
        $(
            #[test]
            fn $compared() {
                $crate::conformance::$compared(&mut $target, &$tolerances);
            }
        )*
        $(
            #[test]
            fn $exact() {
                $crate::conformance::$exact(&mut $target);
            }
        )*
    };
}

/// Hands the names of all bodies to another macro: those that compare with the reference, and the others.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_bodies {
    ($callback:ident $(, $args:expr)*) => {
        $crate::$callback! {
            @bodies $($args),*;
            [
                activations_match_reference,
                attention_matches_reference,
                embed_matches_reference,
                experts_match_reference,
                linear_matches_reference,
                mul_and_add_match_reference,
                norm_matches_reference,
                rope_matches_reference,
                sample_matches_reference,
            ]
            [
                block_copies_are_complete_and_ordered,
                host_blocks_keep_what_they_are_given,
                chunks_equal_the_whole,
                fusions_equal_primitives,
                operands_that_do_not_fit_are_errors,
                placement_does_not_matter,
                rows_alone_equal_rows_in_a_batch,
                sampled_rows_do_not_depend_on_each_other,
                select_and_split_are_exact,
                sequences_do_not_see_each_other,
                stale_slots_are_never_read,
            ]
        }
    };
}

/// A body of the suite.
type Body<B> = fn(&mut B, &Tolerances);

/// The suite for programs that are not tests: every body by its name.
pub fn bodies<B: TestBackend>() -> Vec<(&'static str, Body<B>)> {
    crate::conformance_bodies!(conformance_table)
}

#[doc(hidden)]
#[macro_export]
macro_rules! conformance_table {
    (@bodies ; [$($compared:ident,)*] [$($exact:ident,)*]) => {
        vec![
            $((stringify!($compared), $crate::conformance::$compared as Body<B>),)*
            $((stringify!($exact), |target: &mut B, _: &Tolerances| {
                $crate::conformance::$exact(target);
            }),)*
        ]
    };
}
