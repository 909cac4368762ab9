//! The held-out set, the tokenizer and the chat template against the training stream and against
//! implementations that were not written here.

use std::collections::HashSet;

use bundled::chat::{render, render_prompt};
use bundled::dataset::{HeldOut, conversation, held_out};
use bundled::prng::Prng;
use bundled::skills::Skill;
use bundled::tokenizer::Tokenizer;
use bundled::train::export::chat_template;
use serde_json::{Value, json};

/// The last user turn, with the tools it was asked under.
fn asked(prompt: &HeldOut) -> String {
    let last = prompt.messages.last().expect("a prompt has a message");
    let tools: Vec<String> = prompt.tools.iter().map(Value::to_string).collect();
    format!("{}{}", tools.join("\n"), last.content)
}

#[test]
fn the_held_out_set_is_large_and_always_the_same() {
    let prompts = held_out();
    assert!(prompts.len() >= 1000);
    for skill in Skill::ALL {
        assert!(
            prompts.iter().filter(|p| p.skill == skill).count() >= 40,
            "{}",
            skill.name()
        );
    }
    let again: Vec<String> = held_out().iter().map(asked).collect();
    assert_eq!(again, prompts.iter().map(asked).collect::<Vec<_>>());
    assert_eq!(again.iter().collect::<HashSet<_>>().len(), prompts.len());
}

#[test]
fn held_out_prompts_never_appear_in_training() {
    let without_tools: HashSet<String> = held_out()
        .iter()
        .filter(|p| p.tools.is_empty())
        .map(|p| {
            p.messages
                .last()
                .expect("a prompt has a message")
                .content
                .clone()
        })
        .collect();
    let with_tools: HashSet<String> = held_out()
        .iter()
        .filter(|p| !p.tools.is_empty())
        .map(asked)
        .collect();
    let mut prng = Prng::new(2);
    for number in 0..40_000 {
        let skill = Skill::ALL[number % Skill::ALL.len()];
        let sample = conversation(skill, &mut prng, |prng| *prng.pick(&Skill::ALL), 2000);
        let tools: Vec<String> = sample.tools.iter().map(Value::to_string).collect();
        for message in &sample.messages {
            assert!(
                !without_tools.contains(&message.content),
                "{} is held out",
                message.content
            );
            let under_tools = format!("{}{}", tools.join("\n"), message.content);
            assert!(
                !with_tools.contains(&under_tools),
                "{} is held out",
                message.content
            );
        }
    }
}

#[test]
fn token_ids_are_those_of_the_tokenizers_crate() {
    let own = Tokenizer::build(1);
    let json = own.to_json().to_string();
    let theirs: tokenizers::Tokenizer = json.parse().expect("tokenizer.json is read");
    let read = Tokenizer::from_json(&json).expect("tokenizer.json is read back");
    let mut texts: Vec<String> = held_out()
        .iter()
        .map(|p| render_prompt(&p.tools, &p.messages))
        .step_by(7)
        .collect();
    texts.extend(
        [
            "",
            " ",
            "  two  spaces ",
            "naïve café 日本語 🦀",
            "a\t\r\n b",
            " 12+30=?",
            "x<|im_end|>y<tool_call",
            "'tis -- \"so\"",
            "\u{a0}x\u{3000}",
            "\0\u{7f}",
        ]
        .map(String::from),
    );
    for text in texts {
        let expected = theirs
            .encode(text.as_str(), false)
            .expect("any text is encoded");
        assert_eq!(own.encode(&text), expected.get_ids(), "{text:?}");
        assert_eq!(read.encode(&text), expected.get_ids(), "{text:?}");
        assert_eq!(
            theirs
                .decode(expected.get_ids(), false)
                .expect("any ids are decoded"),
            text
        );
        assert_eq!(own.decode(expected.get_ids()), text);
    }
}

#[test]
fn the_chat_template_renders_what_was_trained_on() {
    let mut environment = minijinja::Environment::new();
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    // Templates are rendered with Python's spacing of JSON, as chat templates expect.
    environment.add_filter("tojson", |value: minijinja::Value| {
        let value = serde_json::to_value(&value).expect("template values are JSON");
        minijinja::Value::from_safe_string(bundled::chat::spaced_json(&value))
    });
    let source = chat_template();
    environment
        .add_template("chat", &source)
        .expect("the template parses");
    let template = environment
        .get_template("chat")
        .expect("the template was added");
    let mut prng = Prng::new(8);
    for number in 0..240 {
        let skill = Skill::ALL[number % Skill::ALL.len()];
        let sample = conversation(skill, &mut prng, |prng| *prng.pick(&Skill::ALL), 400);
        let expected: String = render(&sample.tools, &sample.messages)
            .into_iter()
            .map(|p| p.text)
            .collect();
        let messages: Vec<Value> = sample.messages.iter().map(|m| m.to_json()).collect();
        let tools = if sample.tools.is_empty() {
            Value::Null
        } else {
            json!(sample.tools)
        };
        let context = json!({"messages": messages, "tools": tools, "add_generation_prompt": false});
        assert_eq!(
            template
                .render(minijinja::value::Serde(&context))
                .expect("renders"),
            expected
        );
    }
}
