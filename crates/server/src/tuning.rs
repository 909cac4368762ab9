//! Where the times of kernels are kept between starts: a file for each device, driver and version of the kernels
//! in `octet/cuda-tuning` of the user's cache directory. What cannot be read is measured anew, what cannot be
//! written is measured at the next start again; neither is an error.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use backend_cuda::driver::Found;
use backend_cuda::images;
use backend_cuda::tuning::{Key, Part, Tuned};

/// More than any device's measurements take.
const MAX_BYTES: u64 = 1 << 20;

/// The file of a GPU in a folder.
#[derive(Debug, Clone)]
pub struct Kept {
    key: Key,
    part: Part,
    path: Option<PathBuf>,
}

/// `$XDG_CACHE_HOME`, else `~/.cache`; relative paths are to be ignored (XDG base directory specification 0.8).
fn cache_directory() -> Option<PathBuf> {
    let absolute = |name: &str| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))
}

impl Kept {
    /// The file of a GPU, which need not exist; none where the user has no cache directory.
    pub fn of(gpu: &Found) -> Self {
        let folder = cache_directory().map(|cache| cache.join("octet/cuda-tuning"));
        Self::within(folder.as_deref(), gpu)
    }

    fn within(folder: Option<&Path>, gpu: &Found) -> Self {
        let key = Key {
            device: gpu.properties.name.clone(),
            multiprocessors: gpu.properties.multiprocessors,
            driver: gpu.driver,
            kernels: images::sources().to_owned(),
        };
        Self {
            path: folder.map(|folder| folder.join(key.file_name())),
            part: Part::of(&gpu.properties),
            key,
        }
    }

    /// Where it lies, for people.
    pub fn place(&self) -> String {
        match &self.path {
            Some(path) => path.display().to_string(),
            None => "nowhere: neither XDG_CACHE_HOME nor HOME is set".to_owned(),
        }
    }

    /// What it holds; nothing if it does not exist.
    fn read(&self) -> Result<Option<Tuned>, String> {
        let Some(path) = self.path.as_ref().filter(|path| path.exists()) else {
            return Ok(None);
        };
        let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
        if !metadata.is_file() || metadata.len() > MAX_BYTES {
            return Err("it is no small file".to_owned());
        }
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text))
            .map_err(|error| error.to_string())?;
        Tuned::from_text(&text, &self.key, self.part).map(Some)
    }

    /// What was measured before; a log line if that is of no use.
    pub fn known(&self) -> Tuned {
        let known = self.read().unwrap_or_else(|reason| {
            let path = self.place();
            tracing::info!("times of kernels are measured anew: {path}: {reason}");
            None
        });
        known.unwrap_or_else(|| Tuned::new(self.key.clone()))
    }

    /// Keeps what was measured; a log line if that fails.
    pub fn keep(&self, tuned: &Tuned) {
        let Some(path) = &self.path else { return };
        if let Err(error) = write(path, &tuned.to_text()) {
            let path = path.display();
            tracing::info!("times of kernels are not kept: {path}: {error}");
        }
    }

    /// Which products go another way than the table's, and by how much that is faster.
    pub fn describe(&self) -> String {
        let tuned = match self.read() {
            Ok(Some(tuned)) => tuned,
            Ok(None) => {
                return "  tuning     nothing measured yet: `octet serve` does when it loads a model\n"
                    .to_owned();
            }
            Err(reason) => {
                return format!(
                    "  tuning     measured anew at start: {}: {reason}\n",
                    self.place()
                );
            }
        };
        let mut text = format!(
            "  tuning     {} products measured in {:.2} s, {} faster than by the table ({})\n",
            tuned.entries.len(),
            tuned.took.as_secs_f64(),
            tuned.others(self.part).count(),
            self.place()
        );
        for ((problem, tokens), entry) in tuned.others(self.part) {
            let (way, micros, table) = (entry.way, entry.micros, entry.table_micros);
            let [outputs, inputs] = [problem.outputs, problem.inputs];
            writeln!(
                text,
                "    [{outputs}, {inputs}] by {tokens} tokens: {way}, {micros:.1} us instead of {table:.1}"
            )
            .expect("strings take any text");
        }
        text
    }
}

/// Whole or not at all: another start may read meanwhile.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let written = fs::write(&partial, text).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        fs::remove_file(&partial).ok();
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use backend_cuda::device::Properties;
    use backend_cuda::tuning::{Entry, Problem, candidates};

    fn gpu() -> Found {
        Found {
            ordinal: 0,
            properties: Properties {
                name: "NVIDIA A10".to_owned(),
                capability: (8, 6),
                multiprocessors: 72,
                shared_memory: 101_376,
                warpgroups: false,
                dependent_launches: false,
            },
            total_memory: 24 << 30,
            driver: 12_080,
        }
    }

    fn tuned(kept: &Kept) -> Tuned {
        let problem = Problem {
            outputs: 4096,
            inputs: 4096,
            group: 128,
            grouped_weights: false,
        };
        let ways = candidates(&problem, 64, kept.part);
        let mut tuned = Tuned::new(kept.key.clone());
        let entry = Entry::new(&ways, &[vec![30.0; 3], vec![20.125; 3]]);
        tuned.entries.insert((problem, 64), entry);
        tuned
    }

    /// A folder of this test that does not exist yet.
    fn folder(test: &str) -> PathBuf {
        let name = format!("octet-tuning-{test}-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::remove_dir_all(&folder).ok();
        folder
    }

    #[test]
    fn what_is_kept_is_known_at_the_next_start() {
        let folder = folder("kept");
        let kept = Kept::within(Some(&folder.join("a/b")), &gpu());
        assert!(kept.known().entries.is_empty());
        assert!(kept.describe().contains("nothing measured yet"));
        kept.keep(&tuned(&kept));
        assert_eq!(kept.known(), tuned(&kept));
        let text = kept.describe();
        for words in [
            "1 products measured in 0.00 s, 1 faster",
            "[4096, 4096] by 64 tokens: gemm_i8_tile_32x64, 20.1 us instead of 30.0",
        ] {
            assert!(text.contains(words), "{text}");
        }
        let files = fs::read_dir(folder.join("a/b")).expect("it was made");
        assert_eq!(files.count(), 1, "nothing partial stays");
        // Another driver is another file.
        let newer = Found {
            driver: 12_090,
            ..gpu()
        };
        assert!(
            Kept::within(Some(&folder.join("a/b")), &newer)
                .known()
                .entries
                .is_empty()
        );
        fs::remove_dir_all(&folder).ok();
    }

    #[test]
    fn what_cannot_be_read_or_written_is_no_error() {
        let folder = folder("broken");
        fs::create_dir_all(&folder).expect("a folder");
        let kept = Kept::within(Some(&folder), &gpu());
        let path = kept.path.clone().expect("a path");
        let whole = tuned(&kept).to_text();
        let large = "x".repeat(MAX_BYTES as usize + 1);
        for text in [
            "",
            "octet",
            &whole[..whole.len() / 2],
            &whole.replace("64 ", "65 "),
            &large,
        ] {
            fs::write(&path, text).expect("a file");
            assert!(kept.known().entries.is_empty(), "{text:.40}");
            assert!(kept.describe().contains("measured anew"), "{text:.40}");
        }
        fs::write(&path, [0xff, 0xfe]).expect("a file");
        assert!(kept.known().entries.is_empty(), "no text");
        // A folder in the file's place, and a file in the folder's.
        fs::remove_file(&path).expect("a file");
        fs::create_dir_all(path.join("within")).expect("a folder");
        assert!(kept.known().entries.is_empty());
        kept.keep(&tuned(&kept));
        assert!(kept.describe().contains("no small file"));
        fs::write(folder.join("file"), "").expect("a file");
        let nowhere = Kept::within(Some(&folder.join("file/folder")), &gpu());
        nowhere.keep(&tuned(&kept));
        assert!(nowhere.known().entries.is_empty());
        let none = Kept::within(None, &gpu());
        none.keep(&tuned(&kept));
        assert!(none.known().entries.is_empty());
        fs::remove_dir_all(&folder).ok();
    }
}
