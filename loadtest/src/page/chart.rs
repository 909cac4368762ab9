//! Charts as SVG: lines or dots over two axes, coloured by the page's style.

use maud::{Markup, html};

use super::axis::Axis;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;

/// How the points of a series are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Joined.
    Line,
    /// One mark each.
    Dots,
    /// Joined, with a mark and a label at each.
    Marked,
    /// A mark each that tells a verdict without its colour, too.
    Verdict(Mark),
    /// A line across the chart at the height of the first point.
    Level,
}

/// What a mark says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    Pass,
    Fail,
    Open,
}

/// One run in a chart.
#[derive(Debug, Clone)]
pub struct Series {
    pub name: String,
    pub form: Form,
    pub points: Vec<(f64, f64)>,
    /// What stands at the points of a marked series.
    pub labels: Vec<String>,
    /// Lower and upper end of the interval of each point, where they have one.
    pub intervals: Vec<(f64, f64)>,
}

/// A chart.
#[derive(Debug, Clone)]
pub struct Chart {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
}

impl Chart {
    /// The chart with its title and legend.
    pub fn draw(mut self) -> Markup {
        for (x, y) in self.series.iter().flat_map(|series| &series.points) {
            self.x.include(*x);
            self.y.include(*y);
        }
        for (low, high) in self.series.iter().flat_map(|series| &series.intervals) {
            self.y.include(*low);
            self.y.include(*high);
        }
        self.x.finish();
        self.y.finish();
        html! {
            figure {
                figcaption { (self.title) }
                svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(self.summary()) {
                    title { (self.title) }
                    (self.grid())
                    @for (i, series) in self.series.iter().enumerate() { (self.marks(i, series)) }
                }
                @if self.series.len() > 1 {
                    p class="legend" {
                        @for (i, series) in self.series.iter().enumerate() {
                            span class={ "key " (class(series, i)) } { (series.name) } " "
                        }
                    }
                }
            }
        }
    }

    /// What somebody who does not see the picture should take away.
    fn summary(&self) -> String {
        let part = |series: &Series| {
            let values = series.points.iter().map(|(_, y)| *y);
            let (low, high) =
                values.fold((f64::INFINITY, 0.0f64), |(l, h), v| (l.min(v), h.max(v)));
            if series.points.is_empty() {
                return format!("{}: no values", series.name);
            }
            let [low, high] = [low, high].map(|value| self.y.words(value));
            format!("{}: {low} to {high}", series.name)
        };
        let parts: Vec<String> = self.series.iter().map(part).collect();
        format!("{}. {}", self.title, parts.join("; "))
    }

    fn grid(&self) -> Markup {
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        html! {
            @for (value, label) in self.y.ticks() {
                @let y = coordinate(self.place_y(value));
                line class="grid" x1=(LEFT) x2=(right) y1=(y) y2=(y) {}
                text x=(LEFT - 8.0) y=(y) class="tick end" { (label) }
            }
            @for (value, label) in self.x.ticks() {
                @let x = coordinate(self.place_x(value));
                line class="grid" x1=(x) x2=(x) y1=(TOP) y2=(bottom) {}
                text x=(x) y=(bottom + 16.0) class="tick middle" { (label) }
            }
            text x=((LEFT + right) / 2.0) y=(HEIGHT - 6.0) class="label middle" { (self.x.label) }
        }
    }

    fn marks(&self, index: usize, series: &Series) -> Markup {
        let places = series
            .points
            .iter()
            .map(|(x, y)| (self.place_x(*x), self.place_y(*y)));
        match series.form {
            Form::Line => polyline(index, places),
            Form::Marked => html! {
                (polyline(index, places.clone()))
                g class={ "dots s" (index) } {
                    @for ((x, y), label) in places.zip(&series.labels) {
                        circle cx=(coordinate(x)) cy=(coordinate(y)) r="4" {}
                        text class="tick" x=(coordinate(x + 7.0)) y=(coordinate(y - 9.0)) { (label) }
                    }
                }
            },
            Form::Verdict(mark) => html! {
                g class={ "dots " (class(series, index)) } {
                    @for ((x, _), (low, high)) in series.points.iter().zip(&series.intervals) {
                        @let x = coordinate(self.place_x(*x));
                        line class="interval" x1=(x) x2=(x) y1=(coordinate(self.place_y(*low))) y2=(coordinate(self.place_y(*high))) {}
                    }
                    @for (x, y) in places { (verdict(mark, x, y)) }
                }
            },
            Form::Level => html! {
                @if let Some((_, y)) = places.into_iter().next() {
                    line class="level" x1=(LEFT) x2=(WIDTH - RIGHT) y1=(coordinate(y)) y2=(coordinate(y)) {}
                }
            },
            Form::Dots => html! {
                g class={ "dots s" (index) } {
                    @for (x, y) in places { circle cx=(coordinate(x)) cy=(coordinate(y)) r="2.2" {} }
                }
            },
        }
    }

    fn place_x(&self, value: f64) -> f64 {
        LEFT + self.x.place(value) * (WIDTH - LEFT - RIGHT)
    }

    fn place_y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.place(value) * (HEIGHT - TOP - BOTTOM)
    }
}

/// The class that colours a series.
fn class(series: &Series, index: usize) -> String {
    match series.form {
        Form::Verdict(Mark::Pass) => "pass".into(),
        Form::Verdict(Mark::Fail) => "fail".into(),
        Form::Verdict(Mark::Open) => "open".into(),
        Form::Level => "level".into(),
        _ => format!("s{index}"),
    }
}

/// A disc, a cross or a ring.
fn verdict(mark: Mark, x: f64, y: f64) -> Markup {
    const SIZE: f64 = 4.5;
    let [left, right, top, bottom] = [x - SIZE, x + SIZE, y - SIZE, y + SIZE].map(coordinate);
    html! {
        @match mark {
            Mark::Fail => path d=(format!("M{left} {top}L{right} {bottom}M{left} {bottom}L{right} {top}")) {},
            Mark::Pass | Mark::Open => circle cx=(coordinate(x)) cy=(coordinate(y)) r=(SIZE) {},
        }
    }
}

fn polyline(index: usize, places: impl Iterator<Item = (f64, f64)>) -> Markup {
    let points: Vec<String> = places
        .map(|(x, y)| format!("{},{}", coordinate(x), coordinate(y)))
        .collect();
    html! { polyline class={ "line s" (index) } points=(points.join(" ")) {} }
}

/// One digit after the point is finer than any screen.
fn coordinate(value: f64) -> String {
    format!("{value:.1}")
}
