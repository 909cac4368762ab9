//! Several runs of one configuration, or of two by turns: a number without repeats is a number without
//! an interval. Each repeat has a seed of its own; the two runs of a pair share theirs.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::app;
use crate::config::Config;
use crate::page;
use crate::report::Report;
use crate::results;
use crate::scene::Series;

/// Runs `sides` by turns, `repeats` times each, and writes them under `parent`. The order within a pair
/// changes from pair to pair (ABBA…), so that a machine that grows slower favours neither. `tell` gets
/// every run as it ends. Gives the folder and the runs in the order in which they were made.
///
/// # Errors
/// A server that cannot be reached, a file that cannot be written.
pub async fn run(
    sides: &[Config],
    repeats: u32,
    parent: &Path,
    mut tell: impl FnMut(&Report),
) -> Result<(PathBuf, Vec<Report>)> {
    let mut made: Option<PathBuf> = None;
    let mut reports = Vec::new();
    for (repeat, side) in turns(sides.len(), repeats) {
        let mut report = app::measure(&of_repeat(sides, side, repeat), interrupted()).await?;
        let folder = match &made {
            Some(folder) => folder.clone(),
            None => results::new_folder(parent, &report.started, &folder_name(sides, &report))?,
        };
        made = Some(folder.clone());
        let id = folder.file_name().unwrap_or_default().to_string_lossy();
        report.series = series(&id, sides.len(), side, repeat, repeats);
        results::write_run(&place(&folder, sides, side, repeat, repeats), &report)?;
        tell(&report);
        // Written already; only the counts matter from here on.
        (report.records, report.scrapes) = (Vec::new(), None);
        let is_stopped = report.window.stopped;
        reports.push(report);
        if is_stopped {
            return finish(folder, reports);
        }
    }
    finish(made.unwrap_or_default(), reports)
}

/// As [`run`], into one folder that may hold some of the runs already: those are not made again. `id` is
/// what the runs have in common. No run is begun once `goes_on` is false. Gives the folder of every run.
///
/// # Errors
/// As [`run`].
pub async fn go_on(
    sides: &[Config],
    repeats: u32,
    folder: &Path,
    id: &str,
    goes_on: impl Fn() -> bool,
    mut tell: impl FnMut(&Report),
) -> Result<Vec<PathBuf>> {
    let mut places = Vec::new();
    for (repeat, side) in turns(sides.len(), repeats) {
        let place = place(folder, sides, side, repeat, repeats);
        if !place.join(results::RUN).is_file() {
            if !goes_on() {
                return Ok(places);
            }
            let config = of_repeat(sides, side, repeat);
            let mut report = app::measure(&config, std::future::pending()).await?;
            report.series = series(id, sides.len(), side, repeat, repeats);
            results::write_run(&place, &report)?;
            tell(&report);
        }
        places.push(place);
    }
    if places.len() > 1 {
        page::write(&[folder.to_owned()], &folder.join(results::PAGE))?;
    }
    Ok(places)
}

/// Which repeat of which side comes when.
fn turns(sides: usize, repeats: u32) -> impl Iterator<Item = (u32, usize)> {
    (1..=repeats).flat_map(move |repeat| order(sides, repeat).into_iter().map(move |s| (repeat, s)))
}

fn of_repeat(sides: &[Config], side: usize, repeat: u32) -> Config {
    let config = &sides[side];
    Config {
        seed: config.seed.wrapping_add(u64::from(repeat - 1)),
        asks_tokenizer: config.asks_tokenizer && sides.len() == 1,
        ..config.clone()
    }
}

/// The place among other runs, where there are others.
fn series(id: &str, sides: usize, side: usize, repeat: u32, of: u32) -> Option<Series> {
    (of > 1 || sides > 1).then(|| Series {
        id: id.to_owned(),
        side: u32::try_from(side).unwrap_or(u32::MAX),
        repeat,
        of,
    })
}

/// The page over all runs; a single run has its own already.
fn finish(folder: PathBuf, reports: Vec<Report>) -> Result<(PathBuf, Vec<Report>)> {
    page::write(std::slice::from_ref(&folder), &folder.join(results::PAGE))?;
    Ok((folder, reports))
}

/// Sides of a pair by turns.
fn order(sides: usize, repeat: u32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sides).collect();
    if repeat.is_multiple_of(2) {
        order.reverse();
    }
    order
}

fn place(folder: &Path, sides: &[Config], side: usize, repeat: u32, repeats: u32) -> PathBuf {
    let mut place = folder.to_owned();
    if sides.len() > 1 {
        let name = sides[side].name.as_deref().unwrap_or("side");
        place.push(format!("{}-{}", side + 1, results::plain(name)));
    }
    if repeats > 1 {
        place.push(repeat.to_string());
    }
    place
}

fn folder_name(sides: &[Config], report: &Report) -> String {
    match sides {
        [_] => report.name.clone(),
        _ => {
            let names: Vec<&str> = sides.iter().filter_map(|s| s.name.as_deref()).collect();
            names.join("-vs-")
        }
    }
}

/// Completes when the user wants the run to end.
pub async fn interrupted() {
    // Without a handler for the signal the run simply cannot be cut short.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_take_turns_at_going_first() {
        let all: Vec<usize> = (1..=4).flat_map(|repeat| order(2, repeat)).collect();
        assert_eq!(all, [0, 1, 1, 0, 0, 1, 1, 0]);
        assert_eq!(order(1, 2), [0]);
    }
}
