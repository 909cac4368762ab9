//! A device whose buffers are poisoned and fenced: whoever reads what nobody wrote gets NaN, whoever writes
//! beside a buffer is found when the buffer is freed.

use std::cell::RefCell;
use std::rc::Rc;

use backend::Result;
use backend_cuda::device::{Arg, Device, Launch, Memory, Properties};

use super::check;

/// Bytes before and behind every buffer.
const FENCE: usize = 4096;
const FENCE_BYTE: u8 = 0xa5;
/// As 32-bit and 16-bit floats NaN, as integers large.
const POISON: u8 = 0xff;

/// A device with fences.
pub struct Guarded<D: Device> {
    device: Rc<D>,
    /// Purposes of the buffers beside which something was written.
    broken: Rc<RefCell<Vec<&'static str>>>,
}

/// A buffer between its fences.
pub struct Fenced<D: Device> {
    inner: D::Buffer,
    device: Rc<D>,
    broken: Rc<RefCell<Vec<&'static str>>>,
    bytes: usize,
    purpose: &'static str,
}

impl<D: Device> Guarded<D> {
    /// Fences on `device`; what is broken is noted.
    pub fn new(device: D, broken: Rc<RefCell<Vec<&'static str>>>) -> Self {
        Self {
            device: Rc::new(device),
            broken,
        }
    }

    fn fenced(&self, bytes: usize, purpose: &'static str, fill: u8) -> Result<Fenced<D>> {
        let inner = self
            .device
            .alloc(bytes.saturating_add(2 * FENCE), purpose)?;
        let mut content = vec![FENCE_BYTE; bytes + 2 * FENCE];
        content[FENCE..FENCE + bytes].fill(fill);
        self.device.upload(&inner, 0, &content)?;
        Ok(Fenced {
            inner,
            device: Rc::clone(&self.device),
            broken: Rc::clone(&self.broken),
            bytes,
            purpose,
        })
    }
}

impl<D: Device> Fenced<D> {
    fn is_whole(&self) -> bool {
        let mut fence = vec![0; FENCE];
        [0, FENCE + self.bytes].into_iter().all(|at| {
            self.device.download(&self.inner, at, &mut fence).is_ok()
                && fence.iter().all(|byte| *byte == FENCE_BYTE)
        })
    }
}

impl<D: Device> Drop for Fenced<D> {
    fn drop(&mut self) {
        if !self.is_whole() {
            self.broken.borrow_mut().push(self.purpose);
        }
    }
}

impl<D: Device> Device for Guarded<D> {
    type Buffer = Fenced<D>;
    type HostBuffer = D::HostBuffer;
    type Graph = D::Graph;

    fn properties(&self) -> &Properties {
        self.device.properties()
    }

    fn memory(&self) -> Result<Memory> {
        self.device.memory()
    }

    fn alloc(&self, bytes: usize, purpose: &'static str) -> Result<Fenced<D>> {
        self.fenced(bytes, purpose, POISON)
    }

    fn alloc_zeroed(&self, bytes: usize, purpose: &'static str) -> Result<Fenced<D>> {
        self.fenced(bytes, purpose, 0)
    }

    fn host_alloc(&self, bytes: usize, purpose: &'static str) -> Result<D::HostBuffer> {
        self.device.host_alloc(bytes, purpose)
    }

    fn swap_out(
        &self,
        (from, offset): (&Fenced<D>, usize),
        to: (&D::HostBuffer, usize),
        bytes: usize,
    ) -> Result<()> {
        self.device
            .swap_out((&from.inner, FENCE + offset), to, bytes)
    }

    fn swap_in(
        &self,
        from: (&D::HostBuffer, usize),
        (to, offset): (&Fenced<D>, usize),
        bytes: usize,
    ) -> Result<()> {
        self.device
            .swap_in(from, (&to.inner, FENCE + offset), bytes)
    }

    fn copy_on_host(
        &self,
        from: (&D::HostBuffer, usize),
        to: (&D::HostBuffer, usize),
        bytes: usize,
    ) -> Result<()> {
        self.device.copy_on_host(from, to, bytes)
    }

    fn upload(&self, to: &Fenced<D>, offset: usize, data: &[u8]) -> Result<()> {
        self.device.upload(&to.inner, FENCE + offset, data)
    }

    fn download(&self, from: &Fenced<D>, offset: usize, data: &mut [u8]) -> Result<()> {
        self.device.download(&from.inner, FENCE + offset, data)
    }

    fn launch(&self, launch: &Launch<Fenced<D>>) -> Result<()> {
        let args: Vec<Arg<D::Buffer>> = launch
            .args
            .iter()
            .map(|arg| match arg {
                Arg::Buffer(buffer, offset) => Arg::Buffer(&buffer.inner, FENCE + offset),
                Arg::Null => Arg::Null,
                Arg::Int(x) => Arg::Int(*x),
                Arg::Float(x) => Arg::Float(*x),
            })
            .collect();
        self.device.launch(&Launch {
            kernel: launch.kernel,
            threads: launch.threads,
            grid: launch.grid,
            dynamic_bytes: launch.dynamic_bytes,
            args: &args,
        })
    }

    fn synchronize(&self) -> Result<()> {
        self.device.synchronize()
    }

    fn begin_capture(&self) -> Result<()> {
        self.device.begin_capture()
    }

    fn end_capture(&self) -> Result<D::Graph> {
        self.device.end_capture()
    }

    fn replay(&self, graph: &D::Graph) -> Result<()> {
        self.device.replay(graph)
    }
}

/// The conformance suite between fences; true when it passes and all of them are whole.
pub fn conform<D: Device>(
    open: &dyn Fn() -> Result<D>,
    suites: &[check::Suite],
    say: &mut dyn FnMut(String),
) -> Result<bool> {
    let broken = Rc::new(RefCell::new(Vec::new()));
    let guarded = || Ok(Guarded::new(open()?, Rc::clone(&broken)));
    let is_right = check::conform(&guarded, suites, say)?;
    let broken = broken.borrow();
    for purpose in broken.iter() {
        say(format!(
            "WRONG something was written beside a buffer of {purpose}"
        ));
    }
    Ok(is_right && broken.is_empty())
}
