//! `deny.toml` against the packages in use: licences, bans, versions side by side, sources. cargo-deny reads the
//! same file; this needs neither the tool nor the network.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde::Deserialize;
use spdx::{Expression, ParseMode};

use crate::packages::{Graph, Package};
use crate::root;

/// Where packages of others come from.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

#[derive(Deserialize)]
struct Policy {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
    skip: Vec<Skip>,
}

/// A package that only those named may use, or nobody.
#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    #[serde(default)]
    wrappers: Vec<String>,
    reason: String,
}

/// The older of two versions in use.
#[derive(Deserialize)]
struct Skip {
    #[serde(rename = "crate")]
    spec: String,
}

/// Adds a violation for each package that the policy does not allow.
pub fn check(violations: &mut Vec<String>) -> Result<()> {
    let text = std::fs::read_to_string(root().join("deny.toml")).context("deny.toml")?;
    let policy = toml::from_str(&text).context("deny.toml")?;
    violations.extend(broken(&policy, &Graph::read()?));
    Ok(())
}

fn broken(policy: &Policy, graph: &Graph) -> Vec<String> {
    let mut found = Vec::new();
    let mut used = BTreeSet::new();
    for package in &graph.packages {
        found.extend(license(&policy.licenses.allow, package, &mut used));
        if package
            .source
            .as_deref()
            .is_some_and(|source| source != CRATES_IO)
        {
            found.push(format!("{} does not come from crates.io", package.spec()));
        }
    }
    let unused = policy.licenses.allow.difference(&used);
    found.extend(unused.map(|name| format!("deny.toml allows {name}, which no package asks for")));
    for (from, to, _) in graph.edges() {
        let banned = |ban: &&Ban| ban.name == to.name && !ban.wrappers.contains(&from.name);
        if let Some(ban) = policy.bans.deny.iter().find(banned) {
            found.push(format!(
                "{} must not use {}: {}",
                from.name, to.name, ban.reason
            ));
        }
    }
    found.extend(side_by_side(&policy.bans.skip, graph));
    found
}

/// Why a package's licence does not do; notes which of those allowed it needs.
fn license(
    allowed: &BTreeSet<String>,
    package: &Package,
    used: &mut BTreeSet<String>,
) -> Option<String> {
    let spec = package.spec();
    let Some(text) = &package.license else {
        return Some(format!("{spec} says nothing of its licence"));
    };
    let Ok(expression) = Expression::parse_mode(text, ParseMode::LAX) else {
        return Some(format!("{spec}: {text} is no licence"));
    };
    let is_allowed = expression.evaluate(|needed| {
        let name = needed.to_string();
        let is_allowed = allowed.contains(&name);
        if is_allowed {
            used.insert(name);
        }
        is_allowed
    });
    (!is_allowed).then(|| format!("{spec}: deny.toml does not allow {text}"))
}

/// Versions of one package beside its newest, unless they are on the list; what is on it and not in use.
fn side_by_side(skipped: &[Skip], graph: &Graph) -> Vec<String> {
    let mut versions: BTreeMap<&str, Vec<&Package>> = BTreeMap::new();
    for package in &graph.packages {
        versions.entry(&package.name).or_default().push(package);
    }
    let skipped: BTreeSet<&str> = skipped.iter().map(|skip| skip.spec.as_str()).collect();
    let mut found = Vec::new();
    let mut met = BTreeSet::new();
    for (name, mut versions) in versions
        .into_iter()
        .filter(|(_, versions)| versions.len() > 1)
    {
        versions.retain(|package| !met_in(&skipped, package, &mut met));
        if versions.len() > 1 {
            let specs: Vec<_> = versions.iter().map(|package| package.spec()).collect();
            found.push(format!("{name} in several versions: {}", specs.join(", ")));
        }
    }
    let stale = skipped.iter().filter(|spec| !met.contains(**spec));
    found.extend(stale.map(|spec| format!("deny.toml skips {spec}, which stands beside no other")));
    found
}

fn met_in(skipped: &BTreeSet<&str>, package: &Package, met: &mut BTreeSet<String>) -> bool {
    let spec = package.spec();
    let is_skipped = skipped.contains(spec.as_str());
    if is_skipped {
        met.insert(spec);
    }
    is_skipped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(policy: &str, packages: &str, nodes: &str) -> Vec<String> {
        let graph = format!(r#"{{"packages": [{packages}], "resolve": {{"nodes": [{nodes}]}}}}"#);
        broken(
            &toml::from_str(policy).expect("a policy"),
            &serde_json::from_str(&graph).expect("a graph"),
        )
    }

    fn package(spec: &str, license: &str) -> String {
        let (name, version) = spec.split_once('@').expect("a version");
        format!(
            r#"{{"name": "{name}", "version": "{version}", "license": "{license}", "id": "{spec}",
                "source": "{CRATES_IO}", "description": null}}"#
        )
    }

    #[test]
    fn what_the_policy_does_not_allow_is_found() {
        let policy = r#"
            licenses.allow = ["MIT", "ISC"]
            bans.deny = [{ crate = "net", wrappers = ["chat"], reason = "no calls" }]
            bans.skip = [{ crate = "two@1.0.0" }, { crate = "gone@1.0.0" }]"#;
        let fine = [
            package("net@1.0.0", "GPL-3.0-only OR MIT"),
            package("chat@1.0.0", "MIT/Apache-2.0"),
            package("two@1.0.0", "MIT AND ISC"),
            package("two@2.0.0", "(MIT OR Zlib) AND ISC"),
        ];
        let node = |from: &str| {
            format!(r#"{{"id": "{from}", "deps": [{{"pkg": "net@1.0.0", "dep_kinds": []}}]}}"#)
        };
        let gone = "deny.toml skips gone@1.0.0, which stands beside no other";
        assert_eq!(found(policy, &fine.join(","), &node("chat@1.0.0")), [gone]);
        let bad = [
            package("bad@1.0.0", "GPL-3.0-only"),
            package("odd@1.0.0", "MIT AND Zlib"),
            package("odd@2.0.0", "mine alone"),
            package("git@1.0.0", "MIT").replace("registry+", "git+"),
        ];
        let all = [&fine[..], &bad[..]].concat().join(",");
        assert_eq!(
            found(policy, &all, &node("bad@1.0.0")),
            [
                "bad@1.0.0: deny.toml does not allow GPL-3.0-only",
                "odd@1.0.0: deny.toml does not allow MIT AND Zlib",
                "odd@2.0.0: mine alone is no licence",
                "git@1.0.0 does not come from crates.io",
                "bad must not use net: no calls",
                "odd in several versions: odd@1.0.0, odd@2.0.0",
                gone,
            ]
        );
    }
}
