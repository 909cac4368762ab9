//! GPTQ with 8 bits: `qweight` `[inputs / 4, outputs]`, four inputs per word, the lowest bits first;
//! `scales` and `qzeros` by groups of inputs; `g_idx` with the group of each input.
//! `w[k, n] = s[g, n] · (u[k, n] − z[g, n])`. The first version of the format stores `z − 1`.

use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::{Map, Value};

use super::matrix::{Groups, Matrix};
use super::{Found, Layout, Parts, Stored, text};
use crate::error::{ModelError, Result};
use crate::safetensors_files::{SafetensorsFiles, elements};
use crate::tensors::TensorSource;

pub(super) fn find(settings: &Map<String, Value>, files: &SafetensorsFiles) -> Result<Found> {
    let bits = settings.get("bits").and_then(Value::as_u64);
    if bits != Some(8) {
        return Err(ModelError::unsupported(
            "quantization_config.bits",
            settings.get("bits").unwrap_or(&Value::Null),
            "GPTQ with 8 bits is",
        ));
    }
    let less_one = match text(settings, "checkpoint_format") {
        None | Some("gptq") => true,
        Some("gptq_v2") => false,
        Some(other) => {
            return Err(ModelError::unsupported(
                "quantization_config.checkpoint_format",
                other,
                "gptq and gptq_v2 are",
            ));
        }
    };
    let group_size = settings.get("group_size").and_then(Value::as_i64);
    let mut found = Found::default();
    for name in files.names() {
        let Some(prefix) = name.strip_suffix(".qweight") else {
            continue;
        };
        let Some((Dtype::I32, &[words, rows], _)) = files.raw(&name) else {
            return Err(ModelError::tensor(&name, "is not a matrix of type I32"));
        };
        let columns = words.saturating_mul(4);
        let group_len = match group_size {
            Some(-1) | None => columns.max(1),
            Some(len) if len > 0 => len as usize,
            Some(other) => {
                return Err(ModelError::unsupported(
                    "quantization_config.group_size",
                    other,
                    "-1 and counts of inputs are",
                ));
            }
        };
        let stored = Stored {
            shape: [rows, columns],
            layout: Layout::Gptq {
                group_len,
                less_one,
            },
        };
        let parts = ["qweight", "qzeros", "scales", "g_idx"];
        found.add(files, prefix, &parts, stored);
    }
    Ok(found)
}

pub(super) fn read(parts: &Parts, group_len: usize, less_one: bool) -> Result<Matrix> {
    let [rows, columns] = parts.shape;
    let groups = columns.div_ceil(group_len);
    let scales = parts.floats("scales", groups * rows)?;
    let zeros = parts.raw("qzeros", Dtype::I32, &[groups, rows.div_ceil(4)])?;
    let zero_row = 4 * rows.div_ceil(4);
    let by_row = || (0..rows).flat_map(|row| (0..groups).map(move |group| (group, row)));
    let zero_points = by_row()
        .map(|(group, row)| i32::from(zeros[group * zero_row + row]) + i32::from(less_one) - 128)
        .collect();
    Ok(Matrix {
        values: turned(
            parts.raw("qweight", Dtype::I32, &[columns / 4, rows])?,
            rows,
            columns,
        ),
        scales: by_row()
            .map(|(group, row)| scales[group * rows + row])
            .collect(),
        zero_points: Some(zero_points),
        groups: groups_of(parts, group_len, groups)?,
        columns,
    })
}

/// `[inputs / 4, outputs, 4]` unsigned to `[outputs, inputs]` signed.
fn turned(words: &[u8], rows: usize, columns: usize) -> Vec<i8> {
    const ROWS_AT_ONCE: usize = 64;
    let mut out = vec![0i8; rows * columns];
    if columns == 0 {
        return out;
    }
    let blocks = out.par_chunks_mut(ROWS_AT_ONCE * columns).enumerate();
    blocks.for_each(|(block, out)| {
        let first = block * ROWS_AT_ONCE;
        for step in 0..columns / 4 {
            for (row, out) in out.chunks_exact_mut(columns).enumerate() {
                let from = &words[4 * (step * rows + first + row)..][..4];
                for (out, byte) in out[4 * step..][..4].iter_mut().zip(from) {
                    *out = (byte ^ 0x80).cast_signed();
                }
            }
        }
    });
    out
}

fn groups_of(parts: &Parts, group_len: usize, groups: usize) -> Result<Groups> {
    let name = parts.name("g_idx");
    let Some((_, _, _)) = parts.files.raw(&name) else {
        return Ok(Groups::Runs(group_len));
    };
    let index = elements(
        parts.raw("g_idx", Dtype::I32, &[parts.shape[1]])?,
        i32::from_le_bytes,
    );
    Groups::new(&index, group_len, groups).map_err(|reason| ModelError::tensor(&name, reason))
}
