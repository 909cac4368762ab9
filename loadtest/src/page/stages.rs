//! Where the time of a mean answer went: bars from zero on one axis, of parts that follow each other. Places are
//! shares of the width, so that text keeps its size on a phone.

use maud::{Markup, html};

use super::data::milliseconds;
use super::group::Group;
use crate::server_times::Stages;

/// What a part is called, and how long it is.
type Part = (&'static str, f64);

/// A bar for each group whose servers say it; nothing where none does.
pub fn all(groups: &[Group]) -> Markup {
    let bars: Vec<(&str, [Part; 6])> = groups
        .iter()
        .filter_map(|group| Some((group.name.as_str(), parts(group)?)))
        .collect();
    let silent: Vec<&str> = groups
        .iter()
        .map(|group| group.name.as_str())
        .filter(|name| bars.iter().all(|(known, _)| known != name))
        .collect();
    let longest = bars.iter().map(|(_, parts)| drawn(parts).sum::<f64>());
    let longest = longest.fold(0.0, f64::max);
    html! {
        @if longest > 0.0 {
            section {
                h2 { "Where the time of an answer went" }
                figure class="stages" {
                    figcaption { "Mean over all answers, from the planned start to the last token" }
                    @for (name, parts) in &bars { (bar(name, parts, longest)) }
                    p class="legend" { @for (i, (name, _)) in bars[0].1.iter().enumerate() {
                        span class={ "key s" (i) } { (name) } " "
                    } }
                    p class="note" {
                        "Queue, prefill and decode are means of the server's histograms, warm-up included. Not explained is what the server's "
                        "whole time has beyond these three, such as reading the request; on the way is what the client waited beyond that."
                        @if !silent.is_empty() { " No such times are known of " (silent.join(", ")) "." }
                    }
                }
            }
        }
    }
}

/// Means over the counted runs, in the order in which time passes.
fn parts(group: &Group) -> Option<[Part; 6]> {
    let counted = group.counted();
    let known = counted.iter().map(|run| run.server.times.stages);
    let known: Vec<Stages> = known.collect::<Option<_>>()?;
    let mean = |of: fn(&Stages) -> f64| known.iter().map(of).sum::<f64>() / known.len() as f64;
    Some([
        ("client before sending", mean(|s| s.send_lag)),
        ("on the way", mean(Stages::transport)),
        ("not explained", mean(Stages::unexplained)),
        ("queue", mean(|s| s.queue)),
        ("prefill", mean(|s| s.prefill)),
        ("decode", mean(|s| s.decode)),
    ])
}

/// Lengths as far as they can be drawn: clocks of two sides may make a small part negative.
fn drawn(parts: &[Part]) -> impl Iterator<Item = f64> {
    parts.iter().map(|(_, seconds)| seconds.max(0.0))
}

fn bar(name: &str, parts: &[Part; 6], longest: f64) -> Markup {
    let words = |(part, seconds): &Part| format!("{part} {}", signed(*seconds));
    let all: Vec<String> = parts.iter().map(words).collect();
    let all = all.join(", ");
    let total: f64 = parts.iter().map(|(_, seconds)| seconds).sum();
    let percent = |seconds: f64| format!("{:.2}%", seconds / longest * 100.0);
    let mut end = 0.0;
    let places = drawn(parts).map(|length| {
        end += length;
        (end - length, length)
    });
    let places: Vec<(f64, f64)> = places.collect();
    html! {
        p class="ratio-name" { strong { (name) } span { (signed(total)) } }
        svg class="stripe" role="img" aria-label=(format!("{name}: {all}")) {
            title { (name) ": " (all) }
            @for (i, (from, length)) in places.iter().enumerate() {
                rect class={ "s" (i) } x=(percent(*from)) y="3" width=(percent(*length)) height="20" {
                    title { (words(&parts[i])) }
                }
            }
        }
        p class="note" { (all) }
    }
}

fn signed(seconds: f64) -> String {
    let words = milliseconds(Some(seconds.abs()));
    match seconds < 0.0 {
        true => format!("−{words}"),
        false => words,
    }
}
