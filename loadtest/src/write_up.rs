//! `loadtest write-up`: puts the figures of a suite into the tables of pages in Markdown. A table stands between
//! `<!-- suite: MODEL, … -->`, which names the models whose rows it has, and `<!-- end -->`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::results::write_whole;
use crate::suite::{Cell, Fit, SUMMARY, Side, Suite, Summary};

const BEGIN: &str = "<!-- suite: ";
const END: &str = "<!-- end -->";
/// The loads whose speeds the table shows.
const LOADS: [&str; 2] = ["users-1", "users-8"];
const HEAD: &str = "\
| model | precision | weights, GiB | KV room, GiB | tokens in it | output tokens/s, 1 user | 8 users | highest rate, /s | perplexity ratio |
|---|---|---|---|---|---|---|---|---|
";

/// Rewrites the tables of `pages` from a suite and, where it has been run, its results.
///
/// # Errors
/// A page without a table, a model that the suite does not have, files that cannot be read or written.
pub fn run(suite: &Suite, results: Option<&Path>, pages: &[PathBuf]) -> Result<()> {
    let summary = results.map(read).transpose()?;
    for page in pages {
        let text = std::fs::read_to_string(page).with_context(|| page.display().to_string())?;
        let filled = fill(suite, summary.as_ref(), &text);
        let filled = filled.with_context(|| page.display().to_string())?;
        write_whole(page, |out| Ok(out.write_all(filled.as_bytes())?))?;
    }
    Ok(())
}

fn read(results: &Path) -> Result<Summary> {
    let path = results.join(SUMMARY);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

fn fill(suite: &Suite, summary: Option<&Summary>, text: &str) -> Result<String> {
    let Some((before, rest)) = text.split_once(BEGIN) else {
        bail!("there is no `{BEGIN}MODEL -->` before a table");
    };
    let Some((names, rest)) = rest.split_once(" -->") else {
        bail!("`{BEGIN}` does not end");
    };
    let Some((_, after)) = rest.split_once(END) else {
        bail!("there is no `{END}` after the table");
    };
    let mut table = HEAD.to_owned();
    for name in names.split(", ") {
        let sides = suite.cells().filter(|side| side.model.name == name);
        let sides: Vec<Side<'_>> = sides.collect();
        if sides.is_empty() {
            bail!("the suite {} has no model `{name}`", suite.name);
        }
        for side in sides {
            row(&mut table, suite, summary, side);
        }
    }
    Ok(format!("{before}{BEGIN}{names} -->\n{table}{END}{after}"))
}

fn row(table: &mut String, suite: &Suite, summary: Option<&Summary>, side: Side<'_>) {
    let (model, precision) = (&side.model.name, side.precision);
    let fit = suite.fit(side.model.shape, precision);
    let [weights, room, tokens] = memory(fit);
    let _ = write!(
        table,
        "| {model} | {precision} | {weights} | {room} | {tokens} |"
    );
    let mut cells = summary.into_iter().flat_map(|summary| &summary.cells);
    let cell = cells.find(|cell| cell.name == side.name());
    let figures = match (fit.and_then(|fit| fit.refusal()), cell) {
        (Some(refusal), _) => [refusal, "–".into(), "–".into(), "–".into()],
        (None, Some(cell)) if cell.status == "done" => {
            let [one, eight] = LOADS.map(|load| speed(cell, load));
            [one, eight, rate(cell), perplexity(cell)]
        }
        (None, _) => ["not measured"; 4].map(str::to_owned),
    };
    let _ = writeln!(table, " {} |", figures.join(" | "));
}

fn memory(fit: Option<Fit>) -> [String; 3] {
    let Some(fit) = fit else {
        return ["–"; 3].map(str::to_owned);
    };
    let weights = format!("{:.1}", fit.weights_gib);
    match fit.refusal() {
        Some(_) => [weights, "none".into(), "–".into()],
        None => {
            let tokens = format!("{}k", fit.kv_tokens / 1000);
            [weights, format!("{:.1}", fit.kv_gib), tokens]
        }
    }
}

/// The mean over the valid runs of a load.
fn speed(cell: &Cell, load: &str) -> String {
    let runs = cell.runs.iter();
    let runs = runs.filter(|run| run.load == load && run.verdict != "invalid");
    let speeds: Vec<f64> = runs
        .filter_map(|run| run.output_tokens_per_second)
        .collect();
    match speeds.len() {
        0 => "–".to_owned(),
        n => format!("{:.0}", speeds.iter().sum::<f64>() / n as f64),
    }
}

fn rate(cell: &Cell) -> String {
    let found = cell.searches.first();
    match found.map(|found| (found.rate, found.stop.as_str())) {
        Some((Some(rate), "converged")) => format!("{rate:.2}"),
        Some((Some(rate), _)) => format!("at least {rate:.2}"),
        Some((None, _)) => "none".to_owned(),
        None => "–".to_owned(),
    }
}

fn perplexity(cell: &Cell) -> String {
    let quality = cell.quality.as_ref();
    let ratio = quality.map(|quality| &quality["summary"]["perplexity_ratio"]);
    let of = |key: &str| ratio.and_then(|ratio| ratio[key].as_f64());
    match (of("value"), of("standard_error")) {
        (Some(value), Some(error)) => format!("{value:.4} ± {error:.4}"),
        _ => "–".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A10: &str = include_str!("../../deploy/suites/rig-a10.toml");
    const PAGES: [&str; 3] = [
        include_str!("../../docs/models/dolly.md"),
        include_str!("../../docs/models/stablelm.md"),
        include_str!("../../docs/models/openassistant.md"),
    ];

    /// As long as nobody has run the suite on its machine, the pages say so and are what it writes.
    #[test]
    fn the_pages_are_what_the_command_writes() {
        let suite = Suite::parse(A10).unwrap();
        for page in PAGES {
            assert_eq!(fill(&suite, None, page).unwrap(), page);
            assert!(page.contains("No A10 has been used yet") && page.contains("not measured"));
        }
    }

    #[test]
    fn figures_of_a_suite_reach_the_table() {
        let suite = Suite::parse(A10).unwrap();
        let run = |load: &str, speed: f64, verdict: &str| {
            serde_json::json!({"load": load, "folder": "f", "output_tokens_per_second": speed,
                "ttft_p50_seconds": null, "tpot_p50_seconds": null, "failed": 0, "verdict": verdict})
        };
        let cell = serde_json::json!({
            "name": "dolly-v2-3b int8 on octet", "folder": "d", "status": "done", "sides": [],
            "quality": {"summary": {"perplexity_ratio": {"value": 1.01, "standard_error": 0.002}}},
            "searches": [{"load": "rate", "rate": 3.5, "stop": "max_time"}],
            "runs": [run("users-1", 60.0, "valid"), run("users-8", 300.0, "valid"),
                     run("users-8", 310.0, "warning"), run("users-8", 1.0, "invalid")],
        });
        let summary = serde_json::json!({"schema": 2, "kind": "suite", "name": "rig-a10", "left": 0,
                                         "cells": [cell]});
        let summary: Summary = serde_json::from_value(summary).unwrap();
        let text = fill(&suite, Some(&summary), PAGES[0]).unwrap();
        let found = "| 60 | 305 | at least 3.50 | 1.0100 ± 0.0020 |";
        assert!(text.contains(found), "{text}");
        let refused = "| dolly-v2-12b | f16 | 22.1 | none | – | does not fit";
        assert!(text.contains(refused), "{text}");
    }

    #[test]
    fn what_is_not_a_table_is_named() {
        let suite = Suite::parse(A10).unwrap();
        for (text, words) in [
            ("words", "there is no `<!-- suite: "),
            ("<!-- suite: dolly-v2-3b -->", "no `<!-- end -->`"),
            ("<!-- suite: gpt-5 --><!-- end -->", "no model `gpt-5`"),
        ] {
            let error = format!("{:#}", fill(&suite, None, text).unwrap_err());
            assert!(error.contains(words), "{error}");
        }
    }
}
