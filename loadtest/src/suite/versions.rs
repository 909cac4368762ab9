//! Which servers and which driver made the results of a folder, so that those of two commits do not stand beside
//! each other unnoticed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result};
use hyper::Method;
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Model;
use super::halt::Halt;
use super::serve::ANSWER;
use crate::results::write_json;
use crate::target::Target;

/// Name of the file, in the folder of the suite.
pub const VERSIONS: &str = "versions.json";
/// What the GPU and its driver stand under.
const GPU: &str = "GPU";
/// How much of each end of a model's file is looked at: a header and weights, where other weights differ.
const END: u64 = 1 << 20;

/// What made the results of a folder: for each server and each model, by their names, and for the GPU with its driver
/// the versions that were seen.
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

    /// Takes note of the GPU with its driver, where there is one.
    ///
    /// # Errors
    /// As [`Versions::saw`].
    pub fn saw_gpu(&mut self, out: &Path, gpu: Option<String>, may_mix: bool) -> Result<()> {
        gpu.map_or(Ok(()), |gpu| self.saw(out, GPU, gpu.into(), may_mix))
    }

    /// Takes note of what the files of a model hold, where it has some here.
    ///
    /// # Errors
    /// As [`Versions::saw`], and a file that cannot be read.
    pub fn saw_model(&mut self, out: &Path, model: &Model, may_mix: bool) -> Result<()> {
        let place = Path::new(&model.source);
        let Some(contents) = contents(place).with_context(|| model.source.clone())? else {
            return Ok(());
        };
        let file = place.file_name().unwrap_or_default().to_string_lossy();
        let what = format!("model {} ({file})", model.name);
        self.saw(out, &what, contents.into(), may_mix)
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
    Ok(json!({ "program_sha256": short(hash) }))
}

/// Digest of the sizes and of both ends of a file, or of the files of a folder in the order of their names: reading all
/// of the weights would take as long as a run. None of what is not here, as the name of a model on a hub.
fn contents(place: &Path) -> Result<Option<String>> {
    let mut files = match std::fs::read_dir(place) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => vec![place.to_owned()],
    };
    files.retain(|file| file.is_file());
    files.sort();
    if files.is_empty() {
        return Ok(None);
    }
    let mut hash = Sha256::new();
    for path in files {
        let mut file = File::open(&path)?;
        let size = file.metadata()?.len();
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(size.to_le_bytes());
        std::io::copy(&mut (&file).take(END), &mut hash)?;
        file.seek(SeekFrom::Start(size.saturating_sub(END)))?;
        std::io::copy(&mut file.take(END), &mut hash)?;
    }
    Ok(Some(format!("contents {}", short(hash))))
}

/// The first eight bytes of a digest, as much as tells files apart.
fn short(hash: Sha256) -> String {
    let digest = hash.finalize();
    digest[..8].iter().map(|b| format!("{b:02x}")).collect()
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
        versions.saw_gpu(out, None, false).unwrap();
        versions
            .saw_gpu(out, Some("A10, driver 535.129".into()), false)
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
            .saw_gpu(out, Some("A10, driver 550.1".into()), false)
            .unwrap_err();
        assert!(
            error.to_string().starts_with("GPU is A10, driver 550.1"),
            "{error}"
        );
        later.saw(out, "octet", octet("bbb"), true).unwrap();
        let mixed = Versions::read(out).unwrap().mixed();
        assert_eq!(mixed, ["octet: commit aaa and commit bbb"]);
    }

    #[test]
    fn other_weights_under_the_same_name_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (out, place) = (folder.path(), folder.path().join("weights"));
        std::fs::create_dir(&place).unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(place.join(name), bytes).unwrap();
        write("config.json", b"{}");
        write("model.safetensors", &[1; 3 << 20]);
        let model = |source: &Path| Model {
            name: "m".into(),
            source: source.display().to_string(),
            server: "octet".into(),
            precisions: Vec::new(),
            shape: None,
            quality: Vec::new(),
        };
        let mut versions = Versions::default();
        for _ in 0..2 {
            versions.saw_model(out, &model(&place), false).unwrap();
        }
        let hub = Path::new("nobody/nothing");
        versions.saw_model(out, &model(hub), false).unwrap();
        assert_eq!(versions.0.len(), 1, "{versions:?}");
        for (i, name) in [
            (0, "model.safetensors"),
            ((3 << 20) - 1, "model.safetensors"),
        ] {
            let mut bytes = vec![1; 3 << 20];
            bytes[i] = 2;
            write(name, &bytes);
            let error = versions.saw_model(out, &model(&place), false).unwrap_err();
            let words = error.to_string();
            assert!(
                words.starts_with("model m (weights) is contents "),
                "{words}"
            );
        }
    }
}
