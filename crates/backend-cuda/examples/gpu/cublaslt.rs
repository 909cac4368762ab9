//! NVIDIA's own 8-bit product, cuBLASLt's, as a bar: opened by name where it is installed, compared with the exact
//! integer product, then timed as our kernels are. Constants and signatures are those of `cublasLt.h`, CUDA 11 to 13.
#![allow(unsafe_code)]

use std::ffi::{OsStr, c_int, c_void};
use std::ptr::null_mut;

use backend::{BackendError, Result};
use backend_cuda::CudaBackend;
use backend_cuda::device::Device;
use backend_cuda::driver::{Gpu, GpuMemory};
use libloading::Library;

/// `CUBLAS_COMPUTE_32I`.
const COMPUTE_32I: c_int = 72;
/// `CUDA_R_8I`.
const R_8I: c_int = 3;
/// `CUDA_R_32I`.
const R_32I: c_int = 10;
/// `CUBLASLT_MATMUL_DESC_TRANSA`.
const TRANSA: c_int = 3;
/// `CUBLAS_OP_T`.
const OP_T: c_int = 1;
/// `CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES`.
const MAX_WORKSPACE_BYTES: c_int = 1;
/// What NVIDIA advises for its largest parts.
const WORKSPACE: usize = 32 << 20;
/// Numbers of a product that are compared with the exact ones.
const COMPARED: usize = 1024;

type Handle = *mut c_void;

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Default)]
struct Choice {
    algorithm: [u64; 8],
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

/// The opened library.
pub struct CublasLt {
    library: Library,
    handle: Handle,
}

/// How a product of one shape is computed. The descriptors live as long as the program, which measures and ends.
pub struct Plan<'a> {
    lt: &'a CublasLt,
    product: Handle,
    layouts: [Handle; 3],
    choice: Choice,
    workspace: GpuMemory,
}

fn check(what: &str, status: c_int) -> Result<()> {
    match status {
        0 => Ok(()),
        _ => Err(BackendError::Device(format!(
            "{what}: cuBLAS status {status}"
        ))),
    }
}

/// Calls a function of the library: its name, the types of its arguments, its arguments.
macro_rules! call {
    ($lt:expr, $name:literal, ($($kind:ty),*), $($arg:expr),* $(,)?) => {{
        // SAFETY: the signature is the header's; pointers are to live values of the types that it names.
        let status = unsafe {
            let function = $lt
                .get::<unsafe extern "C" fn($($kind),*) -> c_int>($name.as_bytes())
                .map_err(|error| BackendError::Unsupported(error.to_string()))?;
            function($($arg),*)
        };
        check($name, status)
    }};
}

impl CublasLt {
    /// The first of these libraries that is there; none if none is.
    ///
    /// # Errors
    /// One that does not start.
    pub fn open<S: AsRef<OsStr>>(names: &[S]) -> Result<Option<Self>> {
        // SAFETY: NVIDIA's library, or the stand-in; initialisers only allocate.
        let found = names
            .iter()
            .find_map(|name| unsafe { Library::new(name.as_ref()) }.ok());
        let Some(library) = found else {
            return Ok(None);
        };
        let mut handle = null_mut();
        call!(library, "cublasLtCreate", (*mut Handle), &raw mut handle)?;
        Ok(Some(Self { library, handle }))
    }

    /// The product `[m, k]` by `[n, k]` transposed. The library counts by columns: it is given the weights
    /// as the transposed left side, tokens as columns of the right one.
    ///
    /// # Errors
    /// A shape that the library has no algorithm for.
    pub fn plan(&self, gpu: &Gpu, [m, n, k]: [usize; 3]) -> Result<Plan<'_>> {
        let lib = &self.library;
        let (mut product, transposed) = (null_mut(), OP_T);
        call!(
            lib,
            "cublasLtMatmulDescCreate",
            (*mut Handle, c_int, c_int),
            &raw mut product,
            COMPUTE_32I,
            R_32I
        )?;
        call!(
            lib,
            "cublasLtMatmulDescSetAttribute",
            (Handle, c_int, *const c_int, usize),
            product,
            TRANSA,
            &raw const transposed,
            size_of::<c_int>()
        )?;
        let layouts = [
            self.layout(R_8I, k, n)?,
            self.layout(R_8I, k, m)?,
            self.layout(R_32I, n, m)?,
        ];
        Ok(Plan {
            lt: self,
            product,
            layouts,
            choice: self.choose(product, layouts)?,
            workspace: gpu.alloc(WORKSPACE, "cuBLASLt's workspace")?,
        })
    }

    /// Columns without gaps.
    fn layout(&self, kind: c_int, rows: usize, columns: usize) -> Result<Handle> {
        let mut layout = null_mut();
        call!(
            self.library,
            "cublasLtMatrixLayoutCreate",
            (*mut Handle, c_int, u64, u64, i64),
            &raw mut layout,
            kind,
            rows as u64,
            columns as u64,
            rows as i64
        )?;
        Ok(layout)
    }

    /// The library's own first choice, made once.
    fn choose(&self, product: Handle, [a, b, d]: [Handle; 3]) -> Result<Choice> {
        let lib = &self.library;
        let (mut preference, workspace) = (null_mut(), WORKSPACE);
        call!(
            lib,
            "cublasLtMatmulPreferenceCreate",
            (*mut Handle),
            &raw mut preference
        )?;
        call!(
            lib,
            "cublasLtMatmulPreferenceSetAttribute",
            (Handle, c_int, *const usize, usize),
            preference,
            MAX_WORKSPACE_BYTES,
            &raw const workspace,
            size_of::<usize>()
        )?;
        let (mut choice, mut found) = (Choice::default(), 0);
        call!(
            lib,
            "cublasLtMatmulAlgoGetHeuristic",
            (
                Handle,
                Handle,
                Handle,
                Handle,
                Handle,
                Handle,
                Handle,
                c_int,
                *mut Choice,
                *mut c_int
            ),
            self.handle,
            product,
            a,
            b,
            d,
            d,
            preference,
            1,
            &raw mut choice,
            &raw mut found
        )?;
        // 15: `CUBLAS_STATUS_NOT_SUPPORTED`.
        check("an algorithm", if found == 0 { 15 } else { choice.state })?;
        Ok(choice)
    }
}

impl Plan<'_> {
    /// Asks for `y = x · wᵀ` in 32-bit integers, behind what the GPU was asked for before.
    ///
    /// # Errors
    /// What the library says.
    pub fn run(&self, gpu: &Gpu, w: &GpuMemory, x: &GpuMemory, y: &GpuMemory) -> Result<()> {
        let (one, zero) = (1i32, 0i32);
        let [a, b, d] = self.layouts;
        let at = |memory: &GpuMemory| memory.address() as *mut c_void;
        call!(
            self.lt.library,
            "cublasLtMatmul",
            (
                Handle,
                Handle,
                *const i32,
                *mut c_void,
                Handle,
                *mut c_void,
                Handle,
                *const i32,
                *mut c_void,
                Handle,
                *mut c_void,
                Handle,
                *const [u64; 8],
                *mut c_void,
                usize,
                Handle
            ),
            self.lt.handle,
            self.product,
            &raw const one,
            at(w),
            a,
            at(x),
            b,
            &raw const zero,
            at(y),
            d,
            at(y),
            d,
            &raw const self.choice.algorithm,
            at(&self.workspace),
            WORKSPACE,
            gpu.stream(),
        )
    }
}

/// Seconds of one of the calls that it makes, as our kernels are timed.
pub type Timer<'a> = &'a mut dyn FnMut(
    &mut CudaBackend<Gpu>,
    &mut dyn FnMut(&mut CudaBackend<Gpu>, usize) -> Result<()>,
) -> Result<f64>;

/// Compares and times the shapes that ours took so long for; false if a product is wrong.
///
/// # Errors
/// A lack of memory, or a failing device.
pub fn compare<S: AsRef<OsStr>>(
    names: &[S],
    target: &mut CudaBackend<Gpu>,
    ours: &[([usize; 3], f64)],
    (rotated, timer): (usize, Timer<'_>),
    say: &mut dyn FnMut(String),
) -> Result<bool> {
    let Some(lt) = CublasLt::open(names)? else {
        say("cuBLASLt: not present".to_owned());
        return Ok(true);
    };
    let mut are_right = true;
    for times in ours.chunk_by(|(a, _), (b, _)| a[1..] == b[1..]) {
        are_right &= compare_matrix(&lt, target, times, (rotated, &mut *timer), say)?;
    }
    Ok(are_right)
}

/// The products of one matrix, whose copies are made once.
fn compare_matrix(
    lt: &CublasLt,
    target: &mut CudaBackend<Gpu>,
    ours: &[([usize; 3], f64)],
    (rotated, timer): (usize, Timer<'_>),
    say: &mut dyn FnMut(String),
) -> Result<bool> {
    let [_, n, k] = ours[0].0;
    let (w, copies) = (bytes(1, n * k), rotated.div_ceil(n * k).min(32));
    let weights = (0..copies)
        .map(|_| load(target.device(), &w))
        .collect::<Result<Vec<_>>>()?;
    let mut are_right = true;
    for &(shape, our) in ours {
        let (m, device) = (shape[0], target.device());
        let plan = match lt.plan(device, shape) {
            Ok(plan) => plan,
            Err(error) => {
                say(format!("cuBLASLt product {shape:?}: {error}"));
                continue;
            }
        };
        let x = bytes(2, m * k);
        let tokens = load(device, &x)?;
        let out = device.alloc_zeroed(4 * m * n, "cuBLASLt's product")?;
        plan.run(device, &weights[0], &tokens, &out)?;
        let mut found = vec![0; 4 * m * n];
        device.download(&out, 0, &mut found)?;
        if !is_product(&found, &w, &x, [n, k]) {
            say(format!("WRONG cuBLASLt product {shape:?}"));
            are_right = false;
            continue;
        }
        let time = timer(target, &mut |target, turn| {
            plan.run(target.device(), &weights[turn % copies], &tokens, &out)
        })?;
        say(format!(
            "cuBLASLt product {shape:?}: exact, {:.1} us; ours, scaled and rounded, {:.1} us: {:.2} times as fast",
            time * 1e6,
            our * 1e6,
            time / our
        ));
    }
    Ok(are_right)
}

fn load(gpu: &Gpu, data: &[u8]) -> Result<GpuMemory> {
    let memory = gpu.alloc(data.len(), "a side of cuBLASLt's product")?;
    gpu.upload(&memory, 0, data)?;
    Ok(memory)
}

/// Any bytes but −128, as weights have them.
fn bytes(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 24) as u8).max(1).wrapping_add(128)
    };
    (0..len).map(|_| next()).collect()
}

/// Whether numbers spread over the whole are those of the slow loop.
fn is_product(found: &[u8], w: &[u8], x: &[u8], [n, k]: [usize; 2]) -> bool {
    let (numbers, _) = found.as_chunks::<4>();
    // Odd, so that rows and columns vary.
    let stride = (numbers.len() / COMPARED) | 1;
    (0..numbers.len()).step_by(stride).all(|at| {
        let (row, column) = (&x[at / n * k..][..k], &w[at % n * k..][..k]);
        let pairs = row.iter().zip(column);
        let exact: i32 = pairs
            .map(|(&a, &b)| i32::from(a.cast_signed()) * i32::from(b.cast_signed()))
            .sum();
        i32::from_le_bytes(numbers[at]) == exact
    })
}
