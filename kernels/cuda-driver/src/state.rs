//! What the stand-in remembers: memory, functions, graphs, and the copies that are under way.

use std::collections::{BTreeMap, HashMap};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use cuda_emulation::{Arg, Kernel, Launch, Memory, Profile, SwappedLanes};

use crate::cublaslt::Product;

/// Bytes of the device, unless `OCTET_EMULATED_MEMORY` says another number.
const TOTAL_MEMORY: usize = 4 << 30;
/// Shared memory of a block by itself.
const SHARED_MEMORY: u32 = 49_152;
/// What lies in pinned memory to which a copy is under way.
const GARBAGE: u8 = 0xa5;

/// An error of the interface, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure(pub i32);

pub(crate) const INVALID_VALUE: Failure = Failure(1);
pub(crate) const OUT_OF_MEMORY: Failure = Failure(2);
pub(crate) const NOT_FOUND: Failure = Failure(500);
pub(crate) const ILLEGAL_ADDRESS: Failure = Failure(700);
pub(crate) const LAUNCH_FAILED: Failure = Failure(719);
pub(crate) const CAPTURE_UNSUPPORTED: Failure = Failure(900);

pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// The device that is stood in for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    /// Compute capability.
    pub capability: (i32, i32),
    /// The kernels that run.
    profile: Profile,
    /// Shared memory of a block when asked for.
    pub shared_memory: u32,
    /// Whether a launch may begin before the one before it has ended.
    pub dependent_launches: bool,
}

/// Unless `OCTET_EMULATED_CAPABILITY` is 9.0.
const AMPERE: Part = Part {
    capability: (8, 0),
    profile: Profile::Fast80,
    shared_memory: 166_912,
    dependent_launches: false,
};
/// Under every check: what a launch does too early is one of them.
const HOPPER: Part = Part {
    capability: (9, 0),
    profile: Profile::Checked90,
    shared_memory: 232_448,
    dependent_launches: true,
};

/// An entry point, and the dynamic shared memory that was asked for.
struct Function {
    kernel: Kernel,
    dynamic_bytes: u32,
}

/// A launch with its arguments.
pub(crate) struct Noted {
    pub function: usize,
    pub grid: [u32; 3],
    pub dynamic_bytes: u32,
    /// Whether it may begin before the launch before it has ended.
    pub is_dependent: bool,
    pub args: Vec<Arg>,
}

/// What a stream does, now or when a graph is run.
pub(crate) enum Work {
    Launch(Noted),
    Product(Product),
}

/// Bytes on their way from pinned memory.
struct Inwards {
    to: u64,
    from: usize,
    bytes: usize,
}

/// Bytes on their way to pinned memory.
struct Outwards {
    to: usize,
    data: Vec<u8>,
}

/// A copy between the device and memory of the host that is not pinned. The interface leaves open whether it is done
/// when the call returns, so that nobody may use either side before waiting: what stands between the copy and the next
/// wait loses it.
enum Plain {
    ToDevice { to: u64, data: Vec<u8> },
    ToHost { to: *mut u8, data: Vec<u8> },
}

pub(crate) struct State {
    pub part: Part,
    pub total_memory: usize,
    swapped_lanes: SwappedLanes,
    memory: BTreeMap<u64, Memory>,
    pinned: BTreeMap<usize, Vec<u8>>,
    functions: Vec<Function>,
    graphs: HashMap<usize, Vec<Work>>,
    num_graphs: usize,
    /// By thread: each has its stream, and what one captures holds up no other.
    captures: HashMap<ThreadId, Vec<Work>>,
    inwards: Vec<Inwards>,
    outwards: Vec<Outwards>,
    /// By thread, as captures.
    plain: HashMap<ThreadId, Plain>,
    has_failed: bool,
    waits: Waits,
    /// A file that gets a byte for each launch that may begin early.
    dependent_noted_in: Option<PathBuf>,
}

/// Which waits count, for tests of what misses one.
#[derive(Default)]
struct Waits {
    count: usize,
    /// From 1 on: this one returns at once and waits for nothing.
    ignored: Option<usize>,
    /// A file that gets a byte for each.
    noted_in: Option<PathBuf>,
}

impl Waits {
    /// Counts one; whether it is to be ignored.
    fn next(&mut self) -> bool {
        self.count += 1;
        note(self.noted_in.as_deref());
        self.ignored == Some(self.count)
    }
}

/// Adds a byte to a file.
fn note(path: Option<&Path>) {
    if let Some(path) = path {
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(b".")).ok();
    }
}

// SAFETY: entries are static and never change; the target of a plain copy is written under the lock, by the call
// that follows the copy.
unsafe impl Send for State {}

static STATE: Mutex<Option<State>> = Mutex::new(None);

/// The state, for one call.
pub(crate) fn with<T>(call: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
    let mut guard: MutexGuard<Option<State>> = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let state = guard.get_or_insert_with(State::new);
    state.check_fault()?;
    call(state)
}

impl State {
    /// As the environment wants it.
    fn new() -> Self {
        let wanted = |name: &str| std::env::var(name).ok();
        let memory = wanted("OCTET_EMULATED_MEMORY").and_then(|bytes| bytes.parse().ok());
        Self {
            part: match wanted("OCTET_EMULATED_CAPABILITY").as_deref() {
                Some("9.0") => HOPPER,
                _ => AMPERE,
            },
            dependent_noted_in: wanted("OCTET_EMULATED_DEPENDENT").map(PathBuf::from),
            total_memory: memory.unwrap_or(TOTAL_MEMORY),
            swapped_lanes: match wanted("OCTET_EMULATED_SWAPPED_LANES").as_deref() {
                Some("int8") => SwappedLanes::Int8,
                Some("all") => SwappedLanes::All,
                _ => SwappedLanes::None,
            },
            memory: BTreeMap::new(),
            pinned: BTreeMap::new(),
            functions: Vec::new(),
            graphs: HashMap::new(),
            num_graphs: 0,
            captures: HashMap::new(),
            inwards: Vec::new(),
            outwards: Vec::new(),
            plain: HashMap::new(),
            has_failed: false,
            waits: Waits {
                count: 0,
                ignored: wanted("OCTET_EMULATED_IGNORED_WAIT").and_then(|wait| wait.parse().ok()),
                noted_in: wanted("OCTET_EMULATED_WAITS").map(PathBuf::from),
            },
        }
    }

    fn check_fault(&mut self) -> Result<()> {
        let fault = std::env::var_os("OCTET_EMULATED_FAULT").map(PathBuf::from);
        self.has_failed |= fault.is_some_and(|path| path.exists());
        match self.has_failed {
            true => Err(ILLEGAL_ADDRESS),
            false => Ok(()),
        }
    }

    /// Bytes that nobody has.
    pub fn free_memory(&self) -> usize {
        self.total_memory - self.memory.values().map(Memory::bytes).sum::<usize>()
    }

    pub fn alloc(&mut self, bytes: usize) -> Result<u64> {
        if bytes > self.free_memory() {
            return Err(OUT_OF_MEMORY);
        }
        let memory = Memory::new(bytes, false).ok_or(OUT_OF_MEMORY)?;
        let address = memory.address();
        self.memory.insert(address, memory);
        Ok(address)
    }

    /// Waits for what still uses it, as a driver does.
    pub fn free(&mut self, address: u64) -> Result<()> {
        self.wait();
        self.memory.remove(&address).map(drop).ok_or(INVALID_VALUE)
    }

    pub fn alloc_pinned(&mut self, bytes: usize) -> usize {
        let mut pinned = vec![GARBAGE; bytes.max(1)];
        let address = pinned.as_mut_ptr() as usize;
        self.pinned.insert(address, pinned);
        address
    }

    /// Waits for nothing: a copy that is under way meets memory that is gone.
    pub fn free_pinned(&mut self, address: usize) -> Result<()> {
        let memory = self.pinned.remove(&address).ok_or(INVALID_VALUE)?;
        let freed = address..address + memory.len();
        let is_used = self.inwards.iter().any(|copy| freed.contains(&copy.from))
            || self.outwards.iter().any(|copy| freed.contains(&copy.to));
        if is_used {
            self.has_failed = true;
            return Err(ILLEGAL_ADDRESS);
        }
        Ok(())
    }

    /// The pinned memory that holds a range, and where in it.
    fn pinned_at(&mut self, address: usize, bytes: usize) -> Option<&mut [u8]> {
        let (start, memory) = self.pinned.range_mut(..=address).next_back()?;
        memory.get_mut(address - start..)?.get_mut(..bytes)
    }

    pub fn memory_at(&self, address: u64, bytes: usize) -> Result<(&Memory, usize)> {
        let (start, memory) = self
            .memory
            .range(..=address)
            .next_back()
            .ok_or(INVALID_VALUE)?;
        let offset = (address - start) as usize;
        match offset.checked_add(bytes) {
            Some(end) if end <= memory.bytes() => Ok((memory, offset)),
            _ => Err(INVALID_VALUE),
        }
    }

    /// Copies to the device, later where the source is pinned.
    pub fn copy_in(&mut self, to: u64, from: *const u8, bytes: usize) -> Result<()> {
        self.begin_operation()?;
        self.memory_at(to, bytes)?;
        if self.pinned_at(from as usize, bytes).is_some() {
            let from = from as usize;
            self.inwards.push(Inwards { to, from, bytes });
            return Ok(());
        }
        // SAFETY: the caller's readable range, which the interface asks for.
        let data = unsafe { std::slice::from_raw_parts(from, bytes) }.to_vec();
        let (memory, offset) = self.memory_at(to, bytes)?;
        memory.write(offset, &vec![GARBAGE; bytes]);
        self.plain
            .insert(thread::current().id(), Plain::ToDevice { to, data });
        Ok(())
    }

    /// Copies from the device, later where the target is pinned.
    pub fn copy_out(&mut self, to: *mut u8, from: u64, bytes: usize) -> Result<()> {
        self.begin_operation()?;
        let mut data = vec![0; bytes];
        let (memory, offset) = self.memory_at(from, bytes)?;
        memory.read(offset, &mut data);
        if let Some(pinned) = self.pinned_at(to as usize, bytes) {
            pinned.fill(GARBAGE);
            let to = to as usize;
            self.outwards.push(Outwards { to, data });
            return Ok(());
        }
        // SAFETY: the caller's writable range, which the interface asks for.
        unsafe { to.write_bytes(GARBAGE, bytes) };
        self.plain
            .insert(thread::current().id(), Plain::ToHost { to, data });
        Ok(())
    }

    pub fn fill(&mut self, to: u64, byte: u8, bytes: usize) -> Result<()> {
        self.begin_operation()?;
        let (memory, offset) = self.memory_at(to, bytes)?;
        memory.write(offset, &vec![byte; bytes]);
        Ok(())
    }

    /// Nothing but launches may stand in a capture; copies to the device happen now.
    fn begin_operation(&mut self) -> Result<()> {
        if self.captures.contains_key(&thread::current().id()) {
            return Err(CAPTURE_UNSUPPORTED);
        }
        self.plain.remove(&thread::current().id());
        for copy in std::mem::take(&mut self.inwards) {
            // The stream's order: what was to be copied there before is there.
            self.deliver();
            let data = self.pinned_at(copy.from, copy.bytes);
            let data = data.ok_or(INVALID_VALUE)?.to_vec();
            let (memory, offset) = self.memory_at(copy.to, copy.bytes)?;
            memory.write(offset, &data);
        }
        Ok(())
    }

    fn deliver(&mut self) {
        for copy in std::mem::take(&mut self.outwards) {
            if let Some(pinned) = self.pinned_at(copy.to, copy.data.len()) {
                pinned.copy_from_slice(&copy.data);
            }
        }
    }

    fn wait(&mut self) {
        self.begin_operation().ok();
        self.deliver();
    }

    pub fn synchronize(&mut self) -> Result<()> {
        let plain = self.plain.remove(&thread::current().id());
        if self.waits.next() {
            return Ok(());
        }
        self.begin_operation()?;
        self.deliver();
        cuda_emulation::complete();
        match plain {
            Some(Plain::ToDevice { to, data }) => {
                let (memory, offset) = self.memory_at(to, data.len())?;
                memory.write(offset, &data);
            }
            // SAFETY: the range of the copy that was asked for last; nothing else was asked for since.
            Some(Plain::ToHost { to, data }) => unsafe {
                std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len());
            },
            None => {}
        }
        Ok(())
    }

    /// The number of an entry point.
    pub fn function(&mut self, name: &str) -> Result<usize> {
        let known = self.functions.iter().position(|f| f.kernel.name == name);
        if let Some(known) = known {
            return Ok(known);
        }
        let kernel = self
            .part
            .profile
            .kernels()
            .into_iter()
            .find(|k| k.name == name);
        self.functions.push(Function {
            kernel: kernel.ok_or(NOT_FOUND)?,
            dynamic_bytes: SHARED_MEMORY,
        });
        Ok(self.functions.len() - 1)
    }

    /// Asks for dynamic shared memory.
    pub fn allow_dynamic(&mut self, function: usize, bytes: u32) -> Result<()> {
        let function = self.functions.get_mut(function).ok_or(INVALID_VALUE)?;
        if bytes > self.part.shared_memory {
            return Err(INVALID_VALUE);
        }
        function.dynamic_bytes = function.dynamic_bytes.max(bytes);
        Ok(())
    }

    /// Bytes of each argument, and threads of a block.
    pub fn signature(&self, function: usize) -> Result<(&'static [u8], u32)> {
        let function = self.functions.get(function).ok_or(INVALID_VALUE)?;
        Ok((function.kernel.arg_sizes, function.kernel.threads))
    }

    pub fn launch(&mut self, launch: Noted) -> Result<()> {
        let function = self.functions.get(launch.function).ok_or(INVALID_VALUE)?;
        if launch.dynamic_bytes > function.dynamic_bytes || launch.grid.contains(&0) {
            return Err(INVALID_VALUE);
        }
        if launch.is_dependent {
            note(self.dependent_noted_in.as_deref());
        }
        self.work(Work::Launch(launch))
    }

    /// Does it now, or notes it for the graph.
    pub fn work(&mut self, work: Work) -> Result<()> {
        if let Some(captured) = self.captures.get_mut(&thread::current().id()) {
            captured.push(work);
            return Ok(());
        }
        self.begin_operation()?;
        self.run(&work)
    }

    fn run(&self, work: &Work) -> Result<()> {
        match work {
            Work::Launch(launch) => self.run_kernel(launch),
            Work::Product(product) => product.run(self),
        }
    }

    fn run_kernel(&self, launch: &Noted) -> Result<()> {
        let function = self.functions.get(launch.function).ok_or(INVALID_VALUE)?;
        let outcome = self.part.profile.launch(&Launch {
            kernel: function.kernel.name,
            grid: launch.grid,
            dynamic_bytes: launch.dynamic_bytes,
            shared_limit: self.part.shared_memory,
            order: 0,
            swapped_lanes: self.swapped_lanes,
            dependent: launch.is_dependent,
            args: &launch.args,
        });
        outcome.map_err(|_| LAUNCH_FAILED)
    }

    pub fn begin_capture(&mut self) -> Result<()> {
        self.begin_operation()?;
        self.captures.insert(thread::current().id(), Vec::new());
        Ok(())
    }

    /// The number of the graph.
    pub fn end_capture(&mut self) -> Result<usize> {
        let captured = self.captures.remove(&thread::current().id());
        let captured = captured.ok_or(INVALID_VALUE)?;
        self.num_graphs += 1;
        self.graphs.insert(self.num_graphs, captured);
        Ok(self.num_graphs)
    }

    /// Makes a graph one that runs, under a number of its own.
    pub fn instantiate(&mut self, graph: usize) -> Result<usize> {
        let launches = self.graphs.get_mut(&graph).ok_or(INVALID_VALUE)?;
        let launches = std::mem::take(launches);
        self.num_graphs += 1;
        self.graphs.insert(self.num_graphs, launches);
        Ok(self.num_graphs)
    }

    pub fn run_graph(&mut self, graph: usize) -> Result<()> {
        self.begin_operation()?;
        let launches = self.graphs.get(&graph).ok_or(INVALID_VALUE)?;
        // Early launches are edges inside the graph; the whole begins and ends in order.
        cuda_emulation::complete();
        launches.iter().try_for_each(|work| self.run(work))?;
        cuda_emulation::complete();
        Ok(())
    }

    pub fn drop_graph(&mut self, graph: usize) -> Result<()> {
        self.graphs.remove(&graph).map(drop).ok_or(INVALID_VALUE)
    }
}
