//! What was asked for and what came: rates beside each other, Little's law where users wait for answers, and what the
//! server counted over the same time.

use maud::{Markup, html};

use super::data::{InWindow, Run, milliseconds, number};
use super::group::Group;
use super::tagged::{Of, tagged};
use crate::interval;

/// How requests came to the group at this place of the page, and what that says of its numbers.
pub fn note(place: usize, group: &Group, named: bool) -> Markup {
    let mean = |key: &str, of: fn(&Run) -> Option<f64>| -> Option<Markup> {
        let values: Vec<f64> = group.counted().into_iter().map(of).collect::<Option<_>>()?;
        let value = interval::mean(&values);
        Some(tagged(Of::Mean(place), key, value, &number(value)))
    };
    let offered = mean("rates.offered_requests", |run| run.rates.offered_requests);
    let completed = mean("rates.completed_requests", |run| {
        Some(run.rates.completed_requests)
    });
    let little = mean("rates.users_by_little", |run| run.rates.users_by_little);
    let arrival = &group.runs[0].load.arrival;
    html! {
        p class="note" {
            @if named { strong { (group.name) } ": " }
            @match arrival.users() {
                Some(users) => {
                    "Closed loop of " (users) @if users == 1 { " user" } @else { " users" } ", which hides queueing: a slow server is asked less. "
                    @if let Some(little) = little {
                        "Answers per second times their mean time are " (little) "; by Little's law they should be the " (users)
                        ", and are the nearer to it the longer the window is against an answer. "
                    }
                }
                None => "Open loop: requests come whether or not the server keeps up. ",
            }
            @if let (Some(offered), Some(completed)) = (offered, completed) {
                (offered) " requests a second were asked for and " (completed) " answered in the window."
            }
        }
    }
}

/// The rates and requests in flight of a run.
pub fn table(of: Of, run: &Run) -> Markup {
    let rates = &run.rates;
    let rows = [
        (
            "requests a second asked for",
            "offered_requests",
            rates.offered_requests,
        ),
        (
            "requests a second sent",
            "sent_requests",
            rates.sent_requests,
        ),
        (
            "answers a second",
            "completed_requests",
            Some(rates.completed_requests),
        ),
        (
            "output tokens a second",
            "output_tokens",
            Some(rates.output_tokens),
        ),
        (
            "prompt tokens a second",
            "prompt_tokens",
            rates.prompt_tokens,
        ),
        (
            "prompt tokens a second from the cache",
            "cached_prompt_tokens",
            rates.cached_prompt_tokens,
        ),
        (
            "requests in flight, mean over time",
            "in_flight_mean",
            rates.in_flight_mean,
        ),
        (
            "requests in flight, most",
            "in_flight_max",
            rates.in_flight_max,
        ),
        (
            "answers a second times their mean time (Little's law)",
            "users_by_little",
            rates.users_by_little,
        ),
    ];
    html! {
        h3 { "Load" }
        div class="wide" tabindex="0" { table { tbody {
            @for (name, key, value) in rows { @if let Some(value) = value {
                tr { th { (name) } td { (tagged(of, &format!("rates.{key}"), value, &number(value))) } }
            } }
        } } }
    }
}

/// What the server counted and observed between the two scrapes at the ends of the window; nothing where it was not
/// scraped there.
pub fn in_window(of: Of, run: &Run) -> Markup {
    let Some(InWindow {
        from,
        to,
        grown,
        means,
    }) = &run.server.in_window
    else {
        return html! {};
    };
    let plain = |name: &str| match name {
        "finished" => "answers that ended".to_owned(),
        "batch_size" => "sequences in a step".into(),
        "itl_seconds" => "time between tokens".into(),
        "e2e_seconds" => "whole answer".into(),
        "ttft_seconds" => "time to first token".into(),
        "queue_seconds" => "time in the queue".into(),
        "step_seconds" => "time of a step".into(),
        "prefill_seconds" => "time of prefill".into(),
        "decode_seconds" => "time of decode".into(),
        _ => name.replace('_', " "),
    };
    let mean = |name: &str, value: f64| match name.ends_with("_seconds") {
        true => milliseconds(Some(value)),
        false => number(value),
    };
    let length = to - from;
    html! {
        h3 { "What the server counted in the window" }
        div class="wide" tabindex="0" { table {
            thead { tr { th {} th { "in all" } th { "a second" } th { "mean" } } }
            tbody {
                @for (name, value) in grown { tr {
                    th { (plain(name)) }
                    td { (tagged(of, &format!("server.in_window.grown.{name}"), *value, &number(*value))) }
                    td { @if length > 0.0 { (number(value / length)) } }
                    td {}
                } }
                @for (name, value) in means { tr {
                    th { (plain(name)) } td {} td {}
                    td { (tagged(of, &format!("server.in_window.means.{name}"), *value, &mean(name, *value))) }
                } }
            }
        } }
        p class="note" { "Between two scrapes, " (number(length)) " s apart, without the warm-up. An answer counts when it ends." }
    }
}
