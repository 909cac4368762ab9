//! Everything but generation: models, health, metrics, version and the chat page.

use std::borrow::Cow;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::gateway::{Gateway, Readiness};
use crate::routes::shorten;

/// Seconds after which a probe may look again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

/// One entry per served name.
pub(super) fn models(gateway: &Gateway) -> Result<Response, ApiError> {
    let data: Vec<Value> = entries(gateway)?
        .into_iter()
        .map(|(_, entry)| entry)
        .collect();
    Ok(Json(json!({"object": "list", "data": data})).into_response())
}

/// The entry of the name that ends `path`.
pub(super) fn model(gateway: &Gateway, path: &str) -> Result<Response, ApiError> {
    let id = path.split_once("models/").map_or("", |(_, id)| id);
    let id = decode(id.strip_suffix('/').unwrap_or(id));
    // What requests may call their model without knowing its name: the first.
    let is_asked = |name: &str| id == "default" || name == id;
    let mut entries = entries(gateway)?.into_iter();
    match entries.find(|(name, _)| is_asked(name)) {
        Some((_, entry)) => Ok(Json(entry).into_response()),
        None => Err(not_found(gateway, &id)),
    }
}

/// The answer to a name that is not served.
pub(super) fn not_found(gateway: &Gateway, asked: &str) -> ApiError {
    let beside = gateway
        .any_encoder()
        .filter(|_| !gateway.serves_embeddings_only());
    let names = gateway.config.served_model_names.iter();
    let names: Vec<&str> = names
        .chain(beside.into_iter().flat_map(|served| &served.names))
        .map(String::as_str)
        .collect();
    ApiError::ModelNotFound {
        asked: shorten(asked, 128),
        served: names.join(", "),
    }
}

/// Every served name with what is said of it, the main name first.
fn entries(gateway: &Gateway) -> Result<Vec<(&str, Value)>, ApiError> {
    let mut models = Vec::new();
    if gateway.serves_embeddings_only() {
        gateway.encoder()?;
    } else {
        let model = gateway.model()?;
        models.push((
            &gateway.config.served_model_names,
            &model.root,
            model.max_model_len,
        ));
    }
    if let Some(served) = gateway.any_encoder() {
        models.push((
            &served.names,
            &served.root,
            served.encoder.info().max_tokens,
        ));
    }
    let entries = models.into_iter().flat_map(|(names, root, max_model_len)| {
        let entry = move |name: &'_ String| entry(gateway, name, root, max_model_len);
        names.iter().map(move |name| (name.as_str(), entry(name)))
    });
    Ok(entries.collect())
}

fn entry(gateway: &Gateway, name: &str, root: &str, max_model_len: usize) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": gateway.started,
        "owned_by": "octet",
        "root": root,
        "parent": null,
        "max_model_len": max_model_len,
    })
}

/// Percent-decodes a path.
fn decode(path: &str) -> Cow<'_, str> {
    percent_encoding::percent_decode_str(path).decode_utf8_lossy()
}

/// Whether requests are answered.
pub(super) fn ready(gateway: &Gateway) -> Response {
    let (status, is_ready) = match gateway.readiness() {
        Readiness::Ready => ("ready", true),
        Readiness::Loading => ("loading", false),
        Readiness::Draining => ("draining", false),
        Readiness::Dead => ("dead", false),
    };
    let progress = if is_ready {
        1.0
    } else {
        gateway.load_progress()
    };
    health(is_ready, json!({"status": status, "progress": progress}))
}

/// Whether the process should be kept.
pub(super) fn live(gateway: &Gateway) -> Result<Response, ApiError> {
    if gateway.is_dead() {
        return Err(ApiError::EngineDead);
    }
    Ok(health(true, json!({"status": "alive"})))
}

fn health(is_well: bool, body: Value) -> Response {
    if is_well {
        return Json(body).into_response();
    }
    let headers = [(header::RETRY_AFTER, RETRY_AFTER)];
    (StatusCode::SERVICE_UNAVAILABLE, headers, Json(body)).into_response()
}

/// The Prometheus text format.
pub(super) fn metrics(gateway: &Gateway) -> Response {
    let metrics = &gateway.metrics;
    let is_ready = gateway.readiness() == Readiness::Ready;
    metrics.ready.set(i64::from(is_ready));
    if let Some(age) = gateway.heartbeat_age() {
        metrics.engine_heartbeat_age_seconds.set(age.as_secs_f64());
    }
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (kind, metrics.render(gateway.config.vllm_metrics)).into_response()
}

/// Name and version.
pub(super) fn version(gateway: &Gateway) -> Response {
    let version = &gateway.config.version;
    Json(json!({
        "name": "octet",
        "version": version.version,
        "commit": version.commit,
        "features": version.features,
    }))
    .into_response()
}

/// The chat page: one file without outside resources.
pub(super) fn page() -> Response {
    let headers = [
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ];
    (headers, Html(include_str!("../chat.html"))).into_response()
}
