//! The functions of the driver's interface, by its names (CUDA driver API, version 12). Handles are numbers, one
//! more than what they stand for, so that none is null.

#![allow(non_snake_case, reason = "the names of the interface")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use cuda_emulation::Arg;

use crate::state::{Failure, INVALID_VALUE, NOT_FOUND, Noted, Result, State, with};

/// The name under which the device is found.
const NAME: &CStr = c"emulated";
/// CUDA 12.8.
const VERSION: c_int = 12_080;
/// Stands for the one context, the one stream and every module.
const ONE: *mut c_void = std::ptr::dangling_mut();

fn code(outcome: Result<()>) -> c_int {
    outcome.map_or_else(|Failure(code)| code, |()| 0)
}

/// Calls, and gives what comes back to the caller.
///
/// # Safety
/// `to` may be written.
unsafe fn give<T>(to: *mut T, call: impl FnOnce(&mut State) -> Result<T>) -> c_int {
    code(with(call).map(|value| {
        // SAFETY: the caller's.
        unsafe { to.write(value) };
    }))
}

fn handle(number: usize) -> *mut c_void {
    (number + 1) as *mut c_void
}

fn number(handle: *mut c_void) -> Result<usize> {
    (handle as usize).checked_sub(1).ok_or(INVALID_VALUE)
}

/// Functions that are always content.
macro_rules! content {
    ($($name:ident($($arg:ty),*);)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name($(_: $arg),*) -> c_int {
                code(with(|_| Ok(())))
            }
        )*
    };
}

content! {
    cuInit(c_uint);
    cuDevicePrimaryCtxRelease_v2(c_int);
    cuCtxSetCurrent(*mut c_void);
    cuStreamDestroy_v2(*mut c_void);
    cuModuleUnload(*mut c_void);
}

/// Functions that write something at their first argument.
macro_rules! giving {
    ($($name:ident($to:ty $(, $arg:ident: $kind:ty)*) => $call:expr;)*) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name(to: *mut $to $(, $arg: $kind)*) -> c_int {
                $(let _ = $arg;)*
                let call: fn(&mut State $(, $kind)*) -> Result<$to> = $call;
                // SAFETY: the interface asks for a place to write to.
                unsafe { give(to, |state| call(state $(, $arg)*)) }
            }
        )*
    };
}

giving! {
    cuDriverGetVersion(c_int) => |_| Ok(VERSION);
    cuDeviceGetCount(c_int) => |_| Ok(1);
    cuDeviceGet(c_int, ordinal: c_int) => |_, ordinal| Ok(ordinal);
    cuDeviceTotalMem_v2(usize, device: c_int) => |state, _| Ok(state.total_memory);
    cuDeviceGetAttribute(c_int, which: c_int, device: c_int) => |state, which, _| attribute(state, which);
    cuDevicePrimaryCtxRetain(*mut c_void, device: c_int) => |_, _| Ok(ONE);
    cuStreamCreate(*mut c_void, flags: c_uint) => |_, _| Ok(ONE);
    cuModuleLoadData(*mut c_void, image: *const c_void) => |_, image| is_image(image);
    cuMemAlloc_v2(u64, bytes: usize) => |state, bytes| state.alloc(bytes);
    cuMemHostAlloc(*mut c_void, bytes: usize, flags: c_uint) =>
        |state, bytes, _| Ok(state.alloc_pinned(bytes) as *mut c_void);
    cuGraphInstantiateWithFlags(*mut c_void, graph: *mut c_void, flags: u64) =>
        |state, graph, _| state.instantiate(number(graph)?).map(handle);
}

/// Four multiprocessors of the part.
fn attribute(state: &State, which: c_int) -> Result<c_int> {
    match which {
        16 => Ok(4),
        75 => Ok(state.part.capability.0),
        76 => Ok(state.part.capability.1),
        97 => Ok(state.part.shared_memory.cast_signed()),
        _ => Err(INVALID_VALUE),
    }
}

/// An ELF file, or text that says which version of PTX it is.
fn is_image(image: *const c_void) -> Result<*mut c_void> {
    // SAFETY: an image is longer than four bytes.
    let start = unsafe { image.cast::<[u8; 4]>().read_unaligned() };
    match &start {
        b"\x7fELF" | b"//\n/" | b"\n.ve" | b".ver" => Ok(ONE),
        _ => Err(INVALID_VALUE),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(to: *mut c_char, len: c_int, _: c_int) -> c_int {
    let name = NAME.to_bytes_with_nul();
    code(with(|_| {
        if (len as usize) < name.len() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller has `len` bytes there.
        unsafe { std::ptr::copy_nonoverlapping(name.as_ptr().cast(), to, name.len()) };
        Ok(())
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> c_int {
    // SAFETY: the interface asks for places to write to.
    unsafe {
        give(free, |state| Ok(state.free_memory()));
        give(total, |state| Ok(state.total_memory))
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> c_int {
    code(with(|state| state.free(address)))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(address: *mut c_void) -> c_int {
    code(with(|state| state.free_pinned(address as usize)))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: u64, byte: u8, bytes: usize, _: *mut c_void) -> c_int {
    code(with(|state| state.fill(to, byte, bytes)))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const c_void,
    bytes: usize,
    _: *mut c_void,
) -> c_int {
    code(with(|state| state.copy_in(to, from.cast(), bytes)))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: u64,
    bytes: usize,
    _: *mut c_void,
) -> c_int {
    code(with(|state| state.copy_out(to.cast(), from, bytes)))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(_: *mut c_void) -> c_int {
    code(with(State::synchronize))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(
    to: *mut *mut c_void,
    _: *mut c_void,
    name: *const c_char,
) -> c_int {
    // SAFETY: the interface asks for a place to write to and a C string.
    unsafe {
        give(to, |state| {
            let name = CStr::from_ptr(name).to_str().map_err(|_| NOT_FOUND)?;
            state.function(name).map(handle)
        })
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(function: *mut c_void, which: c_int, value: c_int) -> c_int {
    /// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
    const DYNAMIC: c_int = 8;
    code(with(|state| {
        let bytes = u32::try_from(value).map_err(|_| INVALID_VALUE)?;
        match which {
            DYNAMIC => state.allow_dynamic(number(function)?, bytes),
            _ => Err(INVALID_VALUE),
        }
    }))
}

/// `CUlaunchAttribute`.
#[repr(C)]
struct LaunchAttribute {
    id: c_uint,
    pad: c_uint,
    value: [u64; 8],
}

/// `CUlaunchConfig`.
#[repr(C)]
struct LaunchConfig {
    grid: [c_uint; 3],
    threads: [c_uint; 3],
    dynamic_bytes: c_uint,
    stream: *mut c_void,
    attributes: *const LaunchAttribute,
    num_attributes: c_uint,
}

/// Whether a launch may begin before the one before it has ended.
fn is_dependent(attributes: &[LaunchAttribute], state: &State) -> Result<bool> {
    /// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`.
    const PROGRAMMATIC: c_uint = 6;
    match attributes {
        [] => Ok(false),
        [only] if only.id == PROGRAMMATIC && state.part.dependent_launches => {
            Ok(only.value[0] as u32 != 0)
        }
        _ => Err(INVALID_VALUE),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernelEx(
    config: *const LaunchConfig,
    function: *mut c_void,
    args: *mut *mut c_void,
    _: *mut *mut c_void,
) -> c_int {
    code(with(|state| {
        let function = number(function)?;
        let (sizes, expected) = state.signature(function)?;
        // SAFETY: the interface asks for a place to read from, and as many attributes as it says.
        let (config, attributes) = unsafe {
            let config = &*config;
            let attributes = match config.num_attributes {
                0 => &[],
                count => std::slice::from_raw_parts(config.attributes, count as usize),
            };
            (config, attributes)
        };
        if config.threads != [expected, 1, 1] {
            return Err(INVALID_VALUE);
        }
        let arg = |(index, size): (usize, &u8)| {
            // SAFETY: the caller passes as many pointers to arguments as the signature has.
            unsafe {
                let at = *args.add(index);
                match size {
                    8 => Arg::Pointer(at.cast::<u64>().read_unaligned()),
                    _ => Arg::Word(at.cast::<u32>().read_unaligned()),
                }
            }
        };
        state.launch(Noted {
            function,
            grid: config.grid,
            dynamic_bytes: config.dynamic_bytes,
            is_dependent: is_dependent(attributes, state)?,
            args: sizes.iter().enumerate().map(arg).collect(),
        })
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamBeginCapture_v2(_: *mut c_void, _: c_int) -> c_int {
    code(with(State::begin_capture))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamEndCapture(_: *mut c_void, to: *mut *mut c_void) -> c_int {
    // SAFETY: the interface asks for a place to write to.
    unsafe { give(to, |state| state.end_capture().map(handle)) }
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphLaunch(graph: *mut c_void, _: *mut c_void) -> c_int {
    code(with(|state| state.run_graph(number(graph)?)))
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphDestroy(graph: *mut c_void) -> c_int {
    code(with(|state| state.drop_graph(number(graph)?)))
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphExecDestroy(graph: *mut c_void) -> c_int {
    code(with(|state| state.drop_graph(number(graph)?)))
}

/// Name and words of an error.
fn words(error: c_int) -> (&'static CStr, &'static CStr) {
    match error {
        1 => (c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
        2 => (c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
        500 => (c"CUDA_ERROR_NOT_FOUND", c"named symbol not found"),
        700 => (
            c"CUDA_ERROR_ILLEGAL_ADDRESS",
            c"an illegal memory access was encountered",
        ),
        719 => (c"CUDA_ERROR_LAUNCH_FAILED", c"unspecified launch failure"),
        900 => (
            c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
            c"operation not permitted when stream is capturing",
        ),
        _ => (c"CUDA_ERROR_UNKNOWN", c"unknown error"),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(error: c_int, to: *mut *const c_char) -> c_int {
    // SAFETY: the interface asks for a place to write to.
    unsafe { to.write(words(error).0.as_ptr()) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(error: c_int, to: *mut *const c_char) -> c_int {
    // SAFETY: the interface asks for a place to write to.
    unsafe { to.write(words(error).1.as_ptr()) };
    0
}
