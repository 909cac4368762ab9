//! What the conformance suite needs of this target, on any device.

use backend::conformance::TestBackend;
use backend::{KvDtype, KvTypes};

use crate::device::Device;
use crate::{CudaBackend, CudaTensor};

impl<D: Device> TestBackend for CudaBackend<D> {
    /// # Panics
    /// When the device fails: the suite ends there.
    fn read(&mut self, x: &CudaTensor<D>) -> Vec<f32> {
        x.read(&self.device).expect("activations")
    }

    fn keeps(&self, types: KvTypes) -> bool {
        types.keys == types.values || (types.keys, types.values) == (KvDtype::Bf16, KvDtype::Int8)
    }
}
