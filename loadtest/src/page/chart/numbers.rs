//! The numbers behind a chart, in a table that opens: what a picture shows at a glance, for those who want to read
//! it off or cannot see it.

use maud::{Markup, html};

use super::{Chart, Form, Series};

/// Rows of one series; a line of thousands of points is told by some of them.
const MAX_ROWS: usize = 40;

impl Chart {
    pub(super) fn numbers(&self) -> Markup {
        let rows: Vec<(&Series, Vec<usize>)> = self
            .series
            .iter()
            .map(|series| (series, self.chosen(series)))
            .collect();
        let is_any = rows.iter().any(|(_, chosen)| !chosen.is_empty());
        let is_thinned = rows
            .iter()
            .any(|(series, chosen)| chosen.len() < distinct(series).len());
        html! {
            @if is_any {
                details {
                    summary { "Numbers" }
                    div class="wide" tabindex="0" { (self.table(&rows)) }
                    @if is_thinned { p class="note" { "Some of the points, evenly along the axis below; the result files have them all." } }
                }
            }
        }
    }

    fn table(&self, rows: &[(&Series, Vec<usize>)]) -> Markup {
        let has = |of: fn(&Series) -> bool| self.series.iter().any(of);
        let (labels, arrows) = (has(|s| !s.labels.is_empty()), has(|s| !s.arrows.is_empty()));
        let bars = has(|s| s.intervals.iter().any(|(low, high)| low < high));
        let (bands, several) = (has(|s| !s.band.is_empty()), self.series.len() > 1);
        html! {
            table {
                thead { tr {
                    @if several { th { "series" } }
                    @if labels { th { "mark" } }
                    th { (self.x.label) } th { "value" }
                    @if bars || bands { th { "from" } th { "to" } }
                    @if arrows { th { "arrow to" } }
                } }
                tbody {
                    @for (series, i) in rows.iter().flat_map(|(series, chosen)| chosen.iter().map(move |i| (series, *i))) { tr {
                        @let (x, y) = series.points[i];
                        @if several { th { (series.name) } }
                        @if labels { td { (series.labels.get(i).map_or("", String::as_str)) } }
                        td { @if series.form != Form::Level { (self.x.words(x)) } }
                        td { @if series.form != Form::AtTop { (self.y.words(y)) } }
                        @if bars || bands {
                            @let ends = series.ends(i).map(|ends| ends.map(|end| self.y.words(end)));
                            @let [low, high] = ends.unwrap_or_default();
                            td { (low) } td { (high) }
                        }
                        @if arrows { td { @if let Some(end) = series.arrows.get(i) { (self.x.words(*end)) } } }
                    } }
                }
            }
        }
    }

    /// Which points stand in the table, from left to right.
    fn chosen(&self, series: &Series) -> Vec<usize> {
        let all = distinct(series);
        let (Some(first), Some(last)) = (all.first(), all.last()) else {
            return Vec::new();
        };
        if all.len() <= MAX_ROWS {
            return all;
        }
        let place = |i: usize| self.x.place(series.points[i].0);
        let (from, to) = (place(*first), place(*last));
        let mut chosen: Vec<usize> = (0..MAX_ROWS - 1)
            .map(|step| from + (to - from) * step as f64 / (MAX_ROWS - 1) as f64)
            .map(|wanted| all[all.partition_point(|i| place(*i) < wanted)])
            .collect();
        chosen.push(*last);
        chosen.dedup();
        chosen
    }
}

/// The points of a series from left to right. Where a line has a corner, only its end: that of a step is the height
/// from there on.
fn distinct(series: &Series) -> Vec<usize> {
    let x = |i: usize| series.points[i].0;
    let mut all: Vec<usize> = (0..series.points.len()).collect();
    all.sort_by(|a, b| x(*a).total_cmp(&x(*b)));
    if !matches!(series.form, Form::Line | Form::Outline) {
        return all;
    }
    let ends = all.iter().zip(all.iter().skip(1).map(Some).chain([None]));
    let ends = ends.filter(|(i, next)| next.is_none_or(|next| x(*next) != x(**i)));
    ends.map(|(i, _)| *i).collect()
}

impl Series {
    /// The ends of the interval at a point, where it has one.
    fn ends(&self, i: usize) -> Option<[f64; 2]> {
        if let Some((low, high)) = self.intervals.get(i).filter(|(low, high)| low < high) {
            return Some([*low, *high]);
        }
        let x = self.points[i].0;
        let at = self.band.iter().position(|(place, ..)| *place >= x)?;
        let (right, low, high) = self.band[at];
        let (left, low_before, high_before) = self.band[at.checked_sub(1).unwrap_or(at)];
        if x < left {
            return None;
        }
        let share = if right > left {
            (x - left) / (right - left)
        } else {
            1.0
        };
        let between = |from: f64, to: f64| from + (to - from) * share;
        Some([between(low_before, low), between(high_before, high)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::axis::{Axis, Scale};

    fn chart(x: Scale, series: Series) -> Chart {
        Chart {
            title: "t".into(),
            x: Axis::new("x", x),
            y: Axis::new("", Scale::Linear),
            series: vec![series],
        }
    }

    #[test]
    fn a_long_line_is_told_by_some_points_its_ends_among_them() {
        let points: Vec<(f64, f64)> = (0..2000u32)
            .map(|i| ((f64::from(i) + 0.5) / 2000.0, f64::from(i)))
            .collect();
        let mut chart = chart(
            Scale::Percentile,
            Series::new("s", Form::Line, 0, points.clone()),
        );
        chart.span();
        let chosen = chart.chosen(&chart.series[0]);
        assert_eq!((chosen[0], *chosen.last().unwrap()), (0, 1999));
        assert!(chosen.len() <= MAX_ROWS && chosen.windows(2).all(|two| two[0] < two[1]));
        // The tail has its share of the rows.
        assert!(chosen.iter().filter(|i| **i >= 1800).count() > MAX_ROWS / 2);
        let page = chart.draw().into_string();
        assert_eq!(page.matches("<tr>").count(), chosen.len() + 1);
        assert!(page.contains("Some of the points"));
    }

    #[test]
    fn steps_are_told_by_where_they_begin() {
        let corners = vec![
            (1.0, 0.0),
            (1.0, 0.3),
            (2.0, 0.3),
            (2.0, 0.7),
            (3.0, 0.7),
            (3.0, 0.0),
        ];
        let page = chart(Scale::Log, Series::new("s", Form::Line, 0, corners)).draw();
        let page = page.into_string();
        for row in [
            "<td>1</td><td>0.3000</td>",
            "<td>2</td><td>0.7000</td>",
            "<td>3</td><td>0</td>",
        ] {
            assert!(page.contains(row), "{row}: {page}");
        }
        assert_eq!(page.matches("<tr>").count(), 4);
    }

    #[test]
    fn intervals_stand_beside_what_they_are_of() {
        let points = vec![(1.0, 10.0), (2.0, 20.0), (4.0, 30.0)];
        let bars = Series {
            intervals: vec![(8.0, 12.0), (20.0, 20.0), (25.0, 35.0)],
            ..Series::new("s", Form::Marked, 0, points.clone())
        };
        assert_eq!(bars.ends(0), Some([8.0, 12.0]));
        assert_eq!(bars.ends(1), None, "an interval of one run");
        let band = Series {
            band: vec![(1.0, 9.0, 11.0), (3.0, 21.0, 29.0)],
            ..Series::new("s", Form::Line, 0, points)
        };
        assert_eq!(band.ends(0), Some([9.0, 11.0]));
        assert_eq!(band.ends(1), Some([15.0, 20.0]));
        assert_eq!(band.ends(2), None, "beyond its end");
        let page = chart(Scale::Linear, band).draw().into_string();
        assert!(page.contains("<polygon class=\"band s0\""), "{page}");
        assert!(
            page.contains("<td>2</td><td>20</td><td>15</td><td>20</td>"),
            "{page}"
        );
    }

    #[test]
    fn nothing_has_no_table() {
        let page = chart(Scale::Linear, Series::new("s", Form::Line, 0, Vec::new())).draw();
        assert!(!page.into_string().contains("<details"));
    }
}
