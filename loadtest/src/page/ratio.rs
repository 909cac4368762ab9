//! Ratios with their intervals around one: what is right of the line is faster. Places are shares of the
//! width, so that text keeps its size on a phone.

use maud::{Markup, html};

use super::compare::{times, word};
use crate::contrast::{Contrast, Finding};

/// Ratios that may get a tick, those first that need one most.
const TICKS: [f64; 11] = [1.0, 2.0, 0.5, 10.0, 0.1, 1.25, 0.8, 5.0, 0.2, 20.0, 0.05];
/// The least reach of the axis to either side, and the greatest.
const REACH: (f64, f64) = (1.3, 40.0);
/// Ticks nearer than this to the one before, as a share of the width, are left out.
const ROOM: f64 = 0.09;

/// One metric.
pub struct Bar {
    pub name: String,
    /// Of both sides, with their unit.
    pub values: [Markup; 2],
    /// Above one the second side is faster.
    pub contrast: Contrast,
}

/// A logarithmic axis with one in its middle.
struct Axis {
    reach: f64,
}

impl Axis {
    /// From 0.03 to 0.97 of the width.
    fn place(&self, ratio: f64) -> f64 {
        (0.5 + 0.47 * ratio.ln() / self.reach).clamp(0.0, 1.0)
    }

    fn at(&self, ratio: f64) -> String {
        format!("{:.2}%", self.place(ratio) * 100.0)
    }

    /// Ticks that have room beside those before them.
    fn ticks(&self) -> Vec<f64> {
        let mut kept: Vec<f64> = Vec::new();
        for tick in TICKS.into_iter().filter(|t| t.ln().abs() <= self.reach) {
            let has_room = |other: &f64| (self.place(tick) - self.place(*other)).abs() >= ROOM;
            if kept.iter().all(has_room) {
                kept.push(tick);
            }
        }
        kept
    }
}

/// A chart of all metrics on one axis.
pub fn draw(first: &str, second: &str, bars: &[Bar]) -> Markup {
    let far = bars.iter().map(|bar| reach(&bar.contrast));
    let far = far.fold(REACH.0.ln(), f64::max).min(REACH.1.ln());
    let axis = Axis { reach: far };
    html! {
        figure class="ratios" {
            figcaption { "Times as fast as " (first) }
            p class="sides" { span { "← " (second) " slower" } span { (second) " faster →" } }
            @for bar in bars { (row(bar, &axis)) }
            svg class="ticks" role="img" aria-label="ratios" {
                title { "Ratios" }
                @for tick in axis.ticks() {
                    text class="tick middle" x=(axis.at(tick)) y="12" { (tick) "×" }
                }
            }
            p class="note" {
                "Dots are geometric means over runs, bars their 95 % intervals. Filled: different, or the same within the grey band of 3 %. "
                "Hollow and dashed: not shown, which is not the same as equal."
            }
        }
    }
}

fn row(bar: &Bar, axis: &Axis) -> Markup {
    let contrast = &bar.contrast;
    let (ratio, found) = (times(contrast.ratio), word(contrast.finding));
    let class = match contrast.finding {
        Finding::Different if contrast.ratio > 1.0 => "faster",
        Finding::Different => "slower",
        Finding::Same => "equal",
        Finding::NotShown | Finding::TooFew => "open",
    };
    let band = (axis.place(1.03) - axis.place(0.97)) * 100.0;
    html! {
        p class="ratio-name" {
            span { strong { (bar.name) } ": " (bar.values[0]) " → " (bar.values[1]) }
            span { strong { (ratio) "×" } ", " (found) }
        }
        svg class="stripe" role="img" aria-label=(format!("{}: {ratio} times as fast, {found}", bar.name)) {
            title { (bar.name) ": " (ratio) " times as fast, " (found) }
            rect class="same" x=(axis.at(0.97)) y="0" width=(format!("{band:.2}%")) height="26" {}
            @for tick in axis.ticks() {
                @let x = axis.at(tick);
                line class=(if tick == 1.0 { "one" } else { "grid" }) x1=(x) x2=(x) y1="0" y2="26" {}
            }
            g class={ "ratio " (class) } {
                @if let Some(i) = contrast.interval {
                    line x1=(axis.at(i.low)) x2=(axis.at(i.high)) y1="13" y2="13" {}
                }
                circle cx=(axis.at(contrast.ratio)) cy="13" r="6" {}
            }
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
