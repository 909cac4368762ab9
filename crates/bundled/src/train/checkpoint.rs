//! A training run on disk: one safetensors file, replaced atomically.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

use super::error::{Error, Result};
use super::optimizer::Optimizer;

/// Everything a run needs to go on.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The weights that are trained.
    pub params: Vec<f32>,
    /// Their moving average.
    pub average: Vec<f32>,
    /// The optimiser's memory.
    pub optimizer: Optimizer,
    /// State of the data stream.
    pub prng: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Seconds trained, over all runs.
    pub seconds: f64,
    /// Error rate of each skill, as the adaptive mix sees it.
    pub errors: Vec<f64>,
}

/// Name of the file inside the run's directory.
const FILE: &str = "checkpoint.safetensors";

impl Checkpoint {
    /// Writes beside the old file, then takes its place.
    pub fn save(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)?;
        let vectors = [
            &self.params,
            &self.average,
            &self.optimizer.first,
            &self.optimizer.second,
        ];
        let bytes = vectors.map(|v| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
        let views = ["params", "average", "first", "second"]
            .iter()
            .zip(&bytes)
            .map(|(name, bytes)| {
                Ok((
                    (*name).to_owned(),
                    TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes)?,
                ))
            })
            .collect::<Result<Vec<_>>>()?;
        let errors: Vec<String> = self.errors.iter().map(f64::to_string).collect();
        let notes = HashMap::from([
            ("steps".to_owned(), self.optimizer.steps.to_string()),
            ("prng".to_owned(), self.prng.to_string()),
            ("tokens".to_owned(), self.tokens.to_string()),
            ("seconds".to_owned(), self.seconds.to_string()),
            ("errors".to_owned(), errors.join(" ")),
        ]);
        let temporary = directory.join("checkpoint.partial");
        fs::write(&temporary, serialize(views, Some(notes))?)?;
        Ok(fs::rename(&temporary, directory.join(FILE))?)
    }

    /// Reads what [`Checkpoint::save`] wrote.
    pub fn load(directory: &Path) -> Result<Self> {
        let bytes = fs::read(directory.join(FILE))?;
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let notes = header.metadata().clone().unwrap_or_default();
        let file = SafeTensors::deserialize(&bytes)?;
        let vector = |name: &str| -> Result<Vec<f32>> {
            let view = file.tensor(name)?;
            if view.dtype() != Dtype::F32 {
                return Err(Error::Invalid("dtype"));
            }
            Ok(view
                .data()
                .as_chunks()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect())
        };
        let optimizer = Optimizer {
            first: vector("first")?,
            second: vector("second")?,
            steps: number(&notes, "steps")?,
        };
        Ok(Self {
            params: vector("params")?,
            average: vector("average")?,
            optimizer,
            prng: number(&notes, "prng")?,
            tokens: number(&notes, "tokens")?,
            seconds: number(&notes, "seconds")?,
            errors: notes
                .get("errors")
                .and_then(|list| list.split(' ').map(|e| e.parse().ok()).collect())
                .ok_or(Error::Invalid("errors"))?,
        })
    }
}

/// A number among the notes of the file's header.
fn number<T: FromStr>(notes: &HashMap<String, String>, name: &'static str) -> Result<T> {
    notes
        .get(name)
        .and_then(|note| note.parse().ok())
        .ok_or(Error::Invalid(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_read_back_bit_for_bit() {
        let directory =
            std::env::temp_dir().join(format!("bundled-checkpoint-{}", std::process::id()));
        let state = Checkpoint {
            params: vec![1.5, -0.1],
            average: vec![0.25, 3e-9],
            optimizer: Optimizer {
                first: vec![7.0, 8.0],
                second: vec![0.1, 0.2],
                steps: 9,
            },
            prng: u64::MAX - 1,
            tokens: 12,
            seconds: 1.25,
            errors: vec![0.5, 0.1],
        };
        state
            .save(&directory)
            .expect("the temporary directory is writable");
        let read = Checkpoint::load(&directory);
        fs::remove_dir_all(&directory).expect("the directory was just made");
        assert_eq!(read.expect("what was written is read"), state);
    }
}
