//! The target's tokenizer, where it can be asked: `/tokenize` as vLLM and octet have it, which applies the chat
//! template itself, or as llama.cpp has it, beside `/apply-template`. Everything here happens before the first scrape.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyper::Method;
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::probe;
use crate::record::RequestRecord;
use crate::target::Target;
use crate::vocabulary::{Vocabulary, Word};
use crate::workload::{Api, WORDS, Workload};

const TIMEOUT: Duration = Duration::from_secs(60);
/// Questions at once: a distant server takes a moment for each.
const AT_ONCE: usize = 16;
/// Whole prompts that are tried before a run.
const TRIED: u64 = 4;

/// Whose `/tokenize` it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Vllm,
    LlamaCpp,
}

/// A tokenizer that answers.
struct Tokenizer {
    target: Target,
    model: String,
    api: Api,
    dialect: Dialect,
}

/// Asks how many tokens the target makes of every word, and tries what comes of it: the prompt of one answer, whose
/// usage tells, and some prompts of the workload.
///
/// # Errors
/// A tokenizer whose tokens are not those of its words. Most servers have none that can be asked, which is no error.
pub async fn learn(target: &Target, workload: &Workload) -> Result<Option<Vocabulary>> {
    let Some(tokenizer) = Tokenizer::find(target, workload).await else {
        return Ok(None);
    };
    if let Some(vocabulary) = of_ids(target, workload, &tokenizer).await? {
        return Ok(Some(vocabulary));
    }
    let tokenizer = Arc::new(tokenizer);
    let words = tokenizer.words().await?;
    let vocabulary = Vocabulary::new(words).context("no word is a single token")?;
    let (prompt, used) = probe::one_answer(target, workload).await?;
    let counted = tokenizer.count(&prompt).await?;
    ensure!(
        counted == used,
        "/tokenize makes {counted} tokens of a prompt whose usage is {used}"
    );
    let exact = Workload {
        vocabulary: Some(Arc::new(vocabulary.clone())),
        ..workload.clone()
    };
    for number in 0..TRIED {
        let conversation = exact.conversation(number);
        let turn = &conversation.turns[0];
        let counted = tokenizer.count(&turn.text).await?;
        // A length below that of the template cannot be reached, which is no fault of the words.
        let wanted = vocabulary.tokens(&turn.text).unwrap_or(turn.prompt_tokens);
        ensure!(
            counted == wanted || turn.recorded.is_some(),
            "a prompt of {counted} tokens should have {wanted}"
        );
    }
    Ok(Some(vocabulary))
}

/// Words whose tokens are known, for prompts that are given as tokens and have as many by construction. Only completions
/// take such; none where a word is not a token of its own, or an answer counts others than were given.
async fn of_ids(
    target: &Target,
    workload: &Workload,
    tokenizer: &Tokenizer,
) -> Result<Option<Vocabulary>> {
    if workload.api != Api::Completions || !workload.is_words_alone() {
        return Ok(None);
    }
    let Ok(ids) = tokenizer.ids(&WORDS.join(" ")).await else {
        return Ok(None);
    };
    if ids.len() != WORDS.len() {
        return Ok(None);
    }
    let Some(vocabulary) = Vocabulary::of_ids(WORDS.iter().copied().zip(ids)) else {
        return Ok(None);
    };
    let with_ids = Workload {
        vocabulary: Some(Arc::new(vocabulary.clone())),
        ..workload.clone()
    };
    let answered = probe::one_answer(target, &with_ids).await;
    let is_as_given =
        answered.is_ok_and(|(prompt, used)| prompt.split(' ').count() == used as usize);
    Ok(is_as_given.then_some(vocabulary))
}

/// What becomes of answers when their text is made tokens again. It may differ: a tokenizer need not make of a text the
/// tokens that it came from. A diagnostic, which no number of a run rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Retokenised {
    /// Answers that were looked at.
    pub answers: u64,
    /// Their tokens by usage.
    pub by_usage: u64,
    /// Tokens of their text.
    pub of_text: u64,
}

/// Makes the texts that were kept tokens again; none where there are none, or the target has no tokenizer to be asked.
pub async fn again(
    target: &Target,
    workload: &Workload,
    records: &[RequestRecord],
) -> Option<Retokenised> {
    let kept = records.iter().filter(|r| r.outcome.is_success());
    let mut kept = kept
        .filter_map(|r| Some((r.text.as_ref()?, r.output_tokens())))
        .peekable();
    kept.peek()?;
    let tokenizer = Tokenizer::find(target, workload).await?;
    let mut all = Retokenised {
        answers: 0,
        by_usage: 0,
        of_text: 0,
    };
    for (text, by_usage) in kept {
        all.answers += 1;
        all.by_usage += by_usage;
        all.of_text += tokenizer.ids(text).await.ok()?.len() as u64;
    }
    Some(all)
}

impl Tokenizer {
    async fn find(target: &Target, workload: &Workload) -> Option<Self> {
        let mut tokenizer = Self {
            target: target.clone(),
            model: workload.model.clone(),
            api: workload.api,
            dialect: Dialect::Vllm,
        };
        for dialect in [Dialect::Vllm, Dialect::LlamaCpp] {
            tokenizer.dialect = dialect;
            if tokenizer.count(WORDS[0]).await.is_ok_and(|n| n > 0) {
                return Some(tokenizer);
            }
        }
        None
    }

    /// The tokens of every word: most vocabularies have all of them, which one question shows.
    async fn words(self: &Arc<Self>) -> Result<Vec<Word>> {
        let alone = self
            .each(WORDS.iter().map(|word| (*word).to_owned()))
            .await?;
        let all = self.count(&WORDS.join(" ")).await?;
        let more = if all == alone[0] + WORDS.len() as u32 - 1 {
            vec![1; WORDS.len()]
        } else {
            let pairs = WORDS.iter().map(|word| format!("{} {word}", WORDS[0]));
            let pairs = self.each(pairs).await?;
            pairs.iter().map(|n| n.saturating_sub(alone[0])).collect()
        };
        let each = WORDS.iter().zip(alone.iter().zip(&more));
        Ok(each
            .map(|(text, (alone, more))| Word {
                text,
                alone: *alone,
                more: *more,
            })
            .collect())
    }

    /// Tokens of several prompts, in their order.
    async fn each(self: &Arc<Self>, prompts: impl Iterator<Item = String>) -> Result<Vec<u32>> {
        let prompts: Vec<String> = prompts.collect();
        let mut counts = Vec::new();
        for some in prompts.chunks(AT_ONCE) {
            let asked = some.iter().map(|prompt| {
                let (tokenizer, prompt) = (Arc::clone(self), prompt.clone());
                tokio::spawn(async move { tokenizer.count(&prompt).await })
            });
            for count in asked.collect::<Vec<_>>() {
                counts.push(count.await??);
            }
        }
        Ok(counts)
    }

    /// Tokens of a request with this prompt.
    async fn count(&self, prompt: &str) -> Result<u32> {
        let messages = json!([{ "role": "user", "content": prompt }]);
        let count = match (self.dialect, self.api) {
            (Dialect::Vllm, Api::Chat) => {
                let body = json!({ "model": self.model, "messages": messages });
                self.ask("/tokenize", &body).await?["count"].as_u64()
            }
            (Dialect::Vllm, Api::Completions) => {
                let body = json!({ "model": self.model, "prompt": prompt });
                self.ask("/tokenize", &body).await?["count"].as_u64()
            }
            (Dialect::LlamaCpp, Api::Chat) => {
                let body = json!({ "messages": messages });
                let rendered = self.ask("/apply-template", &body).await?;
                let text = rendered["prompt"].as_str();
                self.tokens(text.context("/apply-template renders nothing")?)
                    .await?
            }
            (Dialect::LlamaCpp, Api::Completions) => self.tokens(prompt).await?,
        };
        let count = count.context("/tokenize does not count")?;
        Ok(u32::try_from(count)?)
    }

    async fn tokens(&self, text: &str) -> Result<Option<u64>> {
        let body = json!({ "content": text, "add_special": true, "parse_special": true });
        let answer = self.ask("/tokenize", &body).await?;
        Ok(answer["tokens"]
            .as_array()
            .map(|tokens| tokens.len() as u64))
    }

    /// The tokens of a text alone, without what marks a beginning.
    async fn ids(&self, text: &str) -> Result<Vec<u32>> {
        let body = match self.dialect {
            Dialect::Vllm => {
                json!({ "model": self.model, "prompt": text, "add_special_tokens": false })
            }
            Dialect::LlamaCpp => json!({ "content": text, "add_special": false }),
        };
        let mut answer = self.ask("/tokenize", &body).await?;
        Ok(serde_json::from_value(answer["tokens"].take())?)
    }

    async fn ask(&self, path: &str, body: &Value) -> Result<Value> {
        let body = Bytes::from(serde_json::to_vec(body)?);
        let asked = self
            .target
            .fetch(Method::POST, path, "application/json", body, TIMEOUT);
        let (status, answer) = asked.await?;
        ensure!(status == 200, "{path} answers {status}");
        Ok(serde_json::from_slice(&answer)?)
    }
}
