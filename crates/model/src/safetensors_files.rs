//! Safetensors: one file, or shards listed by an index.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::Range;

use backend::WeightData;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::error::{ModelError, Result};
use crate::files::{FileBytes, Files};
use crate::tensors::TensorSource;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Pickles can run code when they are opened; the library that wrote them converts them.
const PICKLES: &str = "is missing. The folder holds pickled weights, which can run code and are never read; convert them with `pip install transformers torch` and `python -c \"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; M.from_pretrained('IN', torch_dtype='auto').save_pretrained('OUT'); T.from_pretrained('IN').save_pretrained('OUT')\"`";

/// The largest header that is parsed; a real one of a thousand tensors takes a tenth of a megabyte.
const MAX_HEADER: u64 = 32 << 20;

/// Tensors of one or more safetensors files.
pub(crate) struct SafetensorsFiles {
    files: Vec<FileBytes>,
    /// Tensor name to file and place.
    index: BTreeMap<String, Entry>,
}

struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

impl SafetensorsFiles {
    /// Opens `model.safetensors`, or the shards of `model.safetensors.index.json`.
    pub fn open(files: &Files) -> Result<Self> {
        let mut opened = Self {
            files: Vec::new(),
            index: BTreeMap::new(),
        };
        for name in weight_files(files)? {
            opened.add(&name, files.weights(&name)?)?;
        }
        Ok(opened)
    }

    /// Type, shape and bytes of a tensor.
    pub fn raw(&self, name: &str) -> Option<(Dtype, &[usize], &[u8])> {
        let entry = self.index.get(name)?;
        let bytes = &self.files[entry.file][entry.start..entry.end];
        Some((entry.dtype, &entry.shape, bytes))
    }

    /// Takes what [`Self::raw`] handed out out of memory until it is read again.
    pub fn release(&self, name: &str) {
        if let Some(entry) = self.index.get(name) {
            self.files[entry.file].release(entry.start..entry.end);
        }
    }

    fn add(&mut self, name: &str, bytes: FileBytes) -> Result<()> {
        check_header(name, &bytes)?;
        let parsed = SafeTensors::deserialize(&bytes)
            .map_err(|error| ModelError::malformed(name, diagnose(&bytes, &error)))?;
        for (tensor, view) in parsed.tensors() {
            let start = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
            let entry = Entry {
                file: self.files.len(),
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                start,
                end: start + view.data().len(),
            };
            let tensor = bare_name(&tensor);
            if self.index.contains_key(&tensor) {
                return Err(ModelError::tensor(&tensor, "stands in two shards"));
            }
            self.index.insert(tensor, entry);
        }
        self.files.push(bytes);
        Ok(())
    }
}

/// The name without what says nothing about the tensor: the prefix that torch.compile puts before all
/// names, and the place of a language model beside an image part, which two versions spell differently.
fn bare_name(name: &str) -> String {
    let name = name.trim_start_matches("_orig_mod.");
    for (prefix, bare) in [
        ("language_model.model.", "model."),
        ("model.language_model.", "model."),
        ("language_model.lm_head.", "lm_head."),
    ] {
        if let Some(rest) = name.strip_prefix(prefix) {
            return format!("{bare}{rest}");
        }
    }
    name.to_owned()
}

/// The length field is checked before the parser sees the header.
fn check_header(name: &str, bytes: &[u8]) -> Result<()> {
    let Some(length) = bytes
        .first_chunk::<8>()
        .map(|bytes| u64::from_le_bytes(*bytes))
    else {
        return Err(ModelError::malformed(
            name,
            format!("{} bytes are too few for a header", bytes.len()),
        ));
    };
    if length > MAX_HEADER || length > bytes.len() as u64 - 8 {
        return Err(ModelError::malformed(
            name,
            format!(
                "a header of {length} bytes in a file of {}, at most {MAX_HEADER} are read",
                bytes.len()
            ),
        ));
    }
    Ok(())
}

/// The library's verdict with the name of the first tensor whose shape and type disagree with its
/// offsets, which the library leaves out.
fn diagnose(bytes: &[u8], error: &safetensors::SafeTensorError) -> String {
    let culprit = || {
        let length = u64::from_le_bytes(*bytes.first_chunk::<8>()?) as usize;
        let header: Value = serde_json::from_slice(bytes.get(8..8 + length)?).ok()?;
        let (name, _) = header.as_object()?.iter().find(|(name, info)| {
            let bits = match info["dtype"].as_str() {
                Some("F64" | "I64" | "U64") => 64,
                Some("F32" | "I32" | "U32") => 32,
                Some("F16" | "BF16" | "I16" | "U16") => 16,
                _ => 8,
            };
            let elements = info["shape"].as_array().and_then(|shape| {
                shape
                    .iter()
                    .try_fold(1u64, |product, dim| product.checked_mul(dim.as_u64()?))
            });
            let range = info["data_offsets"][1]
                .as_u64()
                .and_then(|end| end.checked_sub(info["data_offsets"][0].as_u64()?));
            *name != "__metadata__"
                && elements
                    .and_then(|n| n.checked_mul(bits))
                    .map(|bits| bits / 8)
                    != range
        })?;
        Some(name.clone())
    };
    match culprit() {
        Some(name) => format!("tensor {name}: {error}"),
        None => error.to_string(),
    }
}

/// The files that hold the weights, sorted.
fn weight_files(files: &Files) -> Result<Vec<String>> {
    if files.exists(SINGLE) {
        return Ok(vec![SINGLE.to_owned()]);
    }
    let Some(text) = files.text(INDEX)? else {
        let reason = if files.has_pickles() {
            PICKLES
        } else {
            "is missing, and so is an index of shards"
        };
        return Err(ModelError::malformed(SINGLE, reason));
    };
    let index: Value =
        serde_json::from_slice(&text).map_err(|error| ModelError::malformed(INDEX, error))?;
    let map = index["weight_map"]
        .as_object()
        .ok_or_else(|| ModelError::malformed(INDEX, "weight_map is not an object"))?;
    let mut names = Vec::new();
    for value in map.values() {
        match value.as_str() {
            Some(name) if name.ends_with(".safetensors") => names.push(name.to_owned()),
            _ => {
                return Err(ModelError::malformed(
                    INDEX,
                    format!("{value} is not a safetensors file"),
                ));
            }
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

impl TensorSource for SafetensorsFiles {
    fn names(&self) -> Vec<String> {
        self.index.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.index.get(name).map(|entry| &entry.shape[..])
    }

    fn read(&self, name: &str) -> Result<WeightData> {
        let entry = self
            .index
            .get(name)
            .ok_or_else(|| ModelError::tensor(name, "is missing"))?;
        let file = &self.files[entry.file];
        let stretch = entry.start..entry.end;
        match entry.dtype {
            Dtype::F32 => Ok(WeightData::F32(read(file, stretch, f32::from_le_bytes))),
            Dtype::BF16 => Ok(WeightData::Bf16(read(file, stretch, bf16::from_le_bytes))),
            Dtype::F16 => Ok(WeightData::F16(read(file, stretch, f16::from_le_bytes))),
            other => Err(ModelError::tensor(
                name,
                format!("has type {other:?}; F32, F16 and BF16 are read"),
            )),
        }
    }
}

/// Little-endian elements of a stretch of a file, run by run.
pub(crate) fn read<T, const N: usize>(
    file: &FileBytes,
    stretch: Range<usize>,
    element: fn([u8; N]) -> T,
) -> Vec<T> {
    let mut out = Vec::with_capacity(stretch.len() / N);
    let Ok(()) = file.in_runs(stretch, N, |bytes| {
        let (chunks, _) = bytes.as_chunks::<N>();
        out.extend(chunks.iter().map(|chunk| element(*chunk)));
        Ok::<_, Infallible>(())
    });
    out
}

/// Little-endian elements; files promise no alignment.
pub(crate) fn elements<T, const N: usize>(bytes: &[u8], read: fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|chunk| read(*chunk)).collect()
}
