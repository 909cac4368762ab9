//! bitsandbytes with 8 bits: `weight` in I8 beside row maxima `SCB`, `w = q · SCB / 127`. Which
//! activations the library treats as outliers is decided while it runs and stands in no file.

use safetensors::Dtype;
use serde_json::{Map, Value};

use super::{Found, Layout, Stored, switch};
use crate::error::{ModelError, Result};
use crate::safetensors_files::SafetensorsFiles;
use crate::tensors::TensorSource;

pub(super) fn find(settings: &Map<String, Value>, files: &SafetensorsFiles) -> Result<Found> {
    if switch(settings, "load_in_4bit") || switch(settings, "_load_in_4bit") {
        return Err(ModelError::unsupported(
            "quantization_config.load_in_4bit",
            true,
            "bitsandbytes with 8 bits is",
        ));
    }
    let mut found = Found::default();
    for name in files.names() {
        let Some((Dtype::I8, shape, _)) = files.raw(&name) else {
            continue;
        };
        let (Some(prefix), &[rows, columns]) = (name.strip_suffix(".weight"), shape) else {
            continue;
        };
        let maxima = format!("{prefix}.SCB");
        if files.raw(&maxima).is_none() {
            return Err(ModelError::tensor(
                &name,
                "is stored as I8 without the row maxima SCB beside it",
            ));
        }
        row_major(files, &format!("{prefix}.weight_format"))?;
        let stored = Stored {
            shape: [rows, columns],
            layout: Layout::RowMaxima,
        };
        found.add(files, prefix, &["weight", "SCB", "weight_format"], stored);
    }
    Ok(found)
}

/// Old versions stored matrices in the order of a device.
fn row_major(files: &SafetensorsFiles, name: &str) -> Result<()> {
    let format = match files.raw(name) {
        None => return Ok(()),
        Some((_, _, bytes)) => bytes.first().copied().unwrap_or_default(),
    };
    let known = ["row", "col32", "col_turing", "col_ampere"];
    match format {
        0 => Ok(()),
        other => Err(ModelError::tensor(
            name,
            format!(
                "is {other} ({}); 0, rows one after the other, is read: save the model again with a present version of bitsandbytes",
                known.get(usize::from(other)).unwrap_or(&"unknown")
            ),
        )),
    }
}
