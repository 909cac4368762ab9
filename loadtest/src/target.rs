//! The server under test: its address, resolved once, the headers of a request to it, and one-off
//! requests on connections of their own for what is not measured.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Uri};
use tokio::net::TcpStream;

use crate::clock::Clock;
use crate::transport::{Connection, Protocol};

/// How long resolving and reaching the server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest body of a one-off answer, in bytes.
const MAX_BODY: usize = 64 << 20;

/// An `http` address: authority and path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpUrl {
    /// Host and port as written.
    pub authority: String,
    host: String,
    port: u16,
    /// Path without a slash at its end, empty at the root.
    pub path: String,
}

impl HttpUrl {
    /// Reads an address.
    pub fn parse(text: &str) -> Result<Self> {
        let uri: Uri = text
            .parse()
            .with_context(|| format!("`{text}` is not a URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                bail!("`{text}`: https is not supported, measure the server behind its TLS proxy")
            }
            _ => bail!("`{text}` is not an http:// address"),
        }
        let authority = uri
            .authority()
            .with_context(|| format!("`{text}` names no host"))?;
        if authority.as_str().contains('@') {
            bail!("credentials do not belong into the address: use --api-key");
        }
        if uri.query().is_some() {
            bail!("`{text}` has a query, which an address of a server cannot have");
        }
        Ok(Self {
            authority: authority.as_str().to_owned(),
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            path: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// The address of a server, given with or without `/v1`.
    pub fn parse_base(text: &str) -> Result<Self> {
        let mut url = Self::parse(text)?;
        if let Some(root) = url.path.strip_suffix("/v1") {
            url.path.truncate(root.len());
        }
        Ok(url)
    }

    /// The same server with another path.
    pub fn join(&self, path: &str) -> Self {
        Self {
            path: format!("{}{path}", self.path),
            ..self.clone()
        }
    }
}

impl std::fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

/// A resolved server.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its base address.
    pub url: HttpUrl,
    /// The first resolved address that accepted a connection.
    pub address: SocketAddr,
    host: HeaderValue,
    authorization: Option<HeaderValue>,
    /// What the requests of a load speak; one-off requests speak it too.
    protocol: Protocol,
    clock: Clock,
}

impl Target {
    /// Resolves `url` once and keeps the first address that accepts a connection.
    pub async fn resolve(
        url: HttpUrl,
        api_key: Option<&str>,
        protocol: Protocol,
        clock: Clock,
    ) -> Result<Self> {
        let host = HeaderValue::from_str(&url.authority)?;
        let authorization = api_key.map(bearer).transpose()?;
        let address = tokio::time::timeout(CONNECT_TIMEOUT, reachable(&url))
            .await
            .unwrap_or_else(|_| bail!("no connection within {} s", CONNECT_TIMEOUT.as_secs()))
            .with_context(|| format!("cannot reach http://{}", url.authority))?;
        Ok(Self {
            url,
            address,
            host,
            authorization,
            protocol,
            clock,
        })
    }

    /// A new connection.
    ///
    /// # Errors
    /// None comes about; the text says why.
    pub async fn connect(&self) -> Result<Connection, String> {
        Connection::open(self.address, self.protocol, self.clock).await
    }

    /// A streaming POST of `body` to `path`.
    pub fn post(&self, path: &str, body: Bytes) -> Request<Full<Bytes>> {
        self.request(Method::POST, path, "text/event-stream", body)
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        accept: &'static str,
        body: Bytes,
    ) -> Request<Full<Bytes>> {
        let has_body = !body.is_empty();
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        let url = match self.protocol {
            Protocol::Http1 => format!("{}{path}", self.url.path),
            // Its requests name the server as part of the address.
            Protocol::Http2 => format!("{}{path}", self.url),
        };
        *request.uri_mut() = url.parse().expect("a checked path is a valid URI");
        let headers = request.headers_mut();
        if self.protocol == Protocol::Http1 {
            headers.insert(HOST, self.host.clone());
        }
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("octet-loadtest/", env!("CARGO_PKG_VERSION"))),
        );
        if has_body {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        request
    }

    /// One request on a connection of its own, with status and body of the answer.
    pub async fn fetch(
        &self,
        method: Method,
        path: &str,
        accept: &'static str,
        body: Bytes,
        timeout: Duration,
    ) -> Result<(u16, Bytes)> {
        let exchange = async {
            let mut connection = self.connect().await.map_err(anyhow::Error::msg)?;
            let response = connection
                .send(self.request(method, path, accept, body))
                .await?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), MAX_BODY)
                .collect()
                .await
                .map_err(anyhow::Error::from_boxed)?;
            Ok((status, body.to_bytes()))
        };
        tokio::time::timeout(timeout, exchange)
            .await
            .unwrap_or_else(|_| bail!("no answer within {} s", timeout.as_secs_f64()))
            .with_context(|| format!("{}{path}", self.url))
    }
}

fn bearer(key: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {key}"))
        .context("the API key cannot stand in a header")?;
    value.set_sensitive(true);
    Ok(value)
}

async fn reachable(url: &HttpUrl) -> Result<SocketAddr> {
    let mut last = None;
    for address in tokio::net::lookup_host((url.host.as_str(), url.port)).await? {
        match TcpStream::connect(address).await {
            Ok(_) => return Ok(address),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| anyhow::anyhow!("the name has no address"), Into::into))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_the_api_prefix() {
        let cases = [
            ("http://h:8000", "http://h:8000"),
            ("http://h:8000/", "http://h:8000"),
            ("http://h:8000/v1", "http://h:8000"),
            ("http://h/proxy/v1/", "http://h/proxy"),
            ("http://[::1]:80/x", "http://[::1]:80/x"),
        ];
        for (text, expected) in cases {
            assert_eq!(HttpUrl::parse_base(text).unwrap().to_string(), expected);
        }
        assert_eq!(HttpUrl::parse("http://[::1]:81").unwrap().host, "::1");
        assert_eq!(HttpUrl::parse("http://h").unwrap().port, 80);
    }

    #[test]
    fn what_is_not_a_plain_http_address_is_refused() {
        let cases = [
            ("https://h", "https is not supported"),
            ("h:80", "not an http:// address"),
            ("http://u:p@h", "--api-key"),
            ("http://h/?a=1", "query"),
            ("http://h h", "not a URL"),
        ];
        for (text, part) in cases {
            let error = HttpUrl::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
