//! What is known about a configuration apart from its speed, to be held against another one.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::data::{Run, number, plain};
use super::group::Group;

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
        ("loadtest".into(), run.tool.version.clone()),
    ];
    facts.extend(machine(run));
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
    let gibibytes = host.memory_bytes as f64 / f64::from(1u32 << 30);
    if host.cores == 0 {
        return Vec::new();
    }
    let place = if host.is_servers {
        "this machine"
    } else {
        "another machine"
    };
    vec![
        ("machine: processor".into(), host.cpu.clone()),
        ("machine: cores".into(), host.cores.to_string()),
        ("machine: memory".into(), format!("{gibibytes:.0} GiB")),
        ("machine: kernel".into(), host.kernel.clone()),
        ("machine: the server runs on".into(), place.into()),
    ]
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
