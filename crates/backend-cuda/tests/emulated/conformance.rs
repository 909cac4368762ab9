//! The conformance suite on the emulated device.

use backend::conformance::Tolerances;
use backend_cuda::Precision;
use cuda_emulation::Profile;

use crate::device::target;

/// Over 16-bit keys and values, queries and weights are in 16 bits too.
const EXACT: Tolerances = Tolerances {
    attention_bf16: 1e-2,
    ..Tolerances::F32
};

/// The bounds of the CPU's 8-bit precisions: a narrow matrix under an outlier errs by a tenth.
const INT8: Tolerances = Tolerances {
    linear_f32: 0.2,
    linear_bf16: 0.2,
    linear_f16: 0.2,
    ..EXACT
};

/// Both operands are rounded to eleven bits.
const F16: Tolerances = Tolerances {
    linear_f32: 2e-3,
    linear_bf16: 2e-3,
    linear_f16: 2e-3,
    ..EXACT
};

mod int8 {
    use super::*;
    backend::conformance_suite!(target(Profile::Fast80, 0, Precision::Int8), INT8);
}

mod int8_fast_turing {
    use super::*;
    backend::conformance_suite!(target(Profile::Fast75, 1, Precision::Int8Fast), INT8);
}

mod int8_hopper {
    use super::*;
    backend::conformance_suite!(target(Profile::Fast90, 0, Precision::Int8), INT8);
}

mod int8_blocks {
    use super::*;
    backend::conformance_suite!(target(Profile::Fast80, 1, Precision::Int8Blocks), INT8);
}

mod f16 {
    use super::*;
    backend::conformance_suite!(target(Profile::Fast80, 7, Precision::F16), F16);
}

/// Activations in half precision leave the error of 8-bit weights.
mod w8a16 {
    use super::*;
    backend::conformance_suite!(target(Profile::Fast75, 0, Precision::W8A16), INT8);
}
