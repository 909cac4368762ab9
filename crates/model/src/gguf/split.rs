//! Models cut into several GGUF files: `NAME-00001-of-00003.gguf` and so on, as llama.cpp and the `gguf`
//! package name and number them. The first part carries the metadata, all carry tensors.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::parse::{Parsed, Value};
use crate::error::{ModelError, Result};
use crate::files::file_name;

/// Where a file stands among the parts of a model, read from its name.
struct Place<'a> {
    stem: &'a str,
    number: usize,
    count: usize,
}

impl<'a> Place<'a> {
    fn of(file: &'a str) -> Option<Self> {
        let (rest, count) = file.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let five_digits = |text: &str| {
            let digits = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok())?
        };
        let place = Self {
            stem,
            number: five_digits(number)?,
            count: five_digits(count)?,
        };
        (1..=place.count).contains(&place.number).then_some(place)
    }

    fn files(&self) -> impl Iterator<Item = String> {
        (1..=self.count)
            .map(|number| format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.count))
    }
}

/// All parts of the model that a file belongs to, in order; the file alone where its name has no number.
///
/// # Errors
/// The first part that is not there.
pub(crate) fn parts(path: &Path) -> Result<Vec<PathBuf>> {
    let name = file_name(path);
    let Some(place) = Place::of(&name) else {
        return Ok(vec![path.to_owned()]);
    };
    let found = place.files().map(|file| {
        let part = path.with_file_name(&file);
        match part.exists() {
            true => Ok(part),
            false => Err(ModelError::malformed(
                &file,
                format!("is missing; the model has {} parts", place.count),
            )),
        }
    });
    found.collect()
}

/// The names of which no more than one is the first of a model's parts, or no part at all.
pub(crate) fn first_parts(mut files: Vec<String>) -> Vec<String> {
    files.retain(|file| Place::of(file).is_none_or(|place| place.number == 1));
    files
}

/// The names of all parts of the model that `file` begins.
pub(crate) fn names(file: &str) -> Vec<String> {
    Place::of(file).map_or_else(|| vec![file.to_owned()], |place| place.files().collect())
}

/// Checks that files are the parts of one model, in their order.
pub(super) fn check(parts: &[(&str, &Parsed)]) -> Result<()> {
    let mut names = HashSet::new();
    for (index, (file, part)) in parts.iter().enumerate() {
        let number = |key: &str| part.metadata.get(key).and_then(Value::as_u64);
        let count = number("split.count").unwrap_or(1);
        let own = number("split.no").unwrap_or(0);
        if (own, count) != (index as u64, parts.len() as u64) {
            return Err(ModelError::malformed(
                file,
                format!(
                    "is part {} of {count} by its metadata and part {} of {} by its name",
                    own.saturating_add(1),
                    index + 1,
                    parts.len()
                ),
            ));
        }
        let architecture = |part: &Parsed| part.metadata.get("general.architecture").cloned();
        if index > 0 && architecture(part).is_some_and(|own| Some(own) != architecture(parts[0].1))
        {
            return Err(ModelError::malformed(
                file,
                format!("has another architecture than {}", parts[0].0),
            ));
        }
        if let Some(twice) = part.tensors.iter().find(|info| !names.insert(&*info.name)) {
            return Err(ModelError::malformed(
                file,
                format!("tensor {} stands in an earlier part, too", twice.name),
            ));
        }
    }
    let promised = parts[0].1.metadata.get("split.tensors.count");
    match promised.and_then(Value::as_u64) {
        Some(promised) if promised != names.len() as u64 => Err(ModelError::malformed(
            parts[0].0,
            format!(
                "promises {promised} tensors, the parts hold {}",
                names.len()
            ),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_from_names() {
        let place = |file: &str| Place::of(file).map(|p| (p.stem.to_owned(), p.number, p.count));
        assert_eq!(
            place("a-of-b-Q4-00002-of-00013.gguf"),
            Some(("a-of-b-Q4".to_owned(), 2, 13))
        );
        for file in [
            "a.gguf",
            "a-1-of-2.gguf",
            "a-00003-of-00002.gguf",
            "a-00000-of-00002.gguf",
            "a-00001-of-00002.bin",
            "a-0000x-of-00002.gguf",
        ] {
            assert_eq!(place(file), None, "{file}");
        }
        assert_eq!(
            names("x-00001-of-00002.gguf"),
            ["x-00001-of-00002.gguf", "x-00002-of-00002.gguf"]
        );
        assert_eq!(
            first_parts(
                ["x-00002-of-00002.gguf", "x-00001-of-00002.gguf"]
                    .map(str::to_owned)
                    .into()
            ),
            ["x-00001-of-00002.gguf"]
        );
    }
}
