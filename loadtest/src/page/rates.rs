//! What becomes of a server at higher rates, from the probes of searches: what is served of what is asked for, how
//! long a first token takes, and what tokens cost.

use maud::{Markup, html};

use super::axis::{Axis, Scale};
use super::chart::{Chart, Form, Series};
use super::data::milliseconds;
use crate::search::Over;

/// A load that was tried from beginning to end; what was given up says nothing about its rates.
#[derive(Debug, Clone, Copy)]
pub struct Tried {
    /// Requests per second that were planned, or users.
    pub level: f64,
    /// Those that ended well.
    pub completed: f64,
    /// Those that kept the limits.
    pub good: f64,
    /// Median of the time to the first token.
    pub ttft_p50: Option<f64>,
    /// Its 99th percentile, where the sample bounds it.
    pub ttft_p99: Option<f64>,
    /// What a million output tokens cost, where the limits were kept and there is a price.
    pub cost: Option<f64>,
}

/// The loads of one search.
#[derive(Debug, Clone)]
pub struct Ladder {
    /// What it is called.
    pub name: String,
    /// What is raised.
    pub over: Over,
    /// By rising levels.
    pub tried: Vec<Tried>,
}

/// A chart each; nothing where no rate was tried to its end.
pub fn charts(ladders: &[Ladder], ttft_limit: Option<f64>) -> Markup {
    let is_known = ladders.iter().any(|ladder| !ladder.tried.is_empty());
    let has_cost = ladders
        .iter()
        .flat_map(|ladder| &ladder.tried)
        .any(|tried| tried.cost.is_some());
    html! {
        @if is_known {
            div class="charts" {
                (served(ladders)) (knee(ladders, ttft_limit))
                @if has_cost { (cost(ladders)) }
            }
            p class="note" {
                @if has_tails(ladders) { "Rings are the 99th percentile. " }
                @if over(ladders) == Over::Rate {
                    "Dashed from corner to corner: everything that is asked for. Arrows lead from the answers that came to those that were asked for. "
                }
                "Answers count when they end, those within the limits when they were asked for: of few, the latter may be one or two more. "
                "Probes that ended early are left out."
            }
        }
    }
}

fn has_tails(ladders: &[Ladder]) -> bool {
    let mut tried = ladders.iter().flat_map(|ladder| &ladder.tried);
    tried.any(|tried| tried.ttft_p99.is_some())
}

/// What is raised: searches are drawn together only where it is the same.
fn over(ladders: &[Ladder]) -> Over {
    ladders.first().map_or(Over::Rate, |ladder| ladder.over)
}

/// What of the load ends well and within the limits. One search shows both, several only the latter.
fn served(ladders: &[Ladder]) -> Markup {
    let mut series = Vec::new();
    for (i, ladder) in ladders.iter().enumerate() {
        if let [only] = ladders {
            let all = points(only, |t| Some((t.level, t.completed)));
            series.push(Series::new("answered", Form::Marked, 1, all));
        }
        let name = match ladders.len() {
            1 => "within the limits",
            _ => ladder.name.as_str(),
        };
        let good = points(ladder, |t| Some((t.level, t.good)));
        series.push(Series::new(name, Form::Marked, i, good));
    }
    let most = ladders
        .iter()
        .flat_map(|ladder| &ladder.tried)
        .fold(0.0, |most: f64, t| most.max(t.level));
    let over = over(ladders);
    if over == Over::Rate {
        let all = vec![(0.0, 0.0), (most, most)];
        series.push(Series::new("asked for", Form::Guide, 0, all));
    }
    Chart {
        title: match ladders.len() {
            1 => "Requests per second that are served".into(),
            _ => "Requests per second that are served within the limits".into(),
        },
        x: match over {
            Over::Rate => Axis::new("requests per second asked for", Scale::Linear),
            Over::Concurrency => Axis::new("users", Scale::Linear),
        },
        y: Axis::new("", Scale::Linear),
        series,
    }
    .draw()
}

fn knee(ladders: &[Ladder], limit: Option<f64>) -> Markup {
    let each = ladders.iter().enumerate().map(|(i, ladder)| {
        let known = |t: &Tried| Some((t.completed, t.ttft_p50?));
        let asked = ladder.tried.iter().filter(|t| known(t).is_some());
        Series {
            arrows: match ladder.over {
                Over::Rate => asked.map(|t| t.level).collect(),
                Over::Concurrency => Vec::new(),
            },
            ..Series::new(&ladder.name, Form::Marked, i, points(ladder, known))
        }
    });
    let tails = ladders.iter().enumerate().map(|(i, ladder)| {
        let points = points(ladder, |t| Some((t.completed, t.ttft_p99?)));
        Series::new(format!("{}, p99", ladder.name), Form::Rings, i, points)
    });
    let tails = tails.filter(|series| !series.points.is_empty());
    let mut series: Vec<Series> = each.chain(tails).collect();
    if let Some(limit) = limit {
        let name = format!("limit: {}", milliseconds(Some(limit)));
        series.push(Series::new(name, Form::Level, 0, vec![(0.0, limit)]));
    }
    Chart {
        title: "Time to first token (median) against answers per second".into(),
        x: Axis::new("answers per second", Scale::Linear),
        y: Axis::seconds(Scale::Log),
        series,
    }
    .draw()
}

fn cost(ladders: &[Ladder]) -> Markup {
    let each = ladders.iter().enumerate().map(|(i, ladder)| {
        let points = points(ladder, |t| Some((t.good, t.cost?)));
        Series::new(&ladder.name, Form::Marked, i, points)
    });
    Chart {
        title: "Price of a million output tokens, on a machine always in use".into(),
        x: Axis::new("requests per second within the limits", Scale::Linear),
        y: Axis::new("", Scale::Linear),
        series: each.collect(),
    }
    .draw()
}

fn points(ladder: &Ladder, of: impl Fn(&Tried) -> Option<(f64, f64)>) -> Vec<(f64, f64)> {
    ladder.tried.iter().filter_map(of).collect()
}
