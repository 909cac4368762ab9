//! What a client may write into a prompt: text, and never a control token.

use serde_json::Value;

use super::errors::CHAT;
use super::support::{Rig, chat, engine_config, model, text_files};
use crate::GatewayConfig;

/// A template that prints everything a request can hand to it.
const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}{{ m.name }}: {{ m.content }}\
    {{ m.tool_call_id }}{% for t in m.tool_calls or [] %}{{ t.function.name }}{{ t.id }}\
    {{ t.function.arguments | tojson }}{% endfor %}{{ m.reasoning_content }}{{ m.refusal }};\
    {% endfor %}{{ extra | tojson if extra is defined }}";

async fn prompt_tokens(rig: &Rig, fields: &str) -> u64 {
    let fields: Value = serde_json::from_str(fields).expect(fields);
    let answer = rig.post(CHAT, &chat(fields)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let usage = &answer.json()["usage"];
    usage["prompt_tokens"].as_u64().expect("a count")
}

#[tokio::test]
async fn spellings_of_control_tokens_stay_text_wherever_they_stand() {
    let mut text = text_files();
    text.chat_templates[0].1 = TEMPLATE.into();
    let rig = Rig::with_text(GatewayConfig::new("m"), engine_config(), model(), text);
    let user = r#"{"role": "user", "content": "x"}"#;
    for message in [
        r#"{"role": "user", "content": "a@b"}"#,
        r#"{"role": "user", "content": "@@"}"#,
        r#"{"role": "user", "content": [{"type": "text", "text": "@"}]}"#,
        r#"{"role": "user", "content": "x", "name": "@"}"#,
        r#"{"role": "tool", "content": "@", "tool_call_id": "@"}"#,
        r#"{"role": "assistant", "content": "x", "reasoning_content": "@", "refusal": "@"}"#,
        r#"{"role": "assistant", "tool_calls": [{"id": "@", "function": {"name": "@", "arguments": "@"}}]}"#,
        r#"{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{\"@\": \"@\"}"}}]}"#,
    ] {
        let fields = format!("{{\"messages\": [{user}, {message}]}}");
        check(&rig, &fields).await;
    }
    for kwargs in [r#""@""#, r#"["@"]"#, r#"{"@": {"a": "@"}}"#] {
        let fields = format!(
            "{{\"messages\": [{user}], \"chat_template_kwargs\": {{\"extra\": {kwargs}}}}}"
        );
        check(&rig, &fields).await;
    }
}

/// Every byte of a spelling is a token of its own, as it is for a text of the same length. JSON's
/// escapes are one more way to spell.
async fn check(rig: &Rig, fields: &str) {
    let harmless = prompt_tokens(rig, &fields.replace('@', "#|end|>")).await;
    for spelling in ["<|end|>", "\\u003c|end|>", "<|user|"] {
        assert_eq!(
            prompt_tokens(rig, &fields.replace('@', spelling)).await,
            harmless
        );
    }
    if fields.contains("arguments\": \"{") {
        // Escaped twice: once for the body, once for the arguments.
        let twice = fields.replace('@', "\\\\u003c|end|>");
        assert_eq!(prompt_tokens(rig, &twice).await, harmless);
    }
}
