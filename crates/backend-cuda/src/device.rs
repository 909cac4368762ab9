//! The line between the backend and what runs kernels: memory, copies and launches, in one order.
//!
//! Everything a device is asked to do happens as if in the order it is asked; a download waits for it. A kernel may
//! begin before the one launched before it has ended, and then waits for it before it reads or writes anything
//! but weights.

use backend::Result;

/// What a backend needs to know about a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// Its own name.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that one block may have.
    pub shared_memory: u32,
    /// Whether it has the kernels for products of warpgroups, which compute capability 9.0 alone runs.
    pub warpgroups: bool,
    /// Whether a kernel may be launched while the one before it still runs (programmatic dependent launch): its
    /// kernels wait by themselves, as those for compute capability 9.0 and newer do.
    pub dependent_launches: bool,
}

/// Bytes of a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// What may still be allocated.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// One argument of a kernel, as its signature says.
#[derive(Debug)]
pub enum Arg<'a, B> {
    /// The address of a byte inside a buffer.
    Buffer(&'a B, usize),
    /// A null pointer.
    Null,
    /// A 32-bit integer.
    Int(i32),
    /// A 32-bit float.
    Float(f32),
}

/// One launch.
#[derive(Debug)]
pub struct Launch<'a, B> {
    /// Name of the entry point.
    pub kernel: &'static str,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks along each axis.
    pub grid: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_bytes: u32,
    /// As the signature says.
    pub args: &'a [Arg<'a, B>],
}

/// A device, real or emulated.
pub trait Device: 'static {
    /// Memory of the device, freed on drop.
    type Buffer;
    /// Memory of the host that copies go through while the host does other things; freed on drop.
    type HostBuffer;
    /// Launches that can be repeated with one call.
    type Graph;

    /// What it is.
    fn properties(&self) -> &Properties;

    /// What it has left.
    ///
    /// # Errors
    /// [`backend::BackendError::Device`].
    fn memory(&self) -> Result<Memory>;

    /// Memory with arbitrary contents.
    ///
    /// # Errors
    /// [`backend::BackendError::OutOfMemory`].
    fn alloc(&self, bytes: usize, purpose: &'static str) -> Result<Self::Buffer>;

    /// Memory of zeros.
    ///
    /// # Errors
    /// [`backend::BackendError::OutOfMemory`].
    fn alloc_zeroed(&self, bytes: usize, purpose: &'static str) -> Result<Self::Buffer>;

    /// Memory of one step, with arbitrary contents: devices keep it for the next step.
    ///
    /// # Errors
    /// [`backend::BackendError::OutOfMemory`].
    fn scratch(&self, bytes: usize, purpose: &'static str) -> Result<Self::Buffer> {
        self.alloc(bytes, purpose)
    }

    /// Zeroed memory of the host for [`Self::swap_out`] and [`Self::swap_in`].
    ///
    /// # Errors
    /// [`backend::BackendError::OutOfMemory`].
    fn host_alloc(&self, bytes: usize, purpose: &'static str) -> Result<Self::HostBuffer>;

    /// Asks for a copy of so many bytes to the host, and waits for nothing.
    ///
    /// # Errors
    /// [`backend::BackendError::Device`].
    fn swap_out(
        &self,
        from: (&Self::Buffer, usize),
        to: (&Self::HostBuffer, usize),
        bytes: usize,
    ) -> Result<()>;

    /// Asks for a copy of so many bytes from the host, and waits for nothing.
    ///
    /// # Errors
    /// [`backend::BackendError::Device`].
    fn swap_in(
        &self,
        from: (&Self::HostBuffer, usize),
        to: (&Self::Buffer, usize),
        bytes: usize,
    ) -> Result<()>;

    /// Copies between places on the host, when everything asked for before is done.
    ///
    /// # Errors
    /// [`backend::BackendError::Device`].
    fn copy_on_host(
        &self,
        from: (&Self::HostBuffer, usize),
        to: (&Self::HostBuffer, usize),
        bytes: usize,
    ) -> Result<()>;

    /// Copies to the device.
    ///
    /// # Errors
    /// [`backend::BackendError::Device`].
    fn upload(&self, to: &Self::Buffer, offset: usize, data: &[u8]) -> Result<()>;

    /// Copies from the device, when everything asked for before is done.
    ///
    /// # Errors
    /// [`backend::BackendError::Device`].
    fn download(&self, from: &Self::Buffer, offset: usize, data: &mut [u8]) -> Result<()>;

    /// Runs a kernel.
    ///
    /// # Errors
    /// [`backend::BackendError::Device`].
    fn launch(&self, launch: &Launch<Self::Buffer>) -> Result<()>;

    /// Waits for everything asked for before.
    ///
    /// # Errors
    /// [`backend::BackendError::Device`].
    fn synchronize(&self) -> Result<()>;

    /// From now on launches are noted, not run.
    ///
    /// # Errors
    /// [`backend::BackendError::Device`].
    fn begin_capture(&self) -> Result<()>;

    /// Ends the noting and returns what was noted.
    ///
    /// # Errors
    /// [`backend::BackendError::Device`].
    fn end_capture(&self) -> Result<Self::Graph>;

    /// Runs noted launches with the arguments they were noted with.
    ///
    /// # Errors
    /// [`backend::BackendError::Device`].
    fn replay(&self, graph: &Self::Graph) -> Result<()>;
}
