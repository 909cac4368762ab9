//! Fetching a model from the hub into the cache that every Hugging Face tool shares.
//!
//! The work is done by `hf-hub`; here stands which files a model needs, that one commit is fetched and
//! not a mixture, and what happens without a network. Nothing of this runs once a model is loaded.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use serde_json::Value;

use crate::error::{ModelError, Result};
use crate::gguf::split;

/// Where and how to fetch; everything absent takes the value all Hugging Face tools take.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// Branch, tag or commit; `main` when absent.
    pub revision: Option<String>,
    /// Access token; the stored login when absent.
    pub token: Option<String>,
    /// The folder that holds `models--…`; `~/.cache/huggingface/hub` when absent.
    pub cache_dir: Option<PathBuf>,
    /// Base address; the public hub when absent.
    pub endpoint: Option<String>,
    /// Use what is cached and open no connection.
    pub offline: bool,
    /// How often a broken download is continued before giving up. Continuing later is always possible.
    pub max_retries: usize,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self {
            revision: None,
            token: None,
            cache_dir: None,
            endpoint: None,
            offline: false,
            max_retries: 5,
        }
    }
}

/// How far the download of one file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DownloadProgress<'a> {
    /// The file's name.
    pub file: &'a str,
    /// Bytes on disk, those of an earlier attempt included.
    pub done: u64,
    /// Bytes of the file.
    pub total: u64,
}

/// The text files of a checkpoint that are fetched where they exist.
const TEXT_FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    // How an embedding model pools.
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
];
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Whether `name` is written like a repository of the hub: `owner/name`, with `:FILE.gguf` behind it to
/// choose among several GGUF files.
pub fn is_repository(name: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let (repository, file) = split(name);
    let Some((owner, model)) = repository.split_once('/') else {
        return false;
    };
    plain(owner) && plain(model) && file.is_none_or(plain)
}

fn split(name: &str) -> (&str, Option<&str>) {
    match name.split_once(':') {
        Some((repository, file)) => (repository, Some(file)),
        None => (name, None),
    }
}

/// Fetches what a model needs and returns the path to open: a folder, or a GGUF file.
///
/// Files that are already there are not fetched again, and a file that was cut continues where it ended.
/// Without an answer from the hub a model that is cached is used as it is.
///
/// # Errors
/// [`ModelError::Hub`] with the repository and what failed.
pub fn fetch(
    name: &str,
    options: &HubOptions,
    report: &mut dyn FnMut(DownloadProgress),
) -> Result<PathBuf> {
    let hub = Hub::new(name, options)?;
    if options.offline {
        return hub.cached().ok_or_else(|| {
            hub.error("is not in the cache, and the hub may not be asked (offline)")
        });
    }
    let api = hub.api(options)?;
    let info = match api.repo(hub.repo.clone()).info() {
        Ok(info) => info,
        Err(error) => {
            let refused = matches!(&error, ApiError::RequestError(inner) if status(&inner.to_string()).is_some());
            return match hub.cached() {
                Some(path) if !refused => {
                    tracing::warn!(repository = hub.repository, %error, "no answer from the hub, using the cache");
                    Ok(path)
                }
                _ => Err(hub.explain(&error)),
            };
        }
    };
    let files: BTreeSet<String> = info
        .siblings
        .into_iter()
        .map(|file| file.rfilename)
        .collect();
    // Every file comes from the commit that was listed, even if the branch moves meanwhile.
    let commit = Repo::with_revision(hub.repository.clone(), RepoType::Model, info.sha.clone());
    let repo = api.repo(commit.clone());
    let path = hub.fetch_files(&repo, &commit, &files, report)?;
    let branch = hub.cache.repo(hub.repo.clone());
    branch
        .create_ref(&info.sha)
        .map_err(|error| hub.error(&error.to_string()))?;
    Ok(path)
}

/// One repository with its place in the cache.
struct Hub {
    repository: String,
    /// The file asked for by name.
    file: Option<String>,
    repo: Repo,
    cache: Cache,
}

impl Hub {
    fn new(name: &str, options: &HubOptions) -> Result<Self> {
        let (repository, file) = split(name);
        let revision = options
            .revision
            .clone()
            .unwrap_or_else(|| "main".to_owned());
        let hub = Self {
            repository: repository.to_owned(),
            file: file.map(str::to_owned),
            repo: Repo::with_revision(repository.to_owned(), RepoType::Model, revision.clone()),
            cache: options
                .cache_dir
                .clone()
                .map_or_else(Cache::default, Cache::new),
        };
        if !is_repository(name) {
            return Err(hub.error("is not of the form owner/name"));
        }
        if revision
            .split('/')
            .any(|part| part.is_empty() || part == "..")
        {
            return Err(hub.error(&format!("{revision:?} is not a revision")));
        }
        Ok(hub)
    }

    fn api(&self, options: &HubOptions) -> Result<Api> {
        let mut builder = ApiBuilder::from_cache(self.cache.clone())
            .with_progress(false)
            .with_retries(options.max_retries);
        if let Some(endpoint) = &options.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        if let Some(token) = &options.token {
            builder = builder.with_token(Some(token.clone()));
        }
        builder.build().map_err(|error| self.explain(&error))
    }

    fn error(&self, reason: &str) -> ModelError {
        ModelError::Hub {
            repository: self.repository.clone(),
            reason: reason.to_owned(),
        }
    }

    /// The library's error with what to do about the usual causes.
    fn explain(&self, error: &ApiError) -> ModelError {
        let text = error.to_string();
        let hint = match status(&text) {
            Some("401" | "403") => "; the model is private or gated: give a token that may read it",
            Some("404") => "; there is no such repository, revision or file",
            _ => "",
        };
        self.error(&format!("{text}{hint}"))
    }

    fn fetch_files(
        &self,
        repo: &ApiRepo,
        commit: &Repo,
        files: &BTreeSet<String>,
        report: &mut dyn FnMut(DownloadProgress),
    ) -> Result<PathBuf> {
        let mut get = |file: &str| -> Result<PathBuf> {
            if let Some(path) = self.cache.repo(commit.clone()).get(file) {
                return Ok(path);
            }
            let progress = Report {
                report: &mut *report,
                file: String::new(),
                done: 0,
                total: 0,
            };
            repo.download_with_progress(file, progress)
                .map_err(|error| self.explain(&error))
        };
        if self.file.is_some() || !files.contains("config.json") {
            let file = self.one_gguf(files)?;
            for part in split::names(&file) {
                get(&part)?;
            }
            return get(&file);
        }
        for file in TEXT_FILES.iter().filter(|file| files.contains(**file)) {
            get(file)?;
        }
        let path = if files.contains(WEIGHTS) {
            get(WEIGHTS)?
        } else if files.contains(INDEX) {
            let index = get(INDEX)?;
            for shard in shards(&index).map_err(|reason| self.error(&reason))? {
                get(&shard)?;
            }
            index
        } else {
            return Err(self.error("holds no safetensors; other weight formats are never read"));
        };
        path.parent()
            .map(Path::to_owned)
            .ok_or_else(|| self.error("has no folder in the cache"))
    }

    fn one_gguf(&self, files: &BTreeSet<String>) -> Result<String> {
        if let Some(file) = &self.file {
            return match files.contains(file) {
                true => Ok(file.clone()),
                false => Err(self.error(&format!("has no file {file}"))),
            };
        }
        let ggufs = files
            .iter()
            .filter(|file| file.ends_with(".gguf") && is_plain(file))
            .cloned()
            .collect();
        let ggufs = split::first_parts(ggufs);
        match &ggufs[..] {
            [file] => Ok(file.clone()),
            [] => Err(self.error("holds no config.json and no .gguf file")),
            _ => Err(self.error(&format!(
                "holds several GGUF files, choose one: {}",
                ggufs
                    .iter()
                    .map(|file| format!("{}:{file}", self.repository))
                    .collect::<Vec<_>>()
                    .join(", ")
            ))),
        }
    }

    /// What the cache holds of the revision, if that is a whole model.
    fn cached(&self) -> Option<PathBuf> {
        let cache = self.cache.repo(self.repo.clone());
        if let Some(file) = &self.file {
            let whole = split::names(file)
                .iter()
                .all(|part| cache.get(part).is_some());
            return cache.get(file).filter(|_| whole);
        }
        if let Some(config) = cache.get("config.json") {
            let whole = match (cache.get(WEIGHTS), cache.get(INDEX)) {
                (Some(_), _) => true,
                (None, Some(index)) => shards(&index)
                    .ok()?
                    .iter()
                    .all(|shard| cache.get(shard).is_some()),
                (None, None) => false,
            };
            return whole.then(|| config.parent().map(Path::to_owned))?;
        }
        let revision = self
            .cache
            .path()
            .join(self.repo.folder_name())
            .join("refs")
            .join(self.repo.revision());
        let commit = fs::read_to_string(revision).ok()?;
        let folder = cache.pointer_path(&commit);
        let ggufs = fs::read_dir(&folder)
            .ok()?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|file| file.ends_with(".gguf"))
            .collect();
        match &split::first_parts(ggufs)[..] {
            [file]
                if split::names(file)
                    .iter()
                    .all(|part| folder.join(part).exists()) =>
            {
                Some(folder.join(file))
            }
            _ => None,
        }
    }
}

/// The status code in the library's text, which is all it hands on of one.
fn status(text: &str) -> Option<&str> {
    let code = text.rsplit_once("http status: ")?.1;
    code.get(..3)
}

/// A file name without folders: the only kind that is fetched.
fn is_plain(file: &str) -> bool {
    !file.is_empty() && !file.starts_with('.') && !file.contains(['/', '\\'])
}

/// The shards an index names.
fn shards(index: &Path) -> std::result::Result<BTreeSet<String>, String> {
    let text = fs::read(index).map_err(|error| format!("{INDEX}: {error}"))?;
    let index: Value =
        serde_json::from_slice(&text).map_err(|error| format!("{INDEX}: {error}"))?;
    let map = index["weight_map"]
        .as_object()
        .ok_or_else(|| format!("{INDEX}: weight_map is not an object"))?;
    map.values()
        .map(|value| match value.as_str() {
            Some(file) if is_plain(file) && file.ends_with(".safetensors") => Ok(file.to_owned()),
            _ => Err(format!(
                "{INDEX}: {value} is not a safetensors file of the repository"
            )),
        })
        .collect()
}

/// Turns the library's calls into [`DownloadProgress`].
struct Report<'a> {
    report: &'a mut dyn FnMut(DownloadProgress),
    file: String,
    done: u64,
    total: u64,
}

impl Report<'_> {
    fn send(&mut self) {
        (self.report)(DownloadProgress {
            file: &self.file,
            done: self.done,
            total: self.total,
        });
    }
}

impl hf_hub::api::Progress for Report<'_> {
    /// Called again for every attempt, each of which first reports what is there already.
    fn init(&mut self, size: usize, filename: &str) {
        self.file = filename.to_owned();
        (self.done, self.total) = (0, size as u64);
        self.send();
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        self.send();
    }

    fn finish(&mut self) {
        self.send();
    }
}
