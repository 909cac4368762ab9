//! The page of a suite: who was faster, every cell with its figures or the reason why it has none, and what
//! more load makes of speed and latency.

mod ladders;

use std::path::Path;

use anyhow::{Context, Result, bail};
use maud::{Markup, html};
use serde_json::Value;

use super::axis::{Axis, Scale};
use super::chart::{Chart, Form, Series};
use super::data::{milliseconds, number};
use super::group::Group;
use super::metric::{Latency, Metric, Quantile};
use super::rates;
use super::search::Search;
use super::tagged::{Of, below, tagged};
use super::{compare, cut, document};
use crate::interval::Interval;
use crate::results::PAGE;
use crate::search::{Over, StopReason};
use crate::suite::{Cell, Found, SUMMARY, Summary};

/// A job with the runs of each of its loads, or of each of its sides.
struct Row {
    /// Its place in the summary.
    number: usize,
    cell: Cell,
    loads: Vec<Group>,
    searches: Vec<Search>,
}

/// The page of the suite whose results lie in `folder`; none where there is no suite.
///
/// # Errors
/// A summary or a result that cannot be read.
pub fn page(folder: &Path) -> Result<Option<String>> {
    let path = folder.join(SUMMARY);
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path)?;
    let summary: Summary =
        serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let mut rows = Vec::new();
    for (number, cell) in summary.cells.iter().enumerate() {
        let place = folder.join(&cell.folder);
        let mut loads = match cell.runs.is_empty() {
            true => Vec::new(),
            false => Group::read(&place)?,
        };
        for run in loads.iter().flat_map(|group| &group.runs) {
            if run.place.strip_prefix(folder).is_err() {
                bail!("{} lies outside of the suite", run.place.display());
            }
        }
        if cell.sides.len() == 1 {
            loads.sort_by_key(|group| position(cell, group));
        }
        let pages = cell.searches.iter().filter_map(|found| found.page.as_ref());
        let searches = pages.map(|page| Search::read(place.join(page).parent().unwrap_or(&place)));
        rows.push(Row {
            number,
            cell: cell.clone(),
            loads,
            searches: searches
                .filter_map(Result::transpose)
                .collect::<Result<_>>()?,
        });
    }
    Ok(Some(render(&summary, &rows)))
}

/// Loads in the order in which they were run.
fn position(cell: &Cell, group: &Group) -> usize {
    let name = load_of(cell, group);
    cell.runs
        .iter()
        .position(|run| run.load == name)
        .unwrap_or(usize::MAX)
}

/// The load of a group: what its runs are called by after the name of the cell.
fn load_of<'a>(cell: &Cell, group: &'a Group) -> &'a str {
    let name = group.name.strip_prefix(&cell.name).unwrap_or(&group.name);
    name.trim_start_matches([',', ' '])
}

fn render(summary: &Summary, rows: &[Row]) -> String {
    let (cells, compared): (Vec<&Row>, Vec<&Row>) =
        rows.iter().partition(|row| row.cell.sides.len() == 1);
    let body = html! {
        @if let Some(machine) = &summary.machine { p { "For: " (machine) } }
        (cut(summary.cut.as_ref()))
        @for mixed in &summary.mixed { p class="verdict fair" { "Made with more than one version, so that cells may differ by more than their names: " (mixed) "." } }
        @for row in &compared { (comparison(row)) }
        @for (model, groups) in repeated(&cells, &compared) { h2 { (model) } (compare::finding(&groups)) }
        h2 { "Every cell" }
        (table(&cells, "Output tokens per second", Metric::OutputTokens))
        (table(&cells, "Time to first token, median", Metric::Latency(Latency::Ttft, Quantile::P50)))
        (table(&cells, "Time per further token, median", Metric::Latency(Latency::Tpot, Quantile::P50)))
        @if summary.left > 0 { p { (summary.left) " more have not been run." } }
        (client(summary))
        p class="note" {
            "± is half of the 95 % interval of the mean over runs; a number without it is of one run. A number leads to its page."
        }
        (rates(&cells))
        (quality(&cells))
        (charts(&cells))
    };
    document(&format!("Suite {}", summary.name), summary.dry_run, &body)
}

/// What the client can do.
fn client(summary: &Summary) -> Markup {
    html! { @if let Some(test) = &summary.self_test { p class="note" {
        "Before the first server was started the client tested itself, and kept up with "
        @match test.sustained_events_per_second {
            Some(most) => { (tagged(Of::Summary, "self_test.sustained_events_per_second", most, &number(most))) " token events a second." }
            None => "no load: the machine was busy.",
        }
        " The page of a run says what it needed."
    } } }
}

/// The finding of a comparison, and its page.
fn comparison(row: &Row) -> Markup {
    let cell = &row.cell;
    html! {
        h2 { (cell.name) }
        @if row.loads.len() == 2 {
            (compare::finding(&row.loads))
            p { a href={ (cell.folder) "/" (PAGE) } { "The comparison" } ": " @for (i, side) in cell.sides.iter().enumerate() {
                @if i > 0 { " and " } (side.model) " " (side.precision) " on " (side.server)
            } }
        } @else { p { (status(cell)) } }
    }
}

/// Precisions of one model on one server under a load that was repeated, the first of them first, unless two of
/// them were asked by turns, which says more.
fn repeated(cells: &[&Row], compared: &[&Row]) -> Vec<(String, Vec<Group>)> {
    let mut found: Vec<(String, Vec<Group>)> = Vec::new();
    for row in cells {
        let side = &row.cell.sides[0];
        let by_turns = |other: &&Row| other.cell.sides.iter().all(|s| s.model == side.model);
        let most = row.loads.iter().max_by_key(|group| group.runs.len());
        let Some(group) = most.filter(|group| group.runs.len() > 1) else {
            continue;
        };
        if compared.iter().any(by_turns) {
            continue;
        }
        let title = format!(
            "{}, {} on {}",
            side.model,
            load_of(&row.cell, group),
            side.server
        );
        let mut group = group.clone();
        group.name.clone_from(&side.precision);
        match found.iter_mut().find(|(known, _)| *known == title) {
            Some((_, groups)) => groups.push(group),
            None => found.push((title, vec![group])),
        }
    }
    found.retain(|(_, groups)| groups.len() > 1);
    found
}

/// Why a cell has no numbers.
fn status(cell: &Cell) -> String {
    match (cell.status.as_str(), cell.reason.split("; ").next()) {
        ("done", _) => "nothing was run".into(),
        ("does_not_fit", Some(reason)) => reason.to_owned(),
        ("not_there", Some(reason)) => format!("not possible here: {reason}"),
        ("no_room", Some(reason)) => format!("not run: {reason}"),
        (_, reason) => format!("failed: {}", reason.unwrap_or_default()),
    }
}

fn table(cells: &[&Row], title: &str, metric: Metric) -> Markup {
    let mut loads: Vec<&str> = Vec::new();
    for run in cells.iter().flat_map(|row| &row.cell.runs) {
        if !loads.contains(&run.load.as_str()) {
            loads.push(&run.load);
        }
    }
    html! {
        h3 { (title) }
        div class="wide" tabindex="0" { table {
            thead { tr { th { "model" } th class="words" { "precision" } th class="words" { "server" } @for load in &loads { th { (load) } } } }
            tbody { @for row in cells {
                @let side = &row.cell.sides[0];
                tr class=(if row.cell.status == "failed" { "fail" } else { "" }) {
                    th { (side.model) } td class="words" { (precision(row)) } td class="words" { (side.server) }
                    @if row.loads.is_empty() {
                        td class="why" colspan=(loads.len().max(1)) { (status(&row.cell)) }
                    } @else {
                        @for load in &loads { td { (value(row, load, metric)) } }
                    }
                }
            } }
        } }
    }
}

fn value(row: &Row, load: &str, metric: Metric) -> Markup {
    let Some(group) = row
        .loads
        .iter()
        .find(|group| load_of(&row.cell, group) == load)
    else {
        return html! { "–" };
    };
    let words = match group.summary(metric) {
        None => "–".to_owned(),
        Some((value, None)) => metric.bare(value),
        Some((value, Some(interval))) => metric.bare_plus_minus(value, value - interval.low),
    };
    let run = row.cell.runs.iter().find(|run| run.load == load);
    let place = run.map(|run| match group.runs.len() {
        1 => format!("{}/{}", row.cell.folder, run.folder),
        _ => {
            let above = Path::new(&run.folder).parent().unwrap_or(Path::new(""));
            format!("{}/{}", row.cell.folder, above.display())
        }
    });
    let words = match (&place, group.summary(metric)) {
        (Some(place), Some((value, _))) => below(place, &metric.key(), value, &words),
        _ => html! { (words) },
    };
    html! {
        @match place { Some(place) => a href={ (place) "/" (PAGE) } { (words) }, None => (words) }
        @if !group.is_valid() { " (invalid)" }
    }
}

/// The precision that was asked for, and what the server made of it where that is another word.
fn precision(row: &Row) -> String {
    let asked = &row.cell.sides[0].precision;
    let mut made = row.loads.iter().flat_map(|group| &group.runs);
    let made = made.find_map(|run| run.server.build.get("quantization"));
    match made {
        Some(made) if made != asked => format!("{asked} ({made})"),
        _ => asked.clone(),
    }
}

/// Why a search ended, in words.
fn stopped(stop: &str) -> String {
    match serde_json::from_value::<StopReason>(stop.into()) {
        Ok(reason) => reason.words().to_owned(),
        Err(_) => stop.replace('_', " "),
    }
}

/// The level that a search found, of which the summary's `place` tells.
fn highest(found: &Found, place: &str) -> Markup {
    let level = match found.over {
        Over::Rate => (
            "rate",
            " requests per second",
            found.rate.map(|n| (n, number(n))),
        ),
        Over::Concurrency => (
            "users",
            " users",
            found.users.map(|n| (n as f64, n.to_string())),
        ),
    };
    html! { @match level {
        (key, unit, Some((value, words))) => {
            @if found.stop != "converged" { "at least " }
            (tagged(Of::Summary, &format!("{place}.{key}"), value, &words)) (unit)
        }
        (.., None) => "none",
    } }
}

/// The highest rates or most users within limits; what was not confirmed is "at least".
fn rates(cells: &[&Row]) -> Markup {
    let has_some = |row: &&&Row| !row.cell.searches.is_empty();
    let rows: Vec<&&Row> = cells.iter().filter(has_some).collect();
    let mut found = rows.iter().flat_map(|row| &row.cell.searches);
    let title = match found.any(|found| found.over == Over::Concurrency) {
        true => "Highest load within the limits",
        false => "Highest rate within the limits",
    };
    html! {
        @if !rows.is_empty() {
            h3 { (title) }
            div class="wide" tabindex="0" { table {
                thead { tr { th { "model" } th class="words" { "precision" } th class="words" { "server" } th class="words" { "search" } th { "highest" } th class="words" { "why it ended" } } }
                tbody { @for row in rows { @for (i, found) in row.cell.searches.iter().enumerate() { tr {
                    @let side = &row.cell.sides[0];
                    th { (side.model) } td class="words" { (precision(row)) } td class="words" { (side.server) } td class="words" { @match &found.page { Some(page) => a href={ (row.cell.folder) "/" (page) } { (found.load) }, None => (found.load) } }
                    td { (highest(found, &format!("cells.{}.searches.{i}", row.number))) }
                    td class="why" { (stopped(&found.stop)) }
                } } } }
            } }
        }
    }
}

/// What a precision costs against the model's 32-bit form.
fn quality(cells: &[&Row]) -> Markup {
    let known: Vec<(&Row, &Value)> = cells
        .iter()
        .filter_map(|row| Some((*row, &row.cell.quality.as_ref()?["summary"])))
        .collect();
    let with_error = |row: &Row, summary: &Value, path: &str, digits: usize| {
        let part = path.split('.').fold(summary, |value, key| &value[key]);
        match (part["value"].as_f64(), part["standard_error"].as_f64()) {
            (Some(value), Some(error)) => {
                let key = format!("cells.{}.quality.summary.{path}.value", row.number);
                // An error is never told as nothing.
                let is_seen = |digits: &usize| error * 10f64.powi(*digits as i32) >= 0.5;
                let digits = (digits..8).find(is_seen).unwrap_or(digits);
                let words = format!("{value:.digits$} ± {error:.digits$}");
                tagged(Of::Summary, &key, value, &words)
            }
            _ => html! { "–" },
        }
    };
    html! {
        @if !known.is_empty() {
            h3 { "Quality against the model's 32-bit form" }
            div class="wide" tabindex="0" { table {
                thead { tr { th { "model" } th class="words" { "precision" } th { "perplexity ratio" } th { "KL divergence, nats" } th { "same first choice" } th { "tokens" } } }
                tbody { @for (row, summary) in &known { tr {
                    th { (row.cell.sides[0].model) } td class="words" { (precision(row)) }
                    td { (with_error(row, summary, "perplexity_ratio", 4)) }
                    td { (with_error(row, summary, "divergence.mean", 5)) }
                    td { (with_error(row, summary, "same_top", 3)) }
                    td { (summary["tokens"].as_u64().map_or("–".into(), |n| n.to_string())) }
                } } }
            } }
            p class="note" { "± is one standard error. A ratio of 1 and a divergence of 0 are no loss." }
        }
    }
}

/// For each model what more load makes of it.
fn charts(cells: &[&Row]) -> Markup {
    let mut models: Vec<&str> = cells
        .iter()
        .map(|row| row.cell.sides[0].model.as_str())
        .collect();
    models.dedup();
    html! {
        @for model in models {
            @let rows: Vec<&Row> = cells.iter().copied().filter(|row| row.cell.sides[0].model == model).collect();
            @let closed: Vec<&Row> = rows.iter().copied().filter(|row| row.loads.len() > 1).collect();
            @let ladders = ladders::all(&rows);
            @if !closed.is_empty() || !ladders.0.is_empty() { h2 { (model) } }
            @if !closed.is_empty() {
                div class="charts" { (speeds(&closed)) (knee(&closed)) }
                p class="note" {
                    "The numbers are those of users, each with one request at a time: a closed loop, which hides queueing. Bars are 95 % intervals of the mean over runs, where there "
                    "are several; those of few runs may go on beyond the edge."
                }
            }
            (rates::charts(&ladders.0, ladders.1))
        }
    }
}

/// A point of a load, and the interval of its height over runs.
type Point = ((f64, f64), Option<Interval>);

/// The closed loops of a cell, each with its number of users.
fn series(colour: usize, row: &Row, place: impl Fn(&Group) -> Option<Point>) -> Series {
    let side = &row.cell.sides[0];
    let mut points = Vec::new();
    for group in row.loads.iter().filter(|group| group.is_valid()) {
        let users = group.runs[0].load.arrival.users();
        if let (Some(users), Some((point, interval))) = (users, place(group)) {
            let ends = interval.map_or((point.1, point.1), |i| (i.low.max(0.0), i.high));
            points.push((users.to_string(), point, ends));
        }
    }
    points.sort_by(|a, b| a.1.0.total_cmp(&b.1.0));
    let name = format!("{} on {}", side.precision, side.server);
    Series {
        labels: points.iter().map(|(users, ..)| users.clone()).collect(),
        intervals: points.iter().map(|(.., ends)| *ends).collect(),
        ..Series::new(
            name,
            Form::Marked,
            colour,
            points.iter().map(|(_, point, _)| *point).collect(),
        )
    }
}

fn all_series(rows: &[&Row], place: impl Fn(&Group) -> Option<Point>) -> Vec<Series> {
    let rows = rows.iter().enumerate();
    rows.map(|(i, row)| series(i, row, &place)).collect()
}

/// What all get against what each gets: the trade that more users make.
fn speeds(rows: &[&Row]) -> Markup {
    let place = |group: &Group| {
        let tpot = group.summary(Metric::Latency(Latency::Tpot, Quantile::P50))?;
        let (output, interval) = group.summary(Metric::OutputTokens)?;
        Some(((1.0 / tpot.0, output), interval))
    };
    Chart {
        title: "Output of the server (tokens per second) against what one user sees".into(),
        x: Axis::new(
            "tokens per second of one user, once its answer has begun",
            Scale::Linear,
        ),
        y: Axis::new("tokens per second", Scale::Linear),
        series: all_series(rows, place),
    }
    .draw()
}

/// The wait for the first token against what is served, and the limit that it had, if all had the same.
fn knee(rows: &[&Row]) -> Markup {
    let place = |quantile: Quantile| {
        move |group: &Group| {
            let (ttft, interval) = group.summary(Metric::Latency(Latency::Ttft, quantile))?;
            let served = group.summary(Metric::CompletedRequests)?;
            Some(((served.0, ttft), interval))
        }
    };
    let mut series = all_series(rows, place(Quantile::P50));
    let tails = all_series(rows, place(Quantile::P99));
    let tails = tails.into_iter().filter(|tail| !tail.points.is_empty());
    series.extend(tails.map(|tail| Series {
        name: format!("{}, p99", tail.name),
        form: Form::Rings,
        ..tail
    }));
    let runs = rows.iter().flat_map(|row| &row.loads);
    let runs = runs.flat_map(|group| &group.runs);
    let mut limits: Vec<f64> = runs
        .filter_map(|run| run.goodput.as_ref()?.slo.as_ref()?.ttft_seconds)
        .collect();
    limits.dedup();
    if let ([limit], Some((x, _))) = (&limits[..], series.iter().find_map(|s| s.points.first())) {
        let name = format!("limit: {}", milliseconds(Some(*limit)));
        let points = vec![(*x, *limit)];
        series.push(Series::new(name, Form::Level, 0, points));
    }
    Chart {
        title: "Time to first token (median) against answers per second".into(),
        x: Axis::new("answers per second", Scale::Linear),
        y: Axis::seconds(Scale::Log),
        series,
    }
    .draw()
}

/// A figure with its digits, for places without room.
impl Metric {
    fn bare(self, value: f64) -> String {
        match self {
            Self::Latency(..) => self.words(value),
            _ => number(value),
        }
    }

    fn bare_plus_minus(self, value: f64, half: f64) -> String {
        match self {
            Self::Latency(..) => self.plus_minus(value, half),
            _ => {
                let words = self.plus_minus(value, half);
                words
                    .rsplit_once(' ')
                    .map_or(words.clone(), |(bare, _)| bare.to_owned())
            }
        }
    }
}
