//! Calling one of the given tools in the Hermes format, and reporting what it answered.

use serde_json::{Value, json};

use super::{Skill, ToolConversation, casual, fill, repeat};
use crate::chat::{Message, Role, spaced_json};
use crate::prng::Prng;
use crate::words::{Split, name, split_of, word};

/// What an argument holds.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Name,
    Word,
    Number,
    Text,
}

/// A tool with the words that ask for it.
struct Tool {
    name: String,
    description: String,
    parameter: &'static str,
    kind: Kind,
    phrasings: &'static [&'static str],
}

/// Name, description, parameter names, kind and phrasings of an everyday tool. The name is always the
/// same one; other names are learned with invented tools.
type Everyday = (
    &'static str,
    &'static str,
    &'static [&'static str],
    Kind,
    &'static [&'static str],
);

const EVERYDAY: &[Everyday] = &[
    (
        "get_weather",
        "Get the weather in a city",
        &["city", "location"],
        Kind::Name,
        &[
            "What is the weather in {}?",
            "What's the weather like in {}?",
            "How is the weather in {}?",
            "Weather in {}",
            "Tell me the weather in {}.",
        ],
    ),
    (
        "get_time",
        "Get the time in a city",
        &["city", "location"],
        Kind::Name,
        &[
            "What time is it in {}?",
            "What is the time in {}?",
            "Tell me the time in {}.",
        ],
    ),
    (
        "search_web",
        "Search the web",
        &["query", "text"],
        Kind::Text,
        &[
            "Search for {}",
            "Search the web for {}",
            "Find {}",
            "Look up {}",
        ],
    ),
    (
        "save_note",
        "Save a note",
        &["text", "note"],
        Kind::Text,
        &["Make a note: {}", "Save a note: {}", "Note: {}"],
    ),
    (
        "set_timer",
        "Start a timer",
        &["minutes", "time"],
        Kind::Number,
        &[
            "Set a timer for {} minutes.",
            "Start a timer for {} minutes.",
            "Timer for {} minutes",
        ],
    ),
    (
        "get_price",
        "Get the price of a product",
        &["product", "item"],
        Kind::Word,
        &[
            "What is the price of {}?",
            "How much does the {} cost?",
            "Find the price of {}.",
        ],
    ),
    (
        "call_person",
        "Call a person by phone",
        &["person", "name"],
        Kind::Name,
        &["Call {}.", "Please call {}.", "Phone {}."],
    ),
    (
        "set_volume",
        "Set the volume",
        &["level", "volume"],
        Kind::Number,
        &[
            "Set the volume to {}.",
            "Change the volume to {}.",
            "Volume {}",
        ],
    ),
];

const VERBS: &[&str] = &[
    "get", "set", "find", "add", "open", "send", "start", "create",
];
const PARAMETERS: &[(&str, Kind)] = &[
    ("name", Kind::Name),
    ("city", Kind::Name),
    ("title", Kind::Word),
    ("id", Kind::Word),
    ("count", Kind::Number),
    ("value", Kind::Number),
    ("text", Kind::Text),
];

/// A conversation with one or two tools and, in training, up to three calls; it ends with a call or,
/// one time in six, with the report of what the tool answered.
pub fn conversation(prng: &mut Prng, split: Split) -> ToolConversation {
    let mut tools = vec![tool(prng, split)];
    if prng.chance(0.5) {
        let second = tool(prng, split);
        if second.description != tools[0].description {
            tools.push(second);
        }
    }
    let schemas = tools.iter().map(|tool| schema(prng, tool)).collect();
    let mut messages = Vec::new();
    let rounds = if split == Split::Train {
        prng.range(1, 3)
    } else {
        1
    };
    for _ in 0..rounds {
        if split == Split::Train && prng.chance(0.1) {
            unrelated(prng, &mut messages);
        }
        let tool = &tools[prng.below(tools.len())];
        ask(prng, split, tool, &mut messages);
        if prng.chance(0.17) {
            report(prng, split, &mut messages);
        }
    }
    (schemas, messages)
}

/// A question that needs no tool.
fn unrelated(prng: &mut Prng, messages: &mut Vec<Message>) {
    let skill = *prng.pick(&[
        Skill::Sum,
        Skill::SmallTalk,
        Skill::Capital,
        Skill::Spell,
        Skill::Repeat,
    ]);
    let turn = super::turn(skill, prng, Split::Train);
    messages.push(Message::new(Role::User, turn.user));
    messages.push(Message::new(Role::Assistant, turn.answer));
}

fn ask(prng: &mut Prng, split: Split, tool: &Tool, messages: &mut Vec<Message>) {
    let (typed, value) = loop {
        let (typed, value) = argument(prng, split, tool.kind);
        if split_of(&format!("{} {value}", tool.name)) == split || tool.kind != Kind::Number {
            break (typed, value);
        }
    };
    let phrasing = *prng.pick(tool.phrasings);
    let user = if tool.phrasings.as_ptr() == DIRECT.as_ptr() {
        casual(prng, &fill(phrasing, &[&tool.name, tool.parameter, &typed]))
    } else if tool.kind == Kind::Text {
        fill(phrasing, &[&typed])
    } else {
        casual(prng, &fill(phrasing, &[&typed]))
    };
    let call = json!({"name": tool.name, "arguments": {tool.parameter: value}});
    messages.push(Message::new(Role::User, user));
    messages.push(Message::new(
        Role::Assistant,
        format!("<tool_call>\n{}\n</tool_call>", spaced_json(&call)),
    ));
}

/// What a tool answers, and the model's report of it.
fn report(prng: &mut Prng, split: Split, messages: &mut Vec<Message>) {
    let result = match prng.below(3) {
        0 => prng.below(100).to_string(),
        1 => word(prng, split),
        _ => repeat::text(prng, split),
    };
    messages.push(Message::new(Role::Tool, result.clone()));
    messages.push(Message::new(
        Role::Assistant,
        format!("The tool answered: {result}"),
    ));
}

const DIRECT: &[&str] = &[
    "Call {} with {} {}.",
    "Use {} with {} {}.",
    "Call {} with {}={}.",
    "Use the tool {} with {} = {}",
];

fn tool(prng: &mut Prng, split: Split) -> Tool {
    if prng.chance(0.65) {
        let (name, description, parameters, kind, phrasings) = prng.pick(EVERYDAY);
        return Tool {
            name: (*name).to_owned(),
            description: (*description).to_owned(),
            parameter: prng.pick::<&str>(parameters),
            kind: *kind,
            phrasings,
        };
    }
    let (verb, noun) = (*prng.pick(VERBS), word(prng, split));
    let (parameter, kind) = *prng.pick(PARAMETERS);
    Tool {
        name: format!("{verb}_{noun}"),
        description: format!("{} {noun}", crate::words::capitalised(verb)),
        parameter,
        kind,
        phrasings: DIRECT,
    }
}

/// The function description as a client of the chat API sends it.
fn schema(prng: &mut Prng, tool: &Tool) -> Value {
    let kind = if tool.kind == Kind::Number {
        "integer"
    } else {
        "string"
    };
    let mut property = json!({"type": kind});
    if prng.chance(0.2) {
        property["description"] = Value::from(format!("The {}", tool.parameter));
    }
    let parameters = json!({"type": "object", "properties": {tool.parameter: property}, "required": [tool.parameter]});
    let mut function =
        json!({"name": tool.name, "description": tool.description, "parameters": parameters});
    if prng.chance(0.15) {
        function
            .as_object_mut()
            .expect("built as an object")
            .shift_remove("description");
    }
    json!({"type": "function", "function": function})
}

/// An argument as typed and as the call carries it.
fn argument(prng: &mut Prng, split: Split, kind: Kind) -> (String, Value) {
    let text = match kind {
        Kind::Name => name(prng, split),
        Kind::Word => word(prng, split),
        Kind::Text => repeat::text(prng, split),
        Kind::Number => {
            let number = prng.range(1, 99);
            return (number.to_string(), Value::from(number));
        }
    };
    (text.clone(), Value::from(text))
}
