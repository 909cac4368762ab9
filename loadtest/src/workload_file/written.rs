//! The load of a run as a workload file, whatever flags and files it came from: what lies beside the results
//! of a run so that it can be made again.

use std::fmt::Write;

use toml::{Table, Value};

use super::SCHEMA;
use crate::args::{Cache, Warmup};
use crate::arrival::{Arrival, RampShape};
use crate::config::Config;
use crate::content::{Content, Prompts};
use crate::lengths::Lengths;
use crate::slo::Slo;
use crate::workload::Api;

/// The text of the file, whose first lines say with which flags it is the same run. Files of datasets and
/// traces are named without their folder: they are looked for beside this one.
pub fn text(config: &Config) -> String {
    let file = table(config);
    let mut text = format!(
        "# The load of this run. The same again: loadtest{} --workload workload.toml\n",
        flags(config)
    );
    // A table of strings, numbers and tables always has a text.
    let _ = write!(text, "{}", toml::to_string(&file).unwrap_or_default());
    text
}

/// What a file cannot say.
fn flags(config: &Config) -> String {
    let mut flags = format!(" --seed {}", config.seed);
    if !config.ramp_up.is_zero() {
        let _ = write!(flags, " --ramp-up {}s", config.ramp_up.as_secs_f64());
    }
    if let Some(Warmup::Requests(requests)) = config.warmup {
        let _ = write!(flags, " --warmup {requests}");
    }
    if let Some(most) = config.arrival.max_in_flight() {
        let _ = write!(flags, " --max-in-flight {most}");
    }
    if let Some(per_word) = config.tokens_per_word {
        let _ = write!(flags, " --tokens-per-word {per_word}");
    }
    flags
}

fn table(config: &Config) -> Table {
    let mut file = Table::new();
    let mut put = |key: &str, value: Value| file.insert(key.to_owned(), value);
    put("schema", SCHEMA.into());
    if let Some(name) = &config.name {
        put("name", name.clone().into());
    }
    let api = match config.api {
        Api::Chat => "chat",
        Api::Completions => "completions",
    };
    put("api", api.into());
    put("arrival", arrival(config).into());
    if config.exact_count {
        put("exact_count", true.into());
    }
    if let Some(duration) = config.duration {
        put("duration_s", duration.as_secs_f64().into());
    }
    if let Some(requests) = config.requests {
        put("requests", whole(requests));
    }
    if let Some(Warmup::Time(time)) = config.warmup {
        put("warmup_s", time.as_secs_f64().into());
    }
    let cache = match config.cache {
        Cache::Cold => "cold",
        Cache::Warm => "warm",
        Cache::Shared => "shared",
    };
    put("cache", cache.into());
    if let Some(limits) = config.slo {
        put("slo", slo(limits).into());
    }
    let sampling = Table::from_iter([("temperature".to_owned(), config.temperature.into())]);
    put("sampling", sampling.into());
    // Contents of a trace are its own; a file has a mix all the same.
    let mix: Vec<Value> = config.contents.iter().map(|c| part(c).into()).collect();
    put("mix", mix.into());
    file
}

fn arrival(config: &Config) -> Table {
    let (kind, pairs): (&str, Vec<(&str, Value)>) = match config.arrival {
        Arrival::Closed { users } => ("closed", vec![("users", users.into())]),
        Arrival::Poisson { rate, .. } => ("poisson", vec![("rate", rate.into())]),
        Arrival::Gamma {
            rate, burstiness, ..
        } => (
            "gamma",
            vec![("rate", rate.into()), ("burstiness", burstiness.into())],
        ),
        Arrival::Constant { rate, .. } => ("constant", vec![("rate", rate.into())]),
        Arrival::Ramp {
            from, to, shape, ..
        } => {
            let shape = match shape {
                RampShape::Linear => "linear",
                RampShape::Exponential => "exponential",
            };
            let pairs = vec![
                ("from", from.into()),
                ("to", to.into()),
                ("shape", shape.into()),
            ];
            ("ramp", pairs)
        }
        Arrival::Trace { speed, .. } => {
            let name = config.trace.as_ref().map(|trace| trace.name.clone());
            let path = ("path", name.unwrap_or_default().into());
            ("trace", vec![path, ("speed", speed.into())])
        }
    };
    let kind = [("kind", kind.into())];
    let all = kind.into_iter().chain(pairs);
    all.map(|(key, value)| (key.to_owned(), value)).collect()
}

fn slo(limits: Slo) -> Table {
    let times = [
        ("ttft_ms", limits.ttft),
        ("tpot_ms", limits.tpot),
        ("stall_ms", limits.stall),
        ("e2e_ms", limits.e2e),
    ];
    let known = times
        .into_iter()
        .filter_map(|(key, limit)| Some((key.to_owned(), (limit?.as_secs_f64() * 1e3).into())));
    let share = ("attainment".to_owned(), limits.attainment.into());
    known.chain([share]).collect()
}

fn part(content: &Content) -> Table {
    let mut part = Table::new();
    let mut put = |key: &str, value: Value| part.insert(key.to_owned(), value);
    put("weight", content.weight.into());
    match &content.prompts {
        Prompts::Words(lengths) => {
            put("prompt", lengths.to_string().into());
            if content.turns != Lengths::Fixed(1) {
                put("turns", content.turns.to_string().into());
            }
        }
        Prompts::Dataset(dataset) => {
            put("dataset", recorded(content, &dataset.name).into());
        }
    }
    if let Some(output) = &content.output {
        put("output", lengths(output, content.ignore_eos));
    }
    let think = content.think.to_string();
    if think != "0" {
        put("think", think.into());
    }
    if let Some(prefix) = content.prefix {
        let pairs = [("tokens", prefix.tokens), ("groups", prefix.groups)];
        let prefix = pairs.map(|(key, n)| (key.to_owned(), Value::from(n)));
        put("prefix", Table::from_iter(prefix).into());
    }
    part
}

fn recorded(content: &Content, name: &str) -> Table {
    let turns = match content.turns {
        Lengths::Fixed(u32::MAX) => "all".to_owned(),
        turns => turns.to_string(),
    };
    let replay = match content.replays_recorded {
        true => "recorded",
        false => "actual",
    };
    let pairs = [
        ("path", name),
        ("turns", turns.as_str()),
        ("replay", replay),
    ];
    let pairs = pairs.map(|(key, value)| (key.to_owned(), Value::from(value)));
    Table::from_iter(pairs)
}

/// `{ kind = "normal", mean = 5, …, ignore_eos = true }`: the spelling of the command line, taken apart.
fn lengths(output: &Lengths, ignore_eos: bool) -> Value {
    let text = output.to_string();
    if !ignore_eos {
        return text.into();
    }
    let (kind, rest) = text.split_once(':').unwrap_or(("fixed", &text));
    let number = |text: &str| match text.parse::<i64>() {
        Ok(n) => Value::Integer(n),
        Err(_) => Value::String(text.to_owned()),
    };
    let pairs: Vec<(&str, &str)> = match kind {
        "fixed" => vec![("tokens", rest)],
        "uniform" => {
            let (min, max) = rest.split_once("..").unwrap_or((rest, rest));
            vec![("min", min), ("max", max)]
        }
        "histogram" => vec![("path", rest)],
        _ => rest.split(',').filter_map(|p| p.split_once('=')).collect(),
    };
    let mut table: Table = pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), number(value)))
        .collect();
    table.insert("kind".to_owned(), kind.into());
    table.insert("ignore_eos".to_owned(), true.into());
    table.into()
}

/// No run has more requests than fit.
fn whole(n: u64) -> Value {
    i64::try_from(n).unwrap_or(i64::MAX).into()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Args;

    fn config(words: &[&str]) -> Config {
        let words = std::iter::once("loadtest").chain(words.iter().copied());
        Config::try_from(Args::try_parse_from(words).unwrap()).unwrap()
    }

    /// Everything that decides what is asked, and when.
    fn asked(config: &Config) -> String {
        let Config {
            api,
            arrival,
            requests,
            duration,
            warmup,
            ramp_up,
            seed,
            contents,
            temperature,
            cache,
            slo,
            tokens_per_word,
            exact_count,
            ..
        } = config;
        format!(
            "{api:?} {arrival:?} {requests:?} {duration:?} {warmup:?} {ramp_up:?} {seed} {contents:?} \
             {temperature} {cache:?} {slo:?} {tokens_per_word:?} {exact_count} {:?}",
            config.trace
        )
    }

    #[test]
    fn the_file_and_the_flags_of_its_first_line_are_the_same_load() {
        let folder = tempfile::tempdir().unwrap();
        let beside = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).unwrap();
            folder.path().join(name).display().to_string()
        };
        let data = beside(
            "d.json",
            r#"[{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}]"#,
        );
        let trace = beside(
            "t.jsonl",
            r#"{"timestamp": 0, "input_length": 5, "output_length": 3}"#,
        );
        let lengths = beside("l.txt", "5\n9\n");
        for line in [
            "".to_owned(),
            format!("--prompt-tokens histogram:{lengths} --output-tokens empirical:{lengths} --ignore-eos"),
            "--users 8 --ramp-up 3s --warmup 20s --requests 50 --api completions --seed 7".into(),
            "--rate 2.5 --duration 90s --slo ttft=1s,tpot=80ms,attainment=0.9 --cache warm".into(),
            "--rate 2 --burstiness 0.5 --max-in-flight 9 --prompt-tokens lognormal:median=256,p95=900,max=1500 \
             --output-tokens gamma:mean=20,sd=4,max=90 --ignore-eos --temperature 0.7".into(),
            "--rate 3 --exact-count --duration 9s --cache shared".into(),
            "--rate 3 --arrival constant --output-tokens uniform:8..64 --ignore-eos --tokens-per-word 1.5".into(),
            "--rate 1 --ramp-to 9 --ramp exponential --duration 60s --output-tokens 5 --ignore-eos".into(),
            "--users 2 --turns uniform:2..4 --think lognormal:median=2s,p95=8s --prefix-tokens 50 --prefix-groups 3".into(),
            format!("--dataset {data} --turns 2 --replay-recorded --think 500ms"),
            format!("--trace {trace} --trace-speed 2"),
        ] {
            let first = config(&line.split_whitespace().collect::<Vec<_>>());
            let text = text(&first);
            let file = folder.path().join("workload.toml");
            std::fs::write(&file, &text).unwrap();
            let again = text.lines().next().unwrap().split("loadtest").nth(1).unwrap();
            let again: Vec<&str> = again.split_whitespace().collect();
            let path = file.display().to_string();
            let again: Vec<&str> = again
                .into_iter()
                .map(|word| if word == "workload.toml" { path.as_str() } else { word })
                .collect();
            assert_eq!(asked(&config(&again)), asked(&first), "{line}: {text}");
        }
    }
}
