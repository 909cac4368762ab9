//! A model's folder for readers that are no loaders of the decoder: its JSON files and its tensors as
//! floats, under the same limits and checks.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{ModelError, Result};
use crate::files::Files;
use crate::safetensors_files::SafetensorsFiles;
use crate::tensors::TensorSource;

/// A folder that is never left.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// The folder at `path`; nothing is read yet.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// A folder inside this one.
    ///
    /// # Errors
    /// When `name` is not a plain name.
    pub fn folder(&self, name: &str) -> Result<Self> {
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\']) {
            let reason = format!("{name:?} is not the name of a folder in the model's folder");
            return Err(ModelError::malformed("modules.json", reason));
        }
        Ok(Self(self.0.join(name)))
    }

    /// A text file, or nothing where there is none.
    ///
    /// # Errors
    /// When it cannot be read, is too large or leads out of the folder.
    pub fn text(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let text = self.files().text(name)?;
        Ok(text.map(std::borrow::Cow::into_owned))
    }

    /// A JSON file, or nothing where there is none.
    ///
    /// # Errors
    /// As [`Self::text`], and when it is not JSON.
    pub fn json(&self, name: &str) -> Result<Option<Value>> {
        let parse = |text: Vec<u8>| {
            serde_json::from_slice(&text).map_err(|error| ModelError::malformed(name, error))
        };
        self.text(name)?.map(parse).transpose()
    }

    /// The tensors of the folder's safetensors files.
    ///
    /// # Errors
    /// Whatever is missing or malformed, by file name.
    pub fn tensors(&self) -> Result<FloatTensors> {
        Ok(FloatTensors(SafetensorsFiles::open(&self.files())?))
    }

    fn files(&self) -> Files {
        Files::Directory(self.0.clone())
    }
}

/// Tensors by their stored names.
pub struct FloatTensors(SafetensorsFiles);

impl FloatTensors {
    /// All names.
    pub fn names(&self) -> Vec<String> {
        self.0.names()
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.0.shape(name)
    }

    /// The elements of a tensor, widened to 32 bits.
    ///
    /// # Errors
    /// When it is missing or not stored in floats.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        let data = self.0.read(name)?;
        let mut out = vec![0.0; data.len()];
        data.widen_row(0, &mut out);
        Ok(out)
    }
}
