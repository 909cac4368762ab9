//! The emulated device, and a backend on it whose tensors tests can fill and read.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use backend::conformance::TestBackend;
use backend::{
    Activation, AttentionSpec, Backend, BackendError, Batch, BlockCopy, Experts, HostTensor, Ids,
    KvCacheSpec, KvDtype, KvTypes, LinearWeight, Norm, Result, Rope, Routing, SampleBatch,
    SampleOutput,
};
use backend_cuda::device::{self, Arg, Device, Launch, Properties};
use backend_cuda::{CudaBackend, CudaKvCache, CudaLinear, CudaStep, CudaTensor, Precision};
use cuda_emulation::{Memory, Profile};

/// Kernels of one profile, threads in one order.
pub struct Emulated {
    profile: Profile,
    order: u32,
    properties: Properties,
    /// Whether the 8-bit matrix instruction is wired wrongly.
    pub swapped_lanes: bool,
    /// Launches until the device fails for good.
    pub launches_left: Cell<usize>,
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
        };
        Self {
            profile,
            order,
            swapped_lanes: false,
            launches_left: Cell::new(usize::MAX),
            replays: Rc::default(),
            captured: RefCell::default(),
            properties: Properties {
                name: "emulated".to_owned(),
                capability,
                multiprocessors: 4,
                shared_memory: if capability == (7, 5) {
                    65_536
                } else {
                    101_376
                },
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
        self.profile
            .launch(&cuda_emulation::Launch {
                kernel: noted.kernel,
                grid: noted.grid,
                dynamic_bytes: noted.dynamic_bytes,
                shared_limit: self.properties.shared_memory,
                order: self.order,
                swapped_lanes: self.swapped_lanes,
                args: &noted.args,
            })
            .map_err(BackendError::Device)
    }
}

impl Device for Emulated {
    type Buffer = Rc<Memory>;
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
        graph.iter().try_for_each(|noted| self.run(noted))
    }
}

/// The backend under test.
pub struct Target(pub CudaBackend<Emulated>);

impl Target {
    pub fn new(profile: Profile, order: u32, precision: Precision) -> Self {
        Self(CudaBackend::new(Emulated::new(profile, order), precision))
    }
}

type Tensor = CudaTensor<Emulated>;
type Linear = CudaLinear<Emulated>;
type KvCache = CudaKvCache<Emulated>;
type Step = CudaStep<Emulated>;

impl TestBackend for Target {
    fn read(&mut self, x: &Tensor) -> Vec<f32> {
        x.read(self.0.device()).expect("activations")
    }

    fn keeps(&self, types: KvTypes) -> bool {
        types.keys == types.values || (types.keys, types.values) == (KvDtype::Bf16, KvDtype::Int8)
    }
}

/// Hands every method on, the overridden fusions included.
impl Backend for Target {
    type Tensor = Tensor;
    type Linear = Linear;
    type KvCache = KvCache;
    type Step = Step;

    fn load_tensor(&mut self, tensor: HostTensor) -> Result<Tensor> {
        self.0.load_tensor(tensor)
    }
    fn load_linear(&mut self, weight: LinearWeight) -> Result<Linear> {
        self.0.load_linear(weight)
    }
    fn alloc_kv_cache(&mut self, spec: &KvCacheSpec) -> Result<KvCache> {
        self.0.alloc_kv_cache(spec)
    }
    fn begin_step(&mut self, batch: &Batch) -> Result<Step> {
        self.0.begin_step(batch)
    }
    fn copy_blocks(&mut self, cache: &mut KvCache, copies: &[BlockCopy]) -> Result<()> {
        self.0.copy_blocks(cache, copies)
    }
    fn embed(&mut self, table: &Tensor, ids: Ids, step: &Step) -> Result<Tensor> {
        self.0.embed(table, ids, step)
    }
    fn select(&mut self, x: &Tensor, step: &Step) -> Result<Tensor> {
        self.0.select(x, step)
    }
    fn norm(&mut self, x: &Tensor, norm: &Norm<Tensor>, step: &Step) -> Result<Tensor> {
        self.0.norm(x, norm, step)
    }
    fn linear(&mut self, x: &Tensor, linear: &Linear, step: &Step) -> Result<Tensor> {
        self.0.linear(x, linear, step)
    }
    fn split(&mut self, x: Tensor, widths: &[usize]) -> Result<Vec<Tensor>> {
        self.0.split(x, widths)
    }
    fn rope(&mut self, x: &mut Tensor, rope: &Rope<Tensor>, step: &Step) -> Result<()> {
        self.0.rope(x, rope, step)
    }
    fn store_kv(
        &mut self,
        cache: &mut KvCache,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
        step: &Step,
    ) -> Result<()> {
        self.0.store_kv(cache, layer, k, v, step)
    }
    fn attention(
        &mut self,
        q: &Tensor,
        cache: &KvCache,
        layer: usize,
        spec: &AttentionSpec,
        step: &Step,
    ) -> Result<Tensor> {
        self.0.attention(q, cache, layer, spec, step)
    }
    fn activate(&mut self, x: &mut Tensor, activation: Activation) -> Result<()> {
        self.0.activate(x, activation)
    }
    fn mul(&mut self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        self.0.mul(x, y)
    }
    fn add(&mut self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        self.0.add(x, y)
    }
    fn route(&mut self, logits: Tensor, routing: &Routing) -> Result<Tensor> {
        self.0.route(logits, routing)
    }
    fn mix_experts(
        &mut self,
        x: &Tensor,
        weights: &Tensor,
        experts: &Experts<Linear>,
        step: &Step,
    ) -> Result<Tensor> {
        self.0.mix_experts(x, weights, experts, step)
    }
    fn sample(&mut self, logits: Tensor, batch: &SampleBatch, step: Step) -> Result<SampleOutput> {
        self.0.sample(logits, batch, step)
    }
    fn norm_quant(&mut self, x: &Tensor, norm: &Norm<Tensor>, step: &Step) -> Result<Tensor> {
        self.0.norm_quant(x, norm, step)
    }
    fn linear_add(
        &mut self,
        residual: &mut Tensor,
        x: &Tensor,
        linear: &Linear,
        step: &Step,
    ) -> Result<()> {
        self.0.linear_add(residual, x, linear, step)
    }
    fn rope_store_kv(
        &mut self,
        cache: &mut KvCache,
        layer: usize,
        q: &mut Tensor,
        k: &mut Tensor,
        v: &Tensor,
        rope: Option<&Rope<Tensor>>,
        step: &Step,
    ) -> Result<()> {
        self.0.rope_store_kv(cache, layer, q, k, v, rope, step)
    }
    fn gated(&mut self, gate_up: Tensor, width: usize, activation: Activation) -> Result<Tensor> {
        self.0.gated(gate_up, width, activation)
    }
}
