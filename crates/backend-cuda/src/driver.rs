//! The real device: the CUDA driver's functions behind [`Device`], with one context and one stream. This is
//! the one file of the crate with unsafe code.
//!
//! The driver's library is looked up when it is first asked for; a machine without one gets a sentence
//! instead of a crash. A [`Gpu`] belongs to the thread that opened it. Every failure but a lack of memory
//! is [`BackendError::Device`]: after most of them the driver refuses everything else.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::rc::Rc;

use backend::BackendError;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use crate::device::{Arg, Device, Launch, Memory, Properties};
use crate::images;

type Result<T, E = BackendError> = std::result::Result<T, E>;

/// One GPU as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its place in the driver's list.
    pub ordinal: i32,
    /// Its capability and sizes; what it shall not use may be taken away before it is opened.
    pub properties: Properties,
    /// Bytes of its memory, used ones included.
    pub total_memory: u64,
    /// What the driver speaks: 12080 is CUDA 12.8.
    pub driver: u32,
}

/// The GPUs of this machine.
///
/// # Errors
/// Why there are none, for people.
pub fn find() -> Result<Vec<Found>, String> {
    // SAFETY: opens the driver's library by name, runs its initialisers and closes it again.
    if !unsafe { sys::is_culib_present() } {
        return Err("no NVIDIA driver: libcuda is not on this machine".to_owned());
    }
    let because = |error: DriverError| format!("the NVIDIA driver does not start: {}", text(error));
    result::init().map_err(because)?;
    let mut driver = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&raw mut driver) }
        .result()
        .map_err(because)?;
    let driver = u32::try_from(driver).unwrap_or(0);
    let count = result::device::get_count().map_err(because)?;
    if count == 0 {
        return Err("the NVIDIA driver lists no GPU".to_owned());
    }
    (0..count)
        .map(|ordinal| describe(ordinal, driver).map_err(because))
        .collect()
}

fn describe(ordinal: i32, driver: u32) -> Result<Found, DriverError> {
    use sys::CUdevice_attribute as Attribute;
    let device = result::device::get(ordinal)?;
    let attribute = |which| -> Result<u32, DriverError> {
        // SAFETY: a device that the driver has just named.
        let value = unsafe { result::device::get_attribute(device, which) }?;
        Ok(u32::try_from(value).unwrap_or(0))
    };
    let properties = Properties {
        name: result::device::get_name(device)?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_memory: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        warpgroups: false,
        dependent_launches: false,
    };
    let properties = Properties {
        warpgroups: images::have_warpgroups(properties.capability, driver),
        dependent_launches: images::may_depend(properties.capability, driver),
        ..properties
    };
    // SAFETY: as above.
    let total_memory = unsafe { result::device::total_mem(device) }? as u64;
    Ok(Found {
        ordinal,
        properties,
        total_memory,
        driver,
    })
}

/// The driver's name and words for an error.
fn text(error: DriverError) -> String {
    let part = |words: Result<&std::ffi::CStr, DriverError>| {
        words.map_or_else(|_| "?".into(), |words| words.to_string_lossy().into_owned())
    };
    format!(
        "{} ({})",
        part(error.error_name()),
        part(error.error_string())
    )
}

fn failed(what: &str, error: DriverError) -> BackendError {
    BackendError::Device(format!("{what}: {}", text(error)))
}

/// What buffers and launches share; dropped last.
struct Context {
    device: sys::CUdevice,
    stream: sys::CUstream,
    modules: Vec<sys::CUmodule>,
    /// Memory of activations that is free again, by size. It is never given back, so that a captured
    /// graph may name it for ever.
    spare: RefCell<HashMap<usize, Vec<sys::CUdeviceptr>>>,
}

/// An entry point, and the dynamic shared memory it may have been given.
#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    dynamic_bytes: u32,
}

/// An opened GPU.
pub struct Gpu {
    context: Rc<Context>,
    functions: RefCell<HashMap<&'static str, Function>>,
    properties: Properties,
}

/// Memory on the GPU.
pub struct GpuMemory {
    context: Rc<Context>,
    address: sys::CUdeviceptr,
    bytes: usize,
    is_scratch: bool,
}

/// Memory of the host, pinned where the driver can.
pub struct HostMemory {
    context: Rc<Context>,
    address: *mut u8,
    bytes: usize,
    /// Pageable memory where pinning failed: copies are then slower, and right all the same.
    plain: Option<Vec<u8>>,
}

/// A captured step.
pub struct GpuGraph {
    /// Keeps the context alive.
    _context: Rc<Context>,
    executable: sys::CUgraphExec,
}

impl Gpu {
    /// Opens a GPU on this thread and loads the kernels.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] when no kernels fit it, or what the driver says.
    pub fn open(found: &Found) -> Result<Self> {
        let images = images::choose_built_in(found.properties.capability, found.driver)
            .map_err(BackendError::Unsupported)?;
        let fail = |error| failed("opening the GPU", error);
        let device = result::device::get(found.ordinal).map_err(fail)?;
        // SAFETY: a device that the driver named; the context is current on this thread, which alone uses
        // it, and is released by `Context::drop`.
        let stream = unsafe {
            let context = result::primary_ctx::retain(device).map_err(fail)?;
            result::ctx::set_current(context).map_err(fail)?;
            result::stream::create(result::stream::StreamKind::NonBlocking).map_err(fail)?
        };
        let mut context = Context {
            device,
            stream,
            modules: Vec::new(),
            spare: RefCell::default(),
        };
        let own = found.properties.warpgroups;
        for image in images::of(&images).chain(images::of_warpgroups().filter(|_| own)) {
            let module = load(image.bytes)
                .map_err(|error| failed(&format!("loading {}", image.file), error))?;
            context.modules.push(module);
        }
        Ok(Self {
            context: Rc::new(context),
            functions: RefCell::default(),
            properties: found.properties.clone(),
        })
    }

    /// The stream that everything is asked on, for libraries that work on it too.
    #[must_use]
    pub fn stream(&self) -> *mut c_void {
        self.context.stream.cast()
    }

    fn memory_of(
        &self,
        bytes: usize,
        purpose: &'static str,
        is_scratch: bool,
    ) -> Result<GpuMemory> {
        let bytes = size_class(bytes, is_scratch);
        let spare = is_scratch
            .then(|| self.context.spare.borrow_mut().get_mut(&bytes)?.pop())
            .flatten();
        let address = match spare {
            Some(address) => address,
            // SAFETY: no element type is promised; `GpuMemory` is bytes.
            None => unsafe { result::malloc_sync(bytes) }.map_err(|error| match error.0 {
                sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => BackendError::OutOfMemory {
                    requested: bytes,
                    purpose,
                },
                _ => failed("allocating", error),
            })?,
        };
        Ok(GpuMemory {
            context: Rc::clone(&self.context),
            address,
            bytes,
            is_scratch,
        })
    }

    /// The entry point, looked up once and allowed the shared memory that it is launched with.
    fn function(&self, name: &'static str, dynamic_bytes: u32) -> Result<sys::CUfunction> {
        let known = self.functions.borrow().get(name).copied();
        let mut function = match known {
            Some(function) if function.dynamic_bytes >= dynamic_bytes => {
                return Ok(function.handle);
            }
            Some(function) => function,
            None => Function {
                handle: self.look_up(name)?,
                dynamic_bytes: 0,
            },
        };
        if dynamic_bytes > 0 {
            // SAFETY: a function of a loaded module.
            unsafe {
                result::function::set_function_attribute(
                    function.handle,
                    sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    i32::try_from(dynamic_bytes).unwrap_or(i32::MAX),
                )
            }
            .map_err(|error| failed(name, error))?;
            function.dynamic_bytes = dynamic_bytes;
        }
        self.functions.borrow_mut().insert(name, function);
        Ok(function.handle)
    }

    fn look_up(&self, name: &str) -> Result<sys::CUfunction> {
        for module in &self.context.modules {
            let name = CString::new(name)
                .map_err(|_| BackendError::Unsupported(format!("kernel {name:?}")))?;
            // SAFETY: a loaded module.
            if let Ok(handle) = unsafe { result::module::get_function(*module, name) } {
                return Ok(handle);
            }
        }
        Err(BackendError::Unsupported(format!("kernel {name}")))
    }

    fn wait(&self) -> Result<()> {
        // SAFETY: the stream lives as long as the context.
        unsafe { result::stream::synchronize(self.context.stream) }
            .map_err(|error| failed("waiting for the GPU", error))
    }
}

/// Binaries are aligned as an ELF file wants it, and text ends with a zero.
fn load(bytes: &[u8]) -> Result<sys::CUmodule, DriverError> {
    let mut words = vec![0u64; bytes.len() / 8 + 1];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut raw = [0; 8];
        raw[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_ne_bytes(raw);
    }
    // SAFETY: a whole image that `cargo xtask kernels` made, followed by at least one zero; the driver
    // copies it.
    unsafe { result::module::load_data(words.as_ptr().cast()) }
}

/// Activations come in sizes of eighths between powers of two, so that few sizes serve all steps.
fn size_class(bytes: usize, is_scratch: bool) -> usize {
    let bytes = bytes.max(256);
    if is_scratch {
        let step = (bytes.next_power_of_two() / 16).max(256);
        return bytes.next_multiple_of(step);
    }
    bytes
}

impl Device for Gpu {
    type Buffer = GpuMemory;
    type HostBuffer = HostMemory;
    type Graph = GpuGraph;

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn memory(&self) -> Result<Memory> {
        let (free, total) =
            result::mem_get_info().map_err(|error| failed("asking for free memory", error))?;
        Ok(Memory {
            free: free as u64,
            total: total as u64,
        })
    }

    fn alloc(&self, bytes: usize, purpose: &'static str) -> Result<GpuMemory> {
        self.memory_of(bytes, purpose, false)
    }

    fn alloc_zeroed(&self, bytes: usize, purpose: &'static str) -> Result<GpuMemory> {
        let memory = self.memory_of(bytes, purpose, false)?;
        // SAFETY: the whole of live memory, on the stream that uses it.
        unsafe { result::memset_d8_async(memory.address, 0, memory.bytes, self.context.stream) }
            .map_err(|error| failed(purpose, error))?;
        Ok(memory)
    }

    fn scratch(&self, bytes: usize, purpose: &'static str) -> Result<GpuMemory> {
        self.memory_of(bytes, purpose, true)
    }

    fn host_alloc(&self, bytes: usize, purpose: &'static str) -> Result<HostMemory> {
        let context = Rc::clone(&self.context);
        // SAFETY: no element type is promised; `HostMemory` is bytes. Not write-combined: the host reads it.
        if let Ok(address) = unsafe { result::malloc_host(bytes, 0) } {
            let address = address.cast::<u8>();
            // SAFETY: just allocated, and nobody else's.
            unsafe { address.write_bytes(0, bytes) };
            return Ok(HostMemory {
                context,
                address,
                bytes,
                plain: None,
            });
        }
        let mut plain = Vec::new();
        plain
            .try_reserve_exact(bytes)
            .map_err(|_| BackendError::OutOfMemory {
                requested: bytes,
                purpose,
            })?;
        plain.resize(bytes, 0);
        Ok(HostMemory {
            context,
            address: plain.as_mut_ptr(),
            bytes,
            plain: Some(plain),
        })
    }

    fn swap_out(
        &self,
        (from, offset): (&GpuMemory, usize),
        (to, at): (&HostMemory, usize),
        bytes: usize,
    ) -> Result<()> {
        from.check(offset, bytes)?;
        to.check(at, bytes)?;
        // SAFETY: both ranges were checked; the memory is freed only after a wait, and read and written only by
        // copies on this stream, or after a wait.
        unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                to.address.add(at).cast(),
                from.address + offset as u64,
                bytes,
                self.context.stream,
            )
        }
        .result()
        .map_err(|error| failed("copying from the GPU", error))
    }

    fn swap_in(
        &self,
        (from, at): (&HostMemory, usize),
        (to, offset): (&GpuMemory, usize),
        bytes: usize,
    ) -> Result<()> {
        from.check(at, bytes)?;
        to.check(offset, bytes)?;
        // SAFETY: as in `swap_out`.
        unsafe {
            sys::cuMemcpyHtoDAsync_v2(
                to.address + offset as u64,
                from.address.add(at).cast(),
                bytes,
                self.context.stream,
            )
        }
        .result()
        .map_err(|error| failed("copying to the GPU", error))
    }

    fn copy_on_host(
        &self,
        (from, from_at): (&HostMemory, usize),
        (to, to_at): (&HostMemory, usize),
        bytes: usize,
    ) -> Result<()> {
        from.check(from_at, bytes)?;
        to.check(to_at, bytes)?;
        self.wait()?;
        // SAFETY: both ranges were checked, may overlap, and no copy is under way.
        unsafe { std::ptr::copy(from.address.add(from_at), to.address.add(to_at), bytes) };
        Ok(())
    }

    fn upload(&self, to: &GpuMemory, offset: usize, data: &[u8]) -> Result<()> {
        to.check(offset, data.len())?;
        let at = to.address + offset as u64;
        // SAFETY: the range was checked; the data outlives the copy because of the wait below.
        unsafe { result::memcpy_htod_async(at, data, self.context.stream) }
            .map_err(|error| failed("copying to the GPU", error))?;
        self.wait()
    }

    fn download(&self, from: &GpuMemory, offset: usize, data: &mut [u8]) -> Result<()> {
        from.check(offset, data.len())?;
        let at = from.address + offset as u64;
        // SAFETY: the range was checked; the data outlives the copy because of the wait below.
        unsafe { result::memcpy_dtoh_async(data, at, self.context.stream) }
            .map_err(|error| failed("copying from the GPU", error))?;
        self.wait()
    }

    fn launch(&self, launch: &Launch<GpuMemory>) -> Result<()> {
        let function = self.function(launch.kernel, launch.dynamic_bytes)?;
        let mut values: Vec<u64> = launch
            .args
            .iter()
            .map(|arg| match arg {
                Arg::Buffer(memory, offset) => memory.address + *offset as u64,
                Arg::Null => 0,
                Arg::Int(x) => u64::from(x.cast_unsigned()),
                Arg::Float(x) => u64::from(x.to_bits()),
            })
            .collect();
        let mut args: Vec<*mut c_void> = values.iter_mut().map(|v| (&raw mut *v).cast()).collect();
        let mut attribute = may_begin_early();
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.dynamic_bytes,
            hStream: self.context.stream,
            attrs: &raw mut attribute,
            numAttrs: u32::from(self.properties.dependent_launches),
        };
        // SAFETY: the arguments are those of the kernel's signature, which the same calls prove on the
        // emulator, whose kernels come from the same files; pointers are to live memory, and memory is
        // reused or freed behind this launch on the same stream. Where it may begin before the
        // launch before it has ended, it is one of the kernels that wait for that before they read or write
        // anything but weights, which the emulator proves of the same files.
        unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                function,
                args.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
        .map_err(|error| failed(launch.kernel, error))
    }

    fn synchronize(&self) -> Result<()> {
        self.wait()
    }

    fn begin_capture(&self) -> Result<()> {
        // SAFETY: the stream is alive. Relaxed, because buffers may be allocated meanwhile.
        unsafe {
            result::stream::begin_capture(
                self.context.stream,
                sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED,
            )
        }
        .map_err(|error| failed("capturing a step", error))
    }

    fn end_capture(&self) -> Result<GpuGraph> {
        let fail = |error| failed("capturing a step", error);
        // SAFETY: the stream is alive; the graph is destroyed once its executable form exists.
        let executable = unsafe {
            let graph = result::stream::end_capture(self.context.stream).map_err(fail)?;
            let mut executable = std::ptr::null_mut();
            let made = sys::cuGraphInstantiateWithFlags(&raw mut executable, graph, 0).result();
            result::graph::destroy(graph).map_err(fail)?;
            made.map_err(fail)?;
            executable
        };
        Ok(GpuGraph {
            _context: Rc::clone(&self.context),
            executable,
        })
    }

    fn replay(&self, graph: &GpuGraph) -> Result<()> {
        // SAFETY: both are alive, and so is the memory that the graph names: weights and cache belong to
        // the same model, columns and logits to the graph's owner, activations are never given back.
        unsafe { result::graph::launch(graph.executable, self.context.stream) }
            .map_err(|error| failed("replaying a step", error))
    }
}

/// Lets a launch begin when every block of the launch before it has said so or has ended; in a capture, an edge
/// that says the same.
fn may_begin_early() -> sys::CUlaunchAttribute {
    let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
    value.programmaticStreamSerializationAllowed = 1;
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value,
    }
}

fn check_range(size: usize, offset: usize, bytes: usize) -> Result<()> {
    if offset.checked_add(bytes).is_some_and(|end| end <= size) {
        return Ok(());
    }
    Err(BackendError::Shape(format!(
        "{bytes} bytes at {offset} of {size}"
    )))
}

impl GpuMemory {
    /// Where it lies, for libraries that work on the same memory.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    fn check(&self, offset: usize, bytes: usize) -> Result<()> {
        check_range(self.bytes, offset, bytes)
    }
}

impl HostMemory {
    fn check(&self, offset: usize, bytes: usize) -> Result<()> {
        check_range(self.bytes, offset, bytes)
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: the stream lives as long as the context; pinned memory is freed once, when no copy uses it any
        // more. After a sticky failure nothing is under way, and the process ends.
        unsafe {
            result::stream::synchronize(self.context.stream).ok();
            if self.plain.is_none() {
                result::free_host(self.address.cast()).ok();
            }
        }
    }
}

impl Drop for GpuMemory {
    fn drop(&mut self) {
        if self.is_scratch {
            let mut spare = self.context.spare.borrow_mut();
            spare.entry(self.bytes).or_default().push(self.address);
            return;
        }
        // SAFETY: allocated by `memory_of`, freed once; the driver waits for what still uses it. After a
        // sticky failure this fails too, and the process ends.
        unsafe { result::memory_free(self.address) }.ok();
    }
}

impl Drop for GpuGraph {
    fn drop(&mut self) {
        // SAFETY: made by `end_capture`, destroyed once.
        unsafe { result::graph::exec_destroy(self.executable) }.ok();
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: nothing else holds the context any more; each part is released once.
        unsafe {
            for address in self.spare.get_mut().values().flatten() {
                result::memory_free(*address).ok();
            }
            for module in &self.modules {
                result::module::unload(*module).ok();
            }
            result::stream::destroy(self.stream).ok();
            result::primary_ctx::release(self.device).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a machine with a GPU it is described, on any other the reason is told; neither crashes.
    #[test]
    fn a_machine_is_described_whatever_it_has() {
        match find() {
            Ok(found) => assert!(found.iter().all(|gpu| gpu.total_memory > 0)),
            Err(reason) => assert!(reason.contains("NVIDIA driver"), "{reason}"),
        }
    }

    #[test]
    fn sizes_of_activations_are_few_and_hold_what_is_asked() {
        let mut sizes: Vec<usize> = (1..1 << 20)
            .step_by(777)
            .map(|bytes| {
                let size = size_class(bytes, true);
                assert!(size >= bytes && size.is_multiple_of(256), "{bytes}");
                assert!(size <= bytes + bytes / 8 + 256, "{bytes}: {size}");
                size
            })
            .collect();
        sizes.dedup();
        assert!(sizes.len() < 120, "{}", sizes.len());
        assert_eq!(size_class(1000, false), 1000);
    }
}
