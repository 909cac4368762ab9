//! Conversations that people had, as prompts: the shape of ShareGPT (`conversations` of `from` and
//! `value`), the same with `role` and `content`, and JSON lines of `messages`. None is shipped.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::rng::{Rng, Stream};

/// A question with the answer it got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// What the user wrote.
    pub question: String,
    /// What was answered.
    pub answer: String,
}

/// How many conversations were left out, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Filtered {
    /// No question with an answer.
    pub empty: u64,
    /// The first turn is not a user's.
    pub not_by_a_user: u64,
    /// A question or an answer is longer than allowed.
    pub too_long: u64,
}

/// A dataset, each conversation a list of questions and answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// File name, for the report.
    pub name: String,
    /// Its conversations in the order of the file.
    pub conversations: Vec<Vec<Exchange>>,
    /// What was left out.
    pub filtered: Filtered,
}

#[derive(Deserialize)]
struct Message {
    #[serde(alias = "from")]
    role: String,
    #[serde(alias = "value")]
    content: Option<String>,
}

impl Dataset {
    /// Reads a file; conversations with a text of more than `max_words` words are left out.
    pub fn read(path: &Path, max_words: Option<usize>) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the dataset {}", path.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self::parse(&name, &text, max_words)
            .with_context(|| format!("the dataset {}", path.display()))
    }

    fn parse(name: &str, text: &str, max_words: Option<usize>) -> Result<Self> {
        let mut dataset = Self {
            name: name.to_owned(),
            conversations: Vec::new(),
            filtered: Filtered::default(),
        };
        for (number, entry) in entries(text)?.into_iter().enumerate() {
            let messages =
                messages(entry).with_context(|| format!("conversation {}", number + 1))?;
            dataset.take(messages, max_words);
        }
        if dataset.conversations.is_empty() {
            bail!("no conversation is left: {:?}", dataset.filtered);
        }
        Ok(dataset)
    }

    fn take(&mut self, messages: Vec<Message>, max_words: Option<usize>) {
        let is_user = |m: &Message| matches!(m.role.as_str(), "user" | "human");
        let is_answer = |m: &Message| {
            matches!(
                m.role.as_str(),
                "assistant" | "gpt" | "chatgpt" | "bing" | "bard"
            )
        };
        // Instructions of a system go before the conversation and are none of its turns.
        let mut said = messages
            .into_iter()
            .filter(|m| m.role != "system")
            .peekable();
        if said.peek().is_some_and(|first| !is_user(first)) {
            self.filtered.not_by_a_user += 1;
            return;
        }
        let mut turns = Vec::new();
        while let (Some(question), Some(answer)) = (said.next(), said.next()) {
            let (is_pair, question, answer) = (
                is_user(&question) && is_answer(&answer),
                question.content.unwrap_or_default().trim().to_owned(),
                answer.content.unwrap_or_default().trim().to_owned(),
            );
            if !is_pair || question.is_empty() || answer.is_empty() {
                break;
            }
            turns.push(Exchange { question, answer });
        }
        let is_long = |text: &str| max_words.is_some_and(|max| words(text) > max);
        if turns.is_empty() {
            self.filtered.empty += 1;
        } else if turns
            .iter()
            .any(|t| is_long(&t.question) || is_long(&t.answer))
        {
            self.filtered.too_long += 1;
        } else {
            self.conversations.push(turns);
        }
    }

    /// Conversation `number` of a run: each one once in an order of the seed's, then all over again.
    pub fn conversation(&self, seed: u64, number: u64) -> &[Exchange] {
        let count = self.conversations.len() as u64;
        let place = permuted(seed, number % count, count);
        &self.conversations[usize::try_from(place).expect("a place indexes memory")]
    }
}

/// Words of a text.
pub fn words(text: &str) -> usize {
    text.split_whitespace().count()
}

/// Where `index` lands in a permutation of `0..count`: four rounds of a Feistel network over the next
/// power of four, repeated while the result lies outside.
fn permuted(seed: u64, index: u64, count: u64) -> u64 {
    let half = (64 - (count - 1).leading_zeros()).div_ceil(2);
    let mask = (1u64 << half) - 1;
    let mut rng = Rng::new(seed, Stream::Order);
    let keys: [u64; 4] = std::array::from_fn(|_| rng.below(u64::MAX));
    let mut at = index;
    loop {
        let (mut left, mut right) = (at >> half, at & mask);
        for key in keys {
            // The multiplier is that of SplitMix64's finaliser.
            let mixed = (right ^ key).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (left, right) = (right, left ^ ((mixed >> 32) & mask));
        }
        at = (left << half) | right;
        if at < count {
            return at;
        }
    }
}

fn entries(text: &str) -> Result<Vec<Value>> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text).context("not a JSON array");
    }
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(n, line)| serde_json::from_str(line).with_context(|| format!("line {}", n + 1)))
        .collect()
}

fn messages(mut entry: Value) -> Result<Vec<Message>> {
    for key in ["conversations", "messages"] {
        if let Some(list) = entry.get_mut(key) {
            return Ok(serde_json::from_value(list.take())?);
        }
    }
    bail!("there are neither `conversations` nor `messages`")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAREGPT: &str = r#"[
        {"id": "a", "conversations": [
            {"from": "human", "value": "one"}, {"from": "gpt", "value": "two"},
            {"from": "human", "value": "three"}, {"from": "gpt", "value": "four five"},
            {"from": "human", "value": "unanswered"}]},
        {"id": "b", "conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]},
        {"id": "c", "conversations": []},
        {"id": "d", "conversations": [{"from": "human", "value": " "}, {"from": "gpt", "value": "y"}]},
        {"id": "e", "conversations": [
            {"role": "system", "content": "s"}, {"role": "user", "content": "q q q"},
            {"role": "assistant", "content": "a"}]}
    ]"#;

    #[test]
    fn the_shape_of_sharegpt_is_read_and_what_is_left_out_is_counted() {
        let dataset = Dataset::parse("s", SHAREGPT, None).unwrap();
        let turns: Vec<usize> = dataset.conversations.iter().map(Vec::len).collect();
        assert_eq!(turns, [2, 1]);
        assert_eq!(dataset.conversations[0][1].answer, "four five");
        let left_out = dataset.filtered;
        assert_eq!((left_out.empty, left_out.not_by_a_user), (2, 1));
        let short = Dataset::parse("s", SHAREGPT, Some(2)).unwrap();
        assert_eq!((short.conversations.len(), short.filtered.too_long), (1, 1));
    }

    #[test]
    fn json_lines_of_messages_are_read() {
        let line = r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#;
        let dataset = Dataset::parse("s", &format!("{line}\n\n{line}\n"), None).unwrap();
        assert_eq!(dataset.conversations.len(), 2);
    }

    #[test]
    fn what_is_no_dataset_is_named() {
        for (text, part) in [
            ("[1", "not a JSON array"),
            ("{\"a\": 1}", "neither `conversations` nor `messages`"),
            ("x", "line 1"),
            ("[]", "no conversation is left"),
        ] {
            let error = format!("{:#}", Dataset::parse("s", text, None).unwrap_err());
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_run_takes_each_conversation_once_before_any_comes_again() {
        for count in [1u64, 2, 3, 16, 17, 100, 1000] {
            for seed in [0, 1] {
                let mut seen: Vec<u64> = (0..count).map(|i| permuted(seed, i, count)).collect();
                if count == 1000 {
                    assert!(!seen.is_sorted(), "an order of its own");
                }
                seen.sort_unstable();
                assert!(seen.into_iter().eq(0..count), "{count} {seed}");
            }
        }
    }
}
