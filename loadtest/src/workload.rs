//! The requests of a run. Each is a pure function of the seed and its number: lengths, words and
//! body do not depend on when or in which order requests run, so two targets see the same ones.

use std::sync::LazyLock;

use hyper::body::Bytes;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::lengths::Lengths;
use crate::rng::{Rng, Stream};

/// 256 short, frequent English words, each a single token of most vocabularies.
static WORDS: LazyLock<Vec<&str>> =
    LazyLock::new(|| include_str!("words.txt").split_whitespace().collect());
/// Words of a run's nonce: 48 random bits.
const NONCE_WORDS: u32 = 6;

/// The endpoint that is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
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
    /// Prompt lengths in tokens.
    pub prompt_tokens: Lengths,
    /// Output lengths in tokens.
    pub output_tokens: Lengths,
    /// How many words make a prompt of a length.
    pub tokens_per_word: TokensPerWord,
    /// Ask the server to go on after the end-of-sequence token, so that the output length is exact.
    pub ignore_eos: bool,
    /// Sampling temperature.
    pub temperature: f64,
    /// First words of every prompt, so that no prompt was seen by an earlier run.
    pub nonce: Option<String>,
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

impl Workload {
    /// Request number `index`.
    pub fn request(&self, index: u64) -> PlannedRequest {
        let (prompt_tokens, output_tokens) = self.lengths(index);
        let body = self.body(
            &self.prompt(index, prompt_tokens),
            output_tokens,
            index,
            true,
        );
        PlannedRequest {
            prompt_tokens,
            output_tokens,
            body,
        }
    }

    fn lengths(&self, index: u64) -> (u32, u32) {
        let mut rng = Rng::new(self.seed, Stream::Lengths(index));
        let prompt = self.prompt_tokens.draw(&mut rng);
        (prompt, self.output_tokens.draw(&mut rng))
    }

    fn prompt(&self, index: u64, tokens: u32) -> String {
        let words = self.tokens_per_word.words(tokens);
        let mut rng = Rng::new(self.seed, Stream::Words(index));
        match &self.nonce {
            Some(nonce) if words > NONCE_WORDS => {
                format!("{nonce} {}", random_words(&mut rng, words - NONCE_WORDS))
            }
            _ => random_words(&mut rng, words),
        }
    }

    /// A request of `words` words and one output token, not streamed, whose usage tells how the
    /// target counts.
    pub fn calibration_body(&self, index: u64, words: u32) -> Bytes {
        let prompt = random_words(&mut Rng::new(self.seed, Stream::Calibration(index)), words);
        self.body(&prompt, 1, index, false)
    }

    fn body(&self, prompt: &str, output_tokens: u32, index: u64, stream: bool) -> Bytes {
        let mut body = json!({ "model": self.model });
        let fields = body.as_object_mut().expect("it is an object literal");
        let mut set = |name: &str, value: Value| drop(fields.insert(name.to_owned(), value));
        match self.api {
            Api::Chat => set("messages", json!([{ "role": "user", "content": prompt }])),
            Api::Completions => set("prompt", json!(prompt)),
        }
        // `max_tokens` is deprecated for chat, but every server reads it.
        set("max_tokens", json!(output_tokens));
        set("temperature", json!(self.temperature));
        if self.temperature > 0.0 {
            // Servers differ in how large a seed may be; 31 bits fit everywhere.
            set("seed", json!((self.seed.wrapping_add(index)) & 0x7fff_ffff));
        }
        if self.ignore_eos && stream {
            set("ignore_eos", json!(true));
        }
        if stream {
            set("stream", json!(true));
            set("stream_options", json!({ "include_usage": true }));
        }
        Bytes::from(serde_json::to_vec(&body).expect("a JSON value always serialises"))
    }

    /// SHA-256 over the first `count` requests without model name and nonce, in hexadecimal. Two
    /// runs with the same digest sent the same lengths and words.
    pub fn digest(&self, count: u64) -> String {
        let neutral = Self {
            model: String::new(),
            nonce: None,
            ..self.clone()
        };
        let mut hash = Sha256::new();
        for index in 0..count {
            hash.update(&neutral.request(index).body);
            hash.update(b"\n");
        }
        hash.finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// A nonce of this process for [`Workload::nonce`]; the only draw that no seed fixes.
pub fn nonce() -> String {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one("loadtest nonce");
    random_words(&mut Rng::new(random, Stream::Words(0)), NONCE_WORDS)
}

fn random_words(rng: &mut Rng, count: u32) -> String {
    let words: Vec<&str> = (0..count)
        .map(|_| WORDS[rng.below(WORDS.len() as u64) as usize])
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload() -> Workload {
        Workload {
            api: Api::Chat,
            model: "m".into(),
            seed: 5,
            prompt_tokens: Lengths::Uniform { min: 10, max: 40 },
            output_tokens: Lengths::Fixed(8),
            tokens_per_word: TokensPerWord {
                per_word: 1.0,
                overhead: 0.0,
            },
            ignore_eos: true,
            temperature: 0.0,
            nonce: None,
        }
    }

    fn json(body: &Bytes) -> Value {
        serde_json::from_slice(body).unwrap()
    }

    #[test]
    fn the_word_list_is_what_it_says() {
        let distinct: std::collections::HashSet<&&str> = WORDS.iter().collect();
        assert_eq!((WORDS.len(), distinct.len()), (256, 256));
        assert!(
            WORDS
                .iter()
                .all(|w| w.bytes().all(|b| b.is_ascii_lowercase()))
        );
    }

    #[test]
    fn a_chat_body() {
        let request = workload().request(3);
        let body = json(&request.body);
        let content = body["messages"][0]["content"].as_str().unwrap();
        assert_eq!(content.split(' ').count(), request.prompt_tokens as usize);
        assert_eq!(body["max_tokens"], 8);
        assert_eq!(body["ignore_eos"], true);
        assert_eq!(body["stream"], true);
        assert_eq!(body["stream_options"]["include_usage"], true);
        assert!(body.get("seed").is_none() && body.get("prompt").is_none());
    }

    #[test]
    fn a_completions_body_with_sampling() {
        let workload = Workload {
            api: Api::Completions,
            temperature: 0.7,
            ignore_eos: false,
            ..workload()
        };
        let body = json(&workload.request(3).body);
        assert!(body["prompt"].is_string() && body.get("messages").is_none());
        assert_eq!(body["seed"], 8);
        assert!(body.get("ignore_eos").is_none());
    }

    #[test]
    fn requests_are_a_function_of_seed_and_number() {
        let (a, b) = (
            workload(),
            Workload {
                seed: 6,
                ..workload()
            },
        );
        assert_eq!(a.request(7), a.request(7));
        assert_ne!(a.request(7).body, a.request(8).body);
        assert_ne!(a.request(7).body, b.request(7).body);
        assert_eq!(a.digest(20), workload().digest(20));
        assert_ne!(a.digest(20), b.digest(20));
        assert_ne!(a.digest(20), a.digest(19));
    }

    #[test]
    fn a_nonce_goes_first_and_leaves_length_and_digest_alone() {
        let plain = Workload {
            prompt_tokens: Lengths::Fixed(20),
            ..workload()
        };
        let cold = Workload {
            nonce: Some("a b c d e f".into()),
            ..plain.clone()
        };
        let content = |w: &Workload| {
            json(&w.request(0).body)["messages"][0]["content"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        assert!(content(&cold).starts_with("a b c d e f "));
        assert_eq!(
            content(&cold).split(' ').count(),
            content(&plain).split(' ').count()
        );
        assert_eq!(cold.digest(5), plain.digest(5));
        assert_eq!(nonce().split(' ').count(), NONCE_WORDS as usize);
    }

    #[test]
    fn words_follow_the_calibration() {
        let estimate = TokensPerWord {
            per_word: 1.5,
            overhead: 30.0,
        };
        assert_eq!(
            [180, 31, 1].map(|tokens| estimate.words(tokens)),
            [100, 1, 1]
        );
    }
}
