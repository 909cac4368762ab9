//! Requests: what the document says of a field is what reading it does.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::schema::{Document, Schema};
use crate::config::RequestLimits;
use crate::error::ApiError;
use crate::json::parse;
use crate::request::fields::{
    CHAT, COMPLETIONS, DETOKENIZE, EMBEDDINGS, Support, TOKENIZE_CONTENT, TOKENIZE_MESSAGES,
    TOKENIZE_PROMPT, Table,
};
use crate::request::{
    ChatRequest, CompletionRequest, Context, DetokenizeRequest, EmbeddingRequest, TokenizeRequest,
};

/// A body of a route.
struct Subject {
    schema: &'static str,
    table: Table,
    /// The smallest request.
    minimal: Value,
    /// A request in which every field may stand that needs another one.
    roomy: Value,
    read: fn(&Value) -> Result<Read, ApiError>,
    /// Documented defaults are at least so many.
    min_defaults: usize,
}

#[derive(Debug, PartialEq)]
enum Read {
    Chat(Box<ChatRequest>),
    Completion(Box<CompletionRequest>),
    Embedding(Box<EmbeddingRequest>),
    Tokenize(Box<TokenizeRequest>),
    Detokenize(Box<DetokenizeRequest>),
}

fn subjects() -> [Subject; 7] {
    let messages = json!([{"role": "user", "content": "a"}]);
    [
        Subject {
            schema: "ChatCompletionRequest",
            table: CHAT,
            minimal: json!({"messages": messages}),
            roomy: json!({"messages": messages, "stream": true, "logprobs": true}),
            read: |body| {
                read(body, "prompt", |body, context| {
                    ChatRequest::read(body, context).map(|chat| Read::Chat(Box::new(chat)))
                })
            },
            min_defaults: 11,
        },
        Subject {
            schema: "CompletionRequest",
            table: COMPLETIONS,
            minimal: json!({"prompt": "a"}),
            roomy: json!({"prompt": "a", "stream": true, "echo": true}),
            read: |body| {
                read(body, "prompt", |body, context| {
                    CompletionRequest::read(body, context).map(|c| Read::Completion(Box::new(c)))
                })
            },
            min_defaults: 11,
        },
        Subject {
            schema: "EmbeddingRequest",
            table: EMBEDDINGS,
            minimal: json!({"input": "a"}),
            roomy: json!({"input": "a"}),
            read: |body| {
                read(body, "input", |body, context| {
                    EmbeddingRequest::read(body, context).map(|e| Read::Embedding(Box::new(e)))
                })
            },
            min_defaults: 2,
        },
        tokenize(
            "TokenizeCompletionRequest",
            TOKENIZE_PROMPT,
            json!({"prompt": "a"}),
        ),
        tokenize(
            "TokenizeContentRequest",
            TOKENIZE_CONTENT,
            json!({"content": "a"}),
        ),
        tokenize(
            "TokenizeChatRequest",
            TOKENIZE_MESSAGES,
            json!({"messages": messages}),
        ),
        Subject {
            schema: "DetokenizeRequest",
            table: DETOKENIZE,
            minimal: json!({"tokens": [1]}),
            roomy: json!({"tokens": [1]}),
            read: |body| {
                read(body, "tokens", |body, context| {
                    DetokenizeRequest::read(body, context).map(|d| Read::Detokenize(Box::new(d)))
                })
            },
            min_defaults: 0,
        },
    ]
}

fn tokenize(schema: &'static str, table: Table, body: Value) -> Subject {
    Subject {
        schema,
        table,
        minimal: body.clone(),
        roomy: body,
        read: read_tokenize,
        min_defaults: 2,
    }
}

fn read_tokenize(body: &Value) -> Result<Read, ApiError> {
    read(body, "tokens", |body, context| {
        TokenizeRequest::read(body, context).map(|t| Read::Tokenize(Box::new(t)))
    })
}

fn read<T>(
    body: &Value,
    prompt: &'static str,
    read: impl Fn(crate::json::Body, &Context) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let limits = RequestLimits::default();
    let context = Context {
        limits: &limits,
        defaults: &model::GenerationDefaults::default(),
        num_token_ids: 1 << 20,
        strict: false,
    };
    read(
        parse(body.to_string().as_bytes(), prompt, &limits)?,
        &context,
    )
}

fn with(body: &Value, name: &str, value: &Value) -> Value {
    let mut body = body.clone();
    body[name] = value.clone();
    body
}

/// The properties of a request with those it has from `allOf`.
fn all_properties<'a>(document: &'a Document, name: &str) -> Vec<(&'a str, Schema<'a>)> {
    let mut properties = Vec::new();
    for part in parts(document, name) {
        properties.extend(part.properties());
    }
    properties
}

fn parts<'a>(document: &'a Document, name: &str) -> Vec<Schema<'a>> {
    let own = document.schema(name);
    let shared = own.list("allOf");
    let shared = shared.iter().filter_map(|part| document.target(part));
    shared.chain([own.clone()]).collect()
}

#[test]
fn documented_fields_are_those_of_the_tables() {
    let document = Document::load();
    for subject in subjects() {
        let mut documented = BTreeSet::new();
        for (name, property) in all_properties(&document, subject.schema) {
            let description = property.get("description").and_then(Value::as_str);
            let is_ignored = description.is_some_and(|text| text.starts_with("Ignored"));
            documented.insert((
                name,
                if is_ignored { "ignored" } else { "supported" }.to_owned(),
            ));
        }
        for part in parts(&document, subject.schema) {
            let refused = part.get("x-refused").and_then(Value::as_array);
            let names = refused.into_iter().flatten().filter_map(Value::as_str);
            documented.extend(names.map(|name| (name, "refused".to_owned())));
            let neutral = part.get("x-neutral").and_then(Value::as_object);
            let values = neutral.into_iter().flatten();
            documented.extend(values.map(|(name, value)| (name.as_str(), format!("only {value}"))));
        }
        let served: BTreeSet<(&str, String)> = subject
            .table
            .iter()
            .copied()
            .flatten()
            .map(|(name, support)| match support {
                Support::Supported => (*name, "supported".to_owned()),
                Support::Ignored => (*name, "ignored".to_owned()),
                Support::Refused(_) => (*name, "refused".to_owned()),
                Support::Only(value, _) => (*name, format!("only {value}")),
            })
            .collect();
        let differences: Vec<_> = served.symmetric_difference(&documented).collect();
        assert!(
            differences.is_empty(),
            "{}: {differences:?}",
            subject.schema
        );
    }
}

#[test]
fn documented_defaults_are_those_in_force() {
    let document = Document::load();
    for subject in subjects() {
        let without = (subject.read)(&subject.minimal).expect("the smallest request is valid");
        let mut num_defaults = 0;
        for (name, property) in all_properties(&document, subject.schema) {
            if let Some(default) = property.get("default") {
                let with = (subject.read)(&with(&subject.minimal, name, default));
                assert_eq!(with.as_ref(), Ok(&without), "{name}: {default}");
                num_defaults += 1;
            }
        }
        assert!(num_defaults >= subject.min_defaults);
    }
}

#[test]
fn documented_types_and_ranges_are_those_in_force() {
    let document = Document::load();
    for subject in subjects() {
        for (name, property) in all_properties(&document, subject.schema) {
            let (mut num_accepted, mut num_refused) = (0, 0);
            for value in probes(&document, &property) {
                let is_documented = document.accepts(&property, &value);
                let read = (subject.read)(&with(&subject.roomy, name, &value));
                assert_eq!(read.is_ok(), is_documented, "{name}: {value} gave {read:?}");
                if is_documented {
                    num_accepted += 1;
                } else {
                    num_refused += 1;
                }
            }
            assert!(num_accepted > 0, "{name} was never accepted");
            let is_free = property.get("type").is_none()
                && property.get("oneOf").is_none()
                && property.get("enum").is_none();
            assert_eq!(
                num_refused == 0,
                is_free,
                "{name} was refused {num_refused} times"
            );
        }
    }
}

/// Every error that the probes lead to.
pub(super) fn field_errors(document: &Document) -> Vec<ApiError> {
    let mut errors = Vec::new();
    for subject in subjects() {
        for (name, property) in all_properties(document, subject.schema) {
            for value in probes(document, &property) {
                errors.extend((subject.read)(&with(&subject.roomy, name, &value)).err());
            }
        }
    }
    errors
}

/// Values of every type, and values on both sides of every bound of a schema. Inside a compound value
/// one thing at a time is probed.
fn probes(document: &Document, schema: &Schema) -> Vec<Value> {
    let mut values = vec![
        Value::Null,
        json!(true),
        json!(false),
        json!(0),
        json!(1),
        json!(-1),
        json!(0.5),
        json!(5.0),
        json!(""),
        json!("a"),
        json!([]),
        json!([0]),
        json!(["a"]),
        json!([0, "a"]),
        json!({}),
        json!({"a": 1}),
    ];
    if let Some(target) = document.target(schema) {
        values.extend(probes(document, &target));
    }
    values.extend(schema.get("const").cloned());
    let listed = schema.get("enum").and_then(Value::as_array);
    values.extend(listed.into_iter().flatten().cloned());
    for branch in ["oneOf", "anyOf"].iter().flat_map(|k| schema.list(k)) {
        values.extend(probes(document, &branch));
    }
    values.extend(numbers(schema));
    for keyword in ["minLength", "maxLength"] {
        values.extend(sizes(schema, keyword).map(|n| json!("a".repeat(n))));
    }
    if let Some(items) = schema.inner("items") {
        values.extend(arrays(document, schema, &items));
    }
    if let Some(entries) = schema.inner("additionalProperties") {
        values.extend(maps(document, schema, &entries));
    }
    if schema.get("properties").is_some() {
        values.extend(objects(document, schema));
    }
    values
}

fn numbers(schema: &Schema) -> Vec<Value> {
    let mut values = Vec::new();
    for keyword in ["minimum", "maximum", "exclusiveMinimum"] {
        match schema
            .get(keyword)
            .map(|bound| (bound.as_i64(), bound.as_f64()))
        {
            Some((Some(bound), _)) => values.extend([bound - 1, bound, bound + 1].map(Value::from)),
            Some((_, Some(bound))) => values.push(Value::from(bound)),
            _ => {}
        }
        if let Some(bound) = schema.get(keyword).and_then(Value::as_f64) {
            values.extend([bound - 0.0001, bound + 0.0001].map(Value::from));
        }
    }
    values
}

/// Lengths at a bound and on both sides of it.
fn sizes(schema: &Schema, keyword: &str) -> impl Iterator<Item = usize> + use<> {
    let bound = schema.get(keyword).and_then(Value::as_u64);
    let bound = bound.and_then(|bound| usize::try_from(bound).ok());
    bound
        .into_iter()
        .flat_map(|bound| bound.saturating_sub(1)..=bound + 1)
}

/// Something valid.
fn example(document: &Document, schema: &Schema) -> Value {
    let mut values = probes(document, schema).into_iter();
    let valid = values.find(|value| document.accepts(schema, value));
    valid.expect("every schema has a valid probe")
}

fn arrays(document: &Document, schema: &Schema, items: &Schema) -> Vec<Value> {
    let item = example(document, items);
    let sizes = ["minItems", "maxItems"]
        .iter()
        .flat_map(|keyword| sizes(schema, keyword));
    let mut values: Vec<Value> = sizes.map(|n| Value::from(vec![item.clone(); n])).collect();
    for probe in probes(document, items) {
        values.push(json!([item, probe]));
        values.push(json!([probe]));
    }
    values
}

fn maps(document: &Document, schema: &Schema, entries: &Schema) -> Vec<Value> {
    let entry = example(document, entries);
    let of_size = |n: usize| (0..n).map(|i| (i.to_string(), entry.clone())).collect();
    let maps = sizes(schema, "maxProperties").map(of_size);
    let mut values: Vec<Value> = maps.map(|map: Map<_, _>| Value::Object(map)).collect();
    values.extend(
        probes(document, entries)
            .iter()
            .map(|probe| json!({"0": probe})),
    );
    values.extend(["a", "-1", "0x1"].map(|name| json!({name: entry})));
    values
}

fn objects(document: &Document, schema: &Schema) -> Vec<Value> {
    let properties = schema.properties();
    let required: Vec<&str> = schema.required().collect();
    let mut base = json!({});
    for (name, property) in &properties {
        if required.contains(name) {
            base[*name] = example(document, property);
        }
    }
    let variants = |base: &Value| -> Vec<Value> {
        let mut values = vec![base.clone()];
        for (name, property) in &properties {
            for probe in probes(document, property) {
                values.push(with(base, name, &probe));
            }
            let mut without = base.clone();
            without.as_object_mut().expect("an object").remove(*name);
            values.push(without);
        }
        values
    };
    let mut values = variants(&base);
    // Some objects need one of several fields beside the required ones.
    if !document.accepts(schema, &base)
        && let Some(valid) = values.iter().find(|value| document.accepts(schema, value))
    {
        let more = variants(valid);
        values.extend(more);
    }
    values
}
