//! Named tensors of a checkpoint, read one at a time, with a record of what was read: a tensor that no
//! loader asked for means that the model was not understood.

use std::cell::RefCell;
use std::collections::BTreeSet;

use backend::{HostTensor, Int8Data, LinearWeight, WeightData};

use crate::error::{ModelError, Result};

/// A container of tensors. Names are those of a Hugging Face checkpoint.
pub(crate) trait TensorSource: Send {
    /// All names, in any order.
    fn names(&self) -> Vec<String>;
    /// The shape in row-major order; none for a name that is not there.
    fn shape(&self, name: &str) -> Option<&[usize]>;
    /// The elements in the checkpoint's type, row-major.
    fn read(&self, name: &str) -> Result<WeightData>;
    /// The name of the format whose matrices are 8-bit integers; none for floats.
    fn quantised(&self) -> Option<&'static str> {
        None
    }
    /// Whether some matrices are 8-bit integers with a scale for each 32.
    fn has_blocks(&self) -> bool {
        false
    }
    /// Whether some matrices have integers of another form than 8-bit targets take.
    fn requantised(&self) -> bool {
        false
    }
}

/// Buffers that old exporters stored among the weights; they hold nothing trained.
const BUFFERS: &[&str] = &[
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".rotary_emb.inv_freq",
];

/// Starts of the names of an image part, which a language model does without.
const IMAGE_PARTS: &[&str] = &[
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
];

/// Whether a linear layer's bias may be absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bias {
    /// There is one if its tensor is stored.
    IfStored,
    /// The architecture has one.
    Required,
}

/// One linear layer `PREFIX.weight` with `PREFIX.bias`.
pub(crate) struct LinearSpec {
    /// Full name without `.weight`.
    pub prefix: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// Whether the bias may be absent.
    pub bias: Bias,
}

/// A source with the record of what has not been read yet.
pub(crate) struct Tensors<'a> {
    source: &'a dyn TensorSource,
    unread: RefCell<BTreeSet<String>>,
}

impl<'a> Tensors<'a> {
    pub fn new(source: &'a dyn TensorSource) -> Self {
        let names = source
            .names()
            .into_iter()
            .filter(|name| !BUFFERS.iter().any(|end| name.ends_with(end)))
            .filter(|name| !IMAGE_PARTS.iter().any(|start| name.starts_with(start)));
        Self {
            source,
            unread: RefCell::new(names.collect()),
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.source.shape(name).is_some()
    }

    /// Marks a tensor as seen although nothing reads it.
    pub fn skip(&self, name: &str) {
        self.unread.borrow_mut().remove(name);
    }

    /// Rows and columns, before anything is read; a vector is one row.
    fn matrix_shape(&self, name: &str) -> Result<(usize, usize)> {
        match self.source.shape(name) {
            None => Err(ModelError::tensor(name, "is missing")),
            Some(&[columns]) => Ok((1, columns)),
            Some(&[rows, columns]) => Ok((rows, columns)),
            Some(shape) => Err(ModelError::tensor(
                name,
                format!("has shape {shape:?}, expected two dimensions"),
            )),
        }
    }

    /// A matrix; its rows are the truth, its columns are checked.
    pub fn table(&self, name: &str, columns: usize) -> Result<HostTensor> {
        let (rows, found) = self.matrix_shape(name)?;
        if found != columns || rows == 0 {
            return Err(ModelError::tensor(
                name,
                format!("has shape [{rows}, {found}], expected [rows, {columns}]"),
            ));
        }
        self.skip(name);
        Ok(HostTensor::new(rows, columns, self.source.read(name)?)?)
    }

    /// A vector of known length, widened.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let (rows, found) = self.matrix_shape(name)?;
        if (rows, found) != (1, len) {
            return Err(ModelError::tensor(
                name,
                format!("has shape [{rows}, {found}], expected [{len}]"),
            ));
        }
        self.skip(name);
        Ok(self.source.read(name)?.into_f32())
    }

    /// Linear layers of equal width stacked by rows; a missing bias beside a present one counts as
    /// zeros.
    pub fn linear(&self, parts: &[LinearSpec]) -> Result<LinearWeight> {
        let columns = parts.first().map_or(0, |part| part.columns);
        let mut weight: Option<HostTensor> = None;
        let mut bias: Option<Vec<f32>> = None;
        for part in parts {
            let name = format!("{}.weight", part.prefix);
            let (rows, found) = self.matrix_shape(&name)?;
            if (rows, found) != (part.rows, columns) {
                return Err(ModelError::tensor(
                    &name,
                    format!(
                        "has shape [{rows}, {found}], expected [{}, {columns}]",
                        part.rows
                    ),
                ));
            }
            let above = weight.as_ref().map_or(0, |weight| weight.rows);
            let matrix = self.table(&name, columns)?;
            weight = Some(match weight {
                None => matrix,
                Some(weight) => stack(weight, matrix)?,
            });
            let name = format!("{}.bias", part.prefix);
            if part.bias == Bias::Required || self.has(&name) {
                bias.get_or_insert_with(|| vec![0.0; above])
                    .extend(self.vector(&name, part.rows)?);
            } else if let Some(bias) = &mut bias {
                bias.resize(above + part.rows, 0.0);
            }
        }
        let weight = match weight {
            Some(weight) => weight,
            None => HostTensor::new(0, columns, WeightData::F32(Vec::new()))?,
        };
        Ok(LinearWeight::new(weight, bias)?)
    }

    /// One linear layer whose matrix is stored as `[inputs, outputs]`, turned around.
    pub fn transposed(&self, part: &LinearSpec) -> Result<LinearWeight> {
        let name = format!("{}.weight", part.prefix);
        let stored = self.table(&name, part.rows)?;
        if stored.rows != part.columns {
            return Err(ModelError::tensor(
                &name,
                format!(
                    "has shape [{}, {}], expected [{}, {}]",
                    stored.rows, stored.columns, part.columns, part.rows
                ),
            ));
        }
        let name = format!("{}.bias", part.prefix);
        let bias = if part.bias == Bias::Required || self.has(&name) {
            Some(self.vector(&name, part.rows)?)
        } else {
            None
        };
        let order = |row: usize, column: usize| column * part.rows + row;
        let data = match &stored.data {
            WeightData::F32(data) => WeightData::F32(rearranged(data, part, order)),
            WeightData::Bf16(data) => WeightData::Bf16(rearranged(data, part, order)),
            WeightData::F16(data) => WeightData::F16(rearranged(data, part, order)),
            // Scales belong to rows, which become columns here.
            WeightData::Int8(_) => {
                WeightData::F32(rearranged(&stored.data.clone().into_f32(), part, order))
            }
        };
        let weight = HostTensor::new(part.rows, part.columns, data)?;
        Ok(LinearWeight::new(weight, bias)?)
    }

    /// Whether a matrix is stored with these rows and columns.
    pub fn has_shape(&self, name: &str, rows: usize, columns: usize) -> bool {
        self.source.shape(name) == Some(&[rows, columns])
    }

    /// Fails when something was never read.
    pub fn finish(self) -> Result<()> {
        let unread = self.unread.into_inner();
        match unread.first() {
            None => Ok(()),
            Some(first) => Err(ModelError::tensor(
                first,
                format!(
                    "is not used by this architecture ({} such tensors)",
                    unread.len()
                ),
            )),
        }
    }
}

/// A matrix of the part's shape whose element `(row, column)` is `data[from(row, column)]`.
fn rearranged<T: Copy>(
    data: &[T],
    part: &LinearSpec,
    from: impl Fn(usize, usize) -> usize,
) -> Vec<T> {
    (0..part.rows)
        .flat_map(|row| (0..part.columns).map(move |column| (row, column)))
        .map(|(row, column)| data[from(row, column)])
        .collect()
}

/// The same layer with row `i` taken from row `from(i)`, its bias with it.
pub(crate) fn reorder_rows(mut layer: LinearWeight, from: impl Fn(usize) -> usize) -> LinearWeight {
    fn reordered<T: Copy>(data: &[T], columns: usize, from: impl Fn(usize) -> usize) -> Vec<T> {
        (0..data.len() / columns)
            .flat_map(|row| &data[from(row) * columns..][..columns])
            .copied()
            .collect()
    }
    let weight = &mut layer.weight;
    weight.data = match &weight.data {
        WeightData::F32(data) => WeightData::F32(reordered(data, weight.columns, &from)),
        WeightData::Bf16(data) => WeightData::Bf16(reordered(data, weight.columns, &from)),
        WeightData::F16(data) => WeightData::F16(reordered(data, weight.columns, &from)),
        WeightData::Int8(data) => WeightData::Int8(Int8Data {
            values: reordered(&data.values, weight.columns, &from),
            scales: reordered(&data.scales, data.groups(), &from),
            ..*data
        }),
    };
    layer.bias = layer.bias.map(|bias| reordered(&bias, 1, &from));
    layer
}

/// Puts `below` under `above`, in their common type or in 32 bits. Integers stay what they are where
/// both have the same groups.
fn stack(above: HostTensor, below: HostTensor) -> Result<HostTensor> {
    let rows = above.rows + below.rows;
    let data = match (above.data, below.data) {
        (WeightData::F32(mut a), WeightData::F32(b)) => {
            a.extend(b);
            WeightData::F32(a)
        }
        (WeightData::Bf16(mut a), WeightData::Bf16(b)) => {
            a.extend(b);
            WeightData::Bf16(a)
        }
        (WeightData::F16(mut a), WeightData::F16(b)) => {
            a.extend(b);
            WeightData::F16(a)
        }
        (WeightData::Int8(mut a), WeightData::Int8(b)) if a.group_len == b.group_len => {
            a.values.extend(b.values);
            a.scales.extend(b.scales);
            WeightData::Int8(a)
        }
        (a, b) => {
            if matches!(
                (&a, &b),
                (WeightData::Int8(_), _) | (_, WeightData::Int8(_))
            ) {
                tracing::warn!(
                    "parts of one matrix are quantised in different ways; it is widened, and quantised again where 8 bits are asked for"
                );
            }
            let mut a = a.into_f32();
            a.extend(b.into_f32());
            WeightData::F32(a)
        }
    };
    Ok(HostTensor::new(rows, above.columns, data)?)
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    struct Fake(Vec<(&'static str, Vec<usize>, WeightData)>);

    impl TensorSource for Fake {
        fn names(&self) -> Vec<String> {
            self.0.iter().map(|(name, ..)| (*name).to_owned()).collect()
        }

        fn shape(&self, name: &str) -> Option<&[usize]> {
            self.0
                .iter()
                .find(|(known, ..)| *known == name)
                .map(|(_, shape, _)| &shape[..])
        }

        fn read(&self, name: &str) -> Result<WeightData> {
            let found = self.0.iter().find(|(known, ..)| *known == name);
            Ok(found.expect("the shape was asked before").2.clone())
        }
    }

    fn fake() -> Fake {
        Fake(vec![
            (
                "q.weight",
                vec![2, 2],
                WeightData::F32(vec![1.0, 2.0, 3.0, 4.0]),
            ),
            (
                "k.weight",
                vec![1, 2],
                WeightData::Bf16(vec![bf16::from_f32(5.0); 2]),
            ),
            ("k.bias", vec![1], WeightData::F32(vec![9.0])),
            ("v.weight", vec![1, 2], WeightData::F32(vec![6.0, 7.0])),
            ("x.rotary_emb.inv_freq", vec![1], WeightData::F32(vec![1.0])),
        ])
    }

    fn spec(prefix: &str, rows: usize, bias: Bias) -> LinearSpec {
        LinearSpec {
            prefix: prefix.to_owned(),
            rows,
            columns: 2,
            bias,
        }
    }

    #[test]
    fn parts_stack_with_zeros_for_missing_biases() {
        let fake = fake();
        let tensors = Tensors::new(&fake);
        let parts = [
            spec("q", 2, Bias::IfStored),
            spec("k", 1, Bias::Required),
            spec("v", 1, Bias::IfStored),
        ];
        let linear = tensors.linear(&parts).expect("all parts are there");
        assert_eq!(linear.weight.rows, 4);
        assert_eq!(
            linear.weight.data.into_f32(),
            [1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 6.0, 7.0]
        );
        assert_eq!(
            linear.bias.expect("one part has a bias"),
            [0.0, 0.0, 9.0, 0.0]
        );
        tensors
            .finish()
            .expect("everything was read, the buffer does not count");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let fake = fake();
        let tensors = Tensors::new(&fake);
        let cases = [
            (
                tensors.linear(&[spec("q", 2, Bias::Required)]),
                "q.bias: is missing",
            ),
            (
                tensors.linear(&[spec("o", 2, Bias::IfStored)]),
                "o.weight: is missing",
            ),
            (
                tensors.linear(&[spec("q", 3, Bias::IfStored)]),
                "q.weight: has shape [2, 2], expected [3, 2]",
            ),
        ];
        for (result, expected) in cases {
            let error = result.expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
        let error = tensors
            .finish()
            .expect_err("k and v are unread")
            .to_string();
        assert!(
            error.contains("k.bias: is not used by this architecture (3 such tensors)"),
            "{error}"
        );
    }

    #[test]
    fn a_matrix_stored_by_inputs_is_turned_around() {
        let fake = fake();
        let tensors = Tensors::new(&fake);
        let linear = tensors.transposed(&spec("q", 2, Bias::IfStored));
        let linear = linear.expect("the matrix is square");
        assert_eq!(linear.weight.data.into_f32(), [1.0, 3.0, 2.0, 4.0]);
        let error = tensors.transposed(&spec("k", 2, Bias::IfStored));
        let error = error.expect_err("one input, not two").to_string();
        assert!(
            error.contains("k.weight: has shape [1, 2], expected [2, 2]"),
            "{error}"
        );
    }

    #[test]
    fn rows_move_with_their_biases() {
        let fake = fake();
        let tensors = Tensors::new(&fake);
        let parts = [spec("q", 2, Bias::IfStored), spec("k", 1, Bias::Required)];
        let linear = tensors.linear(&parts).expect("both parts are there");
        let moved = reorder_rows(linear, |row| (row + 1) % 3);
        assert_eq!(moved.weight.data.into_f32(), [3.0, 4.0, 5.0, 5.0, 1.0, 2.0]);
        assert_eq!(moved.bias.expect("k has one"), [0.0, 9.0, 0.0]);
    }
}
