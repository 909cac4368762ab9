//! The conversations of a run, most of them a single request. Each is a pure function of the seed and
//! its number: lengths, words and body do not depend on when or in which order requests run, so two
//! targets see the same ones. Only a later turn holds the answers that the target gave before it.

use std::sync::{Arc, LazyLock};

use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::content::{Content, Conversation, Prefix, Prompts, Turn, pick};
use crate::dataset;
use crate::rng::{Rng, Stream};
use crate::trace::{BLOCK_TOKENS, Trace, TraceRequest};
use crate::vocabulary::{Vocabulary, join};

/// 256 short, frequent English words, each a single token of most vocabularies.
pub(crate) static WORDS: LazyLock<Vec<&str>> =
    LazyLock::new(|| include_str!("words.txt").split_whitespace().collect());
/// Words of a run's nonce: 48 random bits.
const NONCE_WORDS: u32 = 6;

/// The endpoint that is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// `/v1/chat/completions`, one user message.
    Chat,
    /// `/v1/completions`, a plain prompt.
    Completions,
}

impl Api {
    /// The path of the endpoint, which is also its label in the server's metrics.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }
}

/// How words become tokens at the target: `tokens = overhead + per_word * words`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TokensPerWord {
    /// Tokens of a word with its space.
    pub per_word: f64,
    /// Tokens around the prompt: the chat template and special tokens.
    pub overhead: f64,
}

impl TokensPerWord {
    /// Words that come nearest to `tokens`, at least one.
    pub fn words(&self, tokens: u32) -> u32 {
        (((f64::from(tokens) - self.overhead) / self.per_word).round()).max(1.0) as u32
    }

    /// Words that come nearest to `tokens` where a prompt has already begun.
    fn more_words(&self, tokens: u32) -> u32 {
        (f64::from(tokens) / self.per_word).round() as u32
    }

    /// Tokens of so many words, at least one.
    fn tokens(&self, words: usize) -> u32 {
        ((words as f64 * self.per_word).round()).max(1.0) as u32
    }
}

/// What all requests of a run have in common.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Endpoint.
    pub api: Api,
    /// Model name that is sent.
    pub model: String,
    /// Seed of every draw.
    pub seed: u64,
    /// Kinds of conversations, at least one.
    pub contents: Vec<Content>,
    /// Times and lengths of the requests where they are recorded; the first of the contents then says
    /// the rest.
    pub trace: Option<Arc<Trace>>,
    /// How many words make a prompt of a length.
    pub tokens_per_word: TokensPerWord,
    /// The tokens of every word, where the target tells: then lengths are exact.
    pub vocabulary: Option<Arc<Vocabulary>>,
    /// Sampling temperature.
    pub temperature: f64,
    /// First words of every prompt, so that no prompt was seen by an earlier run.
    pub nonce: Option<Nonce>,
}

/// Words that a server has not seen before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nonce {
    /// The same at the beginning of every prompt of a run.
    Run(String),
    /// Others for every group, drawn from this number; a conversation without one is a group of its own.
    Group(u64),
}

/// One request, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedRequest {
    /// Prompt length aimed at, in tokens.
    pub prompt_tokens: u32,
    /// Output length asked for, in tokens.
    pub output_tokens: u32,
    /// The JSON body.
    pub body: Bytes,
}

/// What a body is made of.
struct Body<'a> {
    /// Question and answer by turns, a question last.
    said: &'a [&'a str],
    output_tokens: u32,
    ignore_eos: bool,
    index: u64,
    stream: bool,
}

impl Workload {
    /// Conversation `number`.
    pub fn conversation(&self, number: u64) -> Conversation {
        if let Some(request) = self.traced(number) {
            return self.traced_conversation(number, request);
        }
        let mut rng = Rng::new(self.seed, Stream::Lengths(number));
        let index = pick(&self.contents, &mut rng);
        let content = &self.contents[index];
        let turns = match &content.prompts {
            Prompts::Words(_) => self.drawn_turns(number, content, &mut rng),
            Prompts::Dataset(_) => self.recorded_turns(number, content, &mut rng),
        };
        Conversation {
            number,
            content: index,
            turns,
        }
    }

    /// The first request of conversation `number`.
    pub fn request(&self, number: u64) -> PlannedRequest {
        self.planned(&self.conversation(number), &[])
    }

    /// The next request of a conversation after the answers that it got.
    pub fn planned(&self, conversation: &Conversation, answers: &[String]) -> PlannedRequest {
        let turns = &conversation.turns[..=answers.len()];
        let next = &turns[answers.len()];
        let content = &self.contents[conversation.content];
        let mut said = Vec::new();
        for (turn, answer) in turns.iter().zip(answers) {
            let recorded = turn.recorded.as_ref().filter(|_| content.replays_recorded);
            said.extend([turn.text.as_str(), recorded.unwrap_or(answer).as_str()]);
        }
        said.push(&next.text);
        let before = &turns[..answers.len()];
        let body = self.body(&Body {
            said: &said,
            output_tokens: next.output_tokens,
            ignore_eos: content.ignore_eos,
            index: conversation.number,
            stream: true,
        });
        let history = before.iter().map(|t| t.prompt_tokens + t.output_tokens);
        PlannedRequest {
            prompt_tokens: next.prompt_tokens + history.sum::<u32>(),
            output_tokens: next.output_tokens,
            body,
        }
    }

    fn drawn_turns(&self, number: u64, content: &Content, rng: &mut Rng) -> Vec<Turn> {
        let Prompts::Words(prompt) = &content.prompts else {
            unreachable!("a dataset has turns of its own");
        };
        let draw = |rng: &mut Rng| {
            let output = content.output.as_ref();
            let output = output.expect("random words have an output length");
            (prompt.draw(rng), output.draw(rng))
        };
        let (tokens, output_tokens) = draw(rng);
        let (group, shared) = self.shared(number, content, rng);
        let shared_tokens = content.prefix.map_or(0, |prefix| prefix.tokens);
        let mut turns = vec![Turn {
            think: content.think.draw(rng),
            prompt_tokens: tokens + shared_tokens,
            output_tokens,
            text: self.prompt(number, tokens, group, (&shared, shared_tokens)),
            recorded: None,
        }];
        for turn in 1..content.turns.draw(rng) {
            let (prompt_tokens, output_tokens) = draw(rng);
            let mut words = Rng::new(self.seed, Stream::Turn(number, turn));
            turns.push(Turn {
                think: content.think.draw(rng),
                prompt_tokens,
                output_tokens,
                text: self.more(&mut words, prompt_tokens),
                recorded: None,
            });
        }
        turns
    }

    fn recorded_turns(&self, number: u64, content: &Content, rng: &mut Rng) -> Vec<Turn> {
        let Prompts::Dataset(dataset) = &content.prompts else {
            unreachable!("words have no recorded turns");
        };
        let limit = content.turns.draw(rng) as usize;
        let (group, shared) = self.shared(number, content, rng);
        let nonce = self.nonce(group);
        let exchanges = dataset.conversation(self.seed, number);
        let turn = |(i, exchange): (usize, &dataset::Exchange)| {
            let recorded = self
                .tokens_per_word
                .tokens(dataset::words(&exchange.answer));
            let lead = if i == 0 { shared.as_str() } else { "" };
            let nonce = if i == 0 { nonce.as_str() } else { "" };
            let text = [nonce, lead, &exchange.question]
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join(" ");
            Turn {
                think: content.think.draw(rng),
                prompt_tokens: self.tokens_per_word.tokens(dataset::words(&text)),
                output_tokens: content.output.as_ref().map_or(recorded, |o| o.draw(rng)),
                text,
                recorded: Some(exchange.answer.clone()),
            }
        };
        exchanges.iter().take(limit).enumerate().map(turn).collect()
    }

    /// The group of a conversation and its shared beginning; without one it is alone, and numbered beyond all groups.
    fn shared(&self, number: u64, content: &Content, rng: &mut Rng) -> (u64, String) {
        let Some(Prefix { tokens, groups }) = content.prefix else {
            return (number + u64::from(u32::MAX), String::new());
        };
        let group = rng.below(u64::from(groups));
        let shared = self.more(&mut Rng::new(self.seed, Stream::Prefix(group)), tokens);
        (group, shared)
    }

    /// The words that a prompt of a group begins with, empty where an earlier run may have had them all.
    fn nonce(&self, group: u64) -> String {
        let nonce = self.nonce.as_ref();
        nonce.map_or_else(String::new, |nonce| nonce.words(group))
    }

    /// Words that add `tokens` to a text.
    fn more(&self, rng: &mut Rng, tokens: u32) -> String {
        match &self.vocabulary {
            Some(vocabulary) => vocabulary.more(rng, tokens),
            None => random_words(rng, self.tokens_per_word.more_words(tokens).max(1)),
        }
    }

    /// A prompt of `tokens` beside those of its `shared` beginning.
    fn prompt(
        &self,
        number: u64,
        tokens: u32,
        group: u64,
        (shared, shared_tokens): (&str, u32),
    ) -> String {
        let nonce = self.nonce(group);
        if let Some(vocabulary) = &self.vocabulary {
            let total = tokens + shared_tokens;
            let lead = join([&nonce, shared]);
            return self.exact(vocabulary, &lead, total, Stream::Words(number));
        }
        let words = match shared {
            "" => self.tokens_per_word.words(tokens),
            _ => self.tokens_per_word.more_words(tokens).max(1),
        };
        let mut rng = Rng::new(self.seed, Stream::Words(number));
        let (lead, own) = match nonce.as_str() {
            "" => ("", words),
            _ if words <= NONCE_WORDS => ("", words),
            nonce => (nonce, words - NONCE_WORDS),
        };
        join([lead, shared, &random_words(&mut rng, own)])
    }

    /// A prompt of `tokens` that begins with `lead`, or with as much of it as there is room for.
    fn exact(&self, vocabulary: &Vocabulary, lead: &str, tokens: u32, words: Stream) -> String {
        let lead = vocabulary.cut(lead, tokens);
        let own = vocabulary.fill(&mut Rng::new(self.seed, words), &lead, tokens);
        join([&lead, &own])
    }

    fn traced(&self, number: u64) -> Option<&TraceRequest> {
        let requests = &self.trace.as_ref()?.requests;
        // The schedule ends with the trace; what asks beyond it, such as a digest, starts again.
        let index = number % requests.len() as u64;
        Some(&requests[usize::try_from(index).expect("an index of memory")])
    }

    fn traced_conversation(&self, number: u64, request: &TraceRequest) -> Conversation {
        Conversation {
            number,
            content: 0,
            turns: vec![Turn {
                think: 0,
                prompt_tokens: request.prompt_tokens,
                output_tokens: request.output_tokens,
                text: self.traced_prompt(number, request),
                recorded: None,
            }],
        }
    }

    fn traced_prompt(&self, number: u64, request: &TraceRequest) -> String {
        let words = self.tokens_per_word.words(request.prompt_tokens) as usize;
        // Requests share blocks across groups, so that they are all of one.
        let nonce = self.nonce.as_ref().map(|nonce| nonce.words(0));
        let mut parts: Vec<String> = nonce.into_iter().collect();
        for id in &request.blocks {
            let mut rng = Rng::new(self.seed, Stream::TraceBlock(*id));
            parts.push(self.more(&mut rng, BLOCK_TOKENS));
        }
        if let Some(vocabulary) = &self.vocabulary {
            let lead = parts.join(" ");
            let tokens = request.prompt_tokens;
            return self.exact(vocabulary, &lead, tokens, Stream::Words(number));
        }
        // Blocks cover the whole prompt where a trace has them; without them its words are its own.
        let known = parts.iter().map(|part| dataset::words(part)).sum();
        let missing = u32::try_from(words.saturating_sub(known)).expect("it is part of a u32");
        let mut own = Rng::new(self.seed, Stream::Words(number));
        parts.push(random_words(&mut own, missing));
        let text = parts.join(" ");
        let text: Vec<&str> = text.split_whitespace().take(words).collect();
        text.join(" ")
    }

    /// The prompt and the body of a request of `words` words and one output token, not streamed, whose usage tells how the
    /// target counts.
    pub fn calibration_body(&self, index: u64, words: u32, ignore_eos: bool) -> (String, Bytes) {
        let prompt = random_words(&mut Rng::new(self.seed, Stream::Calibration(index)), words);
        let body = self.body(&Body {
            said: &[&prompt],
            output_tokens: 1,
            ignore_eos,
            index,
            stream: false,
        });
        (prompt, body)
    }

    fn body(&self, parts: &Body<'_>) -> Bytes {
        let mut body = json!({ "model": self.model });
        let fields = body.as_object_mut().expect("it is an object literal");
        let mut set = |name: &str, value: Value| drop(fields.insert(name.to_owned(), value));
        match self.api {
            Api::Chat => {
                let roles = ["user", "assistant"].into_iter().cycle();
                let message = |(text, role)| json!({ "role": role, "content": text });
                let messages: Vec<Value> = parts.said.iter().zip(roles).map(message).collect();
                set("messages", json!(messages));
            }
            Api::Completions => match self.ids(parts.said) {
                Some(ids) => set("prompt", json!(ids)),
                None => set("prompt", json!(parts.said.join("\n"))),
            },
        }
        // `max_tokens` is deprecated for chat, but every server reads it.
        set("max_tokens", json!(parts.output_tokens));
        set("temperature", json!(self.temperature));
        if self.temperature > 0.0 {
            // Servers differ in how large a seed may be; 31 bits fit everywhere.
            set(
                "seed",
                json!((self.seed.wrapping_add(parts.index)) & 0x7fff_ffff),
            );
        }
        if parts.ignore_eos {
            set("ignore_eos", json!(true));
        }
        if parts.stream {
            set("stream", json!(true));
            set("stream_options", json!({ "include_usage": true }));
        }
        Bytes::from(serde_json::to_vec(&body).expect("a JSON value always serialises"))
    }

    /// The tokens of a single question, where prompts are given as tokens.
    fn ids(&self, said: &[&str]) -> Option<Vec<u32>> {
        match said {
            [only] => self.vocabulary.as_ref()?.ids(only),
            _ => None,
        }
    }

    /// Whether every prompt is a single question of random words.
    pub fn is_words_alone(&self) -> bool {
        let is_plain = |c: &Content| matches!(c.prompts, Prompts::Words(_)) && !c.is_multi_turn();
        self.contents.iter().all(is_plain)
    }

    /// SHA-256 over the first `count` conversations without model name and nonce, in hexadecimal. Two
    /// runs with the same digest sent the same lengths and words.
    pub fn digest(&self, count: u64) -> String {
        let neutral = Self {
            model: String::new(),
            nonce: None,
            ..self.clone()
        };
        let mut hash = Sha256::new();
        for number in 0..count {
            let conversation = neutral.conversation(number);
            hash.update(&neutral.planned(&conversation, &[]).body);
            hash.update(b"\n");
            for turn in &conversation.turns[1..] {
                hash.update(format!("{} {}\n", turn.output_tokens, turn.text));
            }
        }
        hash.finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

impl Nonce {
    /// A nonce of this process; the only draw that no seed fixes.
    pub fn of_this_run(per_group: bool) -> Self {
        use std::hash::{BuildHasher, RandomState};
        let random = RandomState::new().hash_one("loadtest nonce");
        match per_group {
            true => Self::Group(random),
            false => Self::Run(random_words(
                &mut Rng::new(random, Stream::Words(0)),
                NONCE_WORDS,
            )),
        }
    }

    fn words(&self, group: u64) -> String {
        match self {
            Self::Run(words) => words.clone(),
            Self::Group(random) => {
                random_words(&mut Rng::new(*random, Stream::Words(group)), NONCE_WORDS)
            }
        }
    }
}

fn random_words(rng: &mut Rng, count: u32) -> String {
    let words: Vec<&str> = (0..count)
        .map(|_| WORDS[rng.below(WORDS.len() as u64) as usize])
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests;
