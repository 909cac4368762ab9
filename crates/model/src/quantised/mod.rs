//! Checkpoints whose matrices are stored as 8-bit integers: which format a configuration names, and the
//! tensors of each matrix presented as one tensor `PREFIX.weight` of integers with scales.
//!
//! Families know nothing of it: they ask for `PREFIX.weight` and get [`WeightData::Int8`]. Tensors that
//! belong to no matrix stay visible, so that loading fails where a format has parts unknown here.

mod bitsandbytes;
mod compressed_tensors;
mod gptq;
mod matrix;
mod targets;

use std::collections::{BTreeMap, BTreeSet};

use backend::WeightData;
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::{Map, Value};

use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::files::Files;
use crate::safetensors_files::SafetensorsFiles;
use crate::tensors::TensorSource;
use matrix::{Groups, Matrix};
pub(crate) use targets::EMBEDDINGS;

/// What a configuration calls its quantisation.
const KEYS: [&str; 2] = ["quantization_config", "compression_config"];

/// Formats that are known and not read, with the way out.
const REFUSED: &[(&str, &str)] = &[
    ("awq", "its weights have 4 bits"),
    ("fp8", "its weights are 8-bit floats"),
    ("fbgemm_fp8", "its weights are 8-bit floats"),
    ("modelopt", "its weights are 8-bit floats"),
    ("torchao", "it is not read"),
    ("quanto", "it is not read"),
    ("eetq", "it is not read"),
    ("hqq", "it is not read"),
    ("mxfp4", "its weights have 4 bits"),
    ("higgs", "it is not read"),
    ("aqlm", "it is not read"),
];

/// One matrix as it is stored.
pub(crate) struct Stored {
    /// `[rows, columns]`.
    shape: [usize; 2],
    layout: Layout,
}

/// Which tensors hold a matrix and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// `weight` in I8 and `weight_scale`, `weight_zero_point`, with this many inputs per scale.
    Int { group_len: usize },
    /// Floats in `weight` that `weight_scale` has not been applied to yet.
    Frozen { group_len: usize },
    /// `weight_packed`: four values with 128 added per word.
    Packed { group_len: usize },
    /// `weight` in I8 and row maxima in `SCB`.
    RowMaxima,
    /// `qweight`, `qzeros`, `scales`, `g_idx`; zero points may be stored less one.
    Gptq { group_len: usize, less_one: bool },
}

/// What a format found: matrices by the name of their weight, and tensors that need no reading.
#[derive(Default)]
pub(crate) struct Found {
    matrices: BTreeMap<String, Stored>,
    consumed: BTreeSet<String>,
}

impl Found {
    /// Adds a matrix and the tensors that it is made of.
    fn add(&mut self, files: &SafetensorsFiles, prefix: &str, parts: &[&str], stored: Stored) {
        for part in parts {
            let name = format!("{prefix}.{part}");
            if files.raw(&name).is_some() {
                self.consumed.insert(name);
            }
        }
        self.matrices.insert(format!("{prefix}.weight"), stored);
    }
}

/// Safetensors whose matrices are partly integers.
pub(crate) struct QuantisedFiles {
    files: SafetensorsFiles,
    found: Found,
    method: &'static str,
}

/// The source for a checkpoint's files: as they are, or with integers put together with their scales.
pub(crate) fn open(
    config: &ModelConfig,
    directory: &Files,
    files: SafetensorsFiles,
) -> Result<Box<dyn TensorSource>> {
    let Some((key, settings)) = settings(config, directory)? else {
        return Ok(Box::new(files));
    };
    let (method, found) = match method(&settings) {
        "compressed-tensors" => (
            "compressed-tensors int8",
            compressed_tensors::find(&settings, &files)?,
        ),
        "bitsandbytes" => ("bitsandbytes int8", bitsandbytes::find(&settings, &files)?),
        "gptq" => ("GPTQ int8", gptq::find(&settings, &files)?),
        other => {
            let known = REFUSED.iter().find(|(name, _)| *name == other);
            let why = known.map_or("it is unknown", |(_, why)| *why);
            return Err(ModelError::unsupported(
                &format!("{key}.quant_method"),
                other,
                &format!(
                    "{why}; float checkpoints, GGUF files, and 8-bit compressed-tensors, bitsandbytes and GPTQ are"
                ),
            ));
        }
    };
    Ok(Box::new(QuantisedFiles {
        files,
        found,
        method,
    }))
}

/// The settings of quantisation and where they stand.
fn settings(config: &ModelConfig, files: &Files) -> Result<Option<(String, Map<String, Value>)>> {
    for key in KEYS {
        if let Some(settings) = config.object(key)? {
            return Ok(Some((key.to_owned(), settings.clone())));
        }
    }
    const GPTQ: &str = "quantize_config.json";
    let Some(text) = files.text(GPTQ)? else {
        return Ok(None);
    };
    match serde_json::from_slice(&text) {
        Ok(Value::Object(mut settings)) => {
            settings
                .entry("quant_method")
                .or_insert_with(|| "gptq".into());
            Ok(Some((GPTQ.to_owned(), settings)))
        }
        Ok(_) => Err(ModelError::malformed(GPTQ, "not a JSON object")),
        Err(error) => Err(ModelError::malformed(GPTQ, error)),
    }
}

/// The format's name; old files leave it out.
fn method(settings: &Map<String, Value>) -> &str {
    let named = settings.get("quant_method").and_then(Value::as_str);
    named.unwrap_or_else(|| {
        let has = |key: &str| settings.contains_key(key);
        if has("load_in_8bit") || has("_load_in_8bit") || has("load_in_4bit") {
            "bitsandbytes"
        } else if has("config_groups") {
            "compressed-tensors"
        } else {
            "unnamed"
        }
    })
}

impl TensorSource for QuantisedFiles {
    fn names(&self) -> Vec<String> {
        let others = self.files.names().into_iter();
        let others = others.filter(|name| !self.found.consumed.contains(name));
        let matrices = self.found.matrices.keys().cloned();
        others.chain(matrices).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        match self.found.matrices.get(name) {
            Some(stored) => Some(&stored.shape),
            None => self.files.shape(name),
        }
    }

    fn read(&self, name: &str) -> Result<WeightData> {
        match self.found.matrices.get(name) {
            Some(stored) => {
                let prefix = name.strip_suffix(".weight").unwrap_or(name);
                let matrix = self.matrix(prefix, stored)?;
                for part in ["weight", "weight_packed", "qweight"] {
                    self.files.release(&format!("{prefix}.{part}"));
                }
                Ok(matrix.into_data(prefix))
            }
            None => self.files.read(name),
        }
    }

    fn quantised(&self) -> Option<&'static str> {
        Some(self.method)
    }
}

impl QuantisedFiles {
    fn matrix(&self, prefix: &str, stored: &Stored) -> Result<Matrix> {
        let [rows, columns] = stored.shape;
        let name = |part: &str| format!("{prefix}.{part}");
        let parts = Parts {
            files: &self.files,
            prefix,
            shape: stored.shape,
        };
        match stored.layout {
            Layout::Int { group_len } => Ok(Matrix {
                values: parts.bytes("weight", Dtype::I8, &[rows, columns])?,
                scales: parts.scales(group_len)?,
                zero_points: parts.zero_points(group_len)?,
                groups: parts.groups(group_len)?,
                columns,
            }),
            Layout::Frozen { group_len } => {
                let weight = self.files.read(&name("weight"))?;
                Matrix {
                    values: Vec::new(),
                    scales: parts.scales(group_len)?,
                    zero_points: parts.zero_points(group_len)?,
                    groups: parts.groups(group_len)?,
                    columns,
                }
                .quantise(&name("weight"), &weight)
            }
            Layout::Packed { group_len } => {
                let words = columns.div_ceil(4);
                let packed = parts.bytes("weight_packed", Dtype::I32, &[rows, words])?;
                let values = packed
                    .par_chunks(4 * words)
                    .flat_map_iter(|row| row[..columns].iter().map(|byte| byte ^ i8::MIN))
                    .collect();
                Ok(Matrix {
                    values,
                    scales: parts.scales(group_len)?,
                    zero_points: parts.packed_zero_points(group_len)?,
                    groups: parts.groups(group_len)?,
                    columns,
                })
            }
            Layout::RowMaxima => {
                let maxima = parts.floats("SCB", rows)?;
                Ok(Matrix {
                    values: parts.bytes("weight", Dtype::I8, &[rows, columns])?,
                    scales: maxima.iter().map(|max| max / 127.0).collect(),
                    zero_points: None,
                    groups: Groups::Runs(columns),
                    columns,
                })
            }
            Layout::Gptq {
                group_len,
                less_one,
            } => gptq::read(&parts, group_len, less_one),
        }
    }
}

/// The tensors of one matrix, each checked for type, shape and values.
struct Parts<'a> {
    files: &'a SafetensorsFiles,
    prefix: &'a str,
    shape: [usize; 2],
}

impl Parts<'_> {
    fn name(&self, part: &str) -> String {
        format!("{}.{part}", self.prefix)
    }

    fn has(&self, part: &str) -> bool {
        self.files.raw(&self.name(part)).is_some()
    }

    /// Bytes of a tensor of exactly this type and shape.
    fn raw(&self, part: &str, dtype: Dtype, shape: &[usize]) -> Result<&[u8]> {
        let name = self.name(part);
        match self.files.raw(&name) {
            None => Err(ModelError::tensor(&name, "is missing")),
            Some((found, dims, bytes)) if found == dtype && dims == shape => Ok(bytes),
            Some((found, dims, _)) => Err(ModelError::tensor(
                &name,
                format!("has type {found:?} and shape {dims:?}, expected {dtype:?} and {shape:?}"),
            )),
        }
    }

    fn bytes(&self, part: &str, dtype: Dtype, shape: &[usize]) -> Result<Vec<i8>> {
        let bytes = self.raw(part, dtype, shape)?;
        Ok(bytes.iter().map(|byte| byte.cast_signed()).collect())
    }

    fn words(&self, part: &str, shape: &[usize]) -> Result<Vec<i32>> {
        let bytes = self.raw(part, Dtype::I32, shape)?;
        Ok(crate::safetensors_files::elements(
            bytes,
            i32::from_le_bytes,
        ))
    }

    /// Floats of any type and shape with this many elements, all usable as scales.
    fn floats(&self, part: &str, len: usize) -> Result<Vec<f32>> {
        let name = self.name(part);
        let found = self.files.read(&name)?.into_f32();
        if found.len() != len {
            return Err(ModelError::tensor(
                &name,
                format!("has {} elements, expected {len}", found.len()),
            ));
        }
        check_scales(&name, &found)?;
        Ok(found)
    }

    fn num_groups(&self, group_len: usize) -> usize {
        self.shape[1].div_ceil(group_len)
    }

    /// `weight_scale` as one number for each row and group. One for the whole tensor, or one for each
    /// row, counts for all of them.
    fn scales(&self, group_len: usize) -> Result<Vec<f32>> {
        let name = self.name("weight_scale");
        let (rows, groups) = (self.shape[0], self.num_groups(group_len));
        let found = self.files.read(&name)?.into_f32();
        check_scales(&name, &found)?;
        spread(found, rows, groups).map_err(|len| {
            ModelError::tensor(
                &name,
                format!("has {len} elements, expected 1 or {}", rows * groups),
            )
        })
    }

    /// `weight_zero_point`, where there is one.
    fn zero_points(&self, group_len: usize) -> Result<Option<Vec<i32>>> {
        let name = self.name("weight_zero_point");
        let Some((dtype, _, bytes)) = self.files.raw(&name) else {
            return Ok(None);
        };
        if dtype != Dtype::I8 {
            return Err(ModelError::tensor(
                &name,
                format!("has type {dtype:?}, expected I8"),
            ));
        }
        let found = bytes.iter().map(|z| i32::from(z.cast_signed())).collect();
        let expected = self.shape[0] * self.num_groups(group_len);
        spread(found, self.shape[0], self.num_groups(group_len))
            .map(Some)
            .map_err(|len| {
                ModelError::tensor(&name, format!("has {len} elements, expected {expected}"))
            })
    }

    /// Zero points packed by fours along the rows, 128 added.
    fn packed_zero_points(&self, group_len: usize) -> Result<Option<Vec<i32>>> {
        if !self.has("weight_zero_point") {
            return Ok(None);
        }
        let (rows, groups) = (self.shape[0], self.num_groups(group_len));
        let words = self.words("weight_zero_point", &[rows.div_ceil(4), groups])?;
        let zero_point = |row: usize, group: usize| {
            let bytes = words[row / 4 * groups + group].to_le_bytes();
            i32::from(bytes[row % 4]) - 128
        };
        let rows = (0..rows).flat_map(|row| (0..groups).map(move |group| (row, group)));
        Ok(Some(
            rows.map(|(row, group)| zero_point(row, group)).collect(),
        ))
    }

    /// Runs, unless `weight_g_idx` says otherwise.
    fn groups(&self, group_len: usize) -> Result<Groups> {
        if !self.has("weight_g_idx") {
            return Ok(Groups::Runs(group_len));
        }
        let index = self.words("weight_g_idx", &[self.shape[1]])?;
        if index.iter().all(|group| *group == -1) {
            return Ok(Groups::Runs(group_len));
        }
        Groups::new(&index, group_len, self.num_groups(group_len))
            .map_err(|reason| ModelError::tensor(&self.name("weight_g_idx"), reason))
    }
}

/// One value for all, one per row, or one per row and group, as the last.
fn spread<T: Copy>(
    found: Vec<T>,
    rows: usize,
    groups: usize,
) -> std::result::Result<Vec<T>, usize> {
    match found.len() {
        len if len == rows * groups => Ok(found),
        1 => Ok(vec![found[0]; rows * groups]),
        len => Err(len),
    }
}

fn check_scales(name: &str, scales: &[f32]) -> Result<()> {
    match scales.iter().find(|s| !s.is_finite() || **s < 0.0) {
        None => Ok(()),
        Some(scale) => Err(ModelError::tensor(
            name,
            format!("holds {scale}, expected finite numbers that are not negative"),
        )),
    }
}

/// A text setting.
fn text<'a>(settings: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    settings.get(key).and_then(Value::as_str)
}

/// A switch; absent and null are off.
fn switch(settings: &Map<String, Value>, key: &str) -> bool {
    settings.get(key).and_then(Value::as_bool).unwrap_or(false)
}
