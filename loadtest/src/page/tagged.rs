//! Numbers that say which key of which result they are: `data-key` is the path in `run.json` (or `search.json`),
//! `data-of` the runs, `value` the number as it stands there. With them a page can be held against its data.

use std::fmt::{self, Display, Formatter};

use maud::{Markup, html};

/// The runs that a number is of; groups and runs are counted from one, in the order of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// The mean over the runs of a group that count.
    Mean(usize),
    /// The lower end of the 95 % interval of that mean, at least zero.
    Low(usize),
    /// Its upper end.
    High(usize),
    /// The sum over the runs of a group that count.
    Sum(usize),
    /// The sum over all runs of a group.
    Total(usize),
    /// A run of a group.
    Run(usize, usize),
    /// The search.
    Search,
    /// The summary of the suite.
    Summary,
    /// The index.
    Index,
}

impl Display for Of {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mean(group) => write!(f, "mean {group}"),
            Self::Low(group) => write!(f, "low {group}"),
            Self::High(group) => write!(f, "high {group}"),
            Self::Sum(group) => write!(f, "sum {group}"),
            Self::Total(group) => write!(f, "total {group}"),
            Self::Run(group, run) => write!(f, "run {group} {run}"),
            Self::Search => f.write_str("search"),
            Self::Summary => f.write_str("summary"),
            Self::Index => f.write_str("index"),
        }
    }
}

/// A number in words, with where it is from.
pub fn tagged(of: Of, key: &str, value: f64, words: &str) -> Markup {
    html! { data data-key=(key) data-of=(of) value=(value) { (words) } }
}

/// A mean over the runs below a folder, seen from the page.
pub fn below(folder: &str, key: &str, value: f64, words: &str) -> Markup {
    html! { data data-key=(key) data-of={ "below " (folder) } value=(value) { (words) } }
}

/// A count.
pub fn count(of: Of, key: &str, value: u64) -> Markup {
    html! { data data-key=(key) data-of=(of) value=(value) { (value) } }
}
