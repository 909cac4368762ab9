//! Fields that change nothing: reported, or refused under strict parameters.

use serde_json::json;

use super::errors::{CHAT, COMPLETIONS, check};
use super::support::{Rig, chat, completion, engine_config, model};
use crate::GatewayConfig;

#[tokio::test]
async fn ignored_fields_are_reported_and_counted_or_refused() {
    let known = json!({"user": "u", "metadata": {"a": 1}, "service_tier": "auto", "stream": true,
                       "stream_options": {"include_obfuscation": false}});
    let rig = Rig::new();
    for (path, body) in [
        (CHAT, chat(known.clone())),
        (COMPLETIONS, completion(known.clone())),
    ] {
        let answer = rig.post(path, &body).await;
        let mut names: Vec<&str> = answer.headers["x-ignored-params"]
            .to_str()
            .expect("text")
            .split(',')
            .collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "metadata",
                "service_tier",
                "stream_options.include_obfuscation",
                "user"
            ]
        );
    }
    for (param, count) in [
        ("user", 2.0),
        ("stream_options.include_obfuscation", 2.0),
        ("other", 0.0),
    ] {
        let series = format!("octet_ignored_params_total{{param=\"{param}\"}}");
        assert_eq!(rig.metric(&series).await, count, "{param}");
    }
    let unknown = [
        (json!({"colour": "red"}), "colour"),
        (
            json!({"messages": [{"role": "user", "content": "x", "mood": 1}]}),
            "messages[0].mood",
        ),
        (
            json!({"stream": true, "stream_options": {"speed": 1}}),
            "stream_options.speed",
        ),
    ];
    for (fields, name) in &unknown {
        let answer = rig.post(CHAT, &chat(fields.clone())).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert_eq!(answer.headers["x-ignored-params"], *name);
    }
    assert_eq!(
        rig.metric("octet_ignored_params_total{param=\"other\"}")
            .await,
        3.0
    );
    // Names that no header can hold are left out of it.
    let odd = json!({"café\r\nx: y": 1, "l".repeat(4000): 1});
    let answer = rig.post(CHAT, &chat(odd)).await;
    let header = answer.headers["x-ignored-params"].to_str().expect("ASCII");
    assert!(
        header.starts_with("cafx:y,lll") && header.len() == 1024,
        "{header}"
    );

    let config = GatewayConfig {
        strict_params: true,
        ..GatewayConfig::new("test-model")
    };
    let strict = Rig::with(config, engine_config(), model());
    for (fields, name) in unknown {
        let answer = strict.post(CHAT, &chat(fields)).await;
        check(
            &answer,
            400,
            "unknown_parameter",
            Some(name),
            "unknown parameter",
        );
    }
    let answer = strict.post(CHAT, &chat(known)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

#[tokio::test]
async fn an_answer_may_be_sent_back_under_strict_parameters() {
    let config = GatewayConfig {
        strict_params: true,
        ..GatewayConfig::new("test-model")
    };
    let rig = Rig::with(config, engine_config(), model());
    let first = rig.post(CHAT, &chat(json!({}))).await.json();
    let messages = json!([{"role": "user", "content": "x"}, first["choices"][0]["message"]]);
    let second = rig.post(CHAT, &chat(json!({"messages": messages}))).await;
    assert_eq!(second.status, 200, "{}", second.text);
}
