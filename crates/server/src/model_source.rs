//! Which model is meant: the bundled one, a file, a folder or one on the hub.

use std::fmt;
use std::path::PathBuf;

use model::hub::is_repository;

/// Where the weights come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// The model inside the binary.
    Bundled,
    /// A checkpoint directory or a GGUF file.
    Path(PathBuf),
    /// A repository on the hub.
    Hub(String),
}

impl ModelSource {
    /// The bundled model, a hub id where the text has that form and nothing of that name lies here, or a
    /// path.
    pub fn parse(text: Option<&str>) -> Self {
        let Some(text) = text.filter(|text| !text.is_empty() && *text != "bundled") else {
            return Self::Bundled;
        };
        let path = PathBuf::from(text);
        let is_file = text.ends_with(".gguf") && !text.contains(':');
        if is_repository(text) && !is_file && !path.exists() {
            Self::Hub(text.to_owned())
        } else {
            Self::Path(path)
        }
    }

    /// What a model is called where no flag says.
    pub fn name(&self) -> String {
        match self {
            Self::Bundled => bundled::NAME.to_owned(),
            Self::Hub(id) => id.clone(),
            Self::Path(path) => {
                let path = path.canonicalize().unwrap_or_else(|_| path.clone());
                let name = if path.is_dir() {
                    path.file_name()
                } else {
                    path.file_stem()
                };
                name.map_or_else(
                    || "model".into(),
                    |name| name.to_string_lossy().into_owned(),
                )
            }
        }
    }
}

impl fmt::Display for ModelSource {
    /// What was loaded, without the folders it lies in.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bundled => f.write_str(bundled::NAME),
            Self::Hub(name) => f.write_str(name),
            Self::Path(path) => {
                let path = path.canonicalize().unwrap_or_else(|_| path.clone());
                let name = path
                    .file_name()
                    .map(|name| name.to_string_lossy().into_owned());
                f.write_str(name.as_deref().unwrap_or("model"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources() {
        for (text, expected) in [
            (None, ModelSource::Bundled),
            (Some("bundled"), ModelSource::Bundled),
            (Some("org/name"), ModelSource::Hub("org/name".into())),
            (
                Some("org/name:q8.gguf"),
                ModelSource::Hub("org/name:q8.gguf".into()),
            ),
            (Some("./org/name"), ModelSource::Path("./org/name".into())),
            (Some("/a/b"), ModelSource::Path("/a/b".into())),
            (
                Some("org/file.gguf"),
                ModelSource::Path("org/file.gguf".into()),
            ),
        ] {
            assert_eq!(ModelSource::parse(text), expected, "{text:?}");
        }
    }
}
