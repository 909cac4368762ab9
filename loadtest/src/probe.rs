//! What is asked from the server before a run: which model it serves, and how many tokens it makes
//! of a word. Both happen before the first scrape and are part of no count.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use hyper::Method;
use hyper::body::Bytes;
use serde_json::Value;

use crate::target::Target;
use crate::workload::{TokensPerWord, Workload};

const PROBE_TIMEOUT: Duration = Duration::from_secs(60);
/// Words of the two calibration prompts. Their difference is long enough to average over words, and
/// the longer one fits into a context of 512 tokens at four tokens a word.
const CALIBRATION_WORDS: (u32, u32) = (20, 100);

/// The first model that `/v1/models` lists.
pub async fn first_model(target: &Target) -> Result<String> {
    let (status, body) = target
        .fetch(
            Method::GET,
            "/v1/models",
            "application/json",
            Bytes::new(),
            PROBE_TIMEOUT,
        )
        .await?;
    if status != 200 {
        bail!(
            "{}/v1/models answers {status}: name the model with --model",
            target.url
        );
    }
    let list: Value = serde_json::from_slice(&body).context("/v1/models is not JSON")?;
    let id = list["data"][0]["id"]
        .as_str()
        .context("/v1/models lists no model: name one with --model")?;
    Ok(id.to_owned())
}

/// Solves overhead and tokens per word from the usage of two short answers.
pub async fn calibrate(target: &Target, workload: &Workload) -> Result<TokensPerWord> {
    let (few, many) = CALIBRATION_WORDS;
    let low = f64::from(prompt_tokens(target, workload, 0, few).await?.1);
    let high = f64::from(prompt_tokens(target, workload, 1, many).await?.1);
    let per_word = (high - low) / f64::from(many - few);
    if per_word <= 0.0 {
        bail!("{many} words make {high} tokens and {few} words {low}");
    }
    let overhead = (low - per_word * f64::from(few)).max(0.0);
    Ok(TokensPerWord { per_word, overhead })
}

/// A prompt and the tokens that its answer says it has.
///
/// # Errors
/// A target that does not answer it, or answers without usage.
pub async fn one_answer(target: &Target, workload: &Workload) -> Result<(String, u32)> {
    prompt_tokens(target, workload, 0, CALIBRATION_WORDS.0).await
}

/// Whether a target refuses a request because it says to go on after the end token.
///
/// # Errors
/// A target that does not answer.
pub async fn refuses_ignore_eos(target: &Target, workload: &Workload) -> Result<bool> {
    let words = CALIBRATION_WORDS.0;
    let (_, body) = workload.calibration_body(0, words, true);
    if ask(target, workload, body).await?.0 != 400 {
        return Ok(false);
    }
    let (_, body) = workload.calibration_body(0, words, false);
    Ok(ask(target, workload, body).await?.0 == 200)
}

async fn ask(target: &Target, workload: &Workload, body: Bytes) -> Result<(u16, Value)> {
    let path = workload.api.path();
    let asked = target.fetch(Method::POST, path, "application/json", body, PROBE_TIMEOUT);
    let (status, answer) = asked.await?;
    Ok((status, serde_json::from_slice(&answer).unwrap_or_default()))
}

async fn prompt_tokens(
    target: &Target,
    workload: &Workload,
    index: u64,
    words: u32,
) -> Result<(String, u32)> {
    let (prompt, body) = workload.calibration_body(index, words, false);
    let (status, answer) = ask(target, workload, body).await?;
    if status != 200 {
        bail!(
            "status {status}: {}",
            answer["error"]["message"].as_str().unwrap_or("no message")
        );
    }
    let tokens = answer["usage"]["prompt_tokens"].as_u64();
    let tokens = tokens.context("the answer has no usage")?;
    Ok((prompt, u32::try_from(tokens)?))
}
