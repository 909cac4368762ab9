//! Chat templates: Jinja as Python renders it, under a bound of work and of output.
//!
//! Templates come from the checkpoint or the operator, never from a request. What a request may set
//! are variables, and none of the reserved ones.

mod messages;
mod python;
mod to_json;

use std::io;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value as TemplateValue};
use minijinja::{Environment, Error, ErrorKind};
use model::TextFiles;
use serde_json::{Map, Value, json};

use crate::text::TextError;
pub(crate) use messages::with_parsed_arguments;

/// Variables that a request must not set.
pub(crate) const RESERVED: &[&str] = &[
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "chat_template",
    "tokenize",
    "return_dict",
    "return_tensors",
    "padding",
    "truncation",
    "max_length",
];

/// Instructions and 64-byte pieces that one rendering may cost, beside what its input costs.
const FUEL: u64 = 2_000_000;
/// Bytes of a rendered prompt.
const MAX_OUTPUT: usize = 8 << 20;
/// Nested calls of macros and blocks.
const MAX_RECURSION: usize = 100;

/// The local time, as `strftime_now` prints it; a test injects its own.
pub(crate) type Clock = Arc<dyn Fn() -> chrono::NaiveDateTime + Send + Sync>;

/// The clock of the machine.
pub(crate) fn local_clock() -> Clock {
    Arc::new(|| chrono::Local::now().naive_local())
}

/// A checkpoint's chat template, parsed.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    tokens: Map<String, Value>,
    has_tool_template: bool,
    source: String,
}

/// What a template is given.
#[derive(Debug, Clone, Default)]
pub(crate) struct Conversation {
    /// The messages, every string free of control-token spellings.
    pub(crate) messages: Vec<Value>,
    /// The same from [`with_parsed_arguments`], tried first. Parsing undoes JSON's escapes, so it comes
    /// before spellings are broken up.
    pub(crate) parsed: Option<Vec<Value>>,
    /// Tool definitions.
    pub(crate) tools: Option<Value>,
    /// Variables of the operator and the request.
    pub(crate) kwargs: Map<String, Value>,
    /// The text ends with the last message and not where an answer to it begins.
    pub(crate) omits_generation_prompt: bool,
}

/// Why a conversation cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RenderError {
    /// The template refuses the conversation, or does not fit it.
    #[error("the chat template refused the conversation: {0}")]
    Refused(String),
    /// The template would work too long or write too much.
    #[error("the conversation is too large for the chat template")]
    TooLarge,
}

impl ChatTemplate {
    /// Parses a checkpoint's template, or the operator's instead, and renders it once.
    ///
    /// Returns none when there is no template at all.
    ///
    /// # Errors
    /// [`TextError::Template`] when it does not parse, or fails on an ordinary conversation.
    pub(crate) fn new(
        files: &TextFiles,
        own: Option<&str>,
        clock: Clock,
    ) -> Result<Option<Self>, TextError> {
        let named = |name: &str| {
            let found = files.chat_templates.iter().find(|(n, _)| n == name);
            found.map(|(_, source)| source.as_str())
        };
        let first = || files.chat_templates.first().map(|(_, s)| s.as_str());
        let Some(default) = own.or_else(|| named("default")).or_else(first) else {
            return Ok(None);
        };
        let mut environment = environment(clock);
        let mut add = |name: &'static str, source: &str| {
            let source = python::remove_generation_tags(source);
            environment
                .add_template_owned(name, source)
                .map_err(|e| TextError::Template(explain(&e)))
        };
        add("default", default)?;
        let tool_use = named("tool_use").filter(|_| own.is_none());
        if let Some(source) = tool_use {
            add("tool_use", source)?;
        }
        let template = Self {
            environment,
            tokens: token_variables(files),
            has_tool_template: tool_use.is_some(),
            source: tool_use.unwrap_or_default().to_owned() + default,
        };
        template.try_out()?;
        Ok(Some(template))
    }

    /// Whether the template's text holds `word`; tells which roles, variables and marks it knows.
    pub(crate) fn mentions(&self, word: &str) -> bool {
        self.source.contains(word)
    }

    /// Renders a conversation, up to where the assistant speaks unless that is left out, in the first form of its messages that
    /// the template does not fail on.
    ///
    /// # Errors
    /// [`RenderError`] when the template raises, fails, or exceeds a bound.
    pub(crate) fn render(&self, conversation: &Conversation) -> Result<String, RenderError> {
        let mut refusal = None;
        for messages in messages::forms(conversation) {
            match self.render_messages(messages, conversation) {
                Err(error @ RenderError::Refused(_)) => {
                    refusal.get_or_insert(error);
                }
                result => return result,
            }
        }
        Err(refusal.expect("there is always one form"))
    }

    fn render_messages(
        &self,
        messages: Vec<Value>,
        conversation: &Conversation,
    ) -> Result<String, RenderError> {
        let name = if conversation.tools.is_some() && self.has_tool_template {
            "tool_use"
        } else {
            "default"
        };
        let template = self
            .environment
            .get_template(name)
            .map_err(|e| refused(&e))?;
        let mut variables = conversation.kwargs.clone();
        variables.extend(self.tokens.clone());
        variables.insert("messages".into(), messages.into());
        variables.insert(
            "tools".into(),
            conversation.tools.clone().unwrap_or_default(),
        );
        variables.insert("documents".into(), Value::Null);
        variables.insert(
            "add_generation_prompt".into(),
            json!(!conversation.omits_generation_prompt),
        );
        let mut output = Bounded::default();
        let context = TemplateValue::from(Serde(&variables));
        match template.render_captured_to(context, &mut output) {
            Ok(_) => String::from_utf8(output.bytes)
                .map_err(|_| RenderError::Refused("it wrote invalid UTF-8".into())),
            Err(_) if output.exceeded => Err(RenderError::TooLarge),
            Err(error) if error.kind() == ErrorKind::OutOfFuel => Err(RenderError::TooLarge),
            Err(error) => Err(refused(&error)),
        }
    }

    fn try_out(&self) -> Result<(), TextError> {
        let turn = |role: &str, content: &str| json!({"role": role, "content": content});
        let conversation = Conversation {
            messages: vec![turn("user", "a"), turn("assistant", "b"), turn("user", "c")],
            ..Conversation::default()
        };
        let rendered = self
            .render(&conversation)
            .map_err(|e| TextError::Template(e.to_string()))?;
        if rendered.contains('c') {
            return Ok(());
        }
        Err(TextError::Template(
            "it leaves out the last message of the user".into(),
        ))
    }
}

fn environment(clock: Clock) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .expect("the default delimiters are valid"),
    );
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_RECURSION);
    environment.set_unknown_method_callback(python::unknown_method);
    environment.add_test("iterable", python::is_iterable);
    environment.add_test("sequence", python::is_sequence);
    environment.add_filter("tojson", to_json::to_json);
    environment.add_function("raise_exception", |message: String| {
        Err::<String, Error>(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", move |format: String| {
        python::strftime(clock(), &format)
    });
    environment
}

fn token_variables(files: &TextFiles) -> Map<String, Value> {
    [
        ("bos_token", &files.bos_token),
        ("eos_token", &files.eos_token),
        ("unk_token", &files.unk_token),
        ("pad_token", &files.pad_token),
    ]
    .into_iter()
    .filter_map(|(name, text)| Some((name.to_owned(), json!(text.as_ref()?))))
    .collect()
}

fn refused(error: &Error) -> RenderError {
    RenderError::Refused(explain(error))
}

/// What a template says is wrong, without where in the file, cut to a readable length.
fn explain(error: &Error) -> String {
    let text = match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    };
    text.chars().take(500).collect()
}

/// Collects output up to a limit.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    exceeded: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT {
            self.exceeded = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod real;
#[cfg(test)]
mod tests;
