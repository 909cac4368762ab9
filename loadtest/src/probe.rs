//! What is asked from the server before a run: which model it serves, and how many tokens it makes
//! of a word. Both happen before the first scrape and are part of no count.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hyper::Method;
use hyper::body::Bytes;
use serde_json::Value;

use crate::target::Target;
use crate::workload::{TokensPerWord, Workload};

/// Where octet and others say whether they are ready.
const READY_PAGE: &str = "/health/ready";
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);
/// Words of the two calibration prompts. Their difference is long enough to average over words, and
/// the longer one fits into a context of 512 tokens at four tokens a word.
const CALIBRATION_WORDS: (u32, u32) = (20, 100);

/// Between two looks at a server that is not ready.
const READY_POLL: Duration = Duration::from_millis(250);
/// How long it may take to say whether it is.
const READY_ANSWER: Duration = Duration::from_secs(10);

/// Waits until `/health/ready` of a target answers something else than 503: a server that has no such page answers
/// another status, or nothing, and is not waited for. `tell` gets a sentence before the wait.
///
/// # Errors
/// A target that is still not ready after `limit`.
pub async fn ready(target: &Target, limit: Duration, tell: impl Fn(&str)) -> Result<()> {
    let begun = Instant::now();
    let is_loading = async || {
        let page = target.fetch(Method::GET, READY_PAGE, "*/*", Bytes::new(), READY_ANSWER);
        matches!(page.await, Ok((503, _)))
    };
    if !is_loading().await {
        return Ok(());
    }
    let seconds = limit.as_secs();
    let url = &target.url;
    tell(&format!(
        "{url}{READY_PAGE} answers 503: waiting up to {seconds} s for the server to be ready"
    ));
    loop {
        tokio::time::sleep(READY_POLL).await;
        if !is_loading().await {
            return Ok(());
        }
        if begun.elapsed() >= limit {
            bail!("{url}{READY_PAGE} still answers 503 after {seconds} s: the server is not ready");
        }
    }
}

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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::clock::Clock;
    use crate::target::HttpUrl;
    use crate::transport::Protocol;

    /// A server that answers these statuses in turn, the last one for ever, each on a connection of its own.
    async fn answering(statuses: &'static [u16]) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let last = statuses.last().unwrap();
            for status in statuses.iter().chain(std::iter::repeat(last)) {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await;
                let head = format!(
                    "HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                );
                let _ = stream.write_all(head.as_bytes()).await;
            }
        });
        let url = HttpUrl::parse_base(&url).unwrap();
        Target::resolve(url, None, Protocol::Http1, Clock::start())
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_server_that_is_not_ready_is_waited_for_as_long_as_is_said() {
        let cases: [(&[u16], _, _, _); 4] = [
            (&[503, 503, 200], 60, true, 1),
            (&[200], 60, true, 0),
            (&[404], 60, true, 0),
            (&[503], 0, false, 1),
        ];
        for (statuses, limit, is_ready, told) in cases {
            let said = RefCell::new(Vec::new());
            let tell = |text: &str| said.borrow_mut().push(text.to_owned());
            let target = answering(statuses).await;
            let found = ready(&target, Duration::from_secs(limit), tell).await;
            assert_eq!(found.is_ok(), is_ready, "{statuses:?}: {found:?}");
            assert_eq!(said.borrow().len(), told, "{statuses:?}: {said:?}");
            if let Err(error) = found {
                let words = "/health/ready still answers 503 after 0 s";
                assert!(error.to_string().contains(words), "{error}");
            }
        }
    }
}
