//! Steps that fail: before an answer has begun, in mid-stream, for one request alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backend::{BackendError, Batch, SampleBatch, SampleOutput};
use engine::fake::Fault;
use model::{CausalLm, ModelInfo};
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

/// A model that takes the engine's thread down, outside of any step.
struct Falling {
    info: ModelInfo,
    falls: Arc<AtomicBool>,
}

impl CausalLm for Falling {
    fn info(&self) -> &ModelInfo {
        assert!(!self.falls.load(Ordering::Relaxed), "scripted");
        &self.info
    }

    fn forward(&mut self, _: &Batch, _: &SampleBatch) -> Result<SampleOutput, BackendError> {
        Ok(SampleOutput::default())
    }

    fn reset(&mut self) -> Result<(), BackendError> {
        Ok(())
    }
}

#[tokio::test]
async fn an_engine_that_falls_silent_has_not_answered() {
    for stream in [false, true] {
        let falls = Arc::new(AtomicBool::new(false));
        let falling = Falling {
            info: model().info().clone(),
            falls: Arc::clone(&falls),
        };
        let rig = Rig::with(GatewayConfig::new("test-model"), engine_config(), falling);
        falls.store(true, Ordering::Relaxed);
        let answer = rig.post(CHAT, &chat(json!({"stream": stream}))).await;
        assert_eq!(answer.status, 500, "{}", answer.text);
        assert_eq!(answer.json()["error"]["code"], "internal_error");
        // The thread may still be on its way down.
        while rig.get("/health/live").await.status != 503 {
            tokio::task::yield_now().await;
        }
    }
}
