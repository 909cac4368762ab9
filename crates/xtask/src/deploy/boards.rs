//! The three Grafana boards, and how their panels are made. Each panel names a metric of the catalogue and says
//! what to do when it moves.

mod burn;
mod internals;
mod overview;

use anyhow::Result;

use super::Generated;
use super::panels::{Board, Form, Panel, Target};
use super::promql::Catalogue;

/// The files of all boards.
pub fn files() -> Result<Vec<Generated>> {
    let catalogue = Catalogue::new();
    let boards = boards(&catalogue)?;
    let rows = boards.iter().flat_map(|board| &board.rows);
    for target in rows
        .flat_map(|row| &row.panels)
        .flat_map(|panel| &panel.targets)
    {
        catalogue.check(&target.expr)?;
    }
    let paths = [
        "deploy/grafana/dashboards/serving-overview.json",
        "deploy/grafana/dashboards/engine-internals.json",
        "deploy/grafana/dashboards/slo-burn.json",
    ];
    let file = |(path, board): (&'static str, Board)| {
        let text = serde_json::to_string_pretty(&board.json()?)? + "\n";
        Ok(Generated { path, text })
    };
    paths.into_iter().zip(boards).map(file).collect()
}

/// The boards themselves.
pub fn boards(c: &Catalogue) -> Result<[Board; 3]> {
    Ok([overview::board(c)?, internals::board(c)?, burn::board()])
}

/// Grafana's unit for a metric, from the unit in its name.
fn unit(name: &str) -> &'static str {
    match name {
        _ if name.contains("_seconds") || name.ends_with("latency") => "s",
        _ if name.ends_with("_ratio") => "percentunit",
        _ if name.ends_with("_bytes") => "bytes",
        _ => "short",
    }
}

fn panel(title: &'static str, form: Form, width: u64, advice: &str) -> Panel {
    Panel {
        title,
        advice: advice.to_owned(),
        form,
        unit: "short",
        width,
        targets: Vec::new(),
        limit: None,
    }
}

impl Panel {
    fn unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }

    fn limit(mut self, limit: f64) -> Self {
        self.limit = Some(limit);
        self
    }

    fn draw(mut self, legend: &str, expr: impl Into<String>) -> Self {
        self.targets.push(Target {
            expr: expr.into(),
            legend: legend.to_owned(),
        });
        self
    }
}

/// A gauge as one number.
fn stat(c: &Catalogue, title: &'static str, name: &str, advice: &str) -> Result<Panel> {
    Ok(panel(title, Form::Stat, 4, advice)
        .unit(unit(name))
        .draw("", c.gauge(name, "")?))
}

/// Quantiles of a histogram over time.
fn quantiles(c: &Catalogue, title: &'static str, name: &str, advice: &str) -> Result<Panel> {
    let mut drawn = panel(title, Form::Lines, 8, advice).unit(unit(name));
    for (q, legend) in [(0.5, "p50"), (0.95, "p95"), (0.99, "p99")] {
        drawn = drawn.draw(legend, c.quantile(q, name)?);
    }
    Ok(drawn)
}

/// All buckets of a histogram over time.
fn heatmap(c: &Catalogue, title: &'static str, name: &str, advice: &str) -> Result<Panel> {
    Ok(panel(title, Form::Heatmap, 8, advice)
        .unit(unit(name))
        .draw("{{le}}", c.buckets(name)?))
}

/// The growth of a counter over time, a line for each value of `by`.
fn rates(c: &Catalogue, title: &'static str, name: &str, by: &str, advice: &str) -> Result<Panel> {
    let legend = if by.is_empty() {
        title.to_owned()
    } else {
        let labels: Vec<String> = by
            .split(", ")
            .map(|label| format!("{{{{{label}}}}}"))
            .collect();
        labels.join(" ")
    };
    Ok(panel(title, Form::Stacked, 8, advice)
        .unit("ops")
        .draw(&legend, c.rate(name, "", by)?))
}
