//! Templates of real models against transformers' own rendering. The templates are fetched by
//! `cargo xtask assets`; `fixtures/templates/make.py` wrote the expected texts.

use std::path::{Path, PathBuf};

use super::tests::clock;
use super::*;
use crate::tests::support::asset;

const CONVERSATIONS: usize = 32;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/templates")
}

fn read(path: &Path) -> Value {
    let text = std::fs::read(path).expect("the fixture is committed");
    serde_json::from_slice(&text).expect("valid JSON")
}

fn conversations() -> Vec<(String, Conversation)> {
    let list = read(&fixtures().join("conversations.json"));
    let list = list.as_array().expect("a list");
    list.iter()
        .map(|entry| {
            let messages = entry["messages"].as_array().expect("messages").clone();
            let conversation = Conversation {
                parsed: with_parsed_arguments(&messages),
                messages,
                tools: entry.get("tools").cloned(),
                kwargs: entry["kwargs"].as_object().cloned().unwrap_or_default(),
                omits_generation_prompt: false,
            };
            let note = entry["note"].as_str().expect("a note");
            (note.to_owned(), conversation)
        })
        .collect()
}

/// The text of a template: a file of its own, or a literal that stands quoted in another file after
/// what the fixture names.
fn template_source(name: &str, fixture: &Value) -> Option<String> {
    let text = |file: &str| Some(String::from_utf8(asset(file)?).expect("UTF-8"));
    let Some(quoted) = fixture["quoted"].as_array() else {
        return text(&format!("templates/{name}.jinja"));
    };
    let [file, before] = [&quoted[0], &quoted[1]].map(|part| part.as_str().expect("a text"));
    let text = text(file)?;
    let (_, rest) = text.split_once(before).expect("the mark stands in it");
    let literal = serde_json::Deserializer::from_str(rest).into_iter().next();
    Some(literal.expect("a literal").expect("a quoted text"))
}

/// What differs between a real template's output and the expected one, in a few words.
fn difference(found: &Result<String, RenderError>, expected: &Value) -> Option<String> {
    if let Some(expected) = expected.as_str() {
        let same = found.as_ref().is_ok_and(|found| found == expected);
        return (!same).then(|| format!("found {found:?}\n  expected {expected:?}"));
    }
    let reason = expected["refused"].as_str()?;
    let same = *found == Err(RenderError::Refused(reason.to_owned()));
    (!same).then(|| format!("found {found:?}, not refused with {reason:?}"))
}

#[test]
fn every_real_template_renders_as_in_python() {
    let conversations = conversations();
    assert_eq!(conversations.len(), CONVERSATIONS);
    let mut files: Vec<PathBuf> = std::fs::read_dir(fixtures())
        .expect("the fixtures are committed")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "json"))
        .filter(|path| !path.ends_with("conversations.json"))
        .collect();
    files.sort();
    let (mut compared, mut faults) = (0, Vec::new());
    for file in &files {
        let name = file.file_stem().expect("a name").to_string_lossy();
        let expected = read(file);
        let Some(source) = template_source(&name, &expected) else {
            return;
        };
        let token = |key: &str| expected[key].as_str().map(str::to_owned);
        let named = |name: &str, source: String| (name.to_owned(), source);
        // Checkpoints of Hermes have this one for tools, beside one that knows none.
        let chat_templates = match name == "hermes-3" {
            true => vec![
                named("default", "{{ messages[-1].content }}".into()),
                named("tool_use", source),
            ],
            false => vec![named("default", source)],
        };
        let text = TextFiles {
            chat_templates,
            bos_token: token("bos_token"),
            eos_token: token("eos_token"),
            ..TextFiles::default()
        };
        let template = match ChatTemplate::new(&text, None, clock()) {
            Ok(template) => template.expect("there is one"),
            Err(error) => {
                faults.push(format!("{name}: {error}"));
                continue;
            }
        };
        let outputs = expected["outputs"].as_array().expect("outputs");
        assert_eq!(outputs.len(), CONVERSATIONS, "{name}");
        for ((note, conversation), expected) in conversations.iter().zip(outputs) {
            let found = template.render(conversation);
            compared += usize::from(!expected.is_null());
            if let Some(difference) = difference(&found, expected) {
                faults.push(format!("{name}, {note}: {difference}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(
        files.len() >= 25 && compared > files.len() * CONVERSATIONS * 9 / 10,
        "{compared}"
    );
}
