//! Every way a request can fail, and the one place where failures become statuses and bodies.
//!
//! Messages name the field, the value and the limit. They never carry a path, an address or the text
//! of a library, except where that text is about the client's own input.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use encoder::EncodeError;
use engine::{EngineError, SubmitError};
use metrics::RejectReason;
use rand::Rng;
use serde_json::{Map, Value, json};

/// A failed request.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// The body is not JSON, or not JSON this server takes.
    #[error("the request body is not valid JSON: {0}")]
    InvalidJson(String),
    /// A field is missing, of the wrong type or out of range.
    #[error("{message}")]
    InvalidField {
        /// Path of the field, such as `messages[2].content`.
        param: String,
        /// Machine-readable kind of the mistake.
        code: &'static str,
        /// What is wrong, with value and limit.
        message: String,
    },
    /// Prompt and output do not fit the context. The wording contains every phrase by which known
    /// clients recognise an overflow.
    #[error(
        "This model's maximum context length is {max_model_len} tokens, but the prompt is too long: \
         {at_least}{prompt_tokens} prompt tokens plus {max_tokens} requested (context_length_exceeded)."
    )]
    ContextTooLong {
        /// The field that holds the prompt.
        param: &'static str,
        /// Empty, or "at least " where the prompt was refused by its length in bytes.
        at_least: &'static str,
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens asked for; 0 where the request left that open.
        max_tokens: usize,
        /// The limit.
        max_model_len: usize,
    },
    /// No key, or a wrong one.
    #[error("a valid API key is required: send it as \"Authorization: Bearer <key>\"")]
    InvalidApiKey,
    /// A web page of another origin.
    #[error(
        "web pages of {origin} may not call this server; --allowed-origins names those that may"
    )]
    OriginNotAllowed {
        /// The origin, cut to a bounded length.
        origin: String,
    },
    /// A host name that a loopback address does not have: a page elsewhere may have made it point here.
    #[error(
        "`{host}` is no name of the loopback address this server is bound to; \
         bind another address with --host to be reached under other names"
    )]
    HostNotAllowed {
        /// The name, cut to a bounded length.
        host: String,
    },
    /// The model of the request is not served here.
    #[error("the model `{asked}` does not exist here; served: {served}")]
    ModelNotFound {
        /// The name asked for, cut to a bounded length.
        asked: String,
        /// The names served, separated by commas.
        served: String,
    },
    /// No route has this path.
    #[error("unknown URL: {method} {path}{hint}")]
    UnknownUrl {
        /// The method.
        method: String,
        /// The path, cut to a bounded length.
        path: String,
        /// A hint, or nothing.
        hint: &'static str,
    },
    /// The route exists with other methods.
    #[error("method {method} is not allowed here; allowed: {allow}")]
    MethodNotAllowed {
        /// The method.
        method: String,
        /// The methods that are.
        allow: String,
    },
    /// Body or URI exceed a limit. Headers that do never become a request.
    #[error("the {what} is larger than the limit of {limit} bytes")]
    TooLarge {
        /// 413 or 414.
        status: StatusCode,
        /// What is too large.
        what: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
    /// The body arrived too slowly.
    #[error("the request body was not received within its time limit")]
    RequestTimeout,
    /// Too many large bodies are being read at once.
    #[error("too many request bodies are being received")]
    TooBusy,
    /// The queue is full.
    #[error("{message}")]
    QueueFull {
        /// Which limit was reached.
        message: String,
        /// The limit as a metric label.
        reason: RejectReason,
        /// When to come back.
        retry_after: Duration,
    },
    /// A key has all the requests that it may have at the same time.
    #[error(
        "this API key may have {limit} requests at the same time and has as many; \
         send this one when another has ended"
    )]
    TooManyOfKey {
        /// Requests that a key may have.
        limit: usize,
        /// When to come back.
        retry_after: Duration,
    },
    /// The request waited too long.
    #[error("the request waited too long in the queue")]
    QueueTimeout,
    /// Weights are still being loaded.
    #[error("the model is still loading")]
    Loading,
    /// No new work is taken.
    #[error("the server is shutting down")]
    Draining,
    /// The engine is gone or restarting.
    #[error("the engine is not running")]
    EngineDead,
    /// The request exceeded its time limit.
    #[error("the request exceeded its time limit")]
    Timeout,
    /// The client left its stream unread.
    #[error("the stream was not read for too long")]
    SlowReader,
    /// The model produced no usable numbers for this request.
    #[error("the model produced non-finite values for this request")]
    Numerical,
    /// A step failed.
    #[error("the engine stopped while generating")]
    StepFailed,
    /// A batch failed that held a part of this request.
    #[error("computing the embeddings failed")]
    EmbeddingFailed,
    /// A bug. The log holds the details under the same incident id.
    #[error("internal error, incident {incident}")]
    Internal {
        /// Opaque id.
        incident: String,
    },
}

/// Status, `type` and `code` of an error.
struct Kind(StatusCode, &'static str, &'static str);

const INVALID: &str = "invalid_request_error";
const UNAVAILABLE: &str = "service_unavailable_error";
const SERVER: &str = "server_error";

impl ApiError {
    /// A field error.
    pub(crate) fn field(
        param: impl Into<String>,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self::InvalidField {
            param: param.into(),
            code,
            message: message.into(),
        }
    }

    /// A known field whose feature this version does not have.
    pub(crate) fn unsupported(param: impl Into<String>, reason: &str) -> Self {
        let param = param.into();
        let message = format!("{param} is not supported: {reason}");
        Self::field(param, "unsupported_parameter", message)
    }

    /// A bug; logs `details` under a fresh incident id.
    pub(crate) fn internal(details: &str) -> Self {
        let incident = crate::ids::random(16);
        tracing::error!(incident, details, "internal error");
        Self::Internal { incident }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::InvalidJson(_) => Kind(StatusCode::BAD_REQUEST, INVALID, "invalid_json"),
            Self::InvalidField { code, .. } => Kind(StatusCode::BAD_REQUEST, INVALID, code),
            Self::ContextTooLong { .. } => {
                Kind(StatusCode::BAD_REQUEST, INVALID, "context_length_exceeded")
            }
            Self::InvalidApiKey => Kind(StatusCode::UNAUTHORIZED, INVALID, "invalid_api_key"),
            Self::OriginNotAllowed { .. } | Self::HostNotAllowed { .. } => Kind(
                StatusCode::FORBIDDEN,
                "permission_error",
                "origin_not_allowed",
            ),
            Self::ModelNotFound { .. } => Kind(StatusCode::NOT_FOUND, INVALID, "model_not_found"),
            Self::UnknownUrl { .. } => Kind(StatusCode::NOT_FOUND, INVALID, "unknown_url"),
            Self::MethodNotAllowed { .. } => Kind(
                StatusCode::METHOD_NOT_ALLOWED,
                INVALID,
                "method_not_allowed",
            ),
            Self::TooLarge { status, .. } => Kind(*status, INVALID, "request_too_large"),
            Self::RequestTimeout => Kind(StatusCode::REQUEST_TIMEOUT, INVALID, "request_timeout"),
            Self::QueueFull { .. } => Kind(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                "queue_full",
            ),
            Self::TooManyOfKey { .. } => Kind(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                "rate_limit_exceeded",
            ),
            Self::TooBusy => unavailable("too_busy"),
            Self::QueueTimeout => unavailable("queue_timeout"),
            Self::Loading => unavailable("model_loading"),
            Self::Draining => unavailable("draining"),
            Self::EngineDead => unavailable("engine_dead"),
            Self::Timeout | Self::SlowReader => {
                Kind(StatusCode::GATEWAY_TIMEOUT, SERVER, "timeout")
            }
            Self::Numerical => Kind(StatusCode::INTERNAL_SERVER_ERROR, SERVER, "numerical_error"),
            Self::StepFailed | Self::EmbeddingFailed | Self::Internal { .. } => {
                Kind(StatusCode::INTERNAL_SERVER_ERROR, SERVER, "internal_error")
            }
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.kind().0
    }

    /// The `code` of the body.
    pub fn code(&self) -> &'static str {
        self.kind().2
    }

    /// The `param` of the body.
    pub fn param(&self) -> Option<&str> {
        match self {
            Self::InvalidField { param, .. } => Some(param),
            Self::ContextTooLong { param, .. } => Some(param),
            Self::ModelNotFound { .. } => Some("model"),
            _ => None,
        }
    }

    /// The reason under which a refusal is counted, for those that are.
    pub(crate) fn reject_reason(&self) -> Option<RejectReason> {
        match self {
            Self::ContextTooLong { .. } => Some(RejectReason::ContextLength),
            Self::QueueFull { reason, .. } => Some(*reason),
            Self::TooManyOfKey { .. } => Some(RejectReason::RateLimit),
            Self::QueueTimeout => Some(RejectReason::QueueTimeout),
            Self::Loading => Some(RejectReason::Loading),
            Self::Draining => Some(RejectReason::Draining),
            _ => None,
        }
    }

    /// The error envelope.
    pub fn body(&self) -> Value {
        let Kind(_, kind, code) = self.kind();
        let mut error = Map::new();
        error.insert("message".into(), json!(self.to_string()));
        error.insert("type".into(), json!(kind));
        error.insert("param".into(), json!(self.param()));
        error.insert("code".into(), json!(code));
        if let Self::ContextTooLong {
            prompt_tokens,
            max_model_len,
            ..
        } = self
        {
            error.insert("prompt_tokens".into(), json!(prompt_tokens));
            error.insert("max_model_len".into(), json!(max_model_len));
        }
        json!({ "error": error })
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull { retry_after, .. } | Self::TooManyOfKey { retry_after, .. } => {
                Some(*retry_after)
            }
            Self::TooBusy
            | Self::QueueTimeout
            | Self::Loading
            | Self::Draining
            | Self::EngineDead => Some(Duration::from_secs(5)),
            _ => None,
        }
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        match self {
            Self::InvalidApiKey => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::MethodNotAllowed { allow, .. } => {
                if let Ok(value) = HeaderValue::from_str(allow) {
                    headers.insert(header::ALLOW, value);
                }
            }
            Self::RequestTimeout | Self::TooLarge { .. } => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        if let Some(wait) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(spread(wait)));
        }
        headers
    }
}

fn unavailable(code: &'static str) -> Kind {
    Kind(StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, code)
}

/// Whole seconds between 1 and 30, off by up to a fifth so that clients do not return together.
fn spread(wait: Duration) -> u64 {
    let seconds = wait.as_secs_f64().clamp(1.0, 30.0) * rand::rng().random_range(0.8..=1.2);
    // The clamp keeps the value far inside the range of the cast.
    (seconds.round() as u64).clamp(1, 30)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status(), self.headers(), axum::Json(self.body())).into_response()
    }
}

/// How a refused submission is answered.
pub(crate) fn from_submit(
    error: SubmitError,
    param: &'static str,
    retry_after: Duration,
) -> ApiError {
    match error {
        SubmitError::QueueFull { .. } => ApiError::QueueFull {
            message: error.to_string(),
            reason: RejectReason::QueueFull,
            retry_after,
        },
        SubmitError::QueueTokensFull { .. } => ApiError::QueueFull {
            message: error.to_string(),
            reason: RejectReason::QueueTokens,
            retry_after,
        },
        SubmitError::ContextTooLong {
            prompt,
            max_tokens,
            max_model_len,
        } => ApiError::ContextTooLong {
            param,
            at_least: "",
            prompt_tokens: prompt,
            max_tokens,
            max_model_len,
        },
        // The readers have checked everything else; how many sequences run, only the engine knows.
        SubmitError::Invalid(reason) => {
            ApiError::field("n", "invalid_value", format!("n does not fit: {reason}"))
        }
        SubmitError::Draining => ApiError::Draining,
        SubmitError::Dead => ApiError::EngineDead,
    }
}

/// How a refused embeddings request is answered.
pub(crate) fn from_encoder(error: encoder::SubmitError, retry_after: Duration) -> ApiError {
    let full = |reason| ApiError::QueueFull {
        message: error.to_string(),
        reason,
        retry_after,
    };
    match error {
        encoder::SubmitError::QueueFull { .. } => full(RejectReason::QueueFull),
        encoder::SubmitError::QueueTokensFull { .. } => full(RejectReason::QueueTokens),
        encoder::SubmitError::Draining => ApiError::Draining,
        encoder::SubmitError::Dead => ApiError::EngineDead,
    }
}

impl From<EncodeError> for ApiError {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::Failed => Self::EmbeddingFailed,
            EncodeError::NotFinite => Self::Numerical,
            EncodeError::Timeout => Self::Timeout,
            EncodeError::Draining => Self::Draining,
        }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::StepFailed => Self::StepFailed,
            EngineError::NonFiniteLogits => Self::Numerical,
            EngineError::QueueTimeout => Self::QueueTimeout,
            EngineError::RequestTimeout => Self::Timeout,
            EngineError::SlowReader => Self::SlowReader,
            EngineError::Draining => Self::Draining,
        }
    }
}
