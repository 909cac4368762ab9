//! Who may call: keys, host names of a loopback address, origins of web pages.
//!
//! The decision reads the parsed request that routing reads, nothing rebuilt from headers.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::http::{HeaderMap, Request, header};
use rand::RngCore;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::GatewayConfig;
use crate::error::ApiError;

/// What stands before a key.
const BEARER: &[u8] = b"Bearer ";

/// The accepted keys, as hashes under a secret of the process.
pub(crate) struct KeyRing {
    secret: [u8; 32],
    /// No key was ever set: everybody may call. Settled at start, so that no replacement opens the server.
    is_open: bool,
    /// Requests that each key may have at the same time.
    max_per_key: Option<usize>,
    /// How many of the keys stay when the others are replaced; these stand first.
    num_fixed: usize,
    keys: RwLock<Arc<[Caller]>>,
}

/// The caller, as far as isolation between callers goes.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    digest: [u8; 32],
    /// One permit for each request that the key may have, where that is limited.
    requests: Option<Arc<Semaphore>>,
}

/// What a request of a limited key holds until its answer has ended.
pub(crate) type Permit = Option<Arc<OwnedSemaphorePermit>>;

impl KeyRing {
    /// Hashes the keys that stay and those that [`KeyRing::replace`] replaces; the clear texts are not kept.
    pub(crate) fn new(fixed: &[String], others: &[String], max_per_key: Option<usize>) -> Self {
        let mut secret = [0; 32];
        rand::rng().fill_bytes(&mut secret);
        let mut ring = Self {
            secret,
            is_open: fixed.is_empty() && others.is_empty(),
            max_per_key,
            num_fixed: 0,
            keys: RwLock::new(Arc::new([])),
        };
        ring.replace(fixed);
        ring.num_fixed = fixed.len();
        ring.replace(others);
        ring
    }

    /// Accepts these keys instead of all that are not fixed. A key that stays keeps its running requests.
    pub(crate) fn replace(&self, others: &[String]) {
        let old = self.keys();
        let fixed = old.iter().take(self.num_fixed).cloned();
        let others = others.iter().map(|key| {
            let digest = keyed(&self.secret, key.as_bytes());
            let known = old.iter().find(|known| known.digest == digest);
            known.cloned().unwrap_or_else(|| self.caller(digest))
        });
        let keys = fixed.chain(others).collect();
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    fn keys(&self) -> Arc<[Caller]> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&keys)
    }

    fn caller(&self, digest: [u8; 32]) -> Caller {
        let requests = self.max_per_key.map(|max| Arc::new(Semaphore::new(max)));
        Caller { digest, requests }
    }

    /// Checks the `Authorization` header. Without configured keys everybody may call.
    ///
    /// # Errors
    /// [`ApiError::InvalidApiKey`], whatever is wrong.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        if self.is_open {
            let digest = keyed(&self.secret, b"");
            let requests = None;
            return Ok(Caller { digest, requests });
        }
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return Err(ApiError::InvalidApiKey);
        };
        // The name of a scheme is written in any case (RFC 9110, 11.1), the key is not.
        let (scheme, key) = value
            .as_bytes()
            .split_at_checked(BEARER.len())
            .ok_or(ApiError::InvalidApiKey)?;
        if !scheme.eq_ignore_ascii_case(BEARER) {
            return Err(ApiError::InvalidApiKey);
        }
        let digest = keyed(&self.secret, key);
        // Every key is compared to its end: time tells neither which one matched nor how far.
        let keys = self.keys();
        let matches = keys
            .iter()
            .fold(0u8, |found, known| found | equal(&known.digest, &digest));
        if std::hint::black_box(matches) == 0 {
            return Err(ApiError::InvalidApiKey);
        }
        let caller = keys.iter().find(|known| known.digest == digest);
        caller.cloned().ok_or(ApiError::InvalidApiKey)
    }

    /// Takes one of the requests that a caller may have at the same time.
    ///
    /// # Errors
    /// [`ApiError::TooManyOfKey`] when it has them all.
    pub(crate) fn permit(
        &self,
        caller: &Caller,
        retry_after: Duration,
    ) -> Result<Permit, ApiError> {
        let (Some(requests), Some(limit)) = (&caller.requests, self.max_per_key) else {
            return Ok(None);
        };
        let permit = Arc::clone(requests).try_acquire_owned();
        let permit = permit.map_err(|_| ApiError::TooManyOfKey { limit, retry_after })?;
        Ok(Some(Arc::new(permit)))
    }

    /// The salt of a caller's prefix-cache entries, with the request's own salt mixed in.
    pub(crate) fn cache_salt(&self, caller: &Caller, own: Option<&str>) -> u64 {
        let mut text = caller.digest.to_vec();
        text.extend(own.unwrap_or_default().as_bytes());
        let [a, b, c, d, e, f, g, h, ..] = keyed(&self.secret, &text);
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

fn keyed(secret: &[u8; 32], text: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(secret);
    hash.update(text);
    hash.finalize().into()
}

/// 1 if equal, else 0, without branching on the contents.
fn equal(a: &[u8; 32], b: &[u8; 32]) -> u8 {
    let difference = a.iter().zip(b).fold(0u8, |d, (x, y)| d | (x ^ y));
    u8::from(std::hint::black_box(difference) == 0)
}

/// Refuses host names that a loopback address does not have, against DNS rebinding.
///
/// # Errors
/// [`ApiError::HostNotAllowed`].
pub(crate) fn check_host<B>(request: &Request<B>) -> Result<(), ApiError> {
    let header = request.headers().get_all(header::HOST).iter();
    let named = header.map(|value| value.to_str().unwrap_or("?"));
    let authority = request.uri().authority().map(|a| a.as_str());
    for host in named.chain(authority) {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        if !is_loopback_name(name) {
            return Err(ApiError::HostNotAllowed {
                host: crate::routes::shorten(host, 128),
            });
        }
    }
    Ok(())
}

/// Addresses are safe: only a name can be made to lead elsewhere.
fn is_loopback_name(name: &str) -> bool {
    let bare = name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let is_loopback = match bare {
        Some(v6) => v6.parse().is_ok_and(|ip: Ipv6Addr| ip.is_loopback()),
        None => name.parse().is_ok_and(|ip: Ipv4Addr| ip.is_loopback()),
    };
    is_loopback || name.eq_ignore_ascii_case("localhost")
}

/// What the `Origin` header of a request allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// No web page, or one of this server.
    Own,
    /// A configured one, which may read answers.
    Allowed,
    /// Any other.
    Foreign,
}

/// Classifies the `Origin` header.
pub(crate) fn origin<B>(config: &GatewayConfig, request: &Request<B>) -> Origin {
    let Some(origin) = request.headers().get(header::ORIGIN) else {
        return Origin::Own;
    };
    let origin = origin.to_str().unwrap_or("?");
    let is = |allowed: &String| allowed == origin || allowed == "*";
    if config.allowed_origins.iter().any(is) {
        return Origin::Allowed;
    }
    let host = request.headers().get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok());
    match origin.split_once("://") {
        Some((_, authority)) if Some(authority) == host => Origin::Own,
        _ => Origin::Foreign,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(values: &[&[u8]]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            let value = HeaderValue::from_bytes(value).unwrap();
            headers.append(header::AUTHORIZATION, value);
        }
        headers
    }

    #[test]
    fn only_one_exact_bearer_key_passes() {
        let ring = KeyRing::new(&["first".into()], &["second".into()], None);
        for good in ["Bearer first", "bearer second"] {
            assert!(ring.check(&headers(&[good.as_bytes()])).is_ok());
        }
        let bad: &[&[&[u8]]] = &[
            &[],
            &[b"Bearer first", b"Bearer first"],
            &[b"Bearer firs"],
            &[b"Bearer first "],
            &[b"Bearer  first"],
            &[b"bearer First"],
            &[b"Basic first"],
            &[b"first"],
            &[b"Bearer "],
            &[b"Bearer f\xffrst"],
        ];
        for values in bad {
            assert!(ring.check(&headers(values)).is_err(), "{values:?}");
        }
        let open = KeyRing::new(&[], &[], None);
        assert!(open.check(&headers(&[])).is_ok());
    }

    #[test]
    fn only_what_is_not_fixed_is_replaced_and_nothing_opens_the_ring() {
        let ring = KeyRing::new(&["fixed".into()], &["old".into(), "both".into()], Some(1));
        let check = |key: &str| ring.check(&headers(&[format!("Bearer {key}").as_bytes()]));
        let both = check("both").expect("accepted");
        let wait = Duration::from_secs(1);
        let held = ring.permit(&both, wait).expect("the first");
        ring.replace(&["new".into(), "both".into()]);
        for (key, is_accepted) in [
            ("fixed", true),
            ("both", true),
            ("new", true),
            ("old", false),
        ] {
            assert_eq!(check(key).is_ok(), is_accepted, "{key}");
        }
        // A key in both has what it had: its requests, its limit, its cached prefixes.
        let again = check("both").expect("accepted");
        assert!(ring.permit(&again, wait).is_err());
        assert_eq!(ring.cache_salt(&both, None), ring.cache_salt(&again, None));
        drop(held);
        assert!(ring.permit(&again, wait).is_ok());
        let only = KeyRing::new(&[], &["old".into()], None);
        only.replace(&[]);
        assert!(only.check(&headers(&[])).is_err());
        assert!(only.check(&headers(&[b"Bearer old"])).is_err());
    }

    #[test]
    fn salts_differ_by_key_and_by_own_salt() {
        let ring = KeyRing::new(&["a".into(), "b".into()], &[], None);
        let caller = |key: &[u8]| ring.check(&headers(&[key])).unwrap();
        let (a, b) = (&caller(b"Bearer a"), &caller(b"Bearer b"));
        let salts = [
            ring.cache_salt(a, None),
            ring.cache_salt(b, None),
            ring.cache_salt(a, Some("x")),
            ring.cache_salt(a, Some("y")),
        ];
        for (i, salt) in salts.iter().enumerate() {
            assert!(!salts[..i].contains(salt));
        }
        assert_eq!(ring.cache_salt(a, Some("x")), salts[2]);
    }

    #[test]
    fn hosts_of_a_loopback_address() {
        let check = |host: &str, uri: &str| {
            let request = Request::builder().uri(uri).header(header::HOST, host);
            check_host(&request.body(()).unwrap()).is_ok()
        };
        for host in [
            "localhost",
            "localhost:8000",
            "127.0.0.1:1",
            "[::1]",
            "[::1]:80",
            "LocalHost:8000",
            "127.1.2.3:8000",
        ] {
            assert!(check(host, "/"), "{host}");
        }
        for host in [
            "attacker.test",
            "localhost.attacker.test",
            "127.0.0.1.nip.io",
            "x/livez?",
            "",
            "localhost:8000@attacker.test",
            "127.0.0.1:x",
            "128.0.0.1",
            "127.1",
            "[127.0.0.1]",
            "::1",
            "[::1",
            "[::2]",
        ] {
            assert!(!check(host, "/"), "{host}");
        }
        assert!(!check("localhost", "http://attacker.test/"));
    }

    #[test]
    fn origins() {
        let config = GatewayConfig {
            allowed_origins: vec!["https://chat.example".into()],
            ..GatewayConfig::new("m")
        };
        for (value, expected) in [
            (None, Origin::Own),
            (Some("http://127.0.0.1:8000"), Origin::Own),
            (Some("https://chat.example"), Origin::Allowed),
            (Some("https://chat.example.attacker.test"), Origin::Foreign),
            (Some("http://127.0.0.1:9000"), Origin::Foreign),
            (Some("null"), Origin::Foreign),
        ] {
            let mut request = Request::builder().header(header::HOST, "127.0.0.1:8000");
            if let Some(value) = value {
                request = request.header(header::ORIGIN, value);
            }
            assert_eq!(origin(&config, &request.body(()).unwrap()), expected);
        }
    }
}
