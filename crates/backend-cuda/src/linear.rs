//! Packed weight matrices, and which matrix kernel multiplies how many tokens with them.

use std::rc::Rc;

use backend::{BackendError, LinearRole, LinearWeight, Result, WeightData};
use half::{bf16, f16};
use quant::{BLOCK, GROUP, Granularity, MAX_INPUTS, QuantError, Quantised, guard, quantise_row};

use crate::Precision;
use crate::device::{Arg, Device, Launch};
use crate::pack::{PANEL_CHANNELS, halves, pack, padded};
use crate::tensor::{CudaTensor, Form, PackedRows, Twin, bytes_of};

/// A packed matrix with its bias.
pub struct CudaLinear<D: Device> {
    weight: Rc<D::Buffer>,
    /// One for each output, or for each group and output.
    scales: Option<Rc<D::Buffer>>,
    weights_by: Granularity,
    bias: Option<D::Buffer>,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    pub(crate) form: Form,
}

/// Whether a product replaces its output or is added to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    Replace,
    Add,
}

/// Sums of divided products, zero between launches.
pub(crate) struct Workspace<D: Device> {
    sums: D::Buffer,
    counters: D::Buffer,
    tiles: usize,
}

/// A tile kernel: its name, its size, its threads and its stages.
struct Tile {
    kernel: &'static str,
    tokens: usize,
    channels: usize,
    threads: u32,
    stages: u32,
}

impl Tile {
    fn dynamic_bytes(&self) -> u32 {
        self.stages * (self.tokens + self.channels) as u32 * 64
    }
}

const fn tile(
    kernel: &'static str,
    tokens: usize,
    channels: usize,
    threads: u32,
    stages: u32,
) -> Tile {
    Tile {
        kernel,
        tokens,
        channels,
        threads,
        stages,
    }
}

/// Tiles of the 8-bit product by growing number of tokens.
const INT8_TILES: [Tile; 3] = [
    tile("gemm_i8_tile_32x64", 32, 64, 128, 4),
    tile("gemm_i8_tile_64x64", 64, 64, 128, 4),
    tile("gemm_i8_tile_128x128", 128, 128, 256, 3),
];
/// The same for scales of 32 columns.
const BLOCK_TILES: [Tile; 3] = [
    tile("gemm_i8_blocks_32x64", 32, 64, 128, 4),
    tile("gemm_i8_blocks_64x64", 64, 64, 128, 4),
    tile("gemm_i8_blocks_128x128", 128, 128, 256, 3),
];
const F16_TILES: [Tile; 2] = [
    tile("gemm_f16_tile_16x64", 16, 64, 128, 4),
    tile("gemm_f16_tile_64x64", 64, 64, 128, 4),
];
const BF16_TILES: [Tile; 2] = [
    tile("gemm_bf16_tile_16x64", 16, 64, 128, 4),
    tile("gemm_bf16_tile_64x64", 64, 64, 128, 4),
];
/// The largest tile of the workspace, and the blocks that may divide one K.
const WORKSPACE_TILE: usize = 128 * 128;
const MAX_SPLIT: usize = 8;

/// The smallest tile that takes all tokens, or the largest.
fn choose(tiles: &[Tile], tokens: usize) -> &Tile {
    let last = &tiles[tiles.len() - 1];
    tiles.iter().find(|t| tokens <= t.tokens).unwrap_or(last)
}

impl<D: Device> CudaLinear<D> {
    /// Quantises or rounds, and packs.
    pub(crate) fn load(device: &D, precision: Precision, linear: LinearWeight) -> Result<Self> {
        let (rows, columns) = (linear.weight.rows, linear.weight.columns);
        if rows == 0 || columns == 0 || linear.weight.data.len() != rows * columns {
            return Err(BackendError::Shape(format!(
                "{} elements for a weight matrix of [{rows}, {columns}]",
                linear.weight.data.len()
            )));
        }
        if linear.bias.as_ref().is_some_and(|b| b.len() != rows) {
            return Err(BackendError::Shape(format!("bias for {rows} outputs")));
        }
        let (form, weights, packed, scales) = match precision.activations(linear.role) {
            Some(wished) => {
                let wished = match columns > MAX_INPUTS {
                    true => Granularity::Groups(GROUP),
                    false => wished,
                };
                let matrix = quantise(precision, linear.weight.data, [rows, columns], wished)?;
                let activations = matrix.granularity().of_activations(wished);
                let packed = pack_int8(&matrix, activations);
                let scales = by_group(&matrix);
                let form = Form::Int8(activations);
                (form, matrix.granularity(), packed, Some(scales))
            }
            None if linear.role == LinearRole::Router => {
                let wide = linear.weight.data.into_f32();
                let by_input = (0..columns).flat_map(|k| wide.iter().skip(k).step_by(columns));
                let by_input: Vec<f32> = by_input.copied().collect();
                (Form::F32, Granularity::Row, bytes_of(&by_input), None)
            }
            None => {
                let (form, bytes) = match precision {
                    Precision::Bf16 => (Form::Bf16, to_bf16(linear.weight.data)),
                    _ => (Form::F16, to_f16(linear.weight.data)),
                };
                let packed = pack(&bytes, rows, columns * form.size());
                (form, Granularity::Row, packed, None)
            }
        };
        let upload = |bytes: &[u8]| {
            let buffer = device.alloc(bytes.len(), "weights")?;
            device.upload(&buffer, 0, bytes)?;
            Ok::<_, BackendError>(buffer)
        };
        Ok(Self {
            weight: Rc::new(upload(&packed)?),
            scales: match scales {
                Some(scales) => Some(Rc::new(upload(&bytes_of(&scales))?)),
                None => None,
            },
            weights_by: weights,
            bias: linear.bias.map(|b| upload(&bytes_of(&b))).transpose()?,
            outputs: rows,
            inputs: columns,
            form,
        })
    }

    /// A matrix of random weights that are made on the device, for measurements: bytes of any value in 8 bits,
    /// in half precision numbers below 0.04.
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
        let bytes = outputs * inputs * form.size();
        if bytes == 0 || !outputs.is_multiple_of(16) || !inputs.is_multiple_of(GROUP) {
            return Err(BackendError::Shape(format!(
                "random weights of [{outputs}, {inputs}]"
            )));
        }
        let (keep, set) = match form {
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
        let weights_by = match precision {
            Precision::Int8Blocks => Granularity::Groups(BLOCK),
            _ => Granularity::Row,
        };
        let scales = match form {
            Form::Int8(_) => {
                let scale = 1.0 / (127.0 * (inputs as f32).sqrt());
                let scales = vec![scale; outputs * weights_by.num_groups(inputs)];
                let buffer = device.alloc(scales.len() * 4, "weights")?;
                device.upload(&buffer, 0, &bytes_of(&scales))?;
                Some(Rc::new(buffer))
            }
            _ => None,
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

    /// The same with a bias.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`], or a bias that is not as long as there are outputs.
    pub fn with_bias(mut self, device: &D, bias: &[f32]) -> Result<Self> {
        if bias.len() != self.outputs {
            return Err(BackendError::Shape(format!(
                "{} biases for {} outputs",
                bias.len(),
                self.outputs
            )));
        }
        let buffer = device.alloc(bias.len() * 4, "weights")?;
        device.upload(&buffer, 0, &bytes_of(bias))?;
        self.bias = Some(buffer);
        Ok(self)
    }

    /// Bytes of the weights and their scales, which a product reads.
    pub fn bytes(&self) -> usize {
        let scales = self.scales.as_ref().map_or(0, |_| {
            4 * self.outputs * self.weights_by.num_groups(self.inputs)
        });
        self.outputs.next_multiple_of(PANEL_CHANNELS) * self.k_bytes() + scales
    }

    /// `x · Wᵀ + bias` into or onto `y`; the shapes fit and the twin has the matrix's form.
    pub(crate) fn multiply(
        &self,
        device: &D,
        workspace: &mut Option<Workspace<D>>,
        twin: &Twin<D>,
        y: &CudaTensor<D>,
        store: Store,
    ) -> Result<()> {
        if y.rows == 0 {
            return Ok(());
        }
        match (self.form, &twin.steps, &self.scales) {
            (Form::F16, ..) => self.multiply_16(device, choose(&F16_TILES, y.rows), twin, y, store),
            (Form::Bf16, ..) => {
                self.multiply_16(device, choose(&BF16_TILES, y.rows), twin, y, store)
            }
            (_, Some(steps), Some(scales)) => {
                let scales = (steps, scales.as_ref());
                if y.rows <= 16 {
                    return self.stream(device, twin, scales, y, store);
                }
                self.tiles(device, workspace, twin, scales, y, store)
            }
            _ => Err(BackendError::Shape(
                "8-bit operands without their scales".into(),
            )),
        }
    }

    /// The matrix as a table of its rows, in the same memory, where it has 8 bits.
    pub(crate) fn table(&self) -> Option<CudaTensor<D>> {
        let Form::Int8(activations) = self.form else {
            return None;
        };
        let packed = PackedRows {
            scales: Rc::clone(self.scales.as_ref()?),
            k_bytes: self.k_bytes(),
            group_len: self.weights_by.group_len(self.inputs),
            in_halves: activations == Granularity::Groups(BLOCK),
        };
        let shape = [self.outputs, self.inputs];
        Some(CudaTensor::of_matrix(
            Rc::clone(&self.weight),
            shape,
            packed,
        ))
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

    fn k_bytes(&self) -> usize {
        padded(self.inputs * self.form.size())
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
        workspace: &mut Option<Workspace<D>>,
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
        let tile = choose(&INT8_TILES, y.rows);
        let (across, down) = (
            self.outputs.div_ceil(tile.channels),
            y.rows.div_ceil(tile.tokens),
        );
        let slots = 2 * device.properties().multiprocessors as usize;
        let split = match self.weights_by {
            Granularity::Groups(_) => 1,
            Granularity::Row => division(groups, across * down, slots, self.k_bytes() / 64),
        };
        if split > 1 {
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
            dynamic_bytes: tile.dynamic_bytes(),
            args,
        })
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

/// Among how many blocks K is divided: one scale per row makes the sum one integer, exact in any order,
/// and more blocks fill a device that the tiles leave idle.
fn division(groups: usize, tiles: usize, slots: usize, blocks: usize) -> usize {
    if groups > 1 || tiles >= slots {
        return 1;
    }
    (slots / tiles).min(MAX_SPLIT).min(blocks / 2).max(1)
}

/// A size as a kernel's argument.
pub(crate) fn int<B>(size: usize) -> Result<Arg<'static, B>> {
    match i32::try_from(size) {
        Ok(size) => Ok(Arg::Int(size)),
        Err(_) => Err(BackendError::Shape(format!(
            "a size of {size} (at most {})",
            i32::MAX
        ))),
    }
}

/// Takes stored integers as they are where the kernels know their groups; quantises everything else row by
/// row, each widened alone. Weights in groups choose the groups of activations, so where one scale for
/// each token is wished they are quantised again, with one scale for each row.
fn quantise(
    precision: Precision,
    data: WeightData,
    [rows, columns]: [usize; 2],
    wished: Granularity,
) -> Result<Quantised> {
    let stored = stored_granularity(&data)
        .filter(|stored| *stored == Granularity::Row || wished != Granularity::Row);
    let (granularity, values, scales) = match (data, stored) {
        (WeightData::Int8(data), Some(stored)) => (stored, data.values, data.scales),
        (data, _) => {
            let granularity = granularity_of_weights(precision, &data, [rows, columns]);
            let groups = granularity.num_groups(columns);
            let (mut values, mut scales) = (vec![0; rows * columns], vec![0.0; rows * groups]);
            let mut wide = vec![0.0; columns];
            let outputs = values.chunks_mut(columns).zip(scales.chunks_mut(groups));
            for (row, (values, scales)) in outputs.enumerate() {
                data.widen_row(row, &mut wide);
                let count = quantise_row(&wide, granularity, values, scales);
                if count > 0 {
                    let error = QuantError::NonFinite { row, count };
                    return Err(BackendError::InvalidWeights(error.to_string()));
                }
            }
            (granularity, values, scales)
        }
    };
    Quantised::from_parts(values, scales, rows, columns, granularity)
        .map_err(|error| BackendError::InvalidWeights(error.to_string()))
}

/// Which integers of a row share a scale, where the kernels know such groups.
fn stored_granularity(data: &WeightData) -> Option<Granularity> {
    match data {
        WeightData::Int8(data) if data.per_row() => Some(Granularity::Row),
        WeightData::Int8(data) if [32, 64, 128].contains(&data.group_len) => {
            Some(Granularity::Groups(data.group_len))
        }
        _ => None,
    }
}

/// Which weights share a scale where this target quantises them, as on the CPU.
fn granularity_of_weights(
    precision: Precision,
    data: &WeightData,
    [rows, columns]: [usize; 2],
) -> Granularity {
    match precision {
        Precision::Int8Blocks => Granularity::Groups(BLOCK),
        Precision::Int8Guarded => {
            let sample = guard::sample(rows);
            let mut wide = vec![0.0; columns];
            let mut is_poor = |row: &usize| {
                data.widen_row(*row, &mut wide);
                guard::is_poor(&wide)
            };
            let poor = sample.iter().filter(|row| is_poor(row)).count();
            guard::granularity(poor, sample.len())
        }
        _ => Granularity::Row,
    }
}

/// The integers in the order of the kernels.
fn pack_int8(matrix: &Quantised, activations: Granularity) -> Vec<u8> {
    let (rows, columns) = (matrix.rows(), matrix.columns());
    let values = matrix.values().iter().map(|q| q.cast_unsigned());
    let bytes: Vec<u8> = values.collect();
    match activations {
        Granularity::Groups(BLOCK) => pack(&halves(&bytes, columns), rows, padded(columns)),
        _ => pack(&bytes, rows, columns),
    }
}

/// Scales group by group: neighbouring threads work on neighbouring outputs.
fn by_group(matrix: &Quantised) -> Vec<f32> {
    let groups = matrix.granularity().num_groups(matrix.columns());
    let scales = matrix.scales();
    (0..groups)
        .flat_map(|group| scales.iter().skip(group).step_by(groups))
        .copied()
        .collect()
}

fn to_f16(data: WeightData) -> Vec<u8> {
    let wide = data.into_f32();
    wide.iter()
        .flat_map(|w| f16::from_f32(*w).to_le_bytes())
        .collect()
}

fn to_bf16(data: WeightData) -> Vec<u8> {
    let wide = data.into_f32();
    wide.iter()
        .flat_map(|w| bf16::from_f32(*w).to_le_bytes())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k_is_divided_only_where_sums_are_one_integer_and_tiles_are_few() {
        assert_eq!(division(2, 1, 100, 64), 1, "groups are chained in order");
        assert_eq!(division(1, 100, 100, 64), 1, "enough tiles");
        assert_eq!(division(1, 30, 100, 64), 3);
        assert_eq!(division(1, 1, 100, 64), MAX_SPLIT);
        assert_eq!(division(1, 1, 100, 5), 2, "two blocks of K for each");
        assert_eq!(division(1, 1, 100, 1), 1);
    }

    #[test]
    fn tiles_fit_two_to_a_multiprocessor_or_one_of_the_smallest() {
        for tile in [&INT8_TILES[..], &BLOCK_TILES, &F16_TILES, &BF16_TILES]
            .into_iter()
            .flatten()
        {
            assert!(tile.dynamic_bytes() <= 49_152, "{}", tile.kernel);
            assert_eq!(tile.threads % 32, 0);
        }
        assert_eq!(choose(&INT8_TILES, 17).tokens, 32);
        assert_eq!(choose(&INT8_TILES, 33).tokens, 64);
        assert_eq!(choose(&INT8_TILES, 5000).tokens, 128);
    }
}
