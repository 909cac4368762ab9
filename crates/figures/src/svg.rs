//! Pictures as SVG with colours of their own for light and dark, and plots inside them. Nothing is
//! interactive and nothing is fetched; the same calls give the same bytes.

use std::fmt::Write;

/// Colours and lines. A picture stands on a ground of its own, so that it can be read where the page
/// around it has chosen another scheme than the reader's system.
const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#1f2328}.h{font-weight:600}.m{text-anchor:middle}.e{text-anchor:end}\
.t{fill:#59636e;font-size:11px}.bg{fill:#fff}.g{stroke:#d1d9e0;stroke-width:1;fill:none}\
.l{fill:none;stroke-width:1.8;stroke-linejoin:round}.b{stroke:none}\
.s0{stroke:#0969da}.s1{stroke:#bc4c00;stroke-dasharray:7 3}.s2{stroke:#1a7f37;stroke-dasharray:2 2.5}\
.s3{stroke:#8250df;stroke-dasharray:9 3 2 3}.s4{stroke:#6e7781}\
.h0{fill:#f0f3f6}.h1{fill:#d5e4f5}.h2{fill:#a9cdf0}.h3{fill:#6ba6e0}.h4{fill:#2f78c4}.h5{fill:#0b4a8f}.h6{fill:#bc4c00}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.t{fill:#9198a1}.bg{fill:#0d1117}.g{stroke:#30363d}\
.s0{stroke:#58a6ff}.s1{stroke:#f0883e}.s2{stroke:#3fb950}.s3{stroke:#bc8cff}.s4{stroke:#9198a1}\
.h0{fill:#161b22}.h1{fill:#12304d}.h2{fill:#164a78}.h3{fill:#2170a8}.h4{fill:#4a9bd6}.h5{fill:#a5d0f5}.h6{fill:#f0883e}}";

/// Steps of the scale of colours, the last one standing out.
pub const HEATS: usize = 7;

/// A picture being drawn.
#[derive(Debug)]
pub struct Picture {
    width: f64,
    height: f64,
    body: String,
}

impl Picture {
    /// An empty one with what it is called and what it shows, for those who cannot see it.
    pub fn new(width: f64, height: f64, title: &str, description: &str) -> Self {
        let mut body = String::new();
        add(&mut body, format_args!("<title>{}</title>", escaped(title)));
        add(
            &mut body,
            format_args!("<desc>{}</desc>", escaped(description)),
        );
        Self {
            width,
            height,
            body,
        }
    }

    /// Text; `class` holds `h` for a heading, `t` for a small one, `m` and `e` for centred and right.
    pub fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        self.put(format_args!(
            r#"<text x="{}" y="{}" class="{class}">{}</text>"#,
            short(x),
            short(y),
            escaped(text)
        ));
    }

    /// A filled rectangle in one of the colours of the scale.
    pub fn cell(&mut self, [x, y, width, height]: [f64; 4], heat: usize) {
        self.put(format_args!(
            r#"<rect x="{}" y="{}" width="{}" height="{}" class="b h{heat}"/>"#,
            short(x),
            short(y),
            short(width),
            short(height)
        ));
    }

    /// A thin outline.
    pub fn frame(&mut self, [x, y, width, height]: [f64; 4]) {
        self.put(format_args!(
            r#"<rect x="{}" y="{}" width="{}" height="{}" class="g"/>"#,
            short(x),
            short(y),
            short(width),
            short(height)
        ));
    }

    /// A line through points in the style of a series.
    pub fn line(&mut self, series: usize, points: impl Iterator<Item = (f64, f64)>) {
        let points: Vec<String> = points
            .map(|(x, y)| format!("{},{}", short(x), short(y)))
            .collect();
        self.put(format_args!(
            r#"<polyline class="l s{series}" points="{}"/>"#,
            points.join(" ")
        ));
    }

    /// Names of series in one row, each behind a piece of its line.
    pub fn legend(&mut self, x: f64, y: f64, names: &[String]) {
        let mut x = x;
        for (series, name) in names.iter().enumerate() {
            self.line(series, [(x, y - 4.0), (x + 26.0, y - 4.0)].into_iter());
            self.text(x + 32.0, y, "", name);
            // No width is known without a font; this one is wide enough for the usual ones.
            x += 52.0 + 6.6 * name.chars().count() as f64;
        }
    }

    /// Cells of equal size, coloured by their heat, row by row: one path for each colour.
    pub fn map(&mut self, [x, y, width, height]: [f64; 4], columns: usize, heats: &[usize]) {
        let rows = heats.len() / columns;
        let (wide, high) = (width / columns as f64, height / rows as f64);
        for heat in 0..HEATS {
            let mut path = String::new();
            for (row, cells) in heats.chunks(columns).enumerate() {
                let top = y + row as f64 * high;
                for (from, to) in runs(cells, heat) {
                    let (left, long) = (x + from as f64 * wide, (to - from) as f64 * wide);
                    let (left, top, long) = (short(left), short(top), short(long));
                    add(
                        &mut path,
                        format_args!("M{left} {top}h{long}v{}h-{long}z", short(high)),
                    );
                }
            }
            if !path.is_empty() {
                self.put(format_args!(r#"<path class="b h{heat}" d="{path}"/>"#));
            }
        }
    }

    /// The file.
    pub fn finish(self) -> String {
        let (width, height) = (self.width, self.height);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" role=\"img\">\n<style>{STYLE}</style>\n\
             <rect class=\"bg\" width=\"100%\" height=\"100%\" rx=\"6\"/>\n{}</svg>\n",
            self.body
        )
    }

    fn put(&mut self, what: std::fmt::Arguments<'_>) {
        add(&mut self.body, what);
        self.body.push('\n');
    }
}

/// A frame with two axes inside a picture.
#[derive(Debug, Clone)]
pub struct Plot {
    /// Left, top, width, height in the picture.
    pub at: [f64; 4],
    /// Least and greatest value from left to right.
    pub x: (f64, f64),
    /// Least and greatest value from bottom to top; powers of ten of them where `is_log`.
    pub y: (f64, f64),
    /// Whether heights are logarithms.
    pub is_log: bool,
}

impl Plot {
    /// Frame, ticks and their labels, and what the axes are.
    pub fn axes(
        &self,
        picture: &mut Picture,
        labels: [&str; 2],
        x_ticks: &[(f64, String)],
        y_ticks: &[(f64, String)],
    ) {
        let [left, top, width, height] = self.at;
        picture.frame(self.at);
        for (value, label) in x_ticks {
            let x = self.place(*value, self.bottom()).0;
            picture.text(x, top + height + 16.0, "t m", label);
        }
        for (value, label) in y_ticks {
            let y = self.place(self.x.0, *value).1;
            picture.put(format_args!(
                r#"<path class="g" d="M{} {}h{}"/>"#,
                short(left),
                short(y),
                short(width)
            ));
            picture.text(left - 6.0, y + 4.0, "t e", label);
        }
        picture.text(left + width / 2.0, top + height + 34.0, "t m", labels[0]);
        picture.text(left, top - 8.0, "h", labels[1]);
    }

    /// A line through values; those below a logarithmic axis end it.
    pub fn line(&self, picture: &mut Picture, series: usize, values: &[(f64, f64)]) {
        let is_shown = |y: f64| !self.is_log || y > 0.0;
        for run in values.split(|(_, y)| !is_shown(*y)) {
            if !run.is_empty() {
                picture.line(series, run.iter().map(|(x, y)| self.place(*x, *y)));
            }
        }
    }

    fn bottom(&self) -> f64 {
        match self.is_log {
            true => 10f64.powf(self.y.0),
            false => self.y.0,
        }
    }

    /// Where a value lies in the picture.
    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        let [left, top, width, height] = self.at;
        let y = if self.is_log { y.log10() } else { y };
        let share = |value: f64, (low, high): (f64, f64)| {
            ((value - low) / (high - low).max(f64::MIN_POSITIVE)).clamp(0.0, 1.0)
        };
        (
            left + width * share(x, self.x),
            top + height * (1.0 - share(y, self.y)),
        )
    }
}

/// Ticks at powers of ten between two exponents.
pub fn powers(from: i32, to: i32, label: fn(i32) -> String) -> Vec<(f64, String)> {
    (from..=to).map(|p| (10f64.powi(p), label(p))).collect()
}

/// Where a value stands in runs of its equals.
fn runs(cells: &[usize], wanted: usize) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (i, _) in cells
        .iter()
        .enumerate()
        .filter(|(_, heat)| **heat == wanted)
    {
        match runs.last_mut() {
            Some((_, to)) if *to == i => *to += 1,
            _ => runs.push((i, i + 1)),
        }
    }
    runs
}

/// At most one digit after the point: finer than any screen.
fn short(value: f64) -> String {
    let text = format!("{value:.1}");
    match text.strip_suffix(".0") {
        Some("-0") => "0".to_owned(),
        Some(whole) => whole.to_owned(),
        None => text,
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn add(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).expect("a string takes any text");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_text_is_escaped() {
        assert_eq!(short(12.0), "12");
        assert_eq!(short(12.34), "12.3");
        assert_eq!(short(-0.01), "0");
        let mut picture = Picture::new(10.0, 20.0, "a < b", "c & d");
        picture.text(1.0, 2.0, "", "e > f");
        let file = picture.finish();
        for part in ["<title>a &lt; b</title>", "c &amp; d", "e &gt; f</text>"] {
            assert!(file.contains(part), "{file}");
        }
    }

    #[test]
    fn equal_neighbours_are_one_rectangle() {
        assert_eq!(runs(&[1, 1, 0, 1], 1), [(0, 2), (3, 4)]);
        let mut picture = Picture::new(10.0, 10.0, "", "");
        picture.map([0.0, 0.0, 4.0, 2.0], 4, &[6, 6, 0, 6, 0, 0, 0, 0]);
        let file = picture.finish();
        assert!(file.contains(r#"d="M0 0h2v1h-2zM3 0h1v1h-1z""#), "{file}");
        assert!(file.contains(r#"d="M2 0h1v1h-1zM0 1h4v1h-4z""#), "{file}");
    }

    #[test]
    fn places_follow_the_axes_and_zero_has_no_logarithm() {
        let plot = Plot {
            at: [10.0, 20.0, 100.0, 50.0],
            x: (-1.0, 1.0),
            y: (-2.0, 0.0),
            is_log: true,
        };
        assert_eq!(plot.place(0.0, 0.1), (60.0, 45.0));
        assert_eq!(plot.place(5.0, 100.0), (110.0, 20.0), "inside the frame");
        let mut picture = Picture::new(10.0, 10.0, "", "");
        plot.line(&mut picture, 0, &[(0.0, 1.0), (0.5, 0.0), (1.0, 1.0)]);
        assert_eq!(picture.finish().matches("<polyline").count(), 2);
    }
}
