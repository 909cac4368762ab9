//! The bill of materials of a release: every package that the programs are built from, with version, licence and
//! checksum, in the form of CycloneDX 1.6. The same lock file gives the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::packages::{Graph, Package, built_from};
use crate::{install, root};

/// The packages of the programs that a release holds.
const PROGRAMS: &[&str] = &["octet", "loadtest"];
/// Where the schema lies in the Python package of CycloneDX.
const SCHEMA: &str = "cyclonedx/schema/_res/bom-1.6.SNAPSHOT.schema.json";

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// The document as text.
pub fn text() -> Result<String> {
    Ok(serde_json::to_string_pretty(&document()?)? + "\n")
}

fn document() -> Result<Value> {
    let graph = Graph::read()?;
    let built = built_from(PROGRAMS)?;
    let checksums = checksums()?;
    let packages = graph.packages.iter().filter(|p| built.contains(&p.spec()));
    let mut packages: BTreeMap<String, &Package> = packages.map(|p| (p.spec(), p)).collect();
    if packages.len() != built.len() {
        bail!("cargo tree and cargo metadata list different packages");
    }
    let mut needs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (from, to, is_built) in graph.edges() {
        if is_built && built.contains(&from.spec()) && built.contains(&to.spec()) {
            needs.entry(purl(from)).or_default().insert(purl(to));
        }
    }
    let version = env!("CARGO_PKG_VERSION");
    let octet = packages.remove(&format!("octet@{version}"));
    let octet = component("application", octet.context("no package is octet")?, None);
    let components: Vec<_> = packages
        .iter()
        .map(|(spec, package)| component("library", package, checksums.get(spec)))
        .collect();
    let dependencies: Vec<_> = needs
        .iter()
        .map(|(from, to)| json!({"ref": from, "dependsOn": to}))
        .collect();
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": octet},
        "components": components,
        "dependencies": dependencies,
    }))
}

fn component(kind: &str, package: &Package, checksum: Option<&String>) -> Value {
    let mut component = json!({
        "type": kind,
        "bom-ref": purl(package),
        "name": package.name,
        "version": package.version,
        "purl": purl(package),
    });
    if let Some(text) = &package.description {
        component["description"] = text.split_whitespace().collect::<Vec<_>>().join(" ").into();
    }
    if let Some(license) = &package.license {
        // An older spelling of OR.
        let expression = license.replace(" / ", " OR ").replace('/', " OR ");
        component["licenses"] = json!([{"expression": expression}]);
    }
    if let Some(checksum) = checksum {
        component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    component
}

/// A package's address in the form that scanners read.
fn purl(package: &Package) -> String {
    // Build metadata, as in 1.0.0+2, is escaped.
    let version = package.version.replace('+', "%2B");
    format!("pkg:cargo/{}@{version}", package.name)
}

/// What the lock file says of each archive.
fn checksums() -> Result<BTreeMap<String, String>> {
    let lock: Lock = toml::from_str(&std::fs::read_to_string(root().join("Cargo.lock"))?)?;
    let known = lock.package.into_iter().filter_map(|locked| {
        let spec = format!("{}@{}", locked.name, locked.version);
        locked.checksum.map(|checksum| (spec, checksum))
    });
    Ok(known.collect())
}

/// Holds a written document to the schema, by the validator beside this Python.
pub fn check(path: &Path, python: &Path) -> Result<()> {
    let find = format!(
        "import cyclonedx, pathlib; print(pathlib.Path(cyclonedx.__file__).parents[1] / {SCHEMA:?})"
    );
    let schema = Command::new(python).args(["-c", &find]).output()?;
    let schema = String::from_utf8(schema.stdout)?;
    let mut validate = Command::new(python.with_file_name("check-jsonschema"));
    validate.args(["--schemafile", schema.trim()]);
    install::run(validate.arg(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_that_is_built_is_listed_with_its_licence_and_checksum() {
        let document = document().expect("cargo lists packages");
        let components = document["components"].as_array().expect("a list");
        assert!(components.len() > 100, "{}", components.len());
        let names: BTreeSet<_> = components.iter().map(|c| c["name"].as_str()).collect();
        for (name, is_built) in [
            ("tokenizers", true),
            ("gateway", true),
            ("loadtest", true),
            // For tests, and for tasks.
            ("proptest", false),
            ("xtask", false),
        ] {
            assert_eq!(names.contains(&Some(name)), is_built, "{name}");
        }
        let ours: Vec<_> = components
            .iter()
            .filter(|c| c["hashes"].is_null())
            .collect();
        assert!(
            ours.iter()
                .all(|c| c["version"] == env!("CARGO_PKG_VERSION")),
            "{ours:?}"
        );
        assert!(
            components
                .iter()
                .all(|c| c["licenses"][0]["expression"].is_string())
        );
        let refs: BTreeSet<_> = components.iter().map(|c| c["bom-ref"].as_str()).collect();
        assert_eq!(refs.len(), components.len());
        let octet = &document["metadata"]["component"]["bom-ref"];
        for dependency in document["dependencies"].as_array().expect("a list") {
            let from = &dependency["ref"];
            assert!(from == octet || refs.contains(&from.as_str()), "{from}");
            for to in dependency["dependsOn"].as_array().expect("a list") {
                assert!(refs.contains(&to.as_str()), "{to}");
            }
        }
        assert_eq!(text().expect("once"), text().expect("twice"));
    }
}
