//! The [`Transport`] over HTTP, with `ureq`.

use std::io::{self, Read};
use std::net::IpAddr;
use std::time::Duration;

use ureq::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use ureq::{Agent, Body, Error};

use crate::{Download, FileMetadata, HubConfig, HubError};
use crate::{Transport, TransportError, TransportErrorKind};

type Response = ureq::http::Response<Body>;

const MAX_REDIRECTS: usize = 10;
const USER_AGENT: &str = concat!("aso-hub/", env!("CARGO_PKG_VERSION"));
const COMMIT: &str = "X-Repo-Commit";

/// Requests over HTTP(S): TLS by `rustls` with Mozilla's root certificates, proxies as
/// `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say, and none for a loopback endpoint.
///
/// Redirects are followed here and not by `ureq`, because the token may go to the endpoint only,
/// and because the answer to a HEAD that points to another host is the redirect itself.
#[derive(Debug)]
pub struct UreqTransport {
    agent: Agent,
    /// Where the token may go.
    endpoint: Uri,
    /// Marked as sensitive, so that `Debug` hides it.
    authorization: Option<HeaderValue>,
    etag_timeout: Duration,
    download_timeout: Duration,
}

impl UreqTransport {
    /// A client for `config.endpoint` with its token and timeouts.
    ///
    /// # Errors
    ///
    /// [`HubError::InvalidSetting`] for an endpoint that is no URL or a token with characters that
    /// cannot be sent.
    pub fn new(config: &HubConfig) -> Result<Self, HubError> {
        config.check("endpoint")?;
        let endpoint: Uri = config
            .endpoint
            .parse()
            .map_err(|_| HubError::InvalidSetting {
                setting: "endpoint",
                found: format!("`{}`", config.endpoint),
                expected: "a URL such as `https://huggingface.co`",
            })?;
        let authorization = match &config.token {
            None => None,
            Some(token) => {
                let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose()))
                    .map_err(|_| HubError::InvalidSetting {
                        setting: "HF_TOKEN",
                        found: "text with control characters".to_owned(),
                        expected: "a token such as `hf_…`",
                    })?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let mut agent = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(USER_AGENT);
        if is_loopback(&endpoint) {
            agent = agent.proxy(None);
        }
        Ok(Self {
            agent: agent.build().new_agent(),
            endpoint,
            authorization,
            etag_timeout: config.etag_timeout,
            download_timeout: config.download_timeout,
        })
    }

    /// Sends one request and follows redirects; returns the last answer and where it came from.
    fn request(
        &self,
        method: &Method,
        url: &str,
        offset: u64,
    ) -> Result<(Uri, Response), TransportError> {
        let mut uri: Uri = url.parse().map_err(|_| TransportError {
            host: host(&self.endpoint),
            kind: TransportErrorKind::Protocol("the file's name makes no URL".to_owned()),
        })?;
        for _ in 0..=MAX_REDIRECTS {
            let fail = |kind| TransportError {
                host: host(&uri),
                kind,
            };
            let response = self
                .send(method, &uri, offset)
                .map_err(|e| fail(classify(e)))?;
            let Some(next) = redirect(&uri, &response).map_err(fail)? else {
                return match response.status() {
                    StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok((uri, response)),
                    status => Err(fail(refusal(status, response.headers()))),
                };
            };
            // A file in large-file storage: all there is to know is in this answer's headers. An
            // answer without them comes from a mirror that passes the whole request on.
            let elsewhere = !same_origin(&uri, &next);
            if method == Method::HEAD && elsewhere && response.headers().contains_key(COMMIT) {
                return Ok((uri, response));
            }
            uri = next;
        }
        Err(TransportError {
            host: host(&uri),
            kind: TransportErrorKind::Protocol(format!("more than {MAX_REDIRECTS} redirects")),
        })
    }

    fn send(&self, method: &Method, uri: &Uri, offset: u64) -> Result<Response, Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            // The sizes and hashes are those of the plain file.
            .header(header::ACCEPT_ENCODING, "identity");
        if offset > 0 {
            request = request.header(header::RANGE, format!("bytes={offset}-"));
        }
        if let Some(value) = &self.authorization
            && same_origin(uri, &self.endpoint)
        {
            request = request.header(header::AUTHORIZATION, value);
        }
        let head = method == Method::HEAD;
        let timeout = Some(if head {
            self.etag_timeout
        } else {
            self.download_timeout
        });
        let request = self
            .agent
            .configure_request(request.body(())?)
            .timeout_resolve(timeout)
            .timeout_connect(timeout)
            .timeout_recv_response(timeout)
            .timeout_per_read(timeout)
            .build();
        self.agent.run(request)
    }
}

impl Transport for UreqTransport {
    fn head(&self, url: &str) -> Result<FileMetadata, TransportError> {
        let (uri, response) = self.request(&Method::HEAD, url, 0)?;
        let headers = response.headers();
        let missing = |name: &str| TransportError {
            host: host(&uri),
            kind: TransportErrorKind::Protocol(format!("the answer has no header {name}")),
        };
        let length = || {
            // A redirect's own length says nothing about the file.
            text(headers, "Content-Length").filter(|_| response.status().is_success())
        };
        Ok(FileMetadata {
            commit: text(headers, COMMIT)
                .ok_or_else(|| missing(COMMIT))?
                .to_owned(),
            etag: text(headers, "X-Linked-Etag")
                .or_else(|| text(headers, "ETag"))
                .map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned())
                .ok_or_else(|| missing("ETag"))?,
            size: text(headers, "X-Linked-Size")
                .or_else(length)
                .and_then(|size| size.parse().ok())
                .ok_or_else(|| missing("Content-Length"))?,
        })
    }

    fn get(&self, url: &str, offset: u64) -> Result<Download, TransportError> {
        let (uri, response) = self.request(&Method::GET, url, offset)?;
        let headers = response.headers();
        let (start, size) = if response.status() == StatusCode::PARTIAL_CONTENT {
            text(headers, "Content-Range")
                .and_then(content_range)
                .ok_or_else(|| {
                    let reason = "a partial answer without a usable Content-Range".to_owned();
                    TransportError {
                        host: host(&uri),
                        kind: TransportErrorKind::Protocol(reason),
                    }
                })?
        } else {
            (
                0,
                text(headers, "Content-Length").and_then(|size| size.parse().ok()),
            )
        };
        let body = Box::new(Stream(response.into_body().into_reader()));
        Ok(Download { start, size, body })
    }
}

/// A body whose timeouts can be told from other errors.
struct Stream<R>(R);

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0
            .read(buffer)
            .map_err(|error| match Error::from(error) {
                Error::Timeout(_) => io::ErrorKind::TimedOut.into(),
                error => error.into_io(),
            })
    }
}

/// `bytes <first>-<last>/<size>`: the first byte and the size, which may be unknown (`*`).
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, size) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    let size = if size == "*" {
        None
    } else {
        Some(size.parse().ok()?)
    };
    Some((first.parse().ok()?, size))
}

/// Where `response` sends the client, if it does.
fn redirect(from: &Uri, response: &Response) -> Result<Option<Uri>, TransportErrorKind> {
    let Some(location) = text(response.headers(), "Location")
        .filter(|_| matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308))
    else {
        return Ok(None);
    };
    let unusable = || TransportErrorKind::Protocol("a redirect to an unusable URL".to_owned());
    let to = resolve(from, location).ok_or_else(unusable)?;
    if from.scheme_str() == Some("https") && to.scheme_str() != Some("https") {
        let reason = "a redirect from https to an unencrypted connection".to_owned();
        return Err(TransportErrorKind::Protocol(reason));
    }
    Ok(Some(to))
}

/// The URL `location` means on a page at `base`.
fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let absolute = if location.contains("://") && !location.starts_with(['/', '?']) {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = base
            .path()
            .rsplit_once('/')
            .map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let uri: Uri = absolute.parse().ok()?;
    (matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()).then_some(uri)
}

fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| {
        uri.port_u16()
            .or(Some(if is_https(uri) { 443 } else { 80 }))
    };
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    is_https(a) == is_https(b) && host(a) == host(b) && port(a) == port(b)
}

fn is_https(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}

fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost"
        || host
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

/// Host and port, which is as much of a URL as may be shown: the rest can be a signature.
fn host(uri: &Uri) -> String {
    let name = uri.host().unwrap_or("an unnamed host");
    uri.port_u16()
        .map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn refusal(status: StatusCode, headers: &HeaderMap) -> TransportErrorKind {
    let seconds = text(headers, "Retry-After").and_then(|value| value.parse().ok());
    TransportErrorKind::Status {
        status: status.as_u16(),
        code: text(headers, "X-Error-Code").map(str::to_owned),
        message: text(headers, "X-Error-Message").map(|text| text.chars().take(200).collect()),
        retry_after: seconds.map(Duration::from_secs),
    }
}

fn classify(error: Error) -> TransportErrorKind {
    match error {
        Error::Timeout(_) => TransportErrorKind::Timeout,
        Error::Io(error) => match error.kind() {
            io::ErrorKind::TimedOut => TransportErrorKind::Timeout,
            // How rustls reports a certificate that does not hold.
            io::ErrorKind::InvalidData => TransportErrorKind::Protocol(error.to_string()),
            _ => TransportErrorKind::Connection(error.to_string()),
        },
        // These two show the URL.
        Error::BadUri(_) | Error::RequireHttpsOnly(_) => {
            TransportErrorKind::Protocol("unusable URL".to_owned())
        }
        error @ (Error::Tls(_) | Error::Rustls(_) | Error::Pem(_) | Error::Http(_)) => {
            TransportErrorKind::Protocol(error.to_string())
        }
        error => TransportErrorKind::Connection(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("/api/x?y=1", "https://hub.co:8443/api/x?y=1")]
    #[case("//cdn.co/x", "https://cdn.co/x")]
    #[case("http://cdn.co/x#part", "http://cdn.co/x")]
    #[case("other.json", "https://hub.co:8443/o/n/resolve/main/other.json")]
    #[case("/login?next=http://x", "https://hub.co:8443/login?next=http://x")]
    fn resolves_locations(#[case] location: &str, #[case] expected: &str) {
        let base = Uri::from_static("https://hub.co:8443/o/n/resolve/main/config.json");
        assert_eq!(resolve(&base, location).unwrap().to_string(), expected);
    }

    #[rstest]
    #[case("ftp://hub.co/x")]
    #[case("https:///x")]
    fn refuses_locations(#[case] location: &str) {
        assert_eq!(
            resolve(&Uri::from_static("https://hub.co/x"), location),
            None
        );
    }

    #[rstest]
    #[case("https://hub.co/a", "https://HUB.co:443/b", true)]
    #[case("https://hub.co/a", "http://hub.co/a", false)]
    #[case("https://hub.co/a", "https://hub.co.evil.net/a", false)]
    #[case("https://hub.co/a", "https://hub.co@evil.net/a", false)]
    #[case("http://127.0.0.1:1/a", "http://127.0.0.1:2/a", false)]
    fn origins(#[case] a: &str, #[case] b: &str, #[case] same: bool) {
        let (a, b): (Uri, Uri) = (a.parse().unwrap(), b.parse().unwrap());
        assert_eq!(same_origin(&a, &b), same);
    }

    #[rstest]
    #[case("bytes 5-9/10", Some((5, Some(10))))]
    #[case("bytes 5-9/*", Some((5, None)))]
    #[case("bytes */10", None)]
    #[case("5-9/10", None)]
    #[case("bytes x-9/10", None)]
    fn content_ranges(#[case] value: &str, #[case] expected: Option<(u64, Option<u64>)>) {
        assert_eq!(content_range(value), expected);
    }

    #[rstest]
    #[case("http://localhost:1", true)]
    #[case("http://127.0.0.1", true)]
    #[case("http://[::1]:80", true)]
    #[case("http://hub.co", false)]
    fn loopback(#[case] uri: &str, #[case] expected: bool) {
        assert_eq!(is_loopback(&uri.parse().unwrap()), expected);
    }

    #[test]
    fn debug_output_hides_the_token() {
        let mut config = HubConfig::new("cache");
        config.token = crate::Token::new("hf_secret");
        let transport = UreqTransport::new(&config).unwrap();
        assert!(!format!("{transport:?}").contains("hf_secret"));
        config.token = crate::Token::new("hf_\u{1}secret");
        let message = UreqTransport::new(&config).unwrap_err().to_string();
        assert!(
            message.contains("HF_TOKEN") && !message.contains("secret"),
            "{message}"
        );
    }
}
