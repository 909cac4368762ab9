//! Matrices of random weights that are made on the device, for measurements.

use std::rc::Rc;

use backend::{BackendError, LinearRole, Result};
use quant::{BLOCK, GROUP, Granularity};

use super::{CudaLinear, int};
use crate::Precision;
use crate::device::{Arg, Device, Launch};
use crate::tensor::{Form, bytes_of};

impl<D: Device> CudaLinear<D> {
    /// Bytes of any value in 8 bits, in half precision numbers below 0.04.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`], or a shape that is not whole panels and blocks.
    pub fn random(
        device: &D,
        precision: Precision,
        [outputs, inputs]: [usize; 2],
        seed: u32,
    ) -> Result<Self> {
        let activations = precision.activations(LinearRole::Projection);
        let form = match (activations, precision) {
            (Some(by), _) => Form::Int8(by),
            (None, Precision::Bf16) => Form::Bf16,
            (None, _) => Form::F16,
        };
        let size = if precision.is_int8() { 1 } else { form.size() };
        let bytes = outputs * inputs * size;
        if bytes == 0 || !outputs.is_multiple_of(16) || !inputs.is_multiple_of(GROUP) {
            return Err(BackendError::Shape(format!(
                "random weights of [{outputs}, {inputs}]"
            )));
        }
        let (keep, set) = match form {
            _ if precision.is_int8() => (u32::MAX, 0),
            Form::Int8(_) | Form::F32 => (u32::MAX, 0),
            Form::F16 => (0x83ff_83ff, 0x2400_2400),
            Form::Bf16 => (0x807f_807f, 0x3c80_3c80),
        };
        let weight = device.alloc(bytes, "weights")?;
        let args = [
            Arg::Buffer(&weight, 0),
            int(bytes / 4)?,
            Arg::Int(seed.cast_signed()),
            Arg::Int(u32::cast_signed(keep)),
            Arg::Int(u32::cast_signed(set)),
        ];
        device.launch(&Launch {
            kernel: "fill_random",
            threads: 256,
            grid: [(bytes / 4).div_ceil(256) as u32, 1, 1],
            dynamic_bytes: 0,
            args: &args,
        })?;
        // Products may read weights before they wait for kernels.
        device.synchronize()?;
        let weights_by = match precision {
            Precision::Int8Blocks => Granularity::Groups(BLOCK),
            _ => Granularity::Row,
        };
        let scales = match precision.is_int8() {
            true => {
                let scale = 1.0 / (127.0 * (inputs as f32).sqrt());
                let scales = vec![scale; outputs * weights_by.num_groups(inputs)];
                let buffer = device.alloc(scales.len() * 4, "weights")?;
                device.upload(&buffer, 0, &bytes_of(&scales))?;
                Some(Rc::new(buffer))
            }
            false => None,
        };
        Ok(Self {
            weight: Rc::new(weight),
            scales,
            weights_by,
            bias: None,
            outputs,
            inputs,
            form,
        })
    }
}
