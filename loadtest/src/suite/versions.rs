//! Which servers and which driver made the results of a folder, so that those of two commits do not stand beside
//! each other unnoticed.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use hyper::Method;
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::halt::Halt;
use super::serve::ANSWER;
use crate::results::write_json;
use crate::target::Target;

/// Name of the file, in the folder of the suite.
pub const VERSIONS: &str = "versions.json";
/// What the driver stands under.
const DRIVER: &str = "GPU driver";

/// What made the results of a folder: for each server, by its name, and for the driver the versions that were seen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Versions(BTreeMap<String, Vec<Value>>);

impl Versions {
    /// Those of a folder.
    ///
    /// # Errors
    /// A file that is not what it should be.
    pub fn read(out: &Path) -> Result<Self> {
        let path = out.join(VERSIONS);
        if !path.is_file() {
            return Ok(Self::default());
        }
        let text = std::fs::read_to_string(&path)?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }

    /// Takes note of a version of `what` and keeps it in the folder.
    ///
    /// # Errors
    /// [`Halt::Mixed`] for another one than before, unless they may be mixed.
    pub fn saw(&mut self, out: &Path, what: &str, version: Value, may_mix: bool) -> Result<()> {
        let known = self.0.entry(what.to_owned()).or_default();
        if known.contains(&version) {
            return Ok(());
        }
        if let Some(before) = known.last().filter(|_| !may_mix) {
            let (before, now) = (words(before), words(&version));
            return Err(Halt::Mixed(format!(
                "{what} is {now}, and the results in {} were made with {before}: another --out keeps them apart, \
                 --allow-mixed puts them beside each other",
                out.display()
            ))
            .into());
        }
        known.push(version);
        write_json(&out.join(VERSIONS), self)
    }

    /// Takes note of the driver, where there is one.
    ///
    /// # Errors
    /// As [`Versions::saw`].
    pub fn saw_driver(&mut self, out: &Path, driver: Option<String>, may_mix: bool) -> Result<()> {
        driver.map_or(Ok(()), |driver| {
            self.saw(out, DRIVER, driver.into(), may_mix)
        })
    }

    /// What there was more than one version of, in words.
    pub fn mixed(&self) -> Vec<String> {
        let several = self.0.iter().filter(|(_, known)| known.len() > 1);
        several
            .map(|(what, known)| {
                let known: Vec<String> = known.iter().map(words).collect();
                format!("{what}: {}", known.join(" and "))
            })
            .collect()
    }
}

/// What a server says of its version, or the digest of its program where it says nothing.
pub async fn of(target: &Target, program: &Path) -> Result<Value> {
    let answer = target.fetch(
        Method::GET,
        "/version",
        "application/json",
        Bytes::new(),
        ANSWER,
    );
    if let Ok((200, body)) = answer.await
        && let Ok(version) = serde_json::from_slice(&body)
    {
        return Ok(version);
    }
    let mut hash = Sha256::new();
    std::io::copy(&mut File::open(program)?, &mut hash)?;
    let digest: String = hash.finalize()[..8]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    Ok(json!({ "program_sha256": digest }))
}

/// The commit where there is one, else everything.
fn words(version: &Value) -> String {
    let commit = version.get("commit").and_then(Value::as_str);
    match (commit, version.as_str()) {
        (Some(commit), _) => format!("commit {commit}"),
        (None, Some(text)) => text.to_owned(),
        (None, None) => version.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_commit_is_refused_by_name_unless_they_may_be_mixed() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path();
        let octet = |commit: &str| json!({"name": "octet", "commit": commit});
        let mut versions = Versions::read(out).unwrap();
        versions.saw(out, "octet", octet("aaa"), false).unwrap();
        versions.saw(out, "octet", octet("aaa"), false).unwrap();
        versions
            .saw(out, "llama-server", json!({"program_sha256": "1"}), false)
            .unwrap();
        versions.saw_driver(out, None, false).unwrap();
        versions
            .saw_driver(out, Some("535.129".into()), false)
            .unwrap();
        // A later run of the suite finds what the first one left.
        let mut later = Versions::read(out).unwrap();
        assert_eq!(later, versions);
        assert_eq!(later.mixed(), Vec::<String>::new());
        let error = later.saw(out, "octet", octet("bbb"), false).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(Halt::Mixed(_))));
        let words = error.to_string();
        assert!(
            words.starts_with("octet is commit bbb") && words.contains("made with commit aaa"),
            "{words}"
        );
        let error = later
            .saw_driver(out, Some("550.1".into()), false)
            .unwrap_err();
        assert!(
            error.to_string().starts_with("GPU driver is 550.1"),
            "{error}"
        );
        later.saw(out, "octet", octet("bbb"), true).unwrap();
        let mixed = Versions::read(out).unwrap().mixed();
        assert_eq!(mixed, ["octet: commit aaa and commit bbb"]);
    }
}
