//! Objects of a kind whose types no package has: their fields against a table of what the kind knows.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Cluster, OVERLAYS, text};

/// The fields of kinds, and what they hold; `*` is any key, `[]` any item, words after a colon are the only
/// ones allowed. From the definition of Inference Extension 1.5.
const FIELDS: &[(&str, &[&str])] = &[(
    "inference.networking.k8s.io/v1 InferencePool",
    &[
        "spec.selector.matchLabels.*: text",
        "spec.targetPorts[].number: number",
        "spec.endpointPickerRef.name: text",
        "spec.endpointPickerRef.port.number: number",
        "spec.endpointPickerRef.failureMode: FailOpen FailClose",
    ],
)];

/// The leaves of a value with their paths.
fn leaves<'a>(path: &str, value: &'a Value, found: &mut Vec<(String, &'a Value)>) {
    match value {
        Value::Object(fields) => {
            let any = path.ends_with("matchLabels");
            for (key, value) in fields {
                let key = if any { "*" } else { key };
                leaves(&format!("{path}.{key}"), value, found);
            }
        }
        Value::Array(items) => {
            let path = format!("{path}[]");
            items.iter().for_each(|item| leaves(&path, item, found));
        }
        leaf => found.push((path.to_owned(), leaf)),
    }
}

/// Whether a leaf is what a field holds.
fn holds(what: &str, leaf: &Value) -> bool {
    match (what, leaf) {
        ("text", Value::String(_)) => true,
        ("number", Value::Number(number)) => number.is_u64(),
        (words, Value::String(text)) => words.split(' ').any(|word| word == text),
        _ => false,
    }
}

#[test]
fn pools_have_no_other_fields() {
    let mut seen = BTreeSet::new();
    for overlay in OVERLAYS {
        for object in Cluster::of(overlay).0 {
            let key = format!("{} {}", text(&object["apiVersion"]), text(&object["kind"]));
            let Some((kind, fields)) = FIELDS.iter().find(|(kind, _)| *kind == key) else {
                continue;
            };
            seen.insert(*kind);
            let mut found = Vec::new();
            leaves("spec", &object["spec"], &mut found);
            for (path, leaf) in found {
                let field = fields.iter().find_map(|field| {
                    let (name, what) = field.split_once(": ")?;
                    (name == path).then_some(what)
                });
                let what = field.unwrap_or_else(|| panic!("{kind} has no {path}"));
                assert!(holds(what, leaf), "{kind} {path}: {leaf} is not {what}");
            }
        }
    }
    assert_eq!(seen.len(), FIELDS.len());
}
