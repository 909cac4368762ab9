//! cuBLASLt's product of 8-bit integers, by its names (`cublasLt.h`, CUDA 12): by the slow loop, and refused where
//! the documentation of `cublasLtMatmul` wants other types, leading dimensions or addresses. Columns are
//! contiguous, and the left side is transposed: the one form of this product on ordinary layouts.

#![allow(non_snake_case, reason = "the names of the interface")]

use std::ffi::{c_int, c_void};

use crate::state::{Failure, INVALID_VALUE, Result, State, Work, with};

/// `CUBLAS_STATUS_INVALID_VALUE`.
const INVALID: c_int = 7;
/// `CUBLAS_STATUS_NOT_SUPPORTED`.
const NOT_SUPPORTED: c_int = 15;
/// `CUBLAS_STATUS_EXECUTION_FAILED`.
const EXECUTION_FAILED: c_int = 13;
/// `CUDA_R_8I` and `CUDA_R_32I`.
const TYPES: [c_int; 3] = [3, 3, 10];
/// `CUBLAS_COMPUTE_32I`, and `CUDA_R_32I` for the factors.
const COMPUTE: [c_int; 2] = [72, 10];
/// What the heuristic writes where the algorithm is.
const ALGORITHM: u64 = 0x6f63_7465_7421;
const ONE: *mut c_void = std::ptr::dangling_mut();

/// `cublasLtMatrixLayout_t`.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    kind: c_int,
    rows: u64,
    columns: u64,
    leading: i64,
}

/// `cublasLtMatmulDesc_t`.
pub(crate) struct Description {
    compute: [c_int; 2],
    /// Whether a side is transposed.
    transposed: [c_int; 2],
}

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
struct Choice {
    algorithm: [u64; 8],
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

/// A product whose arguments were checked: left side, right side and outcome.
pub(crate) struct Product {
    addresses: [u64; 3],
    layouts: [Layout; 3],
}

/// The layouts, if there is an algorithm for them.
fn supported(description: &Description, layouts: [Layout; 3]) -> Option<[Layout; 3]> {
    let [a, b, d] = layouts;
    let fits = a.rows == b.rows && d.rows == a.columns && d.columns == b.columns;
    let fours = a.rows.is_multiple_of(4) && a.columns.is_multiple_of(4);
    let gaps = layouts
        .iter()
        .all(|x| x.leading % 4 == 0 && x.leading.cast_unsigned() >= x.rows);
    let types = layouts.map(|x| x.kind) == TYPES && description.compute == COMPUTE;
    (fits && fours && gaps && types && description.transposed == [1, 0]).then_some(layouts)
}

impl Product {
    /// Column by column.
    pub fn run(&self, state: &State) -> Result<()> {
        let [a, b, d] = self.layouts;
        let read = |side: usize, layout: Layout| -> Result<Vec<u8>> {
            let bytes = layout.leading as usize * layout.columns as usize;
            let (memory, offset) = state.memory_at(self.addresses[side], bytes)?;
            let mut data = vec![0; bytes];
            memory.read(offset, &mut data);
            Ok(data)
        };
        let (left, right) = (read(0, a)?, read(1, b)?);
        for column in 0..d.columns as usize {
            for row in 0..d.rows as usize {
                let mut sum = 0;
                for i in 0..a.rows as usize {
                    let x = left[row * a.leading as usize + i].cast_signed();
                    let y = right[column * b.leading as usize + i].cast_signed();
                    sum += i32::from(x) * i32::from(y);
                }
                let at = self.addresses[2] + 4 * (column as u64 * d.leading as u64 + row as u64);
                let (memory, offset) = state.memory_at(at, 4)?;
                memory.write(offset, &sum.to_le_bytes());
            }
        }
        Ok(())
    }
}

/// Gives a value that nobody takes back: a test makes few.
///
/// # Safety
/// `to` may be written.
unsafe fn leak<T>(to: *mut *mut T, value: T) -> c_int {
    // SAFETY: the caller's.
    unsafe { to.write(Box::into_raw(Box::new(value))) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtCreate(to: *mut *mut c_void) -> c_int {
    // SAFETY: the interface asks for a place to write to.
    unsafe { to.write(ONE) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulDescCreate(
    to: *mut *mut Description,
    compute: c_int,
    scale: c_int,
) -> c_int {
    let description = Description {
        compute: [compute, scale],
        transposed: [0; 2],
    };
    // SAFETY: the interface asks for a place to write to.
    unsafe { leak(to, description) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulDescSetAttribute(
    description: *mut Description,
    which: c_int,
    value: *const c_int,
    bytes: usize,
) -> c_int {
    // `CUBLASLT_MATMUL_DESC_TRANSA` and `…TRANSB`.
    let (side @ (3 | 4), 4) = (which, bytes) else {
        return INVALID;
    };
    // SAFETY: a description of ours, and a value of four bytes.
    unsafe { (&mut *description).transposed[side as usize - 3] = value.read() };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatrixLayoutCreate(
    to: *mut *mut Layout,
    kind: c_int,
    rows: u64,
    columns: u64,
    leading: i64,
) -> c_int {
    let layout = Layout {
        kind,
        rows,
        columns,
        leading,
    };
    // SAFETY: the interface asks for a place to write to.
    unsafe { leak(to, layout) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulPreferenceCreate(to: *mut *mut c_void) -> c_int {
    // SAFETY: the interface asks for a place to write to.
    unsafe { to.write(ONE) };
    0
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulPreferenceSetAttribute(
    _: *mut c_void,
    which: c_int,
    _: *const c_void,
    bytes: usize,
) -> c_int {
    // `CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES`.
    if [which as usize, bytes] == [1, 8] {
        0
    } else {
        INVALID
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    _: *mut c_void,
    description: *const Description,
    a: *const Layout,
    b: *const Layout,
    c: *const Layout,
    d: *const Layout,
    _: *mut c_void,
    asked: c_int,
    to: *mut Choice,
    found: *mut c_int,
) -> c_int {
    // SAFETY: descriptions of ours, and places for at least one choice and a number.
    unsafe {
        if asked < 1 || (*c).leading != (*d).leading {
            return INVALID;
        }
        if supported(&*description, [*a, *b, *d]).is_none() {
            found.write(0);
            return NOT_SUPPORTED;
        }
        found.write(1);
        to.write(Choice {
            algorithm: [ALGORITHM; 8],
            workspace: 0,
            state: 0,
            waves: 1.0,
            reserved: [0; 4],
        });
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmul(
    _: *mut c_void,
    description: *const Description,
    alpha: *const i32,
    a: u64,
    a_layout: *const Layout,
    b: u64,
    b_layout: *const Layout,
    beta: *const i32,
    _: u64,
    _: *const Layout,
    d: u64,
    d_layout: *const Layout,
    algorithm: *const u64,
    workspace: u64,
    workspace_bytes: usize,
    _: *mut c_void,
) -> c_int {
    // SAFETY: descriptions of ours, the algorithm that was given, factors on the host.
    let (layouts, is_plain) = unsafe {
        (
            supported(&*description, [*a_layout, *b_layout, *d_layout]),
            [*alpha, *beta] == [1, 0] && *algorithm == ALGORITHM,
        )
    };
    let addresses = [a, b, d];
    let aligned =
        addresses.iter().all(|address| address.is_multiple_of(16)) && workspace.is_multiple_of(256);
    let Some(layouts) = layouts.filter(|_| is_plain && aligned) else {
        return INVALID;
    };
    let outcome = with(|state| {
        state.memory_at(workspace, workspace_bytes)?;
        state.work(Work::Product(Product { addresses, layouts }))
    });
    match outcome {
        Ok(()) => 0,
        Err(Failure(code)) if Failure(code) == INVALID_VALUE => INVALID,
        Err(_) => EXECUTION_FAILED,
    }
}
