//! Recorded traces: when requests came and how long they were, without their text. Three published
//! shapes are read: JSON lines with `timestamp` in milliseconds, `input_length`, `output_length` and
//! `hash_ids` (Mooncake); CSV with `TIMESTAMP,ContextTokens,GeneratedTokens` (Azure); CSV with
//! `Timestamp,…,Request tokens,Response tokens` (BurstGPT).

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::clock::{Nanos, SECOND};

/// Tokens of the block that one hash of a Mooncake trace stands for.
pub const BLOCK_TOKENS: u32 = 512;

/// One request of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceRequest {
    /// After the first request.
    pub at: Nanos,
    /// Prompt length in tokens.
    pub prompt_tokens: u32,
    /// Output length in tokens.
    pub output_tokens: u32,
    /// Blocks of the prompt from its beginning; equal numbers are equal text.
    pub blocks: Vec<u64>,
}

/// A trace in the order of time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trace {
    /// File name.
    pub name: String,
    /// Its requests.
    pub requests: Vec<TraceRequest>,
    /// Requests left out because a length was zero.
    pub empty: u64,
    /// Requests whose prompt was cut to the limit.
    pub clipped: u64,
}

#[derive(Deserialize)]
struct JsonLine {
    timestamp: f64,
    input_length: u32,
    output_length: u32,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

impl Trace {
    /// Reads a file; prompts longer than `max_prompt` are cut.
    pub fn read(path: &Path, max_prompt: Option<u32>) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the trace {}", path.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let trace = Self::parse(&text, max_prompt);
        let trace = trace.with_context(|| format!("the trace {}", path.display()))?;
        Ok(Self {
            name: name.into_owned(),
            ..trace
        })
    }

    fn parse(text: &str, max_prompt: Option<u32>) -> Result<Self> {
        let rows = if text.trim_start().starts_with('{') {
            json_lines(text)?
        } else {
            csv(text)?
        };
        // Dates are too large for nanoseconds before the first of them is taken off.
        let first = rows.iter().map(|(seconds, _)| *seconds);
        let first = first.fold(f64::INFINITY, f64::min);
        let mut trace = Self::default();
        for (seconds, mut request) in rows {
            if request.prompt_tokens == 0 || request.output_tokens == 0 {
                trace.empty += 1;
                continue;
            }
            if let Some(max) = max_prompt.filter(|max| *max < request.prompt_tokens) {
                request.prompt_tokens = max;
                trace.clipped += 1;
            }
            request.at = ((seconds - first) * SECOND as f64) as Nanos;
            trace.requests.push(request);
        }
        if trace.requests.is_empty() {
            bail!("no request is left");
        }
        // A log is often in the order of endings.
        trace.requests.sort_by_key(|request| request.at);
        let first = trace.requests[0].at;
        trace.requests.iter_mut().for_each(|r| r.at -= first);
        Ok(trace)
    }
}

type Row = (f64, TraceRequest);

fn json_lines(text: &str) -> Result<Vec<Row>> {
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(number, line)| {
            let line: JsonLine =
                serde_json::from_str(line).with_context(|| format!("line {}", number + 1))?;
            check_time(line.timestamp, number)?;
            Ok((
                line.timestamp / 1e3,
                row(line.input_length, line.output_length, line.hash_ids),
            ))
        })
        .collect()
}

fn row(prompt_tokens: u32, output_tokens: u32, blocks: Vec<u64>) -> TraceRequest {
    TraceRequest {
        at: 0,
        prompt_tokens,
        output_tokens,
        blocks,
    }
}

fn check_time(seconds: f64, number: usize) -> Result<()> {
    if !(seconds.is_finite() && seconds >= 0.0) {
        bail!("line {}: {seconds} is not a time", number + 1);
    }
    Ok(())
}

fn csv(text: &str) -> Result<Vec<Row>> {
    let mut lines = text.lines().enumerate();
    let (_, head) = lines.next().context("the file is empty")?;
    let names: Vec<String> = head
        .trim_start_matches('\u{feff}')
        .split(',')
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let column = |wanted: &[&str]| {
        names
            .iter()
            .position(|name| wanted.contains(&name.as_str()))
            .with_context(|| format!("no column {} among {}", wanted.join(" or "), head.trim()))
    };
    let time = column(&["timestamp"])?;
    let prompt = column(&["contexttokens", "request tokens", "input_length"])?;
    let output = column(&["generatedtokens", "response tokens", "output_length"])?;
    lines
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(number, line)| {
            let cells: Vec<&str> = line.split(',').map(str::trim).collect();
            let cell = |column: usize| {
                cells
                    .get(column)
                    .copied()
                    .with_context(|| format!("line {} is short", number + 1))
            };
            let tokens = |column: usize| -> Result<u32> {
                let text = cell(column)?;
                text.parse()
                    .with_context(|| format!("line {}: `{text}` is not a length", number + 1))
            };
            let seconds = timestamp(cell(time)?)
                .with_context(|| format!("line {}: `{}` is not a time", number + 1, cells[time]))?;
            check_time(seconds, number)?;
            Ok((seconds, row(tokens(prompt)?, tokens(output)?, Vec::new())))
        })
        .collect()
}

/// Seconds: a number, or a date like `2023-11-16 18:15:46.6805900` counted from the year 0.
fn timestamp(text: &str) -> Option<f64> {
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let text = text.trim_end_matches('Z');
    let text = text.strip_suffix("+00:00").unwrap_or(text);
    let (date, time) = text.split_once([' ', 'T'])?;
    let mut parts = date.split('-').map(str::parse::<i64>);
    let mut part = || parts.next()?.ok();
    let (year, month, day) = (part()?, part()?, part()?);
    let mut clock = time.split(':').map(str::parse::<f64>);
    let mut unit = || clock.next()?.ok();
    let (hour, minute, second) = (unit()?, unit()?, unit()?);
    // Days by the rule of the Gregorian calendar, the year beginning in March.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day;
    Some(days as f64 * 86_400.0 + hour * 3600.0 + minute * 60.0 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(trace: &Trace) -> Vec<f64> {
        let seconds = |r: &TraceRequest| r.at as f64 / SECOND as f64;
        trace.requests.iter().map(seconds).collect()
    }

    #[test]
    fn the_published_shapes_are_read() {
        let mooncake = concat!(
            r#"{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}"#,
            "\n",
            r#"{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [46, 2366]}"#,
            "\n"
        );
        let trace = Trace::parse(mooncake, Some(6500)).unwrap();
        assert_eq!(times(&trace), [0.0, 3.053]);
        assert_eq!((trace.requests[0].prompt_tokens, trace.clipped), (6500, 1));
        assert_eq!(trace.requests[1].blocks, [46, 2366]);

        let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n\
            2023-11-16 23:59:59.5000000,4808,10\r\n\
            2023-11-17 00:00:01.0000000,110,27\r\n";
        let trace = Trace::parse(azure, None).unwrap();
        let gap = times(&trace)[1];
        assert!((gap - 1.5).abs() < 1e-4, "{gap}");
        assert_eq!(trace.requests[0].output_tokens, 10);

        let burst = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n\
            45,ChatGPT,472,18,490,Conversation log\n\
            5,ChatGPT,1087,230,1317,Conversation log\n\
            118,ChatGPT,40,0,40,Conversation log\n";
        let trace = Trace::parse(burst, None).unwrap();
        assert_eq!((times(&trace), trace.empty), (vec![0.0, 40.0], 1));
        assert_eq!(trace.requests[0].prompt_tokens, 1087);
    }

    #[test]
    fn the_end_of_a_leap_february_is_a_day_apart() {
        let day = |date: &str| timestamp(&format!("{date} 00:00:00")).unwrap() / 86_400.0;
        assert_eq!(day("2024-03-01") - day("2024-02-28"), 2.0);
        assert_eq!(day("2023-03-01") - day("2023-02-28"), 1.0);
        assert_eq!(day("2024-01-01") - day("2023-12-31"), 1.0);
    }

    #[test]
    fn what_is_no_trace_is_named() {
        let cases = [
            ("", "empty"),
            ("a,b\n1,2\n", "no column timestamp"),
            (
                "timestamp,input_length,output_length\n1,2\n",
                "line 2 is short",
            ),
            (
                "timestamp,input_length,output_length\nsoon,2,3\n",
                "`soon` is not a time",
            ),
            (
                "timestamp,input_length,output_length\n1,-2,3\n",
                "`-2` is not a length",
            ),
            (
                "timestamp,input_length,output_length\n1,0,3\n",
                "no request is left",
            ),
            ("{\"timestamp\": 1}", "line 1"),
        ];
        for (text, part) in cases {
            let error = format!("{:#}", Trace::parse(text, None).unwrap_err());
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
