//! Ratios with their intervals around one: what is right of the line is faster.

use maud::{Markup, html};

use super::compare::{times, word};
use crate::contrast::{Contrast, Finding};

const WIDTH: f64 = 720.0;
const ROW: f64 = 46.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 30.0;
const LEFT: f64 = 12.0;
const RIGHT: f64 = 12.0;
/// Ratios that get a tick.
const TICKS: [f64; 15] = [
    0.1, 0.2, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0,
];

/// One metric.
pub struct Bar {
    pub name: String,
    /// Of both sides, with their unit.
    pub values: [String; 2],
    /// Above one the second side is faster.
    pub contrast: Contrast,
}

/// A chart of all metrics on one logarithmic axis.
pub fn draw(first: &str, second: &str, bars: &[Bar]) -> Markup {
    let reach = bars
        .iter()
        .map(|bar| reach(&bar.contrast))
        .fold(1.2f64.ln(), f64::max)
        .min(30f64.ln())
        * 1.08;
    let place = |ratio: f64| {
        let share = 0.5 + 0.5 * ratio.ln() / reach;
        LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    };
    let height = TOP + ROW * bars.len() as f64 + BOTTOM;
    let bottom = height - BOTTOM;
    let ticks: Vec<f64> = ticks(reach);
    let summary: Vec<String> = bars
        .iter()
        .map(|bar| {
            format!(
                "{}: {} times as fast, {}",
                bar.name,
                times(bar.contrast.ratio),
                word(bar.contrast.finding)
            )
        })
        .collect();
    html! {
        figure class="ratios" {
            figcaption { "Times as fast as " (first) }
            svg viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-label=(summary.join("; ")) {
                title { (second) " against " (first) }
                rect class="same" x=(place(0.97).round()) y=(TOP) width=((place(1.03) - place(0.97)).max(1.0).round()) height=(bottom - TOP) {}
                @for tick in &ticks {
                    line class="grid" x1=(at(place(*tick))) x2=(at(place(*tick))) y1=(TOP) y2=(bottom) {}
                    text class="tick middle" x=(at(place(*tick))) y=(bottom + 16.0) { (tick) "×" }
                }
                line class="one" x1=(at(place(1.0))) x2=(at(place(1.0))) y1=(TOP - 6.0) y2=(bottom) {}
                text class="label end" x=(at(place(1.0) - 10.0)) y="18" { "← " (second) " slower" }
                text class="label" x=(at(place(1.0) + 10.0)) y="18" { (second) " faster →" }
                @for (i, bar) in bars.iter().enumerate() { (row(bar, TOP + ROW * i as f64, &place)) }
            }
            p class="note" {
                "Dots are geometric means over runs, bars their 95 % intervals. Filled: different, or the same within the grey band of 3 %. "
                "Hollow and dashed: not shown, which is not the same as equal."
            }
        }
    }
}

fn row(bar: &Bar, top: f64, place: &impl Fn(f64) -> f64) -> Markup {
    let contrast = &bar.contrast;
    let class = match contrast.finding {
        Finding::Different if contrast.ratio > 1.0 => "faster",
        Finding::Different => "slower",
        Finding::Same => "equal",
        Finding::NotShown | Finding::TooFew => "open",
    };
    let y = top + ROW - 14.0;
    html! {
        text class="name" x=(LEFT) y=(top + 16.0) { (bar.name) }
        text class="name end" x=(WIDTH - RIGHT) y=(top + 16.0) { (bar.values[0]) " → " (bar.values[1]) " (" (times(contrast.ratio)) "×, " (word(contrast.finding)) ")" }
        g class={ "ratio " (class) } {
            @if let Some(i) = contrast.interval { line x1=(at(place(i.low))) x2=(at(place(i.high))) y1=(y) y2=(y) {} }
            circle cx=(at(place(contrast.ratio))) cy=(y) r="6" {}
        }
    }
}

/// How far from one a ratio and its interval go, as a logarithm.
fn reach(contrast: &Contrast) -> f64 {
    let ends = contrast
        .interval
        .map_or([contrast.ratio; 2], |i| [i.low, i.high]);
    ends.into_iter()
        .map(|end| end.ln().abs())
        .fold(0.0, f64::max)
}

/// Ticks inside the reach, thinned to what fits.
fn ticks(reach: f64) -> Vec<f64> {
    let inside: Vec<f64> = TICKS
        .into_iter()
        .filter(|t| t.ln().abs() <= reach)
        .collect();
    let round = |t: &f64| [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0].contains(t);
    if reach > 1.2 {
        inside.into_iter().filter(round).collect()
    } else {
        inside
    }
}

fn at(value: f64) -> String {
    format!("{value:.1}")
}
