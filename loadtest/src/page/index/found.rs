//! The searches of a folder of results.

use std::path::Path;

use anyhow::Result;
use maud::{Markup, html};
use serde::Serialize;

use super::super::data::number;
use super::super::group::{MAX_DEPTH, subfolders};
use super::super::search::Search;
use super::super::tagged::{Of, tagged};
use crate::results::{PAGE, SEARCH};
use crate::search::{Over, StopReason};

/// One search.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    pub name: String,
    pub model: String,
    pub started: String,
    /// Its folder, seen from the index.
    pub folder: String,
    /// Its page, if it has one.
    page: Option<String>,
    /// What had to be kept, in words.
    limits: String,
    /// Requests per second; none when no rate passed, or users were raised.
    rate: Option<f64>,
    /// Users; none when no number of them passed, or rates were raised.
    #[serde(skip_serializing_if = "Option::is_none")]
    users: Option<u64>,
    /// What was raised.
    over: Over,
    stop: StopReason,
    probes: usize,
    machine: String,
}

/// All searches below `folder`.
///
/// # Errors
/// A search that cannot be read.
pub fn read(folder: &Path) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    collect(folder, folder, MAX_DEPTH, &mut found)?;
    Ok(found)
}

fn collect(base: &Path, folder: &Path, depth: usize, found: &mut Vec<Found>) -> Result<()> {
    if folder.join(SEARCH).is_file()
        && let Some(search) = Search::read(folder)?
    {
        found.push(Found::new(&search, base, folder));
    } else if depth > 0 {
        for below in subfolders(folder)? {
            collect(base, &below, depth - 1, found)?;
        }
    }
    Ok(())
}

impl Found {
    fn new(search: &Search, base: &Path, folder: &Path) -> Self {
        let below = |path: &Path| {
            let path = path.strip_prefix(base).unwrap_or(path);
            path.to_string_lossy().into_owned()
        };
        let page = folder.join(PAGE);
        Self {
            name: search.name.clone(),
            model: search.model().to_owned(),
            started: search.started.clone(),
            folder: below(folder),
            page: page.is_file().then(|| below(&page)),
            limits: search.limits(),
            rate: search.rate,
            users: search.users,
            over: search.over,
            stop: search.stop,
            probes: search.probes(),
            machine: search.machine(),
        }
    }
}

impl Found {
    /// What was found.
    /// That load in words, as a number of the search of this place in the index.
    fn tagged(&self, i: usize, words: &str) -> Markup {
        let (key, value) = match self.over {
            Over::Rate => ("rate", self.rate),
            Over::Concurrency => ("users", self.users.map(|users| users as f64)),
        };
        let key = format!("searches.{i}.{key}");
        tagged(Of::Index, &key, value.unwrap_or_default(), words)
    }

    fn words(&self) -> Option<String> {
        match self.over {
            Over::Rate => self.rate.map(|rate| format!("{} /s", number(rate))),
            Over::Concurrency => self.users.map(|users| format!("{users} users")),
        }
    }
}

/// The table of some searches; nothing of none.
pub fn table(searches: &[(usize, &Found)]) -> Markup {
    html! {
        @if !searches.is_empty() {
            h3 { "Highest load within limits" }
            div class="wide" tabindex="0" { table {
                thead { tr { @for name in ["search", "limits", "load", "probes", "ended because", "started (UTC)", "machine"] { th { (name) } } } }
                tbody { @for (i, found) in searches { tr class=(if found.words().is_none() { "fail" } else { "" }) {
                    th { @match &found.page { Some(page) => a href=(page) { (found.name) }, None => (found.name) } }
                    td { (found.limits) }
                    td { @match found.words() {
                        Some(load) => { @if found.stop != StopReason::Converged { "at least " } (found.tagged(*i, &load)) }
                        None => "none",
                    } }
                    td { (found.probes) }
                    td { (found.stop.words()) }
                    td { (found.started.replace('T', " ").get(..16).unwrap_or(&found.started)) }
                    td { (found.machine) }
                } } }
            } }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn search(stop: &str, rate: Option<f64>) -> Value {
        json!({"schema": 1, "kind": "search", "name": "chat", "started": "2026-01-01T00:00:00Z",
               "target": {"url": "http://h", "endpoint": "/v1/chat/completions", "model": "m"},
               "slo": {"ttft_seconds": 1.0, "tpot_seconds": null, "stall_seconds": null, "e2e_seconds": null,
                       "attainment": 0.99},
               "rate": rate, "stop": stop, "not_monotone": false, "probes": []})
    }

    #[test]
    fn a_folder_of_searches_alone_has_an_index() {
        let base = tempfile::tempdir().unwrap();
        assert!(super::super::write(base.path()).is_err(), "nothing there");
        for (place, stop, rate) in [
            ("a/one", "converged", Some(2.0)),
            ("b", "max_time", Some(3.0)),
            ("c", "solo_fails", None),
        ] {
            let folder = base.path().join(place);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(SEARCH), search(stop, rate).to_string()).unwrap();
        }
        std::fs::write(base.path().join("a/one").join(PAGE), "").unwrap();
        super::super::write(base.path()).unwrap();
        let page = std::fs::read_to_string(base.path().join("index.html")).unwrap();
        let tag = |i: usize, rate: f64| {
            format!(
                r#"<data data-key="searches.{i}.rate" data-of="index" value="{rate}">{rate} /s</data>"#
            )
        };
        assert!(
            page.contains(&format!(
                "by 99 % of the requests</td><td>{}</td>",
                tag(0, 2.0)
            )),
            "{page}"
        );
        assert!(
            page.contains(&format!("<td>at least {}</td>", tag(1, 3.0))),
            "{page}"
        );
        for words in ["<a href=\"a/one/report.html\">chat</a>", "<td>none</td>"] {
            assert!(page.contains(words), "{words}: {page}");
        }
        let text = std::fs::read_to_string(base.path().join("index.json")).unwrap();
        let index: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(index["results"], json!([]));
        let folders: Vec<&Value> = index["searches"].as_array().unwrap().iter().collect();
        assert_eq!(folders.len(), 3);
        assert_eq!(folders[0]["folder"], "a/one");
        assert_eq!(folders[1]["page"], Value::Null);
    }
}
