//! The emulated device.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use backend::{BackendError, Result};
use backend_cuda::device::{self, Arg, Device, Launch, Properties};
use backend_cuda::{CudaBackend, Precision};
use cuda_emulation::{Memory, Profile, SwappedLanes};

/// Kernels of one profile, threads in one order.
pub struct Emulated {
    profile: Profile,
    order: u32,
    /// What it says of itself.
    pub properties: Properties,
    /// Which matrix instructions are wired wrongly.
    pub swapped_lanes: SwappedLanes,
    /// Launches until the wiring of [`Self::swapped_lanes`] counts.
    pub right_launches: Cell<usize>,
    /// Whether threads and blocks run in another order at every launch.
    pub shuffles: bool,
    num_launches: Cell<u32>,
    /// Launches until the device fails for good.
    pub launches_left: Cell<usize>,
    /// The kernel that ran last, and its grid.
    pub last_launch: Cell<(&'static str, [u32; 3])>,
    /// What a launch adds to the time.
    pub cost: fn(&str) -> Duration,
    pub time: Rc<Cell<Duration>>,
    /// How often a graph was replayed.
    pub replays: Rc<Cell<usize>>,
    /// Launches noted since a capture began.
    captured: RefCell<Option<Vec<Noted>>>,
}

/// A launch with its arguments frozen, and the memory that they point to.
pub struct Noted {
    kernel: &'static str,
    grid: [u32; 3],
    dynamic_bytes: u32,
    args: Vec<cuda_emulation::Arg>,
    _memory: Vec<Rc<Memory>>,
}

impl Emulated {
    pub fn new(profile: Profile, order: u32) -> Self {
        let capability = match profile {
            Profile::Fast80 | Profile::Checked80 => (8, 0),
            Profile::Fast75 | Profile::Checked75 => (7, 5),
            Profile::Fast90 | Profile::Checked90 => (9, 0),
        };
        Self {
            profile,
            order,
            swapped_lanes: SwappedLanes::None,
            right_launches: Cell::new(0),
            shuffles: false,
            num_launches: Cell::new(0),
            launches_left: Cell::new(usize::MAX),
            last_launch: Cell::new(("", [0; 3])),
            cost: |_| Duration::ZERO,
            time: Rc::default(),
            replays: Rc::default(),
            captured: RefCell::default(),
            properties: Properties {
                name: "emulated".to_owned(),
                capability,
                multiprocessors: 4,
                shared_memory: match capability {
                    (7, 5) => 65_536,
                    (9, 0) => 232_448,
                    _ => 101_376,
                },
                warpgroups: capability == (9, 0),
                dependent_launches: capability == (9, 0),
            },
        }
    }

    fn new_memory(bytes: usize, zeroed: bool, purpose: &'static str) -> Result<Rc<Memory>> {
        // More than any test needs, and what a request by mistake exceeds.
        if bytes > 1 << 30 {
            return Err(BackendError::OutOfMemory {
                requested: bytes,
                purpose,
            });
        }
        Memory::new(bytes, zeroed)
            .map(Rc::new)
            .ok_or(BackendError::OutOfMemory {
                requested: bytes,
                purpose,
            })
    }

    fn run(&self, noted: &Noted) -> Result<()> {
        // As the driver does: once it has failed, everything fails.
        let Some(left) = self.launches_left.get().checked_sub(1) else {
            return Err(BackendError::Device(
                "CUDA_ERROR_ILLEGAL_ADDRESS (an illegal memory access was encountered)".into(),
            ));
        };
        self.launches_left.set(left);
        let right = self.right_launches.get();
        self.right_launches.set(right.saturating_sub(1));
        self.num_launches.set(self.num_launches.get() + 1);
        self.last_launch.set((noted.kernel, noted.grid));
        self.time.set(self.time.get() + (self.cost)(noted.kernel));
        self.profile
            .launch(&cuda_emulation::Launch {
                kernel: noted.kernel,
                grid: noted.grid,
                dynamic_bytes: noted.dynamic_bytes,
                shared_limit: self.properties.shared_memory,
                order: match self.shuffles {
                    true => self.num_launches.get(),
                    false => self.order,
                },
                swapped_lanes: match right {
                    0 => self.swapped_lanes,
                    _ => SwappedLanes::None,
                },
                dependent: self.properties.dependent_launches,
                args: &noted.args,
            })
            .map_err(BackendError::Device)
    }
}

impl Device for Emulated {
    type Buffer = Rc<Memory>;
    type HostBuffer = RefCell<Vec<u8>>;
    type Graph = Vec<Noted>;

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn memory(&self) -> Result<device::Memory> {
        Ok(device::Memory {
            free: 1 << 30,
            total: 1 << 30,
        })
    }

    fn alloc(&self, bytes: usize, purpose: &'static str) -> Result<Rc<Memory>> {
        Self::new_memory(bytes, false, purpose)
    }

    fn alloc_zeroed(&self, bytes: usize, purpose: &'static str) -> Result<Rc<Memory>> {
        Self::new_memory(bytes, true, purpose)
    }

    fn host_alloc(&self, bytes: usize, _: &'static str) -> Result<RefCell<Vec<u8>>> {
        Ok(RefCell::new(vec![0; bytes]))
    }

    // Copies happen at once here; those of the driver's stand-in are as late as they may be.
    fn swap_out(
        &self,
        (from, offset): (&Rc<Memory>, usize),
        (to, at): (&RefCell<Vec<u8>>, usize),
        bytes: usize,
    ) -> Result<()> {
        self.download(from, offset, &mut to.borrow_mut()[at..at + bytes])
    }

    fn swap_in(
        &self,
        (from, at): (&RefCell<Vec<u8>>, usize),
        (to, offset): (&Rc<Memory>, usize),
        bytes: usize,
    ) -> Result<()> {
        self.upload(to, offset, &from.borrow()[at..at + bytes])
    }

    fn copy_on_host(
        &self,
        (from, from_at): (&RefCell<Vec<u8>>, usize),
        (to, to_at): (&RefCell<Vec<u8>>, usize),
        bytes: usize,
    ) -> Result<()> {
        let data = from.borrow()[from_at..from_at + bytes].to_vec();
        to.borrow_mut()[to_at..to_at + bytes].copy_from_slice(&data);
        Ok(())
    }

    fn upload(&self, to: &Rc<Memory>, offset: usize, data: &[u8]) -> Result<()> {
        to.write(offset, data);
        Ok(())
    }

    fn download(&self, from: &Rc<Memory>, offset: usize, data: &mut [u8]) -> Result<()> {
        if self.captured.borrow().is_some() {
            return Err(BackendError::Device("a copy inside a capture".into()));
        }
        from.read(offset, data);
        Ok(())
    }

    fn launch(&self, launch: &Launch<Rc<Memory>>) -> Result<()> {
        let mut memory = Vec::new();
        let args = launch
            .args
            .iter()
            .map(|arg| match arg {
                Arg::Buffer(buffer, offset) => {
                    memory.push(Rc::clone(buffer));
                    cuda_emulation::Arg::Pointer(buffer.address() + *offset as u64)
                }
                Arg::Null => cuda_emulation::Arg::Pointer(0),
                Arg::Int(x) => cuda_emulation::Arg::Word(x.cast_unsigned()),
                Arg::Float(x) => cuda_emulation::Arg::Word(x.to_bits()),
            })
            .collect();
        let noted = Noted {
            kernel: launch.kernel,
            grid: launch.grid,
            dynamic_bytes: launch.dynamic_bytes,
            args,
            _memory: memory,
        };
        if let Some(captured) = &mut *self.captured.borrow_mut() {
            captured.push(noted);
            return Ok(());
        }
        self.run(&noted)
    }

    fn synchronize(&self) -> Result<()> {
        cuda_emulation::complete();
        Ok(())
    }

    fn begin_capture(&self) -> Result<()> {
        self.captured.replace(Some(Vec::new()));
        Ok(())
    }

    fn end_capture(&self) -> Result<Vec<Noted>> {
        let captured = self.captured.take();
        captured.ok_or_else(|| BackendError::Device("no capture was begun".into()))
    }

    fn replay(&self, graph: &Vec<Noted>) -> Result<()> {
        self.replays.set(self.replays.get() + 1);
        // The edges inside are as of the launches; before and behind the whole everything is in order.
        cuda_emulation::complete();
        graph.iter().try_for_each(|noted| self.run(noted))?;
        cuda_emulation::complete();
        Ok(())
    }
}

/// The backend under test.
pub type Target = CudaBackend<Emulated>;

pub fn target(profile: Profile, order: u32, precision: Precision) -> Target {
    CudaBackend::new(Emulated::new(profile, order), precision)
}
