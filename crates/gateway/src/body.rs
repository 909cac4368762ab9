//! Request bodies: read under a limit of size, of time and of memory over all connections.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use crate::error::ApiError;
use crate::gateway::Gateway;

/// A body in memory, with its share of the budget.
pub(crate) struct ReadBody {
    pub(crate) bytes: Vec<u8>,
    budget: Option<OwnedSemaphorePermit>,
}

/// Reads a body.
///
/// # Errors
/// 413 before more than the limit is read, 408 when it takes too long, 503 when too many bodies are
/// being read at once, 400 when it breaks off.
pub(crate) async fn read(
    gateway: &Gateway,
    headers: &HeaderMap,
    body: Body,
) -> Result<ReadBody, ApiError> {
    let limit = gateway.config.limits.max_body;
    let too_large = || ApiError::TooLarge {
        status: StatusCode::PAYLOAD_TOO_LARGE,
        what: "request body",
        limit,
    };
    if announced(headers).is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let start = Instant::now() + gateway.config.timeouts.body_read;
    let mut body = body;
    let mut read = ReadBody {
        bytes: Vec::new(),
        budget: None,
    };
    loop {
        let deadline = start + Duration::from_secs(read.bytes.len() as u64 / 1024);
        let frame = timeout_at(deadline, body.frame())
            .await
            .map_err(|_| ApiError::RequestTimeout)?;
        let Some(frame) = frame else {
            return Ok(read);
        };
        let frame = frame.map_err(|_| ApiError::InvalidJson("the body breaks off".into()))?;
        let data: Bytes = frame.into_data().unwrap_or_default();
        if read.bytes.len() + data.len() > limit {
            return Err(too_large());
        }
        read.take(gateway, &data)?;
    }
}

impl ReadBody {
    fn take(&mut self, gateway: &Gateway, data: &[u8]) -> Result<(), ApiError> {
        let budget = Arc::clone(&gateway.body_budget);
        let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let permit = budget
            .try_acquire_many_owned(bytes)
            .map_err(|_| ApiError::TooBusy)?;
        match &mut self.budget {
            Some(known) => known.merge(permit),
            unset => *unset = Some(permit),
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}
