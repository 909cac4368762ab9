//! Charts as SVG: lines or dots over two axes, coloured by the page's style.

use maud::{Markup, html};

use super::axis::Axis;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 26.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;

/// How the points of a series are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Joined.
    Line,
    /// One mark each.
    Dots,
    /// Joined, with a mark and a label at each, and with its interval where there is one.
    Marked,
    /// A thin outline beside a line of its colour.
    Outline,
    /// A mark each that tells a verdict without its colour, too.
    Verdict(Mark),
    /// A line across the chart at the height of the first point.
    Level,
    /// Joined, as something to hold the others against.
    Guide,
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
    /// Number of its colour, which it shares with what belongs to it.
    pub colour: usize,
    pub points: Vec<(f64, f64)>,
    /// What stands at the points of a marked series.
    pub labels: Vec<String>,
    /// Lower and upper end of the interval of each point, where they have one; of one without, itself twice.
    pub intervals: Vec<(f64, f64)>,
    /// Where on the axis below an arrow from each point of a marked series ends.
    pub arrows: Vec<f64>,
}

impl Series {
    /// Points and no more.
    pub fn new(
        name: impl Into<String>,
        form: Form,
        colour: usize,
        points: Vec<(f64, f64)>,
    ) -> Self {
        Self {
            name: name.into(),
            form,
            colour,
            points,
            labels: Vec::new(),
            intervals: Vec::new(),
            arrows: Vec::new(),
        }
    }
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
        for x in self.series.iter().flat_map(|series| &series.arrows) {
            self.x.include(*x);
        }
        // The interval of two runs may be a hundred times what it is of: it goes beyond the edge then.
        let points = self.series.iter().flat_map(|series| &series.points);
        let roof = 2.0 * points.fold(0.0, |most: f64, (_, y)| most.max(*y));
        for (low, high) in self.series.iter().flat_map(|series| &series.intervals) {
            self.y.include(*low);
            self.y.include(high.min(roof));
        }
        self.x.finish();
        self.y.finish();
        html! {
            figure {
                figcaption { (self.title) }
                svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(self.summary()) {
                    title { (self.title) }
                    (self.grid())
                    @for series in &self.series { (self.marks(series)) }
                }
                @if self.series.len() > 1 {
                    p class="legend" {
                        @for series in &self.series {
                            span class={ "key " (class(series)) } { (series.name) } " "
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

    fn marks(&self, series: &Series) -> Markup {
        let places = || {
            let points = series.points.iter();
            points.map(|(x, y)| (self.place_x(*x), self.place_y(*y)))
        };
        let class = class(series);
        match series.form {
            Form::Line | Form::Outline => polyline(&format!("line {class}"), places()),
            Form::Guide => polyline(&class, places()),
            Form::Marked => html! {
                (polyline(&format!("line {class}"), places()))
                g class={ "dots " (class) } {
                    (self.intervals(series))
                    (self.arrows(series))
                    @for (x, y) in places() { circle cx=(coordinate(x)) cy=(coordinate(y)) r="4" {} }
                    @for ((x, y), label) in places().zip(&series.labels) {
                        text class="tick" x=(coordinate(x + 7.0)) y=(coordinate(y - 9.0)) { (label) }
                    }
                }
            },
            Form::Verdict(mark) => html! {
                g class={ "dots " (class) } {
                    (self.intervals(series))
                    @for (x, y) in places() { (verdict(mark, x, y)) }
                }
            },
            Form::Level => html! {
                @if let Some((_, y)) = places().next() {
                    line class=(class) x1=(LEFT) x2=(WIDTH - RIGHT) y1=(coordinate(y)) y2=(coordinate(y)) {}
                }
            },
            Form::Dots => html! {
                g class={ "dots " (class) } {
                    @for (x, y) in places() { circle cx=(coordinate(x)) cy=(coordinate(y)) r="2.2" {} }
                }
            },
        }
    }

    fn intervals(&self, series: &Series) -> Markup {
        let known = series.points.iter().zip(&series.intervals);
        let known = known.filter(|(_, (low, high))| low < high);
        html! {
            @for ((x, _), (low, high)) in known {
                @let x = coordinate(self.place_x(*x));
                line class="interval" x1=(x) x2=(x) y1=(coordinate(self.place_y(*low))) y2=(coordinate(self.place_y(*high))) {}
            }
        }
    }

    /// A shaft and a head each, where they do not hide behind their mark.
    fn arrows(&self, series: &Series) -> Markup {
        const HEAD: f64 = 5.0;
        let places = series.points.iter().zip(&series.arrows);
        let places =
            places.map(|((x, y), end)| (self.place_x(*x), self.place_x(*end), self.place_y(*y)));
        let seen = places.filter(|(from, to, _)| (to - from).abs() > 2.0 * HEAD);
        html! {
            @for (from, to, y) in seen {
                @let back = to - HEAD * (to - from).signum();
                path class="arrow" d=(format!("M{} {y:.1}L{} {y:.1}M{} {:.1}L{} {y:.1}L{} {:.1}", coordinate(from), coordinate(to),
                    coordinate(back), y - HEAD, coordinate(to), coordinate(back), y + HEAD)) {}
            }
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
fn class(series: &Series) -> String {
    match series.form {
        Form::Verdict(Mark::Pass) => "pass".into(),
        Form::Verdict(Mark::Fail) => "fail".into(),
        Form::Verdict(Mark::Open) => "open".into(),
        Form::Level | Form::Guide => "level".into(),
        Form::Outline => format!("outline s{}", series.colour),
        _ => format!("s{}", series.colour),
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

fn polyline(class: &str, places: impl Iterator<Item = (f64, f64)>) -> Markup {
    let points: Vec<String> = places
        .map(|(x, y)| format!("{},{}", coordinate(x), coordinate(y)))
        .collect();
    html! { polyline class=(class) points=(points.join(" ")) {} }
}

/// One digit after the point is finer than any screen.
fn coordinate(value: f64) -> String {
    format!("{value:.1}")
}
