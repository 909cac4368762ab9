//! Products with a packed matrix: which kernel, and what it is given.

use backend::{BackendError, Result};
use quant::{BLOCK, Granularity};

use super::tiles::{
    BF16_TILES, F16_TILES, Products, Tile, W8A16_TILES, WORKSPACE_TILE, WORKSPACE_TILES, Workspace,
    choose,
};
use super::{CudaLinear, Store, int};
use crate::device::{Arg, Device, Launch};
use crate::pack::padded;
use crate::tensor::{CudaTensor, Form, Twin};
use crate::tuning::{Part, Problem, STREAM_TOKENS, Way, by_table};

fn without_scales() -> BackendError {
    BackendError::Shape("8-bit operands without their scales".into())
}

/// Tiles of a product whose K may be divided.
fn workspace_tiles<D: Device>(device: &D) -> usize {
    WORKSPACE_TILES * device.properties().multiprocessors as usize
}

impl<D: Device> Products<D> {
    /// What was measured, or the table's.
    fn way(&self, problem: &Problem, tokens: usize, device: &D) -> Way {
        let tuned = self.tuned.get(problem, tokens);
        tuned.unwrap_or_else(|| by_table(problem, tokens, self.part(device)))
    }

    /// What of the device decides about ways.
    pub(crate) fn part(&self, device: &D) -> Part {
        Part {
            warpgroups: self.warpgroups,
            ..Part::of(device.properties())
        }
    }

    /// Room for divided products, taken once: captured steps name it.
    fn workspace(&mut self, device: &D) -> Result<&Workspace<D>> {
        let tiles = workspace_tiles(device);
        let new = match self.workspace.take() {
            Some(known) => known,
            None => Workspace {
                sums: device.alloc_zeroed(tiles * WORKSPACE_TILE * 4, "divided products")?,
                counters: device.alloc_zeroed(tiles * 4, "divided products")?,
            },
        };
        Ok(self.workspace.insert(new))
    }
}

impl<D: Device> CudaLinear<D> {
    /// `x · Wᵀ + bias` into or onto `y`; the shapes fit and the twin has the matrix's form. Products of 8 bits go
    /// the given way, else what was measured to be the fastest, else the table's.
    pub(crate) fn multiply(
        &self,
        device: &D,
        products: &mut Products<D>,
        way: Option<Way>,
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
                let args = self.int8_args(twin, (steps, scales.as_ref()), y, store)?;
                let problem = self.problem().ok_or_else(without_scales)?;
                let way = way.unwrap_or_else(|| products.way(&problem, y.rows, device));
                match way.tile {
                    Some(tile) => {
                        let split = way.division(&problem, y.rows, workspace_tiles(device));
                        self.tiles(device, products, (tile, split), y.rows, args)
                    }
                    None => self.stream(device, y.rows, &args),
                }
            }
            _ => Err(without_scales()),
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
        let of = |problem: Problem| problem.groups();
        self.problem().map_or([1, self.k_bytes()], of)
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

    fn stream(&self, device: &D, rows: usize, args: &[Arg<D::Buffer>]) -> Result<()> {
        if rows > STREAM_TOKENS {
            return Err(BackendError::Shape(format!("{rows} streamed tokens")));
        }
        device.launch(&Launch {
            kernel: match rows <= 8 {
                true => "gemm_i8_stream_8",
                false => "gemm_i8_stream_16",
            },
            threads: 256,
            grid: [self.outputs.div_ceil(16) as u32, 1, 1],
            dynamic_bytes: 0,
            args,
        })
    }

    fn tiles<'a>(
        &'a self,
        device: &D,
        products: &'a mut Products<D>,
        (tile, split): (&'static Tile, usize),
        rows: usize,
        mut args: Vec<Arg<'a, D::Buffer>>,
    ) -> Result<()> {
        if self.form != Form::Int8(Granularity::Groups(BLOCK)) {
            if split > 1 {
                let known = products.workspace(device)?;
                args.extend([Arg::Buffer(&known.sums, 0), Arg::Buffer(&known.counters, 0)]);
            } else {
                args.extend([Arg::Null, Arg::Null]);
            }
            args.push(int(self.outputs.div_ceil(tile.channels))?);
        }
        self.launch_tiles(device, tile, rows, split, &args)
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
