//! `openapi.yaml` says what the code serves: routes, request fields, answers. All three are taken from
//! the running code: the router's table and its behaviour, the readers, real answers.

mod answers;
mod requests;
mod schema;

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde_json::Value;

use super::support::{Rig, engine_config, model};
use crate::GatewayConfig;
use crate::routes::{Access, ROUTES, Route};
use schema::Document;

const METHODS: [Method; 6] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
];

/// Documented paths with their aliases.
fn paths(document: &Document) -> Vec<(&str, Vec<&str>, &Value)> {
    let paths = document.at("/paths").as_object().expect("paths");
    let paths = paths.iter().map(|(path, item)| {
        let aliases = item["x-aliases"].as_array().into_iter().flatten();
        let aliases = aliases.filter_map(Value::as_str).collect();
        (path.as_str(), aliases, item)
    });
    paths.collect()
}

/// The methods that a path item documents. `HEAD` comes with `GET`, as the introduction says.
fn methods(item: &Value) -> Vec<Method> {
    let documented = |method: &Method| {
        let name = if method == Method::HEAD {
            "get"
        } else {
            &method.as_str().to_lowercase()
        };
        item.get(name).is_some()
    };
    METHODS
        .iter()
        .filter(|method| documented(method))
        .cloned()
        .collect()
}

/// A path as the document writes it.
fn written(path: &str) -> String {
    path.replace("{*", "{")
}

/// A path as a client writes it.
fn concrete(path: &str) -> String {
    path.replace("{id}", "test-model")
}

fn request(method: &Method, path: &str) -> Request<Body> {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("host", "127.0.0.1:8000");
    request.body(Body::from("{}")).expect("a valid request")
}

#[test]
fn documented_routes_are_those_of_the_table() {
    let document = Document::load();
    let documented: BTreeSet<(String, Vec<String>, bool)> = paths(&document)
        .into_iter()
        .map(|(path, aliases, item)| {
            let mut aliases: Vec<String> = aliases.into_iter().map(str::to_owned).collect();
            aliases.sort();
            (path.to_owned(), aliases, item.get("post").is_some())
        })
        .collect();
    let served: BTreeSet<(String, Vec<String>, bool)> = ROUTES
        .iter()
        .map(|route| {
            let mut aliases: Vec<String> = route.aliases.iter().map(|a| written(a)).collect();
            aliases.sort();
            (written(route.path), aliases, route.post)
        })
        .collect();
    let differences: Vec<_> = served.symmetric_difference(&documented).collect();
    assert!(differences.is_empty(), "{differences:?}");
}

#[tokio::test]
async fn the_router_answers_documented_methods_and_no_others() {
    let document = Document::load();
    let rig = Rig::new();
    for (path, aliases, item) in paths(&document) {
        let allowed = methods(item);
        for path in aliases.into_iter().chain([path]) {
            let slashed = format!("{path}/");
            let both = [path, if path == "/" { path } else { &slashed }];
            for (path, method) in both
                .iter()
                .flat_map(|path| METHODS.iter().map(move |m| (path, m)))
            {
                let answer = rig.call(request(method, &concrete(path))).await;
                let is_refused = answer.status == StatusCode::METHOD_NOT_ALLOWED;
                assert_eq!(is_refused, !allowed.contains(method), "{method} {path}");
                assert_ne!(answer.status, StatusCode::NOT_FOUND, "{method} {path}");
                if is_refused {
                    let allow = answer.headers["allow"].to_str().expect("text");
                    let names: Vec<&str> = allowed.iter().map(Method::as_str).collect();
                    assert_eq!(allow, names.join(", "), "{method} {path}");
                }
            }
        }
    }
    let unknown = rig.get("/v1/unknown").await;
    assert_eq!(unknown.json()["error"]["code"], "unknown_url");
}

#[tokio::test]
async fn a_key_is_asked_for_where_the_document_says_so() {
    let document = Document::load();
    let mut config = GatewayConfig::new("test-model");
    config.api_keys = vec!["secret".into()];
    config.metrics_require_key = true;
    let strict = Rig::with(config.clone(), engine_config(), model());
    config.metrics_require_key = false;
    let usual = Rig::with(config, engine_config(), model());
    for (path, aliases, item) in paths(&document) {
        for method in methods(item)
            .iter()
            .filter(|method| **method != Method::HEAD)
        {
            let operation = &item[method.as_str().to_lowercase()];
            let security = operation
                .get("security")
                .unwrap_or(document.at("/security"));
            let security = security.as_array().expect("a list");
            let knows_key = security.iter().any(|way| way.get("bearer").is_some());
            let always = knows_key && security.iter().all(|way| way.get("bearer").is_some());
            for path in aliases.iter().chain([&path]) {
                for (rig, expected) in [(&usual, always), (&strict, knows_key)] {
                    let answer = rig.call(request(method, &concrete(path))).await;
                    let is_refused = answer.status == StatusCode::UNAUTHORIZED;
                    assert_eq!(is_refused, expected, "{method} {path}");
                }
            }
        }
    }
    // Each kind of access is among the routes, so each branch above was taken.
    for access in [Access::Open, Access::Key, Access::Metrics] {
        assert!(ROUTES.iter().any(|route: &Route| route.access == access));
    }
}

#[test]
fn the_document_has_the_version_of_the_program() {
    let document = Document::load();
    assert_eq!(document.at("/info/version"), env!("CARGO_PKG_VERSION"));
}
