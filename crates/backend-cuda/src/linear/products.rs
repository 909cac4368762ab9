//! Products with a packed matrix: which kernel, and what it is given.

use backend::{BackendError, Result};
use quant::{BLOCK, GROUP, Granularity};

use super::tiles::{
    BF16_TILES, BLOCK_TILES, F16_TILES, INT8_TILES, Products, Tile, W8A16_TILES, WARPGROUP_TILES,
    WARPGROUP_TOKENS, WORKSPACE_TILE, Workspace, choose, division,
};
use super::{CudaLinear, Store, int};
use crate::device::{Arg, Device, Launch};
use crate::pack::padded;
use crate::tensor::{CudaTensor, Form, Twin};

impl<D: Device> CudaLinear<D> {
    /// `x · Wᵀ + bias` into or onto `y`; the shapes fit and the twin has the matrix's form.
    pub(crate) fn multiply(
        &self,
        device: &D,
        products: &mut Products<D>,
        twin: &Twin<D>,
        y: &CudaTensor<D>,
        store: Store,
    ) -> Result<()> {
        if y.rows == 0 {
            return Ok(());
        }
        match (self.form, &twin.steps, &self.scales) {
            (Form::F16, _, Some(scales)) => self.multiply_w8a16(device, twin, scales, y, store),
            (Form::F16, ..) => self.multiply_16(device, choose(&F16_TILES, y.rows), twin, y, store),
            (Form::Bf16, ..) => {
                self.multiply_16(device, choose(&BF16_TILES, y.rows), twin, y, store)
            }
            (_, Some(steps), Some(scales)) => {
                let scales = (steps, scales.as_ref());
                if y.rows <= 16 {
                    return self.stream(device, twin, scales, y, store);
                }
                self.tiles(device, products, twin, scales, y, store)
            }
            _ => Err(BackendError::Shape(
                "8-bit operands without their scales".into(),
            )),
        }
    }

    /// `x · Wᵀ + bias` of floats into `y`; the shapes fit.
    pub(crate) fn multiply_f32(
        &self,
        device: &D,
        x: &CudaTensor<D>,
        y: &CudaTensor<D>,
    ) -> Result<()> {
        let threads = 256;
        let args = [
            x.arg()?,
            Arg::Buffer(&self.weight, 0),
            self.bias_arg(),
            y.arg()?,
            int(x.pitch)?,
            int(self.inputs)?,
            int(self.outputs)?,
            int(y.pitch)?,
        ];
        device.launch(&Launch {
            kernel: "linear_f32",
            threads,
            grid: [
                x.rows as u32,
                self.outputs.div_ceil(threads as usize) as u32,
                1,
            ],
            dynamic_bytes: 0,
            args: &args,
        })
    }

    /// Groups of K and the columns of one.
    fn groups(&self) -> [usize; 2] {
        match self.form {
            Form::Int8(Granularity::Groups(len)) => [self.inputs.div_ceil(len), len],
            _ => [1, self.k_bytes()],
        }
    }

    fn bias_arg(&self) -> Arg<'_, D::Buffer> {
        self.bias.as_ref().map_or(Arg::Null, |b| Arg::Buffer(b, 0))
    }

    /// The arguments that both 8-bit kernels begin with.
    fn int8_args<'a>(
        &'a self,
        twin: &'a Twin<D>,
        (steps, scales): (&'a D::Buffer, &'a D::Buffer),
        y: &'a CudaTensor<D>,
        store: Store,
    ) -> Result<Vec<Arg<'a, D::Buffer>>> {
        Ok(vec![
            Arg::Buffer(&twin.values, 0),
            Arg::Buffer(&self.weight, 0),
            Arg::Buffer(steps, 0),
            Arg::Buffer(scales, 0),
            self.bias_arg(),
            y.arg()?,
            int(y.rows)?,
            int(self.outputs)?,
            int(self.k_bytes())?,
            int(self.groups()[0])?,
            int(self.groups()[1])?,
            Arg::Int(i32::from(self.weights_by != Granularity::Row)),
            int(y.pitch)?,
            Arg::Int(i32::from(store == Store::Add)),
        ])
    }

    fn stream(
        &self,
        device: &D,
        twin: &Twin<D>,
        scales: (&D::Buffer, &D::Buffer),
        y: &CudaTensor<D>,
        store: Store,
    ) -> Result<()> {
        device.launch(&Launch {
            kernel: if y.rows <= 8 {
                "gemm_i8_stream_8"
            } else {
                "gemm_i8_stream_16"
            },
            threads: 256,
            grid: [self.outputs.div_ceil(16) as u32, 1, 1],
            dynamic_bytes: 0,
            args: &self.int8_args(twin, scales, y, store)?,
        })
    }

    fn tiles(
        &self,
        device: &D,
        products: &mut Products<D>,
        twin: &Twin<D>,
        scales: (&D::Buffer, &D::Buffer),
        y: &CudaTensor<D>,
        store: Store,
    ) -> Result<()> {
        let [groups, group] = self.groups();
        let mut args = self.int8_args(twin, scales, y, store)?;
        if group == BLOCK {
            let tile = choose(&BLOCK_TILES, y.rows);
            return self.launch_tiles(device, tile, y.rows, 1, &args);
        }
        // A stage of a warpgroup is one group, where there are groups.
        let is_served = [GROUP, self.k_bytes()].contains(&group) && y.rows >= WARPGROUP_TOKENS;
        let tile = match products.warpgroups && is_served {
            true => choose(&WARPGROUP_TILES, y.rows),
            false => choose(&INT8_TILES, y.rows),
        };
        let (across, down) = (
            self.outputs.div_ceil(tile.channels),
            y.rows.div_ceil(tile.tokens),
        );
        let multiprocessors = device.properties().multiprocessors as usize;
        let slots = tile.per_multiprocessor * multiprocessors;
        let split = match self.weights_by {
            Granularity::Groups(_) => 1,
            Granularity::Row => division(groups, across * down, slots, self.k_bytes() / 64),
        };
        if split > 1 {
            let slots = 2 * multiprocessors;
            let workspace = &mut products.workspace;
            if workspace
                .as_ref()
                .is_none_or(|known| known.tiles < across * down)
            {
                *workspace = Some(Workspace {
                    sums: device.alloc_zeroed(slots * WORKSPACE_TILE * 4, "divided products")?,
                    counters: device.alloc_zeroed(slots * 4, "divided products")?,
                    tiles: slots,
                });
            }
            if let Some(known) = workspace {
                args.extend([Arg::Buffer(&known.sums, 0), Arg::Buffer(&known.counters, 0)]);
            }
        } else {
            args.extend([Arg::Null, Arg::Null]);
        }
        args.push(int(across)?);
        self.launch_tiles(device, tile, y.rows, split, &args)
    }

    fn launch_tiles(
        &self,
        device: &D,
        tile: &Tile,
        rows: usize,
        split: usize,
        args: &[Arg<D::Buffer>],
    ) -> Result<()> {
        device.launch(&Launch {
            kernel: tile.kernel,
            threads: tile.threads,
            grid: [
                self.outputs.div_ceil(tile.channels) as u32,
                rows.div_ceil(tile.tokens) as u32,
                split as u32,
            ],
            dynamic_bytes: tile.dynamic_bytes,
            args,
        })
    }

    fn multiply_w8a16(
        &self,
        device: &D,
        twin: &Twin<D>,
        scales: &D::Buffer,
        y: &CudaTensor<D>,
        store: Store,
    ) -> Result<()> {
        let group = match self.weights_by {
            Granularity::Row => self.k_bytes(),
            Granularity::Groups(len) => len,
        };
        let args = [
            Arg::Buffer(&twin.values, 0),
            Arg::Buffer(&self.weight, 0),
            Arg::Buffer(scales, 0),
            self.bias_arg(),
            y.arg()?,
            int(y.rows)?,
            int(self.outputs)?,
            int(padded(self.inputs * self.form.size()))?,
            int(self.k_bytes())?,
            int(self.weights_by.num_groups(self.inputs))?,
            int(group)?,
            int(y.pitch)?,
            Arg::Int(i32::from(store == Store::Add)),
        ];
        let tile = choose(&W8A16_TILES, y.rows);
        self.launch_tiles(device, tile, y.rows, 1, &args)
    }

    fn multiply_16(
        &self,
        device: &D,
        tile: &Tile,
        twin: &Twin<D>,
        y: &CudaTensor<D>,
        store: Store,
    ) -> Result<()> {
        let args = [
            Arg::Buffer(&twin.values, 0),
            Arg::Buffer(&self.weight, 0),
            self.bias_arg(),
            y.arg()?,
            int(y.rows)?,
            int(self.outputs)?,
            int(self.k_bytes())?,
            int(y.pitch)?,
            Arg::Int(i32::from(store == Store::Add)),
        ];
        self.launch_tiles(device, tile, y.rows, 1, &args)
    }
}
