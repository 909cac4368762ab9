//! Damaged files of every kind: whatever is in them, opening and loading ends with a model or with an
//! error that names the place, without a panic and without much memory. A binary of its own, because it
//! watches the memory of the whole process.

#[path = "../fuzz/entries.rs"]
mod entries;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use entries::Outcome;

/// Far above what the tiny files need, far below what one believed count would ask for.
const MAX_GROWTH_KIB: u64 = 1 << 20;

fn fixture(file: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    std::fs::read(folder.join(file)).expect("the fixture is committed")
}

/// The most address space this process has had, in KiB: memory that was asked for, touched or not.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux says");
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .expect("a number")
}

/// Numbers that repeat: Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// What a number in a file may be replaced by.
const WORDS: [u64; 8] = [
    0,
    1,
    u8::MAX as u64,
    i32::MAX as u64,
    u32::MAX as u64,
    1 << 40,
    i64::MAX as u64,
    u64::MAX,
];

/// One kind of file, whole and damaged.
struct Kind {
    name: &'static str,
    whole: Vec<u8>,
    /// The part in which every byte matters.
    header: usize,
    entry: fn(&[u8]) -> Outcome,
    /// Damaged files tried beside the truncations.
    cases: usize,
}

impl Kind {
    fn run(&self, what: &dyn Fn() -> String, bytes: &[u8]) -> bool {
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.entry)(bytes)));
        let outcome = outcome.unwrap_or_else(|_| panic!("{}, {}: panics", self.name, what()));
        match outcome {
            Outcome::Loads => true,
            Outcome::Refused(error) => {
                assert!(
                    (8..2000).contains(&error.len()),
                    "{}, {}: {error:?}",
                    self.name,
                    what()
                );
                false
            }
        }
    }

    /// Cut at every byte of the header, and with bytes, words and stretches of it changed.
    fn check(&self) {
        assert!(self.run(&|| "whole".into(), &self.whole), "{}", self.name);
        let stride = (self.header / 2000).max(1);
        for len in (0..self.header).step_by(stride) {
            let cut = self.run(&|| format!("{len} bytes"), &self.whole[..len]);
            assert!(!cut, "{} loads from its first {len} bytes", self.name);
        }
        let mut random = Random(0x5eed ^ self.whole.len() as u64);
        let mut refused = 0;
        for case in 0..self.cases {
            let mut bytes = self.whole.clone();
            let at = random.below(self.header);
            match case % 4 {
                0 => bytes[at] ^= 1 << random.below(8),
                1 => bytes[at] = random.below(256) as u8,
                2 => {
                    let word = WORDS[random.below(WORDS.len())].to_le_bytes();
                    let end = (at + 8).min(bytes.len());
                    bytes[at..end].copy_from_slice(&word[..end - at]);
                }
                _ => {
                    let end = (at + 1 + random.below(64)).min(bytes.len());
                    let stretch = bytes[at..end].to_vec();
                    match random.below(2) {
                        0 => drop(bytes.drain(at..end)),
                        _ => drop(bytes.splice(at..at, stretch)),
                    }
                }
            }
            refused += usize::from(!self.run(&|| format!("case {case} at {at}"), &bytes));
        }
        assert!(
            refused > self.cases / 20,
            "{}: only {refused} refused",
            self.name
        );
    }
}

#[test]
fn damaged_files_neither_panic_nor_ask_for_memory() {
    let safetensors = fixture("llama/model.safetensors");
    let header = 8 + u64::from_le_bytes(*safetensors.first_chunk().expect("a length")) as usize;
    let json = |name: &'static str, file: &str, entry: fn(&[u8]) -> Outcome, cases: usize| {
        let whole = fixture(file);
        Kind {
            name,
            header: whole.len() - 2,
            whole,
            entry,
            cases,
        }
    };
    let gguf = |name, file: &str, header, cases| Kind {
        name,
        whole: fixture(file),
        header,
        entry: entries::gguf,
        cases,
    };
    let kinds = [
        json(
            "config.json",
            "llama/llama3.tf5.json",
            entries::config,
            3000,
        ),
        json(
            "compressed-tensors",
            "quantised/ct-group/config.json",
            entries::config_only,
            2000,
        ),
        json(
            "tokenizer.json",
            "llama/tokenizer.json",
            entries::tokenizer,
            2000,
        ),
        Kind {
            name: "model.safetensors",
            whole: safetensors,
            header,
            entry: entries::safetensors,
            cases: 4000,
        },
        gguf("qwen2.gguf", "gguf/qwen2.gguf", 8_000, 3000),
        gguf("gemma3.gguf", "gguf-families/gemma3.gguf", 6_000, 2000),
        gguf("mixtral.gguf", "gguf-families/mixtral.gguf", 6_000, 2000),
        gguf("sentencepiece.gguf", "gguf/sentencepiece.gguf", 9_000, 2000),
    ];
    // Threads and their stacks come with the first load. Later ones may still get a pool of memory of
    // their own from the allocator, 128 MiB of addresses each, whence the limit.
    for kind in &kinds {
        (kind.entry)(&kind.whole);
    }
    let before = peak_kib();
    for kind in &kinds {
        kind.check();
        let growth = peak_kib() - before;
        assert!(growth < MAX_GROWTH_KIB, "{}: {growth} KiB", kind.name);
    }
    let vast: Vec<u8> = Vec::with_capacity(2 * MAX_GROWTH_KIB as usize * 1024);
    std::hint::black_box(&vast);
    assert!(peak_kib() - before > MAX_GROWTH_KIB, "the watch is blind");
}
