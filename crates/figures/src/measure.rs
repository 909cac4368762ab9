//! What 8 bits make of one matrix product: how its numbers lie on the integers, and the error of its
//! result.

use backend::reference::{Linear, Step, Tensor};
use backend::{
    Backend, BackendError, HostTensor, LinearWeight, ReferenceBackend, Result, WeightData,
};
use quant::{BLOCK, GROUP, Granularity, Quantised, guard, snr_db};

/// The granularities whose integers are counted.
pub const GRANULARITIES: [Granularity; 3] = [
    Granularity::Row,
    Granularity::Groups(GROUP),
    Granularity::Groups(BLOCK),
];

/// Tokens whose results are compared; the integers are counted over all.
const COMPARED: usize = 48;

/// How a product is made in 8 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// 8-bit weights with a scale per output, activations in floats.
    WeightsAlone,
    /// `-q int8-fast`: a scale per output, a scale per token.
    PerToken,
    /// `-q int8`, and `auto` for large models where the weights have no outliers: a scale per output, a
    /// scale per token and 128 features.
    Groups,
    /// What `auto` chooses for small models: a scale for each 32, on both sides.
    Blocks,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::WeightsAlone,
        Self::Blocks,
        Self::Groups,
        Self::PerToken,
    ];

    /// What pictures call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::WeightsAlone => "weights alone",
            Self::PerToken => "int8-fast",
            Self::Groups => "int8",
            Self::Blocks => "int8-blocks",
        }
    }
}

/// How often each integer from −127 to 127 occurs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Levels([u64; 255]);

impl Default for Levels {
    fn default() -> Self {
        Self([0; 255])
    }
}

impl Levels {
    fn of(quantised: &Quantised) -> Self {
        let mut levels = Self::default();
        for q in quantised.values() {
            levels.0[(i32::from(*q) + 127) as usize] += 1;
        }
        levels
    }

    /// Counts the numbers of another matrix too.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(a, b)| *a += b);
    }

    /// Integers with the share of numbers that became them.
    pub fn shares(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        let total: u64 = self.0.iter().sum();
        let shares = self.0.iter().enumerate();
        shares.map(move |(i, count)| (i as f64 - 127.0, *count as f64 / total.max(1) as f64))
    }

    /// The share of numbers that became −1, 0 or 1.
    pub fn small(&self) -> f64 {
        let small = self.shares().filter(|(q, _)| q.abs() <= 1.0);
        small.map(|(_, share)| share).sum()
    }
}

/// One product of a forward pass.
#[derive(Debug, Clone)]
pub struct Product {
    /// `[tokens, features]`.
    pub inputs: Tensor,
    /// Of the weights, by [`GRANULARITIES`].
    pub weight_levels: [Levels; 3],
    /// Of the inputs, by [`GRANULARITIES`].
    pub input_levels: [Levels; 3],
    /// Signal-to-noise ratio of the result in decibels, by [`Mode::ALL`]: that of the median token, since a
    /// first token may be so large that it would decide alone.
    pub snr_db: [f64; 4],
    /// Whether the weights would get groups in a large model.
    pub is_grouped: bool,
}

impl Product {
    /// Measures `y = x · Wᵀ + bias`.
    ///
    /// # Errors
    /// Numbers that are not finite.
    pub fn measure(x: &Tensor, linear: &Linear, y: &Tensor, step: &Step) -> Result<Self> {
        let weight = linear.weight();
        let (some_x, some_y) = (some_rows(x), some_rows(y));
        let mut ratios = [0.0; 4];
        for (ratio, mode) in ratios.iter_mut().zip(Mode::ALL) {
            let found = match mode {
                Mode::WeightsAlone => weights_alone(&some_x, linear, step)?,
                _ => in_8_bits(&some_x, linear, mode)?,
            };
            *ratio = median_snr_db(&found, &some_y);
        }
        Ok(Self {
            inputs: x.clone(),
            weight_levels: levels(weight)?,
            input_levels: levels(x)?,
            snr_db: ratios,
            is_grouped: is_grouped(weight),
        })
    }

    /// The largest magnitude of each feature over all tokens.
    pub fn channels(&self) -> Vec<f32> {
        let mut largest = vec![0.0f32; self.inputs.columns];
        for row in self.inputs.data.chunks(self.inputs.columns) {
            let pairs = largest.iter_mut().zip(row);
            pairs.for_each(|(largest, x)| *largest = largest.max(x.abs()));
        }
        largest
    }

    /// How far the largest feature stands above the median one, each by its largest magnitude.
    pub fn outlier_ratio(&self) -> f64 {
        largest_by_median(self.channels())
    }

    /// The same, each by its median magnitude: features that are large in most tokens.
    pub fn lasting_outlier_ratio(&self) -> f64 {
        let columns = self.inputs.columns;
        let column = |i: usize| self.inputs.data.iter().skip(i).step_by(columns);
        let medians = (0..columns).map(|i| median(column(i).map(|x| x.abs()).collect()));
        largest_by_median(medians.collect())
    }
}

/// The middle one of some numbers, the upper of two.
pub fn median(mut numbers: Vec<f32>) -> f32 {
    numbers.sort_by(f32::total_cmp);
    numbers[numbers.len() / 2]
}

fn largest_by_median(numbers: Vec<f32>) -> f64 {
    let largest = numbers.iter().copied().fold(0.0, f32::max);
    f64::from(largest) / f64::from(median(numbers))
}

/// What the CPU target decides while it loads a large model.
fn is_grouped(weight: &Tensor) -> bool {
    let sample = guard::sample(weight.rows);
    let row = |row: &&usize| &weight.data[*row * weight.columns..][..weight.columns];
    let poor = sample.iter().filter(|i| guard::is_poor(row(i))).count();
    guard::granularity(poor, sample.len()) != Granularity::Row
}

fn levels(x: &Tensor) -> Result<[Levels; 3]> {
    let [a, b, c] = GRANULARITIES.map(|granularity| quantise(x, granularity));
    Ok([Levels::of(&a?), Levels::of(&b?), Levels::of(&c?)])
}

fn quantise(x: &Tensor, granularity: Granularity) -> Result<Quantised> {
    Quantised::new(&x.data, x.rows, x.columns, granularity).map_err(invalid)
}

fn invalid(error: quant::QuantError) -> BackendError {
    BackendError::InvalidWeights(error.to_string())
}

/// Rows evenly apart, the first included: enough of them to know an error.
fn some_rows(x: &Tensor) -> Tensor {
    let rows = x.rows.min(COMPARED);
    let row = |i: usize| &x.data[i * x.rows / rows * x.columns..][..x.columns];
    Tensor {
        rows,
        columns: x.columns,
        data: (0..rows).flat_map(row).copied().collect(),
    }
}

fn median_snr_db(found: &[f32], exact: &Tensor) -> f64 {
    let rows = found
        .chunks(exact.columns)
        .zip(exact.data.chunks(exact.columns));
    let mut ratios: Vec<f64> = rows.map(|(found, exact)| snr_db(found, exact)).collect();
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

/// The product of 8-bit weights and 8-bit inputs, by its definition.
fn in_8_bits(x: &Tensor, linear: &Linear, mode: Mode) -> Result<Vec<f32>> {
    let (weights, inputs) = match mode {
        Mode::WeightsAlone | Mode::PerToken => (Granularity::Row, Granularity::Row),
        Mode::Groups => (Granularity::Row, Granularity::Groups(GROUP)),
        Mode::Blocks => (Granularity::Groups(BLOCK), Granularity::Groups(BLOCK)),
    };
    let (x, weights) = (quantise(x, inputs)?, quantise(linear.weight(), weights)?);
    quant::linear(&x, &weights, linear.bias()).map_err(invalid)
}

/// The product of floats and what 8-bit weights stand for.
fn weights_alone(x: &Tensor, linear: &Linear, step: &Step) -> Result<Vec<f32>> {
    let (mut reference, weight) = (ReferenceBackend, linear.weight());
    let values = quantise(weight, Granularity::Row)?.dequantise();
    let wide = HostTensor::new(weight.rows, weight.columns, WeightData::F32(values))?;
    let bias = linear.bias().map(<[f32]>::to_vec);
    let linear = reference.load_linear(LinearWeight::new(wide, bias)?)?;
    Ok(reference.linear(x, &linear, step)?.data)
}
