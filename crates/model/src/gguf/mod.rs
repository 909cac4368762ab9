//! GGUF files: checked before anything is allocated, then presented as if they were a Hugging Face
//! directory — configuration, tensor names and row order translated, tokenizer rebuilt.

mod families;
mod metadata;
mod parse;
pub(crate) mod split;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::Range;

use backend::{Int8Data, WeightData};
use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::TextFiles;
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::files::FileBytes;
use crate::safetensors_files::read;
use crate::tensors::TensorSource;
pub(crate) use families::GgufFamily;
use metadata::{Metadata, ROPE_FACTORS, ROPE_FREQS, Stored};
use parse::{Parsed, TensorInfo};

/// A checked GGUF model: one file, or the parts of a split one.
pub(crate) struct GgufFile {
    parts: Vec<FileBytes>,
    metadata: Metadata,
    /// By the name the same tensor has in a Hugging Face checkpoint.
    tensors: BTreeMap<String, TensorInfo>,
}

impl GgufFile {
    /// Checks the named parts, in their order, and what they hold together.
    pub fn open(parts: Vec<(String, FileBytes)>) -> Result<Self> {
        let parsed: Result<Vec<Parsed>> = parts
            .iter()
            .map(|(name, bytes)| {
                parse::parse(bytes).map_err(|reason| ModelError::malformed(name, reason))
            })
            .collect();
        let mut parsed = parsed?;
        let named: Vec<_> = parts.iter().map(|(name, _)| &**name).zip(&parsed).collect();
        split::check(&named)?;
        let first = std::mem::take(&mut parsed[0].metadata);
        let metadata = Metadata::new(&parts[0].0, first)?;
        let mut infos = Vec::new();
        for (part, parsed) in parsed.into_iter().enumerate() {
            infos.extend(
                parsed
                    .tensors
                    .into_iter()
                    .map(|info| TensorInfo { part, ..info }),
            );
        }
        Ok(Self {
            parts: parts.into_iter().map(|(_, bytes)| bytes).collect(),
            tensors: by_known_name(&metadata, infos),
            metadata,
        })
    }

    /// The metadata as the `config.json` of the same model.
    pub fn config(&self) -> Result<ModelConfig> {
        let factors = |name: &str| match self.tensors.get(name) {
            Some(_) => Ok(Some(self.read(name)?.into_f32())),
            None => Ok::<_, ModelError>(None),
        };
        let has = |part: &str| self.tensors.values().any(|info| info.name.contains(part));
        let [long, short] = ROPE_FACTORS;
        self.metadata.config(Stored {
            rope_freqs: factors(ROPE_FREQS)?,
            rope_factors: factors(long)?
                .zip(factors(short)?)
                .map(|(long, short)| [long, short]),
            tied: !self
                .tensors
                .values()
                .any(|info| info.name == "output.weight"),
            mlp_norm: has(".ffn_norm."),
            two_norms: has(".attn_norm_2."),
            qk_norm: has(".attn_q_norm."),
            qkv_rows: self
                .tensors
                .values()
                .find(|info| info.name == "blk.0.attn_qkv.weight")
                .map(|info| info.shape[0]),
        })
    }

    /// The tokenizer: a `tokenizer.json` beside the file, else one embedded, else one rebuilt.
    pub fn text(&self, beside: Option<Vec<u8>>) -> Result<TextFiles> {
        tokenizer::text_files(&self.metadata, beside)
    }

    /// Container and the types of its matrices, most frequent first.
    pub fn description(&self) -> String {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for info in self.tensors.values().filter(|info| info.shape.len() > 1) {
            *counts.entry(format!("{:?}", info.dtype)).or_default() += 1;
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let types: Vec<String> = counts.into_iter().map(|(dtype, _)| dtype).collect();
        format!("GGUF {}", types.join("/"))
    }
}

/// The tensors by the names of a Hugging Face checkpoint, those of experts and heads apart.
fn by_known_name(metadata: &Metadata, infos: Vec<TensorInfo>) -> BTreeMap<String, TensorInfo> {
    let two_norms = infos.iter().any(|info| info.name.contains(".attn_norm_2."));
    let mut tensors = BTreeMap::new();
    for info in infos {
        let known = metadata.family().hugging_face_name(&info.name, two_norms);
        let several = info.shape.len() > 1 && info.shape[0] <= MAX_PARTS;
        match known.contains('*') && several {
            true => tensors.extend(
                slices(&info).map(|(i, slice)| (known.replace('*', &i.to_string()), slice)),
            ),
            false => {
                tensors.insert(known, info);
            }
        }
    }
    tensors
}

impl TensorSource for GgufFile {
    fn names(&self) -> Vec<String> {
        // The frequency factors are part of the configuration.
        self.tensors
            .keys()
            .filter(|name| *name != ROPE_FREQS && !ROPE_FACTORS.contains(&name.as_str()))
            .cloned()
            .collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|info| &info.shape[..])
    }

    fn read(&self, name: &str) -> Result<WeightData> {
        let info = self
            .tensors
            .get(name)
            .ok_or_else(|| ModelError::tensor(name, "is missing"))?;
        let data = decode(info, &self.parts[info.part])
            .map_err(|error| ModelError::tensor(&info.name, error))?;
        let Some(heads) = self.metadata.interleaved_heads(name)? else {
            return Ok(data);
        };
        let columns = info.shape.get(1).copied().unwrap_or(1);
        rows_half_paired(data, heads, columns, &info.name)
    }

    fn has_blocks(&self) -> bool {
        let matrix = |info: &TensorInfo| info.dtype == GgmlDType::Q8_0 && info.shape.len() == 2;
        self.tensors.values().any(matrix)
    }

    fn requantised(&self) -> bool {
        let kept = |dtype: GgmlDType| {
            use GgmlDType::{BF16, F16, F32, Q8_0};
            matches!(dtype, F32 | F16 | BF16 | Q8_0)
        };
        self.tensors.values().any(|info| !kept(info.dtype))
    }
}

/// Far above the experts and the heads of any model.
const MAX_PARTS: usize = 4096;

/// The parts that a tensor holds along its first dimension: experts, or the norms of heads. Blocks run
/// along the last one, so that each part has bytes of its own.
fn slices(info: &TensorInfo) -> impl Iterator<Item = (usize, TensorInfo)> + '_ {
    let count = info.shape[0];
    let bytes = (info.end - info.start) / count.max(1);
    (0..count).map(move |index| {
        let start = info.start + index * bytes;
        let slice = TensorInfo {
            name: info.name.clone(),
            shape: info.shape[1..].to_vec(),
            dtype: info.dtype,
            part: info.part,
            start,
            end: start + bytes,
        };
        (index, slice)
    })
}

/// Elements of a tensor. Matrices of Q8_0 keep their integers and the scale of each block; other block
/// types become 32-bit floats, whole rows at a time.
fn decode(info: &TensorInfo, file: &FileBytes) -> candle_core::Result<WeightData> {
    let stretch = info.start..info.end;
    match info.dtype {
        GgmlDType::F32 => return Ok(WeightData::F32(read(file, stretch, f32::from_le_bytes))),
        GgmlDType::F16 => return Ok(WeightData::F16(read(file, stretch, f16::from_le_bytes))),
        GgmlDType::BF16 => return Ok(WeightData::Bf16(read(file, stretch, bf16::from_le_bytes))),
        GgmlDType::Q8_0 if info.shape.len() == 2 => {
            return Ok(WeightData::Int8(q8_0(file, stretch, info.shape[1])));
        }
        _ => {}
    }
    let dtype = info.dtype;
    let columns = *info
        .shape
        .last()
        .expect("the parser refuses tensors without dimensions");
    let row_bytes = columns / dtype.block_size() * dtype.type_size();
    let rows_at_once = (CHUNK / columns).max(1);
    let mut out = Vec::with_capacity(info.shape.iter().product());
    file.in_runs(stretch, row_bytes, |bytes| {
        let parts: candle_core::Result<Vec<Vec<f32>>> = bytes
            .par_chunks(rows_at_once * row_bytes)
            .map(|chunk| {
                // Tensors start at multiples of 8 in a mapped file and blocks have even sizes, which is
                // the alignment that candle's block types need.
                let tensor = qtensor_from_ggml(
                    dtype,
                    chunk,
                    vec![chunk.len() / row_bytes, columns],
                    &Device::Cpu,
                )?;
                tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()
            })
            .collect();
        parts?.iter().for_each(|part| out.extend_from_slice(part));
        Ok::<_, candle_core::Error>(())
    })?;
    Ok(WeightData::F32(out))
}

/// Elements that one thread dequantises at once.
const CHUNK: usize = 1 << 18;

/// Blocks of a half-precision scale and 32 integers.
fn q8_0(file: &FileBytes, stretch: Range<usize>, columns: usize) -> Int8Data {
    const BLOCK: usize = 32;
    let num_blocks = stretch.len() / (BLOCK + 2);
    let mut values = Vec::with_capacity(num_blocks * BLOCK);
    let mut scales = Vec::with_capacity(num_blocks);
    let Ok(()) = file.in_runs(stretch, BLOCK + 2, |bytes| {
        let (blocks, _) = bytes.as_chunks::<{ BLOCK + 2 }>();
        for block in blocks {
            scales.push(f16::from_le_bytes([block[0], block[1]]).to_f32());
            values.extend(block[2..].iter().map(|q| q.cast_signed()));
        }
        Ok::<_, Infallible>(())
    });
    Int8Data {
        values,
        scales,
        columns,
        group_len: BLOCK,
    }
}

/// Undoes the converter's row order; blocks run along rows, so they move as they are.
fn rows_half_paired(
    data: WeightData,
    heads: usize,
    columns: usize,
    name: &str,
) -> Result<WeightData> {
    Ok(match data {
        WeightData::F32(data) => WeightData::F32(half_paired(&data, heads, columns, name)?),
        WeightData::Bf16(data) => WeightData::Bf16(half_paired(&data, heads, columns, name)?),
        WeightData::F16(data) => WeightData::F16(half_paired(&data, heads, columns, name)?),
        WeightData::Int8(data) => WeightData::Int8(Int8Data {
            values: half_paired(&data.values, heads, columns, name)?,
            scales: half_paired(&data.scales, heads, data.groups(), name)?,
            ..data
        }),
    })
}

/// The rows in their own order: row `2i` of a head goes to `i`, row `2i + 1` to `i + d/2`.
fn half_paired<T: Copy>(data: &[T], heads: usize, columns: usize, name: &str) -> Result<Vec<T>> {
    let rows = data.len() / columns;
    if heads == 0 || !rows.is_multiple_of(2 * heads) {
        return Err(ModelError::tensor(
            name,
            format!("has {rows} rows for {heads} heads"),
        ));
    }
    let head_dim = rows / heads;
    let mut out = Vec::with_capacity(data.len());
    for row in 0..rows {
        let (head, i) = (row / head_dim, row % head_dim);
        let from = if i < head_dim / 2 {
            2 * i
        } else {
            2 * (i - head_dim / 2) + 1
        };
        let start = (head * head_dim + from) * columns;
        out.extend_from_slice(&data[start..start + columns]);
    }
    Ok(out)
}
