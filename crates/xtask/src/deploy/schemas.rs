//! Files of `deploy/` against the schemas of those who read them. The schemas come with packages, so
//! nothing is asked of a cluster or of the network. Unknown fields are errors.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{deploy, kubernetes};
use crate::{install, target_dir};

/// Kubernetes versions whose schemas every object must fit: the first that knows all fields, and the
/// newest that the package has.
const KUBERNETES: &[&str] = &["1.30", "1.37"];

/// Groups of interfaces that come with operators, whose types come with packages of their own. Only that of
/// inference has none; `kubernetes` has a table for it.
const OPERATORS: &[&str] = &[
    "gateway.networking.k8s.io/",
    "inference.networking.k8s.io/",
    "keda.sh/",
    "monitoring.coreos.com/",
];

/// Checks every file that has a schema.
pub fn check() -> Result<()> {
    let python = python()?;
    let program = |name: &str| python.with_file_name(name);
    let compose = ["docker/compose.yaml", "docker/compose.cuda.yaml"].map(deploy);
    let schema = ["--builtin-schema", "vendor.compose-spec"];
    install::run(
        Command::new(program("check-jsonschema"))
            .args(schema)
            .args(compose),
    )?;
    // Versions of Debian's packages are those of the base image.
    let image = deploy("docker/Dockerfile");
    let lint = ["--ignore", "DL3008"];
    install::run(Command::new(program("hadolint")).args(lint).arg(image))?;
    manifests(&program("kubernetes-validate"))?;
    published_types()?;
    start_up_files(&program("check-jsonschema"))?;
    install::run(Command::new(program("shellcheck")).arg(deploy("cloud/install.sh")))
}

/// The start-up files against cloud-init's own schema, out of its Debian package.
fn start_up_files(validator: &Path) -> Result<()> {
    let package = install::unpacked("cloud-init")?;
    let schema = package
        .join("usr/lib/python3/dist-packages/cloudinit/config/schemas/schema-cloud-config-v1.json");
    let files = ["cloud/lambda-a10.yaml", "cloud/gcp-l4-t4.yaml"].map(deploy);
    install::run(
        Command::new(validator)
            .arg("--schemafile")
            .arg(schema)
            .args(files),
    )
}

/// Objects of operators and dashboards against the types that are published for programs that make them.
fn published_types() -> Result<()> {
    let types = deploy("tests/types");
    let dir = install::node("deploy-types", &types.join("package.json"))?;
    std::fs::copy(types.join("check.mjs"), dir.join("check.mjs"))?;
    let mut objects = Vec::new();
    for overlay in kubernetes::OVERLAYS {
        objects.extend(kubernetes::objects(overlay)?);
    }
    std::fs::write(dir.join("objects.json"), serde_json::to_vec(&objects)?)?;
    let boards = ["serving-overview", "engine-internals", "slo-burn"]
        .map(|board| deploy(&format!("grafana/dashboards/{board}.json")));
    let mut node = Command::new("node");
    node.args(["check.mjs", "objects.json"]).args(boards);
    install::run(node.current_dir(dir))
}

/// A Python that has the schemas and linters.
pub fn python() -> Result<PathBuf> {
    install::python("python-deploy", &deploy("tests/requirements.txt"))
}

/// Every overlay as it would be applied.
fn manifests(validator: &Path) -> Result<()> {
    let dir = target_dir().join("deploy");
    std::fs::create_dir_all(&dir)?;
    for overlay in kubernetes::OVERLAYS {
        let path = written(&dir, overlay)?;
        for version in KUBERNETES {
            let out = Command::new(validator)
                .args(["--strict", "-k", version])
                .arg(&path)
                .output()
                .with_context(|| format!("cannot start {}", validator.display()))?;
            let report =
                String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
            // A kind that the package does not know is only a warning there.
            if !out.status.success() || !report.contains("INFO") || report.contains("WARN") {
                bail!("{overlay} does not fit Kubernetes {version}:\n{report}");
            }
        }
        println!("kubernetes/{overlay}: fits {}", KUBERNETES.join(" and "));
    }
    Ok(())
}

/// The objects of an overlay in one file, those of operators left out.
fn written(dir: &Path, overlay: &str) -> Result<PathBuf> {
    let mut text = String::new();
    for object in kubernetes::objects(overlay)? {
        let version = object["apiVersion"].as_str().unwrap_or_default();
        if !OPERATORS.iter().any(|group| version.starts_with(group)) {
            text += &format!("---\n{}", yaml_serde::to_string(&object)?);
        }
    }
    let path = dir.join(format!("{}.yaml", overlay.replace('/', "-")));
    std::fs::write(&path, text)?;
    Ok(path)
}
