//! The table of routes, and what every request passes on its way to one: host and origin checks, the
//! API key, the answer to unknown URLs. `openapi.yaml` is compared with the table.

mod embeddings;
mod generate;
mod info;
mod prompt_encoder;
mod tokenize;
mod vocabulary;

use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};

use crate::auth::{self, Origin, Permit};
use crate::error::ApiError;
use crate::gateway::Gateway;
use crate::observe::observe;

/// What answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// Chat completions.
    Chat,
    /// Completions.
    Completions,
    /// Embeddings.
    Embeddings,
    /// Text to token ids.
    Tokenize,
    /// Token ids to text.
    Detokenize,
    /// The list of models.
    Models,
    /// One model.
    Model,
    /// Whether requests are answered.
    Ready,
    /// Whether the process should be kept.
    Live,
    /// Metrics in the Prometheus text format.
    Metrics,
    /// Name and version.
    Version,
    /// The chat page.
    Page,
}

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everybody.
    Open,
    /// Holders of a key, where keys are set.
    Key,
    /// As configured for metrics.
    Metrics,
}

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) endpoint: Endpoint,
    pub(crate) post: bool,
    /// The documented path; also the label in metrics.
    pub(crate) path: &'static str,
    /// Further paths with the same answer.
    pub(crate) aliases: &'static [&'static str],
    pub(crate) access: Access,
}

const fn get(
    endpoint: Endpoint,
    path: &'static str,
    aliases: &'static [&'static str],
    access: Access,
) -> Route {
    Route {
        endpoint,
        post: false,
        path,
        aliases,
        access,
    }
}

const fn post(endpoint: Endpoint, path: &'static str, aliases: &'static [&'static str]) -> Route {
    Route {
        endpoint,
        post: true,
        path,
        aliases,
        access: Access::Key,
    }
}

/// Every route. A model's id may contain slashes, so it takes the rest of the path.
pub(crate) const ROUTES: &[Route] = &[
    post(
        Endpoint::Chat,
        "/v1/chat/completions",
        &["/chat/completions"],
    ),
    post(Endpoint::Completions, "/v1/completions", &["/completions"]),
    post(Endpoint::Embeddings, "/v1/embeddings", &["/embeddings"]),
    post(Endpoint::Tokenize, "/tokenize", &[]),
    post(Endpoint::Detokenize, "/detokenize", &[]),
    get(Endpoint::Models, "/v1/models", &["/models"], Access::Key),
    get(
        Endpoint::Model,
        "/v1/models/{*id}",
        &["/models/{*id}"],
        Access::Key,
    ),
    get(
        Endpoint::Ready,
        "/health",
        &["/health/ready", "/readyz", "/ping"],
        Access::Open,
    ),
    get(
        Endpoint::Live,
        "/health/live",
        &["/livez", "/healthz"],
        Access::Open,
    ),
    get(Endpoint::Metrics, "/metrics", &[], Access::Metrics),
    get(Endpoint::Version, "/version", &[], Access::Open),
    get(Endpoint::Page, "/", &[], Access::Open),
];

impl Route {
    /// The documented path and its aliases.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.path).chain(self.aliases.iter().copied())
    }

    /// The row that axum matched, if it was one.
    pub(crate) fn matched(request: &Request) -> Option<&'static Self> {
        let matched = request.extensions().get::<MatchedPath>()?.as_str();
        let matched = matched
            .strip_suffix('/')
            .filter(|path| !path.is_empty())
            .unwrap_or(matched);
        ROUTES
            .iter()
            .find(|route| route.paths().any(|path| path == matched))
    }

    /// Whether its answer takes time of a model.
    fn computes(&self) -> bool {
        use Endpoint::{Chat, Completions, Embeddings};
        matches!(self.endpoint, Chat | Completions | Embeddings)
    }

    fn allow(&self) -> &'static str {
        if self.post { "POST" } else { "GET, HEAD" }
    }
}

/// The whole HTTP interface, but for metrics that have an address of their own.
pub fn router(gateway: Gateway) -> Router {
    for route in ROUTES {
        gateway.metrics.declare_endpoint(route.path);
    }
    let are_apart = gateway.config.metrics_apart;
    let loopback = gateway.config.loopback;
    let routes = ROUTES
        .iter()
        .filter(|route| !(are_apart && route.endpoint == Endpoint::Metrics));
    router_of(routes, Door { gateway, loopback })
}

/// The interface of a loopback address for metrics alone.
pub(crate) fn metrics_router(gateway: Gateway) -> Router {
    let routes = ROUTES
        .iter()
        .filter(|route| route.endpoint == Endpoint::Metrics);
    let loopback = true;
    router_of(routes, Door { gateway, loopback })
}

/// Where requests come in.
#[derive(Clone)]
struct Door {
    gateway: Gateway,
    /// Its address is one of this machine only.
    loopback: bool,
}

fn router_of<'a>(routes: impl Iterator<Item = &'a Route>, door: Door) -> Router {
    let gateway = door.gateway.clone();
    let mut router = Router::new();
    for route in routes {
        let filter = if route.post {
            MethodFilter::POST
        } else {
            MethodFilter::GET
        };
        let endpoint = route.endpoint;
        for path in route.paths() {
            let handler = move |State(gateway): State<Gateway>, request: Request| async move {
                let answer = answer(&gateway, endpoint, request).await;
                answer.unwrap_or_else(IntoResponse::into_response)
            };
            router = router.route(path, on(filter, handler));
            if path != "/" && !path.contains('{') {
                router = router.route(&format!("{path}/"), on(filter, handler));
            }
        }
    }
    router
        .fallback(unknown_url)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(door, guard))
        .layer(from_fn_with_state(gateway.clone(), observe))
        .with_state(gateway)
}

async fn answer(
    gateway: &Gateway,
    endpoint: Endpoint,
    request: Request,
) -> Result<Response, ApiError> {
    match endpoint {
        Endpoint::Chat => generate::chat(gateway, request).await,
        Endpoint::Completions => generate::completions(gateway, request).await,
        Endpoint::Embeddings => embeddings::embeddings(gateway, request).await,
        Endpoint::Tokenize => tokenize::tokenize(gateway, request).await,
        Endpoint::Detokenize => tokenize::detokenize(gateway, request).await,
        Endpoint::Models => info::models(gateway),
        Endpoint::Model => info::model(gateway, request.uri().path()),
        Endpoint::Ready => Ok(info::ready(gateway)),
        Endpoint::Live => info::live(gateway),
        Endpoint::Metrics => Ok(info::metrics(gateway)),
        Endpoint::Version => Ok(info::version(gateway)),
        Endpoint::Page => Ok(info::page()),
    }
}

/// Lets a request through to its route, or answers it.
async fn guard(State(door): State<Door>, mut request: Request, next: Next) -> Response {
    let gateway = &door.gateway;
    let origin = auth::origin(&gateway.config, &request);
    let from = request.headers().get(header::ORIGIN).cloned();
    let mut response = match check(&door, origin, &mut request) {
        Err(error) => {
            generate::count_rejection(gateway, &error);
            error.into_response()
        }
        Ok(_) if origin == Origin::Allowed && request.method() == Method::OPTIONS => {
            preflight(request.headers())
        }
        Ok(permit) => {
            let mut response = next.run(request).await;
            response.extensions_mut().insert(permit);
            response
        }
    };
    if let (Origin::Allowed, Some(from)) = (origin, from) {
        allow_origin(response.headers_mut(), from);
    }
    response
}

fn check(door: &Door, origin: Origin, request: &mut Request) -> Result<Permit, ApiError> {
    let Door { gateway, loopback } = door;
    let config = &gateway.config;
    let limit = config.limits.max_uri;
    let uri = request.uri();
    if uri.path().len() + uri.query().map_or(0, str::len) > limit {
        return Err(ApiError::TooLarge {
            status: StatusCode::URI_TOO_LONG,
            what: "URI",
            limit,
        });
    }
    if *loopback {
        auth::check_host(request)?;
    }
    let is_preflight = origin == Origin::Allowed && request.method() == Method::OPTIONS;
    if origin == Origin::Foreign && !request.method().is_safe() {
        let origin = request.headers().get(header::ORIGIN);
        let origin = origin.and_then(|origin| origin.to_str().ok());
        return Err(ApiError::OriginNotAllowed {
            origin: shorten(origin.unwrap_or("another origin"), 128),
        });
    }
    let route = Route::matched(request);
    let needs_key = match route.map(|route| route.access) {
        Some(Access::Key) => !is_preflight,
        Some(Access::Metrics) => config.metrics_require_key && !is_preflight,
        Some(Access::Open) | None => false,
    };
    if !needs_key {
        return Ok(None);
    }
    let caller = gateway.keys.check(request.headers())?;
    let permit = match route {
        Some(route) if route.computes() && request.method() == Method::POST => gateway
            .keys
            .permit(&caller, gateway.completions.expected())?,
        _ => None,
    };
    request.extensions_mut().insert(caller);
    Ok(permit)
}

/// A browser asks whether a page may call; the headers are added with every other answer.
fn preflight(asked: &HeaderMap) -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    let mut response = (StatusCode::NO_CONTENT, headers).into_response();
    // A page that may call may send any header: SDKs add many of their own.
    if let Some(names) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    response
}

fn allow_origin(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("retry-after, x-ignored-params, x-request-id"),
    );
    headers.append(header::VARY, HeaderValue::from_static("origin"));
}

async fn unknown_url(request: Request) -> ApiError {
    let path = request.uri().path();
    ApiError::UnknownUrl {
        method: shorten(request.method().as_str(), 16),
        path: shorten(path, 128),
        hint: if path.starts_with("/v1/v1/") {
            "; the base URL ends in /v1 twice"
        } else {
            ""
        },
    }
}

async fn method_not_allowed(request: Request) -> ApiError {
    ApiError::MethodNotAllowed {
        method: shorten(request.method().as_str(), 16),
        allow: Route::matched(&request).map_or("", Route::allow).to_owned(),
    }
}

/// The first `max` characters.
pub(crate) fn shorten(text: &str, max: usize) -> String {
    text.chars().take(max).collect()
}

/// When the head of a request had been read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrived(pub(crate) Instant);
