//! The Kubernetes manifests as a cluster would get them: overlays are put together here with the few
//! features of Kustomize that they use; anything else is refused.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use super::deploy;

/// What an operator applies with `kubectl apply -k`, below `deploy/kubernetes`.
pub const OVERLAYS: &[&str] = &["base", "overlays/cpu", "overlays/cuda", "overlays/gie"];

/// The fields of `kustomization.yaml` that are understood.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Kustomization {
    #[serde(rename = "apiVersion")]
    _version: String,
    #[serde(rename = "kind")]
    _kind: String,
    namespace: String,
    resources: Vec<PathBuf>,
    #[serde(default)]
    patches: Vec<Patch>,
}

/// A file whose object is merged into the one of its kind and name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    path: PathBuf,
}

/// Every object of an overlay.
pub fn objects(overlay: &str) -> Result<Vec<Value>> {
    build(&deploy("kubernetes").join(overlay))
}

fn build(dir: &Path) -> Result<Vec<Value>> {
    let path = dir.join("kustomization.yaml");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let list: Kustomization =
        yaml_serde::from_str(&text).with_context(|| path.display().to_string())?;
    let mut objects = Vec::new();
    for resource in list.resources {
        let path = dir.join(resource);
        objects.extend(if path.is_dir() {
            build(&path)?
        } else {
            documents(&path)?
        });
    }
    for patch in list.patches {
        for patch in documents(&dir.join(patch.path))? {
            let key = name(&patch);
            let object = objects.iter_mut().find(|object| name(object) == key);
            merge(object.with_context(|| format!("no {key} to patch"))?, patch);
        }
    }
    for object in &mut objects {
        if object["kind"] != "Namespace" {
            object["metadata"]["namespace"] = list.namespace.clone().into();
        }
    }
    Ok(objects)
}

/// The documents of a YAML file.
fn documents(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut found = Vec::new();
    for document in text.split("\n---\n") {
        let value: Value =
            yaml_serde::from_str(document).with_context(|| path.display().to_string())?;
        if !value["kind"].is_string() {
            bail!("{}: a document without kind", path.display());
        }
        found.push(value);
    }
    Ok(found)
}

/// Kind and name, by which a patch finds its object.
pub fn name(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!(
        "{} {}",
        text(&object["kind"]),
        text(&object["metadata"]["name"])
    )
}

/// A strategic merge: fields over fields, list items of one name into each other, other lists
/// replaced.
fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(patch))
            if patch.iter().all(|item| item["name"].is_string()) =>
        {
            for item in patch {
                match into.iter_mut().find(|old| old["name"] == item["name"]) {
                    Some(old) => merge(old, item),
                    None => into.push(item),
                }
            }
        }
        (into, patch) => *into = patch,
    }
}

#[cfg(test)]
mod tests;
