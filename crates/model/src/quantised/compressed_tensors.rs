//! compressed-tensors: which scheme each module has by the configuration, checked against what is
//! stored. Format: the library's own documentation of `quantization_config`.

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde_json::{Map, Value};

use super::targets::{Exactness, Target};
use super::{Found, Layout, Stored, switch, text};
use crate::error::{ModelError, Result};
use crate::safetensors_files::{SafetensorsFiles, elements};
use crate::tensors::TensorSource;

const KEY: &str = "quantization_config";

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Int,
    Packed,
}

/// How the modules of one group are quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scheme {
    format: Format,
    /// Inputs that share a scale; none for whole rows and whole tensors.
    group_len: Option<usize>,
    /// Scales of activations are stored.
    static_activations: bool,
}

struct Group {
    targets: Vec<Target>,
    /// None for modules that keep their floats.
    scheme: Option<Scheme>,
}

struct Settings {
    groups: Vec<Group>,
    ignore: Vec<Target>,
    /// Floats with scales, not quantised yet.
    frozen: bool,
    kv_scales: bool,
}

impl Settings {
    /// The scheme of a module and how exactly it was named.
    fn scheme(&self, module: &str) -> Option<(Scheme, Exactness)> {
        if self.ignored(module) {
            return None;
        }
        let named = self.groups.iter().filter_map(|group| {
            let exactness = group
                .targets
                .iter()
                .filter_map(|t| t.matches(module))
                .max()?;
            Some((group.scheme, exactness))
        });
        // The first of equally exact ones counts.
        let (scheme, exactness) = named.reduce(|a, b| if b.1 > a.1 { b } else { a })?;
        Some((scheme?, exactness))
    }

    fn ignored(&self, module: &str) -> bool {
        self.ignore
            .iter()
            .any(|target| target.matches(module).is_some())
    }
}

pub(super) fn find(settings: &Map<String, Value>, files: &SafetensorsFiles) -> Result<Found> {
    let settings = read(settings)?;
    let mut found = Found::default();
    let mut static_activations = false;
    for name in files.names() {
        let (module, stored) = match name.rsplit_once('.') {
            Some((module, "weight")) => (module, weight(&settings, files, &name, module)?),
            Some((module, "weight_packed")) => (module, packed(&settings, files, &name, module)?),
            Some((_, "k_scale" | "v_scale" | "q_scale")) if settings.kv_scales => {
                found.consumed.insert(name);
                continue;
            }
            _ => continue,
        };
        let Some((stored, scheme)) = stored else {
            continue;
        };
        let weight = match stored.layout {
            Layout::Packed { .. } => "weight_packed",
            _ => "weight",
        };
        let mut parts = vec![
            weight,
            "weight_scale",
            "weight_zero_point",
            "weight_shape",
            "weight_g_idx",
        ];
        if scheme.static_activations {
            static_activations = true;
            parts.extend(["input_scale", "input_zero_point"]);
        }
        found.add(files, module, &parts, stored);
    }
    if static_activations {
        tracing::info!(
            "the checkpoint's fixed scales of activations are not used; activations are scaled as they come, which is more accurate"
        );
    }
    Ok(found)
}

/// What `MODULE.weight` is: integers, floats on their way to integers, or nothing of ours.
fn weight(
    settings: &Settings,
    files: &SafetensorsFiles,
    name: &str,
    module: &str,
) -> Result<Option<(Stored, Scheme)>> {
    let Some((dtype, shape, _)) = files.raw(name) else {
        return Ok(None);
    };
    let scale = format!("{module}.weight_scale");
    let (has_scale, scheme) = (files.raw(&scale).is_some(), settings.scheme(module));
    let &[rows, columns] = shape else {
        return Ok(None);
    };
    let shape = [rows, columns];
    match (dtype, scheme) {
        (Dtype::I8, Some((scheme, _))) => {
            if !has_scale {
                return Err(ModelError::tensor(&scale, "is missing beside integers"));
            }
            let layout = Layout::Int {
                group_len: scheme.group_len.unwrap_or(columns).max(1),
            };
            Ok(Some((Stored { shape, layout }, scheme)))
        }
        (Dtype::I8, None) => Err(ModelError::tensor(
            name,
            "is stored as I8, but quantization_config ignores it or names it nowhere",
        )),
        (_, Some((scheme, _))) if has_scale && settings.frozen => {
            let layout = Layout::Frozen {
                group_len: scheme.group_len.unwrap_or(columns).max(1),
            };
            Ok(Some((Stored { shape, layout }, scheme)))
        }
        (dtype, Some((_, exactness))) if has_scale || exactness > Exactness::Class => {
            Err(ModelError::tensor(
                name,
                format!("is stored as {dtype:?}, but quantization_config quantises it"),
            ))
        }
        _ => Ok(None),
    }
}

/// What `MODULE.weight_packed` is.
fn packed(
    settings: &Settings,
    files: &SafetensorsFiles,
    name: &str,
    module: &str,
) -> Result<Option<(Stored, Scheme)>> {
    let Some((scheme, _)) = settings.scheme(module) else {
        return Err(ModelError::tensor(
            name,
            "is packed, but quantization_config ignores it or names it nowhere",
        ));
    };
    if scheme.format != Format::Packed {
        return Err(ModelError::tensor(
            name,
            "is packed, but the format of its group is int-quantized",
        ));
    }
    let dims = format!("{module}.weight_shape");
    let shape: Option<Vec<usize>> = match files.raw(&dims) {
        Some((Dtype::I64, &[2], bytes)) => elements(bytes, i64::from_le_bytes)
            .into_iter()
            .map(|dim| usize::try_from(dim).ok())
            .collect(),
        _ => None,
    };
    let Some([rows, columns]) = shape
        .as_deref()
        .and_then(|shape| shape.first_chunk())
        .copied()
    else {
        return Err(ModelError::tensor(&dims, "is not two sizes of type I64"));
    };
    // The sizes are believed only where the packed words bear them out.
    match files.raw(name) {
        Some((Dtype::I32, &[found, words], _)) if found == rows && words == columns.div_ceil(4) => {
        }
        Some((dtype, found, _)) => {
            return Err(ModelError::tensor(
                name,
                format!(
                    "has type {dtype:?} and shape {found:?} for 8-bit weights [{rows}, {columns}]"
                ),
            ));
        }
        None => return Ok(None),
    }
    let layout = Layout::Packed {
        group_len: scheme.group_len.unwrap_or(columns).max(1),
    };
    let shape = [rows, columns];
    Ok(Some((Stored { shape, layout }, scheme)))
}

fn read(settings: &Map<String, Value>) -> Result<Settings> {
    let frozen = match text(settings, "quantization_status") {
        None | Some("compressed") => false,
        Some("frozen") => true,
        Some(other) => {
            return Err(refused(
                "quantization_status",
                other,
                "compressed and frozen are",
            ));
        }
    };
    refuse_extras(settings)?;
    let format = text(settings, "format").unwrap_or("int-quantized");
    let groups = match settings.get("config_groups") {
        Some(Value::Object(groups)) => groups,
        _ => return Err(ModelError::config("config_groups", "is not an object")),
    };
    let groups: Result<Vec<Group>> = groups
        .iter()
        .map(|(name, value)| group(name, value, format))
        .collect();
    let groups = groups?;
    refuse_duplicates(&groups)?;
    let ignore = match settings.get("ignore") {
        None | Some(Value::Null) => Vec::new(),
        Some(list) => Target::list("ignore", list)?,
    };
    let kv_scales = settings
        .get("kv_cache_scheme")
        .is_some_and(|s| !s.is_null());
    Ok(Settings {
        groups,
        ignore,
        frozen,
        kv_scales,
    })
}

fn refused(key: &str, value: impl std::fmt::Display, reason: &str) -> ModelError {
    ModelError::unsupported(&format!("{KEY}.{key}"), value, reason)
}

/// Sparsity and rotations change what the tensors mean.
fn refuse_extras(settings: &Map<String, Value>) -> Result<()> {
    if let Some(sparsity) = settings.get("sparsity_config").and_then(Value::as_object)
        && !sparsity.is_empty()
    {
        match text(sparsity, "format") {
            None | Some("dense") => {}
            Some(other) => return Err(refused("sparsity_config.format", other, "dense is")),
        }
    }
    match settings.get("transform_config") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Object(map))
            if map.is_empty()
                || map.get("config_groups").is_some_and(|groups| {
                    groups.as_object().is_some_and(|groups| groups.is_empty())
                }) =>
        {
            Ok(())
        }
        Some(_) => Err(refused(
            "transform_config",
            "a rotation",
            "weights without rotations are",
        )),
    }
}

fn refuse_duplicates(groups: &[Group]) -> Result<()> {
    let mut seen: BTreeMap<&str, Option<Scheme>> = BTreeMap::new();
    for group in groups {
        for target in &group.targets {
            if let Some(before) = seen.insert(target.text(), group.scheme)
                && before != group.scheme
            {
                return Err(ModelError::config(
                    "config_groups",
                    format!(
                        "names {} in two groups with different schemes",
                        target.text()
                    ),
                ));
            }
        }
    }
    Ok(())
}

fn group(name: &str, value: &Value, format: &str) -> Result<Group> {
    let key = format!("config_groups.{name}");
    let object = match value {
        Value::Object(object) => object,
        Value::Array(_) => return preset(name, value, format),
        _ => return Err(ModelError::config(&key, "is neither a scheme nor a list")),
    };
    let targets = match object.get("targets") {
        Some(targets) => Target::list(&format!("{key}.targets"), targets)?,
        None => return Err(ModelError::config(&key, "has no targets")),
    };
    if object
        .get("output_activations")
        .is_some_and(|args| !args.is_null())
    {
        return Err(refused(
            &format!("{key}.output_activations"),
            "a scheme",
            "null is",
        ));
    }
    let weights = match object.get("weights") {
        None | Some(Value::Null) => {
            return Ok(Group {
                targets,
                scheme: None,
            });
        }
        Some(args) => arguments(&format!("{key}.weights"), args)?,
    };
    let own = text(object, "format").filter(|own| !own.is_empty());
    let scheme = Scheme {
        format: storage(&key, own.unwrap_or(format))?,
        group_len: weight_groups(&format!("{key}.weights"), weights)?,
        static_activations: match object.get("input_activations") {
            None | Some(Value::Null) => false,
            Some(args) => activations(&format!("{key}.input_activations"), args)?,
        },
    };
    Ok(Group {
        targets,
        scheme: Some(scheme),
    })
}

/// A group that is called after a scheme and lists its targets only.
fn preset(name: &str, targets: &Value, format: &str) -> Result<Group> {
    let key = format!("config_groups.{name}");
    let group_len = match name.to_ascii_uppercase().as_str() {
        "W8A8" | "INT8" => None,
        "W8A16" => Some(128),
        other => return Err(refused(&key, other, "W8A8, INT8 and W8A16 are")),
    };
    Ok(Group {
        targets: Target::list(&key, targets)?,
        scheme: Some(Scheme {
            format: storage(&key, format)?,
            group_len,
            static_activations: false,
        }),
    })
}

fn storage(key: &str, format: &str) -> Result<Format> {
    match format {
        "int-quantized" | "naive-quantized" => Ok(Format::Int),
        "pack-quantized" => Ok(Format::Packed),
        other => Err(refused(
            &format!("{key}.format"),
            other,
            "int-quantized and pack-quantized with 8 bits are",
        )),
    }
}

/// The fields of quantisation arguments; unknown ones may change what is meant.
fn arguments<'a>(key: &str, value: &'a Value) -> Result<&'a Map<String, Value>> {
    const KNOWN: &[&str] = &[
        "num_bits",
        "type",
        "symmetric",
        "strategy",
        "group_size",
        "block_structure",
        "dynamic",
        "actorder",
        "observer",
        "observer_kwargs",
        "scale_dtype",
        "zp_dtype",
    ];
    let object = value
        .as_object()
        .ok_or_else(|| ModelError::config(key, "is not an object"))?;
    if let Some(unknown) = object.keys().find(|field| !KNOWN.contains(&field.as_str())) {
        return Err(refused(
            &format!("{}.{unknown}", key),
            &object[unknown],
            "this field is unknown",
        ));
    }
    let bits = object.get("num_bits").unwrap_or(&Value::Null);
    let kind = text(object, "type").unwrap_or("int");
    if !bits.is_null() && bits.as_u64() != Some(8) {
        return Err(refused(&format!("{key}.num_bits"), bits, "8 is"));
    }
    if !kind.eq_ignore_ascii_case("int") {
        return Err(refused(&format!("{key}.type"), kind, "int is"));
    }
    Ok(object)
}

/// Inputs that share a scale of weights.
fn weight_groups(key: &str, args: &Map<String, Value>) -> Result<Option<usize>> {
    if args
        .get("dynamic")
        .is_some_and(|d| !d.is_null() && *d != Value::Bool(false))
    {
        return Err(refused(
            &format!("{key}.dynamic"),
            &args["dynamic"],
            "false is",
        ));
    }
    let size = match args.get("group_size") {
        None | Some(Value::Null) => None,
        Some(value) => match value.as_i64() {
            Some(-1) => None,
            Some(size) if size > 0 => Some(size as usize),
            _ => {
                return Err(refused(
                    &format!("{key}.group_size"),
                    value,
                    "-1 and counts are",
                ));
            }
        },
    };
    match (text(args, "strategy"), size) {
        (Some("tensor" | "channel"), None) | (None, None) => Ok(None),
        (Some("group") | None, Some(size)) => Ok(Some(size)),
        (Some("group"), None) => Err(ModelError::config(
            &format!("{key}.group_size"),
            "is missing for the strategy group",
        )),
        (Some(strategy @ ("tensor" | "channel")), Some(size)) => Err(ModelError::config(
            &format!("{key}.group_size"),
            format!("is {size} for the strategy {strategy}"),
        )),
        (Some(other), _) => Err(refused(
            &format!("{key}.strategy"),
            other,
            "tensor, channel and group are",
        )),
    }
}

/// Whether activations have scales in the file. Which activations are asymmetric or scaled otherwise is
/// the producer's wish; this program scales them in its own way.
fn activations(key: &str, value: &Value) -> Result<bool> {
    let args = arguments(key, value)?;
    let dynamic = switch(args, "dynamic");
    if text(args, "strategy") == Some("token") && !dynamic {
        return Err(ModelError::config(
            key,
            "has the strategy token without dynamic",
        ));
    }
    Ok(!dynamic)
}
