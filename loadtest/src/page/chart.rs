//! Charts as SVG: lines or dots over two axes, coloured by the page's style.

mod numbers;
mod series;

use maud::{Markup, html};

use super::axis::Axis;
pub use series::{Form, Mark, Series};

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 26.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;
/// Ticks of a logarithmic axis for which there is room, below and at the side.
const MAX_TICKS: (usize, usize) = (7, 10);

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
        self.span();
        html! {
            figure {
                figcaption { (self.title) }
                svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(self.summary()) {
                    title { (self.title) }
                    (self.grid())
                    @for series in &self.series { (self.band(series)) }
                    @for series in &self.series { (self.marks(series)) }
                }
                @if self.series.len() > 1 {
                    p class="legend" {
                        @for series in &self.series {
                            span class={ "key " (key(series)) } { (series.name) } " "
                        }
                    }
                }
                (self.numbers())
            }
        }
    }

    /// Makes the axes hold everything.
    fn span(&mut self) {
        let has_heights = |series: &&Series| series.form != Form::AtTop;
        for (x, _) in self.series.iter().flat_map(|series| &series.points) {
            self.x.include(*x);
        }
        for x in self.series.iter().flat_map(|series| &series.arrows) {
            self.x.include(*x);
        }
        let points = self.series.iter().filter(has_heights);
        let heights: Vec<f64> = points.flat_map(|s| &s.points).map(|(_, y)| *y).collect();
        heights.iter().for_each(|y| self.y.include(*y));
        // The interval of two runs may be a hundred times what it is of: it goes beyond the edge then.
        let least = heights.iter().copied().filter(|y| *y > 0.0);
        let floor = 0.5 * least.reduce(f64::min).unwrap_or(0.0);
        let roof = 2.0 * heights.iter().copied().fold(0.0, f64::max);
        for series in &self.series {
            let bars = series.intervals.iter().copied();
            let band = series.band.iter().map(|(_, low, high)| (*low, *high));
            for (low, high) in bars.chain(band) {
                self.y.include(low.max(floor));
                self.y.include(high.min(roof));
            }
        }
        self.x.finish();
        self.y.finish();
    }

    /// What somebody who does not see the picture should take away.
    fn summary(&self) -> String {
        let part = |series: &Series| {
            let values = series.points.iter().map(|(_, y)| *y);
            let (low, high) =
                values.fold((f64::INFINITY, 0.0f64), |(l, h), v| (l.min(v), h.max(v)));
            match series.points.len() {
                0 => return format!("{}: no values", series.name),
                n if series.form == Form::AtTop => return format!("{}: {n}", series.name),
                _ => {}
            }
            let [low, high] = [low, high].map(|value| self.y.words(value));
            format!("{}: {low} to {high}", series.name)
        };
        let parts: Vec<String> = self.series.iter().map(part).collect();
        format!("{}. {}", self.title, parts.join("; "))
    }

    fn grid(&self) -> Markup {
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        let placed =
            |axis: &Axis, most: usize, place: &dyn Fn(f64) -> f64| -> Vec<(String, String)> {
                let ticks = axis.ticks(most).into_iter();
                ticks
                    .map(|(value, label)| (coordinate(place(value)), label))
                    .collect()
            };
        let columns = placed(&self.x, MAX_TICKS.0, &|value| self.place_x(value));
        let rows = placed(&self.y, MAX_TICKS.1, &|value| self.place_y(value));
        let across = rows.iter().map(|(y, _)| format!("M{LEFT} {y}H{right}"));
        let down = columns.iter().map(|(x, _)| format!("M{x} {TOP}V{bottom}"));
        let lines: String = across.chain(down).collect();
        html! {
            path class="grid" d=(lines) {}
            g class="tick end" { @for (y, label) in &rows { text x=(LEFT - 8.0) y=(y) { (label) } } }
            g class="tick middle" {
                @for (x, label) in &columns { text x=(x) y=(bottom + 16.0) { (label) } }
                text x=((LEFT + right) / 2.0) y=(HEIGHT - 8.0) { (self.x.label) }
            }
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
            Form::Through => html! {
                (polyline("halo", places())) (polyline(&format!("line {class}"), places()))
            },
            Form::Guide => polyline(&class, places()),
            Form::Marked => html! {
                (polyline(&format!("line {class}"), places()))
                g class={ "dots " (class) } {
                    (self.intervals(series))
                    (self.arrows(series))
                    @for (x, y) in places() { (shape(series.colour, x, y)) }
                    @for ((x, y), label) in places().zip(&series.labels) {
                        text x=(coordinate(x + 7.0)) y=(coordinate(y - 6.0)) { (label) }
                    }
                }
            },
            Form::Apart => html! {
                g class={ "dots " (class) } { @for (x, y) in places() { (shape(series.colour, x, y)) } }
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
            Form::Rings => html! {
                (polyline(&format!("line {class}"), places()))
                g class={ "dots " (class) } {
                    @for (x, y) in places() { circle class="stroke" cx=(coordinate(x)) cy=(coordinate(y)) r="3.2" {} }
                }
            },
            Form::AtTop => html! {
                g class={ "dots " (class) } {
                    @for (x, _) in places() { path class="stroke" d=(cross(x, TOP, 3.5)) {} }
                }
            },
            // A line of no length with round ends is a dot, and the shortest way to write thousands.
            Form::Dots => html! {
                path class={ "many " (class) } d=(places().map(|(x, y)| format!("M{} {}h0", coordinate(x), coordinate(y))).collect::<String>()) {}
            },
        }
    }

    /// The area between the ends of intervals.
    fn band(&self, series: &Series) -> Markup {
        let place = |x: f64, y: f64| {
            let (x, y) = (self.place_x(x), self.place_y(y));
            format!("{},{}", coordinate(x), coordinate(y))
        };
        let upper = series.band.iter().map(|(x, _, high)| place(*x, *high));
        let lower = series.band.iter().rev().map(|(x, low, _)| place(*x, *low));
        let corners: Vec<String> = upper.chain(lower).collect();
        html! {
            @if !corners.is_empty() { polygon class={ "band " (class(series)) } points=(corners.join(" ")) {} }
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
                path class="stroke" d=(format!("M{} {y:.1}L{} {y:.1}M{} {:.1}L{} {y:.1}L{} {:.1}", coordinate(from), coordinate(to),
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
        Form::Through => format!("through s{}", series.colour),
        Form::Outline => format!("outline s{}", series.colour),
        Form::Rings => format!("rings s{}", series.colour),
        Form::AtTop => format!("at-top s{}", series.colour),
        _ => format!("s{}", series.colour),
    }
}

/// The class of a series in a legend: what its mark or its line looks like.
fn key(series: &Series) -> String {
    let class = class(series);
    match series.form {
        Form::Marked | Form::Apart => format!("m{} {class}", series.colour),
        Form::Line => format!("drawn {class}"),
        _ => class,
    }
}

/// The mark of a colour, which tells it from others without it.
fn shape(colour: usize, x: f64, y: f64) -> Markup {
    const SIZE: f64 = 4.4;
    let at = |corners: &[(f64, f64)]| {
        let corner = |(dx, dy): &(f64, f64)| {
            format!(
                "{} {}",
                coordinate(x + dx * SIZE),
                coordinate(y + dy * SIZE)
            )
        };
        let corners: Vec<String> = corners.iter().map(corner).collect();
        html! { path d={ "M" (corners.join("L")) "Z" } {} }
    };
    match colour {
        0 => html! { circle cx=(coordinate(x)) cy=(coordinate(y)) r=(SIZE) {} },
        1 => at(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
        2 => at(&[(0.0, -1.1), (1.1, 0.9), (-1.1, 0.9)]),
        3 => at(&[(0.0, -1.2), (1.2, 0.0), (0.0, 1.2), (-1.2, 0.0)]),
        4 => at(&[(0.0, 1.1), (1.1, -0.9), (-1.1, -0.9)]),
        _ => at(&[
            (-1.1, 0.0),
            (1.1, 0.0),
            (0.0, 0.0),
            (0.0, -1.1),
            (0.0, 1.1),
            (0.0, 0.0),
        ]),
    }
}

/// A disc, a cross or a ring.
fn verdict(mark: Mark, x: f64, y: f64) -> Markup {
    const SIZE: f64 = 4.5;
    html! {
        @match mark {
            Mark::Fail => path d=(cross(x, y, SIZE)) {},
            Mark::Pass | Mark::Open => circle cx=(coordinate(x)) cy=(coordinate(y)) r=(SIZE) {},
        }
    }
}

fn cross(x: f64, y: f64, size: f64) -> String {
    let [left, right, top, bottom] = [x - size, x + size, y - size, y + size].map(coordinate);
    format!("M{left} {top}L{right} {bottom}M{left} {bottom}L{right} {top}")
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
