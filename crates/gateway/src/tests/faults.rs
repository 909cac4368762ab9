//! Steps that fail: before an answer has begun, in mid-stream, for one request alone.

use engine::fake::Fault;
use serde_json::json;

use super::errors::{CHAT, COMPLETIONS};
use super::script::Script;
use super::stream::stream;
use super::support::{Rig, chat, completion, engine_config, model};
use crate::GatewayConfig;

#[tokio::test]
async fn a_failure_in_mid_stream_is_an_event_of_its_own() {
    for (fault, stays) in [
        (Fault::Error, true),
        (Fault::Panic, true),
        (Fault::Device, false),
    ] {
        // Prefill gives the first token, the second step the second one.
        let rig = Rig::with(
            GatewayConfig::new("test-model"),
            engine_config(),
            model().with_fault(2, fault),
        );
        let answer = stream(&rig, CHAT, chat(json!({"ignore_eos": true}))).await;
        let mut chunks = answer.chunks();
        let error = json!({"error": {"message": "the engine stopped while generating",
            "type": "server_error", "param": null, "code": "internal_error"}});
        assert_eq!(chunks.pop(), Some(error));
        assert!(
            chunks
                .iter()
                .all(|chunk| chunk["choices"][0]["finish_reason"].is_null())
        );
        let finished =
            "octet_requests_finished_total{finish_reason=\"error\",model_name=\"test-model\"}";
        assert_eq!(rig.metric(finished).await, 1.0);
        let next = rig.post(CHAT, &chat(json!({}))).await;
        assert_eq!(next.status, if stays { 200 } else { 503 }, "{}", next.text);
        assert_eq!(
            rig.get("/health/live").await.status,
            if stays { 200 } else { 503 }
        );
    }
}

#[tokio::test]
async fn a_failure_before_the_first_token_has_a_status() {
    for (stream, fault) in [
        (true, Fault::Panic),
        (false, Fault::Panic),
        (true, Fault::Error),
        (false, Fault::MissingRow),
    ] {
        for (path, body) in [
            (CHAT, chat(json!({"stream": stream}))),
            (
                COMPLETIONS,
                completion(json!({"stream": stream, "echo": true})),
            ),
        ] {
            let rig = Rig::with(
                GatewayConfig::new("test-model"),
                engine_config(),
                model().with_fault(0, fault),
            );
            let answer = rig.post(path, &body).await;
            assert_eq!(answer.status, 500, "{}", answer.text);
            assert_eq!(answer.json()["error"]["code"], "internal_error");
            assert_eq!(rig.post(path, &body).await.status, 200);
            assert_eq!(rig.metric("octet_engine_restarts_total").await, 1.0);
        }
    }
}

#[tokio::test]
async fn numbers_that_are_none_fail_their_request_alone() {
    let script = Script::saying("ab!cd").poisoned_after(u32::from(b'!'));
    let rig = Rig::with(GatewayConfig::new("test-model"), engine_config(), script);
    let answer = stream(&rig, CHAT, chat(json!({}))).await;
    let error = answer.chunks().pop().expect("an error");
    assert_eq!(error["error"]["code"], "numerical_error");
    let whole = rig.post(CHAT, &chat(json!({}))).await;
    assert_eq!(
        (whole.status.as_u16(), &whole.json()["error"]["code"]),
        (500, &json!("numerical_error"))
    );
    assert_eq!(
        rig.post(CHAT, &chat(json!({"max_tokens": 3}))).await.status,
        200
    );
}
