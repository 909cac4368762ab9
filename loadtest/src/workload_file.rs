//! Workload files: the load of a run as TOML. The file says what flags can say, and what they cannot: a
//! mix of several kinds of conversations. Paths in it are relative to its folder.

pub mod written;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Deserializer};

use crate::args::Cache;
use crate::arrival::RampShape;
use crate::content::{Content, Prefix, Prompts};
use crate::dataset::Dataset;
use crate::lengths::Lengths;
use crate::slo::Slo;
use crate::think::Think;
use crate::workload::Api;

/// The version of the format that is read.
const SCHEMA: u32 = 1;
/// Words that one token of English makes, to compare a text with a limit in tokens.
const WORDS_PER_TOKEN: f64 = 0.75;

/// A load as a file describes it; what it leaves out is for flags and defaults.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkloadFile {
    schema: u32,
    /// What the file calls itself.
    pub name: Option<String>,
    /// Endpoint.
    pub api: Option<Api>,
    /// How requests arrive.
    pub arrival: Option<FileArrival>,
    /// Whether as many requests leave as the rate says for the time.
    pub exact_count: bool,
    /// Length of the window in seconds.
    #[serde(deserialize_with = "time")]
    pub duration_s: Option<Duration>,
    /// Measured requests after which the run stops.
    pub requests: Option<u64>,
    /// Time before the window in seconds.
    #[serde(deserialize_with = "time")]
    pub warmup_s: Option<Duration>,
    /// Prefix cache policy.
    pub cache: Option<Cache>,
    #[serde(deserialize_with = "limits")]
    /// Limits of a good request.
    pub slo: Option<Slo>,
    sampling: Sampling,
    mix: Vec<Part>,
    #[serde(skip)]
    folder: PathBuf,
}

/// How requests arrive.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum FileArrival {
    /// A closed loop.
    Closed {
        /// Number of users.
        users: u32,
    },
    /// Poisson arrivals.
    Poisson {
        /// Requests per second.
        rate: f64,
    },
    /// Gamma arrivals.
    Gamma {
        /// Requests per second.
        rate: f64,
        /// Shape.
        burstiness: f64,
    },
    /// Equal gaps.
    Constant {
        /// Requests per second.
        rate: f64,
    },
    /// A rate that changes over the duration.
    Ramp {
        /// First rate.
        from: f64,
        /// Last rate.
        to: f64,
        /// The way between them.
        shape: Option<RampShape>,
    },
    /// A recorded trace.
    Trace {
        /// Its file.
        path: PathBuf,
        /// How much faster it is played.
        speed: Option<f64>,
    },
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sampling {
    temperature: Option<f64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    weight: Option<f64>,
    prompt: Option<Spelled>,
    dataset: Option<FileDataset>,
    output: Option<Output>,
    turns: Option<Spelled>,
    think: Option<String>,
    prefix: Option<FilePrefix>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileDataset {
    path: PathBuf,
    format: Option<String>,
    turns: Option<toml::Value>,
    #[serde(default)]
    replay: Replay,
    max_prompt_tokens: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Replay {
    #[default]
    Actual,
    Recorded,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePrefix {
    tokens: u32,
    groups: Option<u32>,
}

/// Lengths as a table, a number, or as on the command line, in the spelling of the last.
#[derive(Debug, Clone)]
struct Spelled(String);

#[derive(Debug, Clone)]
struct Output {
    lengths: String,
    ignore_eos: bool,
}

impl<'de> Deserialize<'de> for Spelled {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = toml::Value::deserialize(deserializer)?;
        spelled(value).map(Self).map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Output {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let mut value = toml::Value::deserialize(deserializer)?;
        let ignore_eos = match value.as_table_mut().and_then(|t| t.remove("ignore_eos")) {
            None => false,
            Some(toml::Value::Boolean(ignore)) => ignore,
            Some(other) => return Err(D::Error::custom(format!("ignore_eos = {other}"))),
        };
        let lengths = spelled(value).map_err(D::Error::custom)?;
        Ok(Self {
            lengths,
            ignore_eos,
        })
    }
}

/// `{ kind = "lognormal", median = 5, p95 = 9 }` is `lognormal:median=5,p95=9`.
fn spelled(value: toml::Value) -> Result<String, String> {
    match value {
        toml::Value::Integer(tokens) => Ok(tokens.to_string()),
        toml::Value::String(text) => Ok(text),
        toml::Value::Table(mut table) => {
            let kind = table.remove("kind");
            let kind = kind.as_ref().and_then(toml::Value::as_str);
            let mut take = |name: &str| match table.remove(name) {
                None => String::new(),
                Some(toml::Value::String(text)) => text,
                Some(other) => other.to_string(),
            };
            let text = match kind.ok_or("a length has no kind")? {
                "fixed" => format!("fixed:{}", take("tokens")),
                "histogram" | "empirical" => format!("histogram:{}", take("path")),
                "uniform" => format!("uniform:{}..{}", take("min"), take("max")),
                other => {
                    let pairs = std::mem::take(&mut table);
                    let pairs: Vec<String> =
                        pairs.iter().map(|(key, v)| format!("{key}={v}")).collect();
                    format!("{other}:{}", pairs.join(","))
                }
            };
            match table.keys().next() {
                Some(key) => Err(format!("unknown key `{key}` in a length")),
                None => Ok(text),
            }
        }
        other => Err(format!("{other} is not a length")),
    }
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let seconds = f64::deserialize(deserializer)?;
    let text = format!("{seconds}s");
    let time = crate::args::duration(&text);
    time.map(Some)
        .map_err(|error| serde::de::Error::custom(format!("{seconds}: {error}")))
}

fn limits<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Slo>, D::Error> {
    use serde::de::Error;
    let table = toml::Table::deserialize(deserializer)?;
    let pair = |(key, value): (&String, &toml::Value)| match key.strip_suffix("_ms") {
        Some(name) => format!("{name}={value}ms"),
        None => format!("{key}={value}"),
    };
    let text: Vec<String> = table.iter().map(pair).collect();
    text.join(",").parse().map(Some).map_err(D::Error::custom)
}

impl WorkloadFile {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the workload {}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, folder).with_context(|| format!("the workload {}", path.display()))
    }

    fn parse(text: &str, folder: &Path) -> Result<Self> {
        let mut file: Self = toml::from_str(text)?;
        if file.schema != SCHEMA {
            bail!(
                "schema {} is not {SCHEMA}, the one that is read",
                file.schema
            );
        }
        if file.mix.is_empty() {
            bail!("there is no [[mix]]: nothing to ask");
        }
        folder.clone_into(&mut file.folder);
        Ok(file)
    }

    /// Sampling temperature.
    pub fn temperature(&self) -> Option<f64> {
        self.sampling.temperature
    }

    /// Where a path of the file points to.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }

    /// The kinds of conversations, datasets read.
    pub fn contents(&self) -> Result<Vec<Content>> {
        let part = |(i, part): (usize, &Part)| {
            let number = i + 1;
            self.content(part)
                .with_context(|| format!("[[mix]] number {number}"))
        };
        self.mix.iter().enumerate().map(part).collect()
    }

    fn content(&self, part: &Part) -> Result<Content> {
        let weight = part.weight.unwrap_or(1.0);
        if !(weight.is_finite() && weight > 0.0) {
            bail!("weight {weight} is not above zero");
        }
        let mut content = match (&part.prompt, &part.dataset) {
            (Some(prompt), None) => {
                let output = part.output.as_ref();
                let output = output.context("prompts of words need an output length")?;
                Content::words(self.lengths(&prompt.0)?, self.lengths(&output.lengths)?)
            }
            (None, Some(dataset)) => self.recorded(part, dataset)?,
            _ => bail!("exactly one of prompt and dataset says what is asked"),
        };
        content.weight = weight;
        content.ignore_eos = part.output.as_ref().is_some_and(|o| o.ignore_eos);
        if let Some(Spelled(turns)) = &part.turns {
            content.turns = self.lengths(turns)?;
        }
        if let Some(think) = &part.think {
            content.think = think.parse().map_err(anyhow::Error::msg)?;
        }
        content.prefix = part.prefix.map(|prefix| Prefix {
            tokens: prefix.tokens.max(1),
            groups: prefix.groups.unwrap_or(1).max(1),
        });
        Ok(content)
    }

    /// Lengths, whose file lies beside this one.
    fn lengths(&self, text: &str) -> Result<Lengths> {
        Lengths::parse_in(text, &self.folder).map_err(anyhow::Error::msg)
    }

    fn recorded(&self, part: &Part, dataset: &FileDataset) -> Result<Content> {
        if let Some(format) = &dataset.format
            && !["sharegpt", "messages"].contains(&format.as_str())
        {
            bail!("unknown format `{format}`: sharegpt or messages");
        }
        let turns = match &dataset.turns {
            None => Lengths::Fixed(1),
            Some(toml::Value::String(all)) if all == "all" => Lengths::Fixed(u32::MAX),
            Some(value) => {
                let text = spelled(value.clone()).map_err(anyhow::Error::msg)?;
                self.lengths(&text)?
            }
        };
        let output = part.output.as_ref();
        let output = output.map(|o| self.lengths(&o.lengths)).transpose()?;
        Ok(Content {
            turns,
            ..dataset_content(
                &self.resolve(&dataset.path),
                dataset.max_prompt_tokens,
                output,
                dataset.replay == Replay::Recorded,
            )?
        })
    }
}

/// Conversations of a dataset, one question of each.
pub fn dataset_content(
    path: &Path,
    max_prompt_tokens: Option<u32>,
    output: Option<Lengths>,
    replays_recorded: bool,
) -> Result<Content> {
    let max_words = max_prompt_tokens.map(|max| (f64::from(max) * WORDS_PER_TOKEN) as usize);
    Ok(Content {
        weight: 1.0,
        prompts: Prompts::Dataset(Arc::new(Dataset::read(path, max_words)?)),
        output,
        ignore_eos: false,
        turns: Lengths::Fixed(1),
        think: Think::default(),
        prefix: None,
        replays_recorded,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
        schema = 1
        name = "chat-256-128"
        api = "completions"
        arrival = { kind = "gamma", rate = 2.0, burstiness = 0.5 }
        duration_s = 120
        warmup_s = 20
        cache = "warm"
        slo = { ttft_ms = 1000, tpot_ms = 80, attainment = 0.95 }
        sampling = { temperature = 0.5 }
        [[mix]]
        weight = 0.8
        prompt = { kind = "lognormal", median = 256, p95 = 900, min = 16, max = 1500 }
        output = { kind = "fixed", tokens = 128, ignore_eos = true }
        [[mix]]
        weight = 0.2
        prompt = "uniform:5..9"
        output = 7
        turns = { kind = "uniform", min = 2, max = 4 }
        think = "2s"
        prefix = { tokens = 100, groups = 3 }
    "#;

    #[test]
    fn a_file_says_what_flags_say_and_more() {
        let file = WorkloadFile::parse(WHOLE, Path::new("")).unwrap();
        assert_eq!(file.api, Some(Api::Completions));
        let gamma = FileArrival::Gamma {
            rate: 2.0,
            burstiness: 0.5,
        };
        assert_eq!(file.arrival, Some(gamma));
        assert_eq!(file.duration_s, Some(Duration::from_secs(120)));
        assert_eq!(file.warmup_s, Some(Duration::from_secs(20)));
        assert_eq!(
            (file.temperature(), file.cache),
            (Some(0.5), Some(Cache::Warm))
        );
        let slo = file.slo.unwrap().to_string();
        assert_eq!(slo, "ttft=1000ms,tpot=80ms,attainment=0.95");
        let contents = file.contents().unwrap();
        assert_eq!(
            contents[0].prompt_words(),
            "lognormal:median=256,p95=900,min=16,max=1500"
        );
        assert!(contents[0].ignore_eos && !contents[1].ignore_eos);
        assert_eq!((contents[0].weight, contents[1].weight), (0.8, 0.2));
        assert_eq!(contents[1].turns, Lengths::Uniform { min: 2, max: 4 });
        let prefix = Prefix {
            tokens: 100,
            groups: 3,
        };
        assert_eq!(contents[1].prefix, Some(prefix));
        assert_eq!(contents[1].think.to_string(), "2000ms");
    }

    #[test]
    fn a_dataset_lies_beside_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let data = r#"[{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}]"#;
        std::fs::write(folder.path().join("d.json"), data).unwrap();
        let text = "schema = 1\n[[mix]]\ndataset = { path = \"d.json\", format = \"sharegpt\", turns = \"all\", replay = \"recorded\" }\n";
        let file = WorkloadFile::parse(text, folder.path()).unwrap();
        let content = file.contents().unwrap().remove(0);
        assert!(content.replays_recorded && content.is_multi_turn());
        assert_eq!(content.output_words(), "as recorded");
    }

    #[test]
    fn lengths_of_a_file_lie_beside_this_one() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("l.txt"), "5\n8\n").unwrap();
        let text = "schema = 1\n[[mix]]\nprompt = { kind = \"histogram\", path = \"l.txt\" }\n\
            output = { kind = \"empirical\", path = \"l.txt\", ignore_eos = true }\n";
        let file = WorkloadFile::parse(text, folder.path()).unwrap();
        let content = file.contents().unwrap().remove(0);
        assert_eq!(content.prompt_words(), "histogram:l.txt");
        assert_eq!(
            (content.output.unwrap().max(), content.ignore_eos),
            (8, true)
        );
        let missing = WorkloadFile::parse(text, Path::new("/nowhere")).unwrap();
        let error = format!("{:#}", missing.contents().unwrap_err());
        assert!(
            error.contains("cannot read the lengths /nowhere/l.txt"),
            "{error}"
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let mix = "[[mix]]\nprompt = 5\noutput = 5\n";
        let cases = [
            (format!("schema = 2\n{mix}"), "schema 2"),
            (mix.to_owned(), "schema 0"),
            ("schema = 1\n".to_owned(), "no [[mix]]"),
            (format!("schema = 1\nrate = 5\n{mix}"), "rate"),
            (format!("schema = 1\nduration_s = -5\n{mix}"), "-5"),
            (
                format!("schema = 1\nslo = {{ ttft = 1, x = 2 }}\n{mix}"),
                "unknown objective `x`",
            ),
            (
                format!("schema = 1\narrival = {{ kind = \"poisson\", rate = 1, k = 2 }}\n{mix}"),
                "k",
            ),
            (
                "schema = 1\n[[mix]]\nprompt = { kind = \"fixed\", tokens = 5, max = 9 }\n"
                    .to_owned(),
                "unknown key `max`",
            ),
            (
                "schema = 1\n[[mix]]\nprompt = { tokens = 5 }\n".to_owned(),
                "no kind",
            ),
            (
                "schema = 1\n[[mix]]\nprompt = 5\n".to_owned(),
                "need an output length",
            ),
            (
                "schema = 1\n[[mix]]\noutput = 5\n".to_owned(),
                "exactly one of prompt and dataset",
            ),
            (format!("schema = 1\n{mix}weight = 0\n"), "weight 0"),
            (
                "schema = 1\n[[mix]]\ndataset = { path = \"/nowhere\", format = \"x\" }\n"
                    .to_owned(),
                "unknown format `x`",
            ),
            (
                "schema = 1\n[[mix]]\ndataset = { path = \"/nowhere\" }\n".to_owned(),
                "cannot read the dataset /nowhere",
            ),
        ];
        for (text, part) in cases {
            let result = WorkloadFile::parse(&text, Path::new(""));
            let error = result.and_then(|file| file.contents()).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
