//! Routing: paths, methods, keys, origins, and the small routes.

use axum::http::{Request, header};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::errors::check;
use super::support::{Rig, engine_config, get, model, post};
use crate::GatewayConfig;
use crate::routes::metrics_router;

#[tokio::test]
async fn unknown_paths_and_methods_are_answered_in_the_envelope() {
    let rig = Rig::new();
    for (request, status, code, message) in [
        (get("/nothing"), 404, "unknown_url", "GET /nothing"),
        (get("/v1/v1/models"), 404, "unknown_url", "/v1 twice"),
        (post("/v1/images", "{}"), 404, "unknown_url", "POST"),
        (
            get("/v1/chat/completions"),
            405,
            "method_not_allowed",
            "allowed: POST",
        ),
        (
            post("/health", ""),
            405,
            "method_not_allowed",
            "allowed: GET",
        ),
    ] {
        let answer = rig.call(request).await;
        assert_eq!(answer.status, status, "{}", answer.text);
        let error = &answer.json()["error"];
        assert_eq!(error["code"], code);
        assert_eq!(error["type"], "invalid_request_error");
        assert!(
            error["message"].as_str().expect("text").contains(message),
            "{error}"
        );
        assert_eq!(answer.headers.contains_key(header::ALLOW), status == 405);
        assert!(answer.headers.contains_key("x-request-id"));
        assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store");
        assert_eq!(answer.headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    }
    let long = rig.get(&format!("/{}", "a".repeat(10_000))).await;
    assert_eq!(long.status, 414);
    assert_eq!(long.json()["error"]["code"], "request_too_large");
}

#[tokio::test]
async fn trailing_slashes_and_aliases_lead_to_the_same_route() {
    let rig = Rig::new();
    for path in ["/v1/models", "/v1/models/", "/models", "/models/"] {
        let list = rig.get(path).await.json();
        assert_eq!(list["data"][0]["id"], "test-model");
        assert_eq!(list["data"][0]["max_model_len"], 512);
    }
    for path in ["/health", "/health/", "/health/ready", "/readyz", "/ping"] {
        assert_eq!(rig.get(path).await.json()["status"], "ready");
    }
    for path in ["/health/live", "/livez", "/healthz"] {
        assert_eq!(rig.get(path).await.json()["status"], "alive");
    }
    assert_eq!(rig.get("/version").await.json()["name"], "octet");
    assert!(rig.get("/").await.text.starts_with("<!doctype html>"));
    assert_eq!(rig.metric("octet_requests_running").await, 0.0);
}

#[tokio::test]
async fn ids_of_models_may_hold_slashes() {
    let config = GatewayConfig {
        served_model_names: vec!["org/name".into(), "alias".into()],
        ..GatewayConfig::new("")
    };
    let rig = Rig::with(config, engine_config(), model());
    for path in [
        "/v1/models/org/name",
        "/v1/models/org%2Fname",
        "/models/org/name/",
    ] {
        assert_eq!(rig.get(path).await.json()["id"], "org/name");
    }
    assert_eq!(
        rig.get("/v1/models/alias").await.json()["root"],
        "org/test-model"
    );
    let unknown = rig.get("/v1/models/other").await;
    assert_eq!(unknown.status, 404);
    let error = &unknown.json()["error"];
    assert_eq!(error["code"], "model_not_found");
    assert!(
        error["message"]
            .as_str()
            .expect("text")
            .contains("org/name, alias")
    );
}

#[tokio::test]
async fn a_key_opens_what_is_behind_it_and_nothing_else_needs_one() {
    let config = GatewayConfig {
        api_keys: vec!["secret".into()],
        ..GatewayConfig::new("m")
    };
    let rig = Rig::with(config, engine_config(), model());
    for path in ["/", "/health", "/health/live", "/version", "/metrics"] {
        assert_eq!(rig.get(path).await.status, 200, "{path}");
    }
    for request in [
        get("/v1/models"),
        get("/v1/models/m"),
        post("/v1/completions", "{"),
    ] {
        let answer = rig.call(request).await;
        assert_eq!(answer.status, 401);
        assert_eq!(answer.headers[header::WWW_AUTHENTICATE], "Bearer");
        assert_eq!(answer.json()["error"]["code"], "invalid_api_key");
    }
    let with_key = |key: &str| {
        Request::get("/v1/models")
            .header(header::HOST, "localhost")
            .header(header::AUTHORIZATION, format!("Bearer {key}"))
            .body(axum::body::Body::empty())
            .expect("a valid request")
    };
    assert_eq!(rig.call(with_key("secret")).await.status, 200);
    assert_eq!(rig.call(with_key("secret2")).await.status, 401);
}

#[tokio::test]
async fn metrics_apart_are_at_their_own_address_and_nothing_else_is() {
    let config = GatewayConfig {
        metrics_apart: true,
        loopback: false,
        ..GatewayConfig::new("m")
    };
    let rig = Rig::with(config, engine_config(), model());
    let answer = rig.get("/metrics").await;
    check(&answer, 404, "unknown_url", None, "/metrics");
    let apart = metrics_router(rig.gateway.clone());
    for (path, host, status) in [
        ("/metrics", "127.0.0.1:9100", 200),
        ("/metrics/", "localhost:9100", 200),
        ("/metrics", "rebound.example", 403),
        ("/v1/models", "127.0.0.1:9100", 404),
        ("/version", "127.0.0.1:9100", 404),
        ("/", "127.0.0.1:9100", 404),
    ] {
        let request = Request::get(path).header(header::HOST, host);
        let request = request.body(axum::body::Body::empty());
        let Ok(answer) = apart.clone().oneshot(request.expect("valid")).await;
        assert_eq!(answer.status(), status, "{path} of {host}");
    }
    assert_eq!(rig.get("/version").await.status, 200);
}

#[tokio::test]
async fn foreign_pages_and_hosts_are_kept_out() {
    let config = GatewayConfig {
        allowed_origins: vec!["https://chat.example".into()],
        ..GatewayConfig::new("m")
    };
    let rig = Rig::with(config, engine_config(), model());
    let body = json!({"prompt": "a", "max_tokens": 1}).to_string();
    let from = |origin: &str, host: &str| {
        Request::post("/v1/completions")
            .header(header::HOST, host)
            .header(header::ORIGIN, origin)
            .body(axum::body::Body::from(body.clone()))
            .expect("a valid request")
    };
    let own = rig
        .call(from("http://127.0.0.1:8000", "127.0.0.1:8000"))
        .await;
    assert_eq!(own.status, 200, "{}", own.text);
    assert!(
        !own.headers
            .contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN)
    );
    let allowed = rig
        .call(from("https://chat.example", "127.0.0.1:8000"))
        .await;
    assert_eq!(allowed.status, 200);
    assert_eq!(
        allowed.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN],
        "https://chat.example"
    );
    for request in [
        from("https://other.example", "127.0.0.1:8000"),
        from("http://rebound.example", "rebound.example"),
    ] {
        let answer = rig.call(request).await;
        assert_eq!(answer.status, 403);
        assert_eq!(answer.json()["error"]["code"], "origin_not_allowed");
    }
    let preflight = Request::options("/v1/completions")
        .header(header::HOST, "127.0.0.1:8000")
        .header(header::ORIGIN, "https://chat.example")
        .body(axum::body::Body::empty())
        .expect("a valid request");
    assert_eq!(rig.call(preflight).await.status, 204);
}

#[tokio::test]
async fn readiness_follows_the_engine() {
    let rig = Rig::new();
    rig.gateway.drain();
    let health = rig.get("/health").await;
    assert_eq!(health.status, 503);
    assert_eq!(health.json()["status"], "draining");
    assert!(health.headers.contains_key(header::RETRY_AFTER));
    assert_eq!(rig.get("/health/live").await.status, 200);
    let refused = rig.post("/v1/completions", &json!({"prompt": "a"})).await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.json()["error"]["code"], "draining");
    assert_eq!(
        rig.metric("octet_requests_rejected_total{model_name=\"test-model\",reason=\"draining\"}")
            .await,
        1.0
    );
    assert_ne!(rig.engine().status(), engine::EngineStatus::Ready);
}

#[tokio::test]
async fn request_ids_of_clients_come_back_when_they_are_harmless() {
    let rig = Rig::new();
    for (own, kept) in [("abc-1.2_3:4", true), ("has space", false), ("", false)] {
        let mut request = get("/version");
        request
            .headers_mut()
            .insert("x-request-id", own.parse().expect("a header"));
        let answer = rig.call(request).await;
        let id = answer.headers["x-request-id"].to_str().expect("text");
        assert_eq!(id == own, kept, "{own}: {id}");
    }
    let _: Value = rig.get("/version").await.json();
}
