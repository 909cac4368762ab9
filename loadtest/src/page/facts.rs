//! What is known about a configuration apart from its speed, to be held against another one.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::data::{Run, number, plain};
use super::group::Group;
use crate::scene::Gpu;

/// The fact that is the command.
pub const COMMAND: &str = "loadtest: command";

/// The fact that is how the server was started.
pub const SERVER_COMMAND: &str = "server: command";

/// Every known fact with the value of each group, `–` where one has none.
pub fn table(groups: &[Group]) -> Vec<(String, Vec<String>)> {
    let known: Vec<BTreeMap<String, String>> = groups.iter().map(of_group).collect();
    let names: BTreeSet<&String> = known.iter().flat_map(BTreeMap::keys).collect();
    let value = |facts: &BTreeMap<String, String>, name: &String| {
        facts.get(name).cloned().unwrap_or_else(|| "–".to_owned())
    };
    names
        .into_iter()
        .map(|name| {
            (
                name.clone(),
                known.iter().map(|facts| value(facts, name)).collect(),
            )
        })
        .collect()
}

/// Facts of all runs of a group; where they differ, every value.
fn of_group(group: &Group) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, value) in group.counted().into_iter().flat_map(of_run) {
        all.entry(name).or_default().insert(value);
    }
    let join = |values: BTreeSet<String>| Vec::from_iter(values).join(", ");
    all.into_iter()
        .map(|(name, values)| (name, join(values)))
        .collect()
}

/// Facts of a run.
pub fn of_run(run: &Run) -> Vec<(String, String)> {
    let load = &run.load;
    let mut facts = vec![
        ("model".to_owned(), run.target.model.clone()),
        ("endpoint".into(), run.target.endpoint.clone()),
        ("address".into(), run.target.url.clone()),
        ("load: arrival".into(), load.arrival.words()),
        ("load: prompt tokens".into(), plain(&load.prompt_tokens)),
        ("load: output tokens".into(), plain(&load.output_tokens)),
        (
            "load: goes on after the end token".into(),
            load.ignore_eos.to_string(),
        ),
        ("load: temperature".into(), number(load.temperature)),
        ("load: seed".into(), load.seed.to_string()),
        ("load: digest".into(), load.workload_sha256.clone()),
        ("loadtest".into(), run.tool.version.clone()),
        (COMMAND.into(), run.tool.command.clone()),
    ];
    facts.extend(machine(run));
    let command = run.target.command.iter();
    facts.extend(command.map(|command| (SERVER_COMMAND.into(), command.clone())));
    let build = run.server.build.iter();
    facts.extend(build.map(|(name, value)| (format!("server: {name}"), value.clone())));
    if let Some(version) = &run.target.version {
        flatten("server", version, &mut facts);
    }
    if let Some(card) = &run.target.model_card {
        flatten("model card", card, &mut facts);
    }
    // What a server says in two places is told once.
    let mut seen = BTreeSet::new();
    facts.retain(|(name, value)| {
        !value.is_empty() && !name.ends_with(": created") && seen.insert(name.clone())
    });
    facts
}

/// The machine, without what changes from start to start.
pub fn machine(run: &Run) -> Vec<(String, String)> {
    let host = &run.host;
    if host.cores == 0 {
        return Vec::new();
    }
    let place = if host.is_servers {
        "this machine"
    } else {
        "another machine"
    };
    let mut facts = vec![
        ("machine: processor".into(), host.cpu.clone()),
        ("machine: cores".into(), host.cores.to_string()),
        (
            "machine: memory".into(),
            format!("{:.0} GiB", gibibytes(host.memory_bytes)),
        ),
        ("machine: kernel".into(), host.kernel.clone()),
        ("machine: the server runs on".into(), place.into()),
    ];
    if !host.governor.is_empty() {
        facts.push(("machine: governor".into(), host.governor.clone()));
    }
    if let Some(cores) = host.container_cores {
        facts.push(("machine: container, cores".into(), number(cores)));
    }
    if let Some(bytes) = host.container_memory_bytes {
        let memory = format!("{} GiB", number(gibibytes(bytes)));
        facts.push(("machine: container, memory".into(), memory));
    }
    if !host.gpus.is_empty() {
        let gpus: Vec<String> = host.gpus.iter().map(gpu).collect();
        facts.push(("machine: GPU".into(), gpus.join(", ")));
    }
    facts
}

fn gpu(gpu: &Gpu) -> String {
    let memory = gpu
        .memory_bytes
        .map(|bytes| format!(", {:.0} GiB", gibibytes(bytes)));
    let power = gpu
        .power_limit_watts
        .map(|watts| format!(", at most {watts:.0} W"));
    let [memory, power] = [memory, power].map(Option::unwrap_or_default);
    format!("{}{memory}{power}, driver {}", gpu.name, gpu.driver)
}

fn gibibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1u32 << 30)
}

/// Whether nothing that is known of both machines differs; runs of earlier versions know less.
pub fn is_one_machine(first: &Run, second: &Run) -> bool {
    let (first, second) = (machine(first), machine(second));
    let agrees = |(name, value): &(String, String)| {
        let other = second.iter().find(|(other, _)| other == name);
        other.is_none_or(|(_, other)| other == value)
    };
    first.is_empty() == second.is_empty() && first.iter().all(agrees)
}

fn flatten(name: &str, value: &Value, facts: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                flatten(&format!("{name}: {key}"), field, facts);
            }
        }
        Value::Null => {}
        Value::String(text) => facts.push((name.to_owned(), text.clone())),
        other => facts.push((name.to_owned(), other.to_string())),
    }
}
