//! A safe door to the emulator: memory, the list of kernels of a profile, launches and their reports.
//!
//! The emulator's state is one per process; a lock is held around every call. Device memory is host
//! memory with guard zones, of which callers only see the address. Checked profiles report every access
//! out of range, misaligned, uninitialised or racing; the others only damaged guard zones.
#![allow(unsafe_code)]

#[cfg(test)]
mod faults;

use std::ffi::{CStr, OsStr, c_char, c_void};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use libloading::Library;

/// For which architecture the kernels are compiled, and whether every access is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Compute capability 8.0, unchecked.
    Fast80,
    /// Compute capability 8.0, checked.
    Checked80,
    /// Compute capability 7.5, unchecked.
    Fast75,
    /// Compute capability 7.5, checked.
    Checked75,
    /// Compute capability 9.0 with what it alone has, unchecked.
    Fast90,
    /// Compute capability 9.0 with what it alone has, checked.
    Checked90,
}

/// One argument of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arg {
    /// An address, or null.
    Pointer(u64),
    /// Four bytes: an integer or a float.
    Word(u32),
}

/// Matrix instructions that are wired wrongly, for tests of what notices it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SwappedLanes {
    /// None.
    #[default]
    None,
    /// That of 8-bit integers.
    Int8,
    /// All.
    All,
    /// Products of a warpgroup.
    Warpgroups,
}

/// One launch.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Name of the entry point.
    pub kernel: &'a str,
    /// Blocks along each axis.
    pub grid: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_bytes: u32,
    /// Shared memory of a block on the device that is stood in for.
    pub shared_limit: u32,
    /// In which order threads and blocks run: 0 forward, 1 backward, else a seed.
    pub order: u32,
    /// Which matrix instructions leave their results in other lanes than they should.
    pub swapped_lanes: SwappedLanes,
    /// Whether it may begin before the launch before it has ended (programmatic dependent launch). It has to wait
    /// by itself then, and may not read before that what kernels that still run write, nor write anything.
    pub dependent: bool,
    /// As the signature says.
    pub args: &'a [Arg],
}

#[repr(C)]
struct RawLaunch {
    entry: *const c_void,
    args: *mut *mut c_void,
    grid: [u32; 3],
    threads: u32,
    dynamic_bytes: u32,
    shared_limit: u32,
    order: u32,
    checked: u32,
    swapped_lanes: u32,
    dependent: u32,
}

type Kernels = unsafe extern "C" fn() -> *const c_void;

/// The emulator's functions, those of this program or of a library of mutated kernels.
struct Emulator {
    /// Lists of kernels in the order of the profiles.
    kernels: [Kernels; 6],
    entry_name: unsafe extern "C" fn(*const c_void) -> *const c_char,
    entry_next: unsafe extern "C" fn(*const c_void) -> *const c_void,
    entry_threads: unsafe extern "C" fn(*const c_void) -> u32,
    entry_args: unsafe extern "C" fn(*const c_void, *mut *const u8) -> u32,
    alloc: unsafe extern "C" fn(usize, u32) -> *mut u8,
    free: unsafe extern "C" fn(*mut u8),
    mark: unsafe extern "C" fn(*mut u8, usize),
    complete: unsafe extern "C" fn(),
    launch: unsafe extern "C" fn(*const RawLaunch) -> *const c_char,
}

unsafe extern "C" {
    fn fast_80_kernels() -> *const c_void;
    fn checked_80_kernels() -> *const c_void;
    fn fast_75_kernels() -> *const c_void;
    fn checked_75_kernels() -> *const c_void;
    fn fast_90_kernels() -> *const c_void;
    fn checked_90_kernels() -> *const c_void;
    fn emu_entry_name(entry: *const c_void) -> *const c_char;
    fn emu_entry_next(entry: *const c_void) -> *const c_void;
    fn emu_entry_threads(entry: *const c_void) -> u32;
    fn emu_entry_args(entry: *const c_void, sizes: *mut *const u8) -> u32;
    fn emu_alloc(bytes: usize, initialised: u32) -> *mut u8;
    fn emu_free(at: *mut u8);
    fn emu_mark(at: *mut u8, bytes: usize);
    fn emu_complete();
    fn emu_launch(launch: *const RawLaunch) -> *const c_char;
}

/// The functions of this program, unless `OCTET_EMULATOR` names a library: its kernels stand in for those
/// of every profile.
fn emulator() -> &'static Emulator {
    static EMULATOR: OnceLock<Emulator> = OnceLock::new();
    EMULATOR.get_or_init(|| match std::env::var_os("OCTET_EMULATOR") {
        Some(path) => open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
        None => Emulator {
            kernels: [
                fast_80_kernels,
                checked_80_kernels,
                fast_75_kernels,
                checked_75_kernels,
                fast_90_kernels,
                checked_90_kernels,
            ],
            entry_name: emu_entry_name,
            entry_next: emu_entry_next,
            entry_threads: emu_entry_threads,
            entry_args: emu_entry_args,
            alloc: emu_alloc,
            free: emu_free,
            mark: emu_mark,
            complete: emu_complete,
            launch: emu_launch,
        },
    })
}

fn open(path: &OsStr) -> Result<Emulator, libloading::Error> {
    // SAFETY: a library that `cargo xtask mutants` made of the emulator's own files, so its functions have
    // the signatures above; it is never closed.
    unsafe {
        let library = Box::leak(Box::new(Library::new(path)?));
        let kernels: Kernels = *library.get(b"checked_80_kernels")?;
        Ok(Emulator {
            kernels: [kernels; 6],
            entry_name: *library.get(b"emu_entry_name")?,
            entry_next: *library.get(b"emu_entry_next")?,
            entry_threads: *library.get(b"emu_entry_threads")?,
            entry_args: *library.get(b"emu_entry_args")?,
            alloc: *library.get(b"emu_alloc")?,
            free: *library.get(b"emu_free")?,
            mark: *library.get(b"emu_mark")?,
            complete: *library.get(b"emu_complete")?,
            launch: *library.get(b"emu_launch")?,
        })
    }
}

static STATE: Mutex<()> = Mutex::new(());

fn lock() -> MutexGuard<'static, ()> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All launches have ended: whoever asks has waited for them, or what comes next is no launch.
pub fn complete() {
    let _guard = lock();
    // SAFETY: the lock is held.
    unsafe { (emulator().complete)() };
}

/// One entry point.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    entry: *const c_void,
    /// Its name.
    pub name: &'static str,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of each argument.
    pub arg_sizes: &'static [u8],
}

impl Profile {
    fn is_checked(self) -> bool {
        matches!(self, Self::Checked80 | Self::Checked75 | Self::Checked90)
    }

    /// All entry points.
    pub fn kernels(self) -> Vec<Kernel> {
        list(emulator().kernels[self as usize])
    }

    /// Runs a kernel to its end.
    ///
    /// # Errors
    /// The report of the first failed check, or what is wrong with the launch itself.
    pub fn launch(self, launch: &Launch) -> Result<(), String> {
        launch_of(&self.kernels(), self.is_checked(), launch)
    }
}

/// The entry points of a list that was compiled with the emulator.
fn list(kernels: Kernels) -> Vec<Kernel> {
    let emulator = emulator();
    // SAFETY: the lists are made before `main` and never change.
    let mut entry = unsafe { kernels() };
    let mut kernels = Vec::new();
    while !entry.is_null() {
        let mut sizes = std::ptr::null();
        // SAFETY: a live entry; names and sizes are static and as long as they say.
        kernels.push(unsafe {
            let count = (emulator.entry_args)(entry, &raw mut sizes) as usize;
            Kernel {
                entry,
                name: CStr::from_ptr((emulator.entry_name)(entry))
                    .to_str()
                    .unwrap_or("?"),
                threads: (emulator.entry_threads)(entry),
                arg_sizes: std::slice::from_raw_parts(sizes, count),
            }
        });
        // SAFETY: as above.
        entry = unsafe { (emulator.entry_next)(entry) };
    }
    kernels
}

/// Runs one of the kernels to its end.
fn launch_of(kernels: &[Kernel], is_checked: bool, launch: &Launch) -> Result<(), String> {
    let Some(kernel) = kernels.iter().find(|k| k.name == launch.kernel) else {
        return Err(format!("no kernel {}", launch.kernel));
    };
    let sizes: Vec<u8> = launch
        .args
        .iter()
        .map(|arg| match arg {
            Arg::Pointer(_) => 8,
            Arg::Word(_) => 4,
        })
        .collect();
    if sizes != kernel.arg_sizes {
        return Err(format!(
            "{}: arguments of {sizes:?} bytes where the signature has {:?}",
            launch.kernel, kernel.arg_sizes
        ));
    }
    let mut values: Vec<u64> = launch
        .args
        .iter()
        .map(|arg| match *arg {
            Arg::Pointer(at) => at,
            Arg::Word(word) => u64::from(word),
        })
        .collect();
    let mut args: Vec<*mut c_void> = values.iter_mut().map(|v| (&raw mut *v).cast()).collect();
    let raw = RawLaunch {
        entry: kernel.entry,
        args: args.as_mut_ptr(),
        grid: launch.grid,
        threads: kernel.threads,
        dynamic_bytes: launch.dynamic_bytes,
        shared_limit: launch.shared_limit,
        order: launch.order,
        checked: u32::from(is_checked),
        swapped_lanes: launch.swapped_lanes as u32,
        dependent: u32::from(launch.dependent),
    };
    let _guard = lock();
    // SAFETY: arguments have the sizes of the signature; the lock is held; the report is copied
    // before the next launch.
    let report = unsafe { (emulator().launch)(&raw const raw) };
    if report.is_null() {
        return Ok(());
    }
    // SAFETY: a C string of the emulator.
    Err(unsafe { CStr::from_ptr(report) }
        .to_string_lossy()
        .into_owned())
}

/// Emulated device memory, freed on drop.
#[derive(Debug)]
pub struct Memory {
    at: *mut u8,
    bytes: usize,
}

// SAFETY: the only owner of its allocation, which is accessed under the lock.
unsafe impl Send for Memory {}

impl Memory {
    /// Zeros, or bytes that count as uninitialised until something writes them; none when there is no
    /// memory.
    pub fn new(bytes: usize, zeroed: bool) -> Option<Self> {
        let _guard = lock();
        // SAFETY: the lock is held.
        let at = unsafe { (emulator().alloc)(bytes, u32::from(zeroed)) };
        (!at.is_null()).then_some(Self { at, bytes })
    }

    /// What kernels are given.
    pub fn address(&self) -> u64 {
        self.at as u64
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Writes from the host, behind all launches.
    ///
    /// # Panics
    /// When the range does not lie inside.
    pub fn write(&self, offset: usize, data: &[u8]) {
        assert!(offset + data.len() <= self.bytes, "a range inside");
        let _guard = lock();
        // SAFETY: checked just now; kernels run under the same lock.
        unsafe {
            let at = self.at.add(offset);
            std::ptr::copy_nonoverlapping(data.as_ptr(), at, data.len());
            (emulator().mark)(at, data.len());
            (emulator().complete)();
        }
    }

    /// Reads to the host, behind all launches.
    ///
    /// # Panics
    /// When the range does not lie inside.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        assert!(offset + data.len() <= self.bytes, "a range inside");
        let _guard = lock();
        // SAFETY: checked just now; kernels run under the same lock.
        unsafe {
            std::ptr::copy_nonoverlapping(self.at.add(offset), data.as_mut_ptr(), data.len());
            (emulator().complete)();
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _guard = lock();
        // SAFETY: allocated by `new`, freed once.
        unsafe { (emulator().free)(self.at) };
    }
}
