//! `octet chat`: a terminal client of a running server.

use std::io::{BufRead, BufReader, IsTerminal, Write};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::args::ChatArgs;

/// Answers one question, or holds a conversation read from standard input.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub fn run(args: &ChatArgs) -> Result<()> {
    let client = Client::new(args)?;
    let mut messages = Vec::new();
    if let Some(system) = &args.system {
        messages.push(json!({"role": "system", "content": system}));
    }
    if !args.question.is_empty() {
        messages.push(json!({"role": "user", "content": args.question.join(" ")}));
        client.answer(&messages)?;
        return Ok(());
    }
    let interactive = std::io::stdin().is_terminal();
    if interactive {
        println!(
            "Talking to {} at {}. /clear forgets, /exit ends.",
            client.model, args.url
        );
    }
    loop {
        if interactive {
            print!("> ");
            std::io::stdout().flush()?;
        }
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim() {
            "" => continue,
            "/clear" => {
                messages.retain(|message| message["role"] == "system");
                eprintln!("(forgotten)");
            }
            "/exit" | "/quit" => return Ok(()),
            command if command.starts_with('/') => {
                eprintln!("{command} is not a command; there are /clear and /exit");
            }
            question => {
                messages.push(json!({"role": "user", "content": question}));
                match client.answer(&messages) {
                    Ok(answer) => messages.push(json!({"role": "assistant", "content": answer})),
                    // The turn is forgotten and the conversation goes on.
                    Err(error) => {
                        messages.pop();
                        eprintln!("{error:#}\n(that turn is forgotten; /clear forgets all)");
                    }
                }
            }
        }
    }
}

struct Client<'a> {
    agent: ureq::Agent,
    args: &'a ChatArgs,
    model: String,
}

impl<'a> Client<'a> {
    fn new(args: &'a ChatArgs) -> Result<Self> {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build()
            .into();
        let mut client = Self {
            agent,
            args,
            model: String::new(),
        };
        client.model = match &args.model {
            Some(model) => model.clone(),
            None => client.first_model()?,
        };
        Ok(client)
    }

    fn url(&self, path: &str) -> String {
        let base = self.args.url.trim_end_matches('/').trim_end_matches("/v1");
        let scheme = if base.contains("://") { "" } else { "http://" };
        format!("{scheme}{base}/v1/{path}")
    }

    fn first_model(&self) -> Result<String> {
        let mut request = self.agent.get(self.url("models"));
        if let Some(key) = &self.args.api_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request
            .call()
            .with_context(|| format!("cannot reach {}", self.args.url))?;
        let text = response.body_mut().read_to_string()?;
        let body: Value = serde_json::from_str(&text).context("the server sent no JSON")?;
        refuse_errors(&body)?;
        let model = body["data"][0]["id"]
            .as_str()
            .context("the server lists no model")?;
        Ok(model.to_owned())
    }

    /// Streams one answer to standard output and returns its text.
    fn answer(&self, messages: &[Value]) -> Result<String> {
        let mut body = json!({"model": self.model, "messages": messages, "stream": true});
        if let Some(temperature) = self.args.temperature {
            body["temperature"] = json!(temperature);
        }
        if let Some(max_tokens) = self.args.max_tokens {
            body["max_completion_tokens"] = json!(max_tokens);
        }
        let mut request = self
            .agent
            .post(self.url("chat/completions"))
            .header("content-type", "application/json");
        if let Some(key) = &self.args.api_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let response = request
            .send(body.to_string())
            .with_context(|| format!("cannot reach {}", self.args.url))?;
        let status = response.status();
        let reader = BufReader::new(response.into_body().into_reader());
        if !status.is_success() {
            let text = std::io::read_to_string(reader)?;
            refuse_errors(&serde_json::from_str(&text).unwrap_or_default())?;
            bail!("the server answered {status}");
        }
        print_stream(reader, &mut std::io::stdout())
    }
}

/// Writes the text of a stream as it arrives and returns it whole.
fn print_stream(reader: impl BufRead, out: &mut impl Write) -> Result<String> {
    let (mut answer, mut finish) = (String::new(), None);
    for line in reader.lines() {
        let line = line.context("the connection broke")?;
        let Some(data) = line.strip_prefix("data:").map(str::trim) else {
            continue;
        };
        if data == "[DONE]" {
            break;
        }
        let event: Value =
            serde_json::from_str(data).context("the server sent an event that is not JSON")?;
        refuse_errors(&event)?;
        let choice = &event["choices"][0];
        if let Some(text) = choice["delta"]["content"].as_str() {
            answer.push_str(text);
            write!(out, "{text}")?;
            out.flush()?;
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            finish = Some(reason.to_owned());
        }
    }
    writeln!(out)?;
    match finish.as_deref() {
        None => bail!("the answer was cut off"),
        Some("length") => eprintln!("(ended at the token limit)"),
        Some(_) => {}
    }
    Ok(answer)
}

fn refuse_errors(body: &Value) -> Result<()> {
    match body["error"]["message"].as_str() {
        Some(message) => bail!("the server refused: {message}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(stream: &str) -> (Result<String>, String) {
        let mut out = Vec::new();
        let result = print_stream(stream.as_bytes(), &mut out);
        (result, String::from_utf8(out).expect("text"))
    }

    #[test]
    fn a_stream_is_printed_and_returned() {
        let (answer, out) = read(
            ": ping\n\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
             data: {\"choices\":[{\"delta\":{\"content\":\"4\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"2\"}}]}\n\n\
             data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n",
        );
        assert_eq!(answer.expect("complete"), "42");
        assert_eq!(out, "42\n");
    }

    #[test]
    fn errors_and_cuts_are_failures() {
        let (error, _) = read("data: {\"error\":{\"message\":\"boom\"}}\n\ndata: [DONE]\n\n");
        assert!(
            error
                .expect_err("an error event")
                .to_string()
                .contains("boom")
        );
        let (cut, _) = read("data: {\"choices\":[{\"delta\":{\"content\":\"4\"}}]}\n\n");
        assert!(cut.expect_err("no finish").to_string().contains("cut off"));
    }
}
