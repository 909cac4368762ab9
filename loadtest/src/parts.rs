//! A run taken apart: by the server that answered, by the kind of conversation, by the turn, and by
//! whether the prefix cache helped. What has only one part is not taken apart.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::content::Content;
use crate::record::RequestRecord;
use crate::stats::{Sample, Summary};

/// What a run is taken apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum PartKind {
    /// The server that was asked.
    Server,
    /// The kind of conversation in a mix.
    Content,
    /// The place in a conversation.
    Turn,
    /// The share of the prompt that came from the prefix cache.
    Cached,
}

/// The measured requests that have something in common.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Part {
    /// What they have in common.
    pub by: PartKind,
    /// Its name.
    pub name: String,
    /// Requests planned inside the window.
    pub requests: u64,
    /// Successes among them.
    pub succeeded: u64,
    /// First token, from the planned start.
    pub ttft: Summary,
    /// Time per output token after the first.
    pub tpot: Summary,
    /// End of the text, from the planned start.
    pub e2e: Summary,
}

/// Borders between shares of a prompt from the prefix cache, in quarters; the first part is none at all.
const SHARES: [&str; 5] = [
    "none",
    "up to 25 %",
    "up to 50 %",
    "up to 75 %",
    "above 75 %",
];

/// Takes the measured requests apart in every way that makes more than one part.
pub fn parts(measured: &[&RequestRecord], servers: &[String], contents: &[Content]) -> Vec<Part> {
    let mut all = by(
        PartKind::Server,
        measured,
        |r| r.server,
        |i| servers[i].clone(),
    );
    let content = |i: usize| {
        let content: &Content = &contents[i];
        format!("{} → {}", content.prompt_words(), content.output_words())
    };
    all.extend(by(PartKind::Content, measured, |r| r.content, content));
    let turn = |r: &RequestRecord| r.turn as usize;
    all.extend(by(PartKind::Turn, measured, turn, |i| (i + 1).to_string()));
    let answered: Vec<&RequestRecord> = measured
        .iter()
        .copied()
        .filter(|r| r.outcome.is_success())
        .collect();
    let share = |i: usize| SHARES[i].to_owned();
    all.extend(by(PartKind::Cached, &answered, cached, share));
    all
}

fn cached(record: &RequestRecord) -> usize {
    let (cached, prompt) = (record.cached_tokens(), record.prompt_tokens().max(1));
    usize::try_from((4 * cached).div_ceil(prompt))
        .unwrap_or(4)
        .min(4)
}

fn by(
    kind: PartKind,
    records: &[&RequestRecord],
    key: impl Fn(&RequestRecord) -> usize,
    name: impl Fn(usize) -> String,
) -> Vec<Part> {
    let mut groups: BTreeMap<usize, Vec<&RequestRecord>> = BTreeMap::new();
    for record in records {
        groups.entry(key(record)).or_default().push(record);
    }
    if groups.len() < 2 {
        return Vec::new();
    }
    let part = |(key, group): (usize, Vec<&RequestRecord>)| {
        let good: Vec<_> = group.iter().filter(|r| r.outcome.is_success()).collect();
        let summary = |value: fn(&RequestRecord) -> Option<u64>| {
            good.iter()
                .filter_map(|r| value(r))
                .collect::<Sample>()
                .summary()
        };
        Part {
            by: kind,
            name: name(key),
            requests: group.len() as u64,
            succeeded: good.len() as u64,
            ttft: summary(RequestRecord::ttft),
            tpot: summary(RequestRecord::tpot),
            e2e: summary(RequestRecord::e2e),
        }
    };
    groups.into_iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lengths::Lengths;
    use crate::outcome::Outcome;
    use crate::record::tests::{failure, success};

    #[test]
    fn what_differs_is_taken_apart_and_what_does_not_is_left_alone() {
        let mut records: Vec<RequestRecord> = (0..6).map(|i| success(i, i * 10, 8, 4)).collect();
        for (i, record) in records.iter_mut().enumerate() {
            record.turn = i as u32 % 3;
            record.server = usize::from(i == 5);
        }
        records.push(failure(6, 60, 500, Outcome::Http5xx));
        let measured: Vec<&RequestRecord> = records.iter().collect();
        let contents = [Content::words(Lengths::Fixed(8), Lengths::Fixed(4))];
        let found = parts(&measured, &["a".into(), "b".into()], &contents);
        let rows: Vec<_> = found
            .iter()
            .map(|p| (p.by, p.name.as_str(), p.requests, p.succeeded))
            .collect();
        assert_eq!(
            rows,
            [
                (PartKind::Server, "a", 6, 5),
                (PartKind::Server, "b", 1, 1),
                (PartKind::Turn, "1", 3, 2),
                (PartKind::Turn, "2", 2, 2),
                (PartKind::Turn, "3", 2, 2),
            ]
        );
    }

    #[test]
    fn shares_of_the_cache_are_counted_in_quarters() {
        let share = |cached: u64| {
            let mut record = success(0, 0, 100, 1);
            let usage = serde_json::json!({
                "prompt_tokens": 100, "completion_tokens": 1,
                "prompt_tokens_details": { "cached_tokens": cached },
            });
            record.stream.usage = serde_json::from_value(usage).unwrap();
            SHARES[super::cached(&record)]
        };
        let found = [0, 1, 25, 26, 50, 75, 76, 100].map(share);
        let expected = [0, 1, 1, 2, 2, 3, 4, 4].map(|i| SHARES[i]);
        assert_eq!(found, expected);
    }
}
