//! `loadtest report`: one page of HTML from the results of one run, of repeats, or of several configurations,
//! with everything in it: no script, no font, no picture from elsewhere. The same files give the same bytes.

mod axis;
mod chart;
mod compare;
mod data;
mod details;
mod dots;
mod facts;
mod group;
pub mod index;
mod lags;
mod machine;
mod metric;
mod percentiles;
mod plots;
mod rates;
mod ratio;
mod reasons;
pub mod search;
mod shares;
mod single;
mod stages;
mod suite;
mod tables;
mod tagged;
#[cfg(test)]
mod tests;
mod trade;
mod traffic;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Result, bail};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::interval::Interval;
use crate::report::Cut;
use crate::results::{PAGE, write_whole};
use data::{milliseconds, number};
use group::Group;
pub use group::subfolders;
use metric::Metric;
use search::Search;

/// Configurations on one page: more colours cannot be told apart.
const MAX_GROUPS: usize = 6;
/// Points of one chart, of all configurations together: more hide each other.
const MAX_POINTS: usize = 2000;
/// Every page has it in itself.
static STYLE: LazyLock<String> = LazyLock::new(|| {
    let style = include_str!("page/style.css");
    minifier::css::minify(style).map_or(style.to_owned(), |small| small.to_string())
});

/// Reads result files and folders and writes their page.
///
/// # Errors
/// A file that cannot be read or written, or is not the result of a run.
pub fn write(places: &[PathBuf], output: &Path) -> Result<()> {
    if let [place] = places
        && let Some(search) = Search::read(place)?
    {
        return write_text(output, &search.render());
    }
    let mut groups = Vec::new();
    for place in places {
        groups.extend(Group::read(place)?);
    }
    if groups.len() > MAX_GROUPS {
        let n = groups.len();
        bail!("{n} configurations, more than the {MAX_GROUPS} that fit one page");
    }
    name_apart(&mut groups);
    for run in groups.iter_mut().flat_map(|group| &mut group.runs) {
        run.link = link(&run.place, output);
    }
    write_text(output, &render(&groups))
}

/// Writes a page.
pub(crate) fn write_text(output: &Path, page: &str) -> Result<()> {
    write_whole(output, |out| Ok(out.write_all(page.as_bytes())?))
}

/// What the runs in a folder say, in a few lines of text.
///
/// # Errors
/// A folder that holds no results.
pub fn summary(folder: &Path) -> Result<String> {
    let groups = Group::read(folder)?;
    if groups.len() > 1 {
        return Ok(compare::summary(&groups));
    }
    let metrics = Metric::headlines(&groups);
    let lines = metrics.iter().filter_map(|metric| {
        let (value, interval) = groups[0].summary(*metric)?;
        let spread = match interval {
            Some(i) => format!(
                "95 % {} over {} runs",
                ends(*metric, i),
                groups[0].counted().len()
            ),
            None => "one run, no interval".to_owned(),
        };
        Some(format!(
            "{:<26}{:>16}   {spread}",
            metric.name(),
            metric.words(value)
        ))
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// Numbers groups of one name.
fn name_apart(groups: &mut [Group]) {
    let names: Vec<String> = groups.iter().map(|group| group.name.clone()).collect();
    for (i, group) in groups.iter_mut().enumerate() {
        if names.iter().filter(|name| **name == group.name).count() > 1 {
            let before = names[..=i]
                .iter()
                .filter(|name| **name == group.name)
                .count();
            group.name = format!("{} ({before})", group.name);
        }
    }
}

/// The page of a run's own, seen from `output`, if it lies in a folder below it.
fn link(place: &Path, output: &Path) -> Option<String> {
    let base = output.parent().unwrap_or(Path::new(""));
    let below = place.strip_prefix(base).ok()?;
    let has_page = place.is_dir() && below != Path::new("");
    has_page.then(|| below.join(PAGE).to_string_lossy().into_owned())
}

/// A page with a title and a body; one of a dry run says on every screen and sheet that it measures nothing.
pub(crate) fn document(title: &str, dry_run: bool, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy"
                    content="default-src 'none'; style-src 'unsafe-inline'";
                title { (title) }
                style { (PreEscaped(STYLE.as_str())) }
            }
            body { main class=[dry_run.then_some("dry")] {
                h1 { (title) }
                @if dry_run { p class="verdict bad" { strong { "Dry run" } ": tiny stand-ins instead of models. It tries the rig, and its numbers say nothing." } }
                (body)
            } }
        }
    };
    page.into_string()
}

/// The page of at least one group.
pub(crate) fn render(groups: &[Group]) -> String {
    let names: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
    let title = match groups {
        [group] => format!("{}: load test", group.name),
        _ => format!("{}: load tests compared", names.join(" against ")),
    };
    let cuts = groups.iter().flat_map(|group| &group.runs);
    let body = html! {
        (cut(cuts.filter_map(|run| run.tool.cut.as_ref()).next()))
        @if groups.len() > 1 { (compare::verdicts(groups)) }
        @else { (single::verdict(&groups[0])) (single::tiles(&groups[0])) (traffic::note(1, &groups[0], false)) }
        @if groups.len() > 1 { (tables::side_by_side(groups)) (compare::differences(groups)) }
        @for (i, group) in groups.iter().enumerate() { @if group.runs.len() > 1 { (tables::run_table(i + 1, group)) } }
        @if groups.len() > 1 { (trade::all(groups)) }
        (plots::all(groups)) (stages::all(groups)) (plots::server(groups)) (lags::all(groups))
        @for (i, group) in groups.iter().enumerate() { (details::details(i + 1, group, groups.len() > 1)) }
    };
    let mut runs = groups.iter().flat_map(|group| &group.runs);
    document(&title, runs.any(|run| run.tool.dry_run), &body)
}

/// What a suite's budget leaves out of it: a reader of one page would miss it.
pub(crate) fn cut(cut: Option<&Cut>) -> Markup {
    html! { @if let Some(cut) = cut { p class="verdict fair" { (cut.words()) } } }
}

fn ends(metric: Metric, interval: Interval) -> String {
    format!(
        "{} to {}",
        metric.words(interval.low.max(0.0)),
        metric.words(interval.high)
    )
}
