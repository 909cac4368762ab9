//! Writing an 8-bit copy of a float checkpoint in the form that other servers read: compressed-tensors
//! `int-quantized`, one scale per output. The integers and scales are those that quantising while
//! loading gives, so the copy computes the same bits. Embeddings, heads, routers and norms stay as they
//! are; a target that wants the head in 8 bits makes it from the same floats in both cases.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use backend::WeightData;
use quant::{Granularity, quantise_row};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, View};
use serde_json::{Map, Value, json};

use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::files::{Files, file_name};
use crate::quantised::EMBEDDINGS;
use crate::safetensors_files::SafetensorsFiles;
use crate::tensors::TensorSource;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";

/// Modules with a matrix that makes the logits or routes.
const KEPT: &[&str] = &[
    "embed_out",
    "lm_head",
    "gate",
    "router",
    "shared_expert_gate",
];

/// Whether a module's matrix stays as it is.
fn kept(module: &str) -> bool {
    KEPT.contains(&module) || EMBEDDINGS.contains(&module)
}

/// Files that hold weights, in this form or another.
const WEIGHT_FILES: &[&str] = &[
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".pt",
    ".pth",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
];

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantized {
    /// Matrices with 8 bits.
    pub matrices: usize,
    /// Bytes of the weights before.
    pub bytes_before: u64,
    /// Bytes of the weights after.
    pub bytes_after: u64,
}

/// Writes an 8-bit copy of the safetensors folder `input` to the folder `output`, which must not exist
/// or be empty and appears when it is complete. `report` is told tensors written out of all. Tensors are
/// read, converted and written one at a time.
///
/// # Errors
/// What cannot be read, is not a float checkpoint, or cannot be written.
pub fn quantize(
    input: &Path,
    output: &Path,
    report: &mut dyn FnMut(usize, usize),
) -> Result<Quantized> {
    let (config, files) = open(input)?;
    let matrices = matrices(&files);
    if matrices.is_empty() {
        return Err(ModelError::malformed(
            &file_name(input),
            "holds no matrix of a linear layer",
        ));
    }
    let folder = Folder::new(output)?;
    let bytes_before = total_bytes(&files);
    let quantized = matrices.len();
    write_weights(&files, matrices, &folder.partial.join(WEIGHTS), report)?;
    let bytes_after = fs::metadata(folder.partial.join(WEIGHTS))
        .map_err(|source| ModelError::io(WEIGHTS, source))?
        .len();
    write_config(config, &files, &folder.partial)?;
    copy_others(input, &folder.partial)?;
    folder.finish()?;
    Ok(Quantized {
        matrices: quantized,
        bytes_before,
        bytes_after,
    })
}

/// The settings and the floats of a folder that can be quantised.
fn open(input: &Path) -> Result<(Map<String, Value>, SafetensorsFiles)> {
    let name = file_name(input);
    if !input.is_dir() || !input.join(CONFIG).exists() {
        return Err(ModelError::malformed(
            &name,
            "is not a folder with config.json and safetensors; a GGUF file holds its weights in blocks of its own and is served as it is",
        ));
    }
    let directory = Files::Directory(input.to_owned());
    let text = directory
        .text(CONFIG)?
        .ok_or_else(|| ModelError::malformed(CONFIG, "is missing"))?;
    let config = ModelConfig::parse(&text)?;
    for key in ["quantization_config", "compression_config"] {
        if config.object(key)?.is_some() {
            return Err(ModelError::unsupported(
                key,
                "set",
                "a checkpoint that is quantised already is served as it is; quantise the original",
            ));
        }
    }
    let files = SafetensorsFiles::open(&directory)?;
    if config.model_type()? == "gpt2" {
        return Err(ModelError::unsupported(
            "model_type",
            "gpt2",
            "its matrices stand turned around, which the format has no word for; it is quantised while loading",
        ));
    }
    match serde_json::from_slice(&text) {
        Ok(Value::Object(fields)) => Ok((fields, files)),
        _ => Err(ModelError::malformed(CONFIG, "not a JSON object")),
    }
}

/// Prefixes of the matrices that are quantised, with their shapes.
fn matrices(files: &SafetensorsFiles) -> HashMap<String, [usize; 2]> {
    files
        .names()
        .into_iter()
        .filter_map(|name| {
            let prefix = name.strip_suffix(".weight")?;
            let module = prefix.rsplit('.').next()?;
            let (dtype, &[rows, columns], _) = files.raw(&name)? else {
                return None;
            };
            let float = matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
            (float && rows > 1 && columns > 1 && !kept(module))
                .then(|| (prefix.to_owned(), [rows, columns]))
        })
        .collect()
}

fn total_bytes(files: &SafetensorsFiles) -> u64 {
    let names = files.names();
    let bytes = names.iter().filter_map(|name| files.raw(name));
    bytes.map(|(_, _, bytes)| bytes.len() as u64).sum()
}

/// A folder that gets its name when it is complete, and is removed otherwise.
struct Folder {
    partial: PathBuf,
    output: PathBuf,
    finished: bool,
}

impl Folder {
    fn new(output: &Path) -> Result<Self> {
        let name = file_name(output);
        let io = |source| ModelError::io(&name, source);
        if output.exists() {
            if fs::read_dir(output).map_err(io)?.next().is_some() {
                return Err(ModelError::malformed(
                    &name,
                    "is not empty; name a folder that does not exist yet",
                ));
            }
            fs::remove_dir(output).map_err(io)?;
        }
        let partial = output.with_file_name(format!("{name}.partial-{}", std::process::id()));
        fs::create_dir_all(&partial).map_err(io)?;
        Ok(Self {
            partial,
            output: output.to_owned(),
            finished: false,
        })
    }

    fn finish(mut self) -> Result<()> {
        fs::rename(&self.partial, &self.output)
            .map_err(|source| ModelError::io(&file_name(&self.output), source))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.finished {
            // The error that led here is the one to tell.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

/// One tensor of the new file, made when it is written.
struct Lazy<'a> {
    files: &'a SafetensorsFiles,
    part: Part,
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    writing: &'a RefCell<Writing<'a>>,
}

#[derive(Debug, Clone, Copy)]
enum Part {
    Unchanged,
    Integers,
    Scales,
}

/// What happens while tensors are written.
struct Writing<'a> {
    report: &'a mut dyn FnMut(usize, usize),
    done: usize,
    total: usize,
    failed: Option<ModelError>,
}

impl View for Lazy<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut writing = self.writing.borrow_mut();
        let data = self.bytes().unwrap_or_else(|error| {
            writing.failed.get_or_insert(error);
            Cow::Owned(vec![0; self.data_len()])
        });
        writing.done += 1;
        let (done, total) = (writing.done, writing.total);
        (writing.report)(done, total);
        data
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

impl Lazy<'_> {
    fn bytes(&self) -> Result<Cow<'_, [u8]>> {
        match self.part {
            Part::Unchanged => match self.files.raw(&self.name) {
                Some((_, _, bytes)) => Ok(Cow::Borrowed(bytes)),
                None => Err(ModelError::tensor(&self.name, "is missing")),
            },
            Part::Integers => {
                let (values, _) = integers(&self.name, &self.files.read(&self.name)?, &self.shape)?;
                Ok(Cow::Owned(
                    values.iter().map(|q| q.cast_unsigned()).collect(),
                ))
            }
            Part::Scales => {
                let shape = self.files.shape(&self.name).unwrap_or_default().to_vec();
                let (_, scales) = integers(&self.name, &self.files.read(&self.name)?, &shape)?;
                Ok(Cow::Owned(
                    scales.iter().flat_map(|s| s.to_le_bytes()).collect(),
                ))
            }
        }
    }
}

/// Each row quantised as while loading.
fn integers(name: &str, weight: &WeightData, shape: &[usize]) -> Result<(Vec<i8>, Vec<f32>)> {
    let (rows, columns) = (shape[0], shape[1]);
    let (mut values, mut scales) = (vec![0i8; rows * columns], vec![0f32; rows]);
    let bad = values
        .par_chunks_mut(columns)
        .zip(scales.par_chunks_mut(1))
        .enumerate()
        .map_init(
            || vec![0.0; columns],
            |wide, (row, (values, scale))| {
                weight.widen_row(row, wide);
                quantise_row(wide, Granularity::Row, values, scale)
            },
        )
        .sum::<usize>();
    match bad {
        0 => Ok((values, scales)),
        bad => Err(ModelError::tensor(
            name,
            format!("holds {bad} numbers that are not finite"),
        )),
    }
}

fn write_weights(
    files: &SafetensorsFiles,
    matrices: HashMap<String, [usize; 2]>,
    path: &Path,
    report: &mut dyn FnMut(usize, usize),
) -> Result<()> {
    let writing = RefCell::new(Writing {
        report,
        done: 0,
        total: files.names().len() + matrices.len(),
        failed: None,
    });
    let lazy = |name: &str, part, dtype, shape: &[usize]| Lazy {
        files,
        part,
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
        writing: &writing,
    };
    let mut tensors = Vec::new();
    for name in files.names() {
        let Some((dtype, shape, _)) = files.raw(&name) else {
            continue;
        };
        match name
            .strip_suffix(".weight")
            .filter(|prefix| matrices.contains_key(*prefix))
        {
            Some(_) => {
                let integers = lazy(&name, Part::Integers, Dtype::I8, shape);
                let scales = lazy(&name, Part::Scales, Dtype::F32, &[shape[0], 1]);
                tensors.push((format!("{name}_scale"), scales));
                tensors.push((name, integers));
            }
            None => {
                let unchanged = lazy(&name, Part::Unchanged, dtype, shape);
                tensors.push((name, unchanged));
            }
        }
    }
    // Other libraries ask which framework the tensors are for.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let written = safetensors::serialize_to_file(tensors, Some(metadata), path);
    if let Some(error) = writing.borrow_mut().failed.take() {
        return Err(error);
    }
    written.map_err(|error| ModelError::malformed(WEIGHTS, error))
}

fn write_config(
    mut config: Map<String, Value>,
    files: &SafetensorsFiles,
    folder: &Path,
) -> Result<()> {
    let mut ignore: Vec<String> = files
        .names()
        .into_iter()
        .filter_map(|name| {
            let prefix = name.strip_suffix(".weight")?;
            let module = prefix.rsplit('.').next()?;
            kept(module).then(|| prefix.to_owned())
        })
        .collect();
    ignore.push("lm_head".to_owned());
    ignore.sort();
    ignore.dedup();
    let arguments = |strategy: &str, dynamic: bool| {
        json!({
            "num_bits": 8,
            "type": "int",
            "symmetric": true,
            "strategy": strategy,
            "dynamic": dynamic,
        })
    };
    config.insert(
        "quantization_config".to_owned(),
        json!({
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "quantization_status": "compressed",
            "ignore": ignore,
            "kv_cache_scheme": null,
            "config_groups": {"group_0": {
                "targets": ["Linear"],
                "weights": arguments("channel", false),
                "input_activations": arguments("token", true),
                "output_activations": null,
            }},
        }),
    );
    let text = serde_json::to_vec_pretty(&Value::Object(config))
        .map_err(|error| ModelError::malformed(CONFIG, error))?;
    fs::write(folder.join(CONFIG), text).map_err(|source| ModelError::io(CONFIG, source))
}

/// Tokenizer, templates and whatever else lies beside the weights.
fn copy_others(input: &Path, folder: &Path) -> Result<()> {
    let entries =
        fs::read_dir(input).map_err(|source| ModelError::io(&file_name(input), source))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = file_name(&path);
        let weights = WEIGHT_FILES.iter().any(|end| name.ends_with(end));
        if name == CONFIG || name.starts_with('.') || weights || !path.is_file() {
            continue;
        }
        fs::copy(&path, folder.join(&name)).map_err(|source| ModelError::io(&name, source))?;
    }
    Ok(())
}
