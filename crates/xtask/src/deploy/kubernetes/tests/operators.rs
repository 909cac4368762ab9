//! Objects of kinds that come with operators, whose schemas no package of the tests has: their fields
//! against a table of what each kind knows.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Cluster, OVERLAYS, seconds, text};

/// The fields of kinds that come with operators, and what they hold; `*` is any key, `[]` any item,
/// words after a colon are the only ones allowed. From the definitions of each kind as of August 2026:
/// Prometheus operator 0.93, KEDA, Inference Extension 1.5, Gateway API.
const FIELDS: &[(&str, &[&str])] = &[
    (
        "monitoring.coreos.com/v1 PodMonitor",
        &[
            "spec.selector.matchLabels.*: text",
            "spec.podMetricsEndpoints[].port: text",
            "spec.podMetricsEndpoints[].path: text",
            "spec.podMetricsEndpoints[].interval: DURATION",
            "spec.podMetricsEndpoints[].scrapeTimeout: DURATION",
            "spec.podMetricsEndpoints[].relabelings[].action: replace keep drop labelmap",
            "spec.podMetricsEndpoints[].relabelings[].sourceLabels[]: text",
            "spec.podMetricsEndpoints[].relabelings[].targetLabel: text",
            "spec.podMetricsEndpoints[].relabelings[].replacement: text",
        ],
    ),
    (
        "keda.sh/v1alpha1 ScaledObject",
        &[
            "spec.scaleTargetRef.apiVersion: text",
            "spec.scaleTargetRef.kind: text",
            "spec.scaleTargetRef.name: text",
            "spec.minReplicaCount: number",
            "spec.maxReplicaCount: number",
            "spec.pollingInterval: number",
            "spec.fallback.failureThreshold: number",
            "spec.fallback.replicas: number",
            "spec.fallback.behavior: static currentReplicas currentReplicasIfHigher currentReplicasIfLower",
            "spec.advanced.horizontalPodAutoscalerConfig.behavior.scaleUp.stabilizationWindowSeconds: number",
            "spec.advanced.horizontalPodAutoscalerConfig.behavior.scaleDown.stabilizationWindowSeconds: number",
            "spec.advanced.horizontalPodAutoscalerConfig.behavior.scaleDown.policies[].type: Pods Percent",
            "spec.advanced.horizontalPodAutoscalerConfig.behavior.scaleDown.policies[].value: number",
            "spec.advanced.horizontalPodAutoscalerConfig.behavior.scaleDown.policies[].periodSeconds: number",
            "spec.triggers[].type: prometheus",
            "spec.triggers[].name: text",
            "spec.triggers[].metricType: AverageValue Value",
            // Every parameter of a trigger is a text, numbers too.
            "spec.triggers[].metadata.serverAddress: text",
            "spec.triggers[].metadata.query: text",
            "spec.triggers[].metadata.threshold: NUMBER",
            "spec.triggers[].metadata.ignoreNullValues: true false",
        ],
    ),
    (
        "inference.networking.k8s.io/v1 InferencePool",
        &[
            "spec.selector.matchLabels.*: text",
            "spec.targetPorts[].number: number",
            "spec.endpointPickerRef.name: text",
            "spec.endpointPickerRef.port.number: number",
            "spec.endpointPickerRef.failureMode: FailOpen FailClose",
        ],
    ),
    (
        "gateway.networking.k8s.io/v1 HTTPRoute",
        &[
            "spec.parentRefs[].group: text",
            "spec.parentRefs[].kind: text",
            "spec.parentRefs[].name: text",
            "spec.rules[].matches[].path.type: Exact PathPrefix RegularExpression",
            "spec.rules[].matches[].path.value: text",
            "spec.rules[].backendRefs[].group: text",
            "spec.rules[].backendRefs[].kind: text",
            "spec.rules[].backendRefs[].name: text",
            "spec.rules[].timeouts.request: DURATION",
        ],
    ),
];

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
        ("NUMBER", Value::String(text)) => text.parse::<f64>().is_ok(),
        ("DURATION", Value::String(text)) => seconds(text).is_some(),
        (words, Value::String(text)) => words.split(' ').any(|word| word == text),
        _ => false,
    }
}

#[test]
fn objects_of_operators_have_no_other_fields() {
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
