//! What speaks against runs, each reason once: those that differ only in their numbers are one.

use maud::{Markup, html};

use super::data::Run;
use super::group::Group;

/// A reason and the runs that have it.
struct Reason<'a> {
    /// As the first of them says it.
    text: &'a str,
    /// Their places among all runs, counted from one.
    runs: Vec<usize>,
    /// Whether others have it with other numbers.
    varies: bool,
}

/// Of one configuration, with the numbers of the runs.
pub fn of_group(group: &Group) -> Markup {
    let runs: Vec<&Run> = group.runs.iter().collect();
    let words = |reason: &Reason| {
        let numbers: Vec<String> = reason.runs.iter().map(usize::to_string).collect();
        match (&numbers[..], reason.varies) {
            _ if runs.len() == 1 => String::new(),
            ([one], _) => format!(" (run {one})"),
            ([first, others @ ..], true) => {
                format!(" (run {first}; with other numbers {})", others.join(", "))
            }
            _ => format!(" (runs {})", numbers.join(", ")),
        }
    };
    list(&runs, words)
}

/// Of the counted runs of several configurations, with how many have it.
pub fn of_all(groups: &[&Group]) -> Markup {
    let runs: Vec<&Run> = groups.iter().flat_map(|group| group.counted()).collect();
    list(&runs, |reason| {
        let (some, all) = (reason.runs.len(), runs.len());
        match reason.varies {
            true => format!(" ({some} of {all} runs; numbers of the first)"),
            false => format!(" ({some} of {all} runs)"),
        }
    })
}

fn list(runs: &[&Run], words: impl Fn(&Reason) -> String) -> Markup {
    let mut seen: Vec<Reason> = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        for text in &run.reasons {
            match seen
                .iter_mut()
                .find(|known| wording(known.text) == wording(text))
            {
                Some(known) => {
                    known.runs.push(i + 1);
                    known.varies |= known.text != text;
                }
                None => seen.push(Reason {
                    text,
                    runs: vec![i + 1],
                    varies: false,
                }),
            }
        }
    }
    html! {
        @if !seen.is_empty() {
            ul { @for reason in &seen { li { (reason.text) (words(reason)) } } }
        }
    }
}

/// A reason without its numbers.
fn wording(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_ascii_digit() && *c != '.')
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_make_no_other_reason() {
        let slow = "memory at 1.5 before and at 22.25 after";
        assert_eq!(wording(slow), wording("memory at 30 before and at 4 after"));
        assert_ne!(
            wording(slow),
            wording("memory at 1.5 before and at 22.25 then")
        );
    }
}
