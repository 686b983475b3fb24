//! The two requests a download consists of.

use std::fmt;
use std::io::Read;
use std::time::Duration;

/// Speaks to a Hub. Implementations send the token and follow redirects, and neither retry nor
/// verify: [`Hub`](crate::Hub) does.
pub trait Transport: Send + Sync {
    /// What `url`, a `…/resolve/<revision>/<file>`, stands for.
    ///
    /// # Errors
    ///
    /// [`TransportError`] where there is no answer or not that of a Hub.
    fn head(&self, url: &str) -> Result<FileMetadata, TransportError>;

    /// The bytes of `url` from `offset` on. A server may ignore the offset and start over, which
    /// [`Download::start`] then says.
    ///
    /// # Errors
    ///
    /// [`TransportError`] where there is no answer, or one that is not a success.
    fn get(&self, url: &str, offset: u64) -> Result<Download, TransportError>;
}

/// What the Hub says about one file at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileMetadata {
    /// The commit the revision stands for: `X-Repo-Commit`.
    pub commit: String,
    /// The hash of the content: `X-Linked-Etag`, else `ETag`, without quotes.
    pub etag: String,
    /// The size in bytes: `X-Linked-Size`, else `Content-Length`.
    pub size: u64,
}

/// A body on its way.
pub struct Download {
    /// The offset of its first byte in the file: the one asked for, or 0.
    pub start: u64,
    /// The size of the whole file, as far as this answer tells.
    pub size: Option<u64>,
    /// The bytes. A stall surfaces as [`std::io::ErrorKind::TimedOut`].
    pub body: Box<dyn Read>,
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download")
            .field("start", &self.start)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{host}: {kind}")]
pub struct TransportError {
    /// The host that was asked last.
    pub host: String,
    /// What happened.
    pub kind: TransportErrorKind,
}

/// How a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportErrorKind {
    /// The server answered with an error.
    #[error("HTTP {status}")]
    Status {
        /// The status code.
        status: u16,
        /// `X-Error-Code`: `RepoNotFound`, `RevisionNotFound`, `EntryNotFound`, `GatedRepo`.
        code: Option<String>,
        /// `X-Error-Message`.
        message: Option<String>,
        /// `Retry-After`, where it is in seconds.
        retry_after: Option<Duration>,
    },
    /// No answer in time.
    #[error("timed out")]
    Timeout,
    /// No connection, or a broken one.
    #[error("{0}")]
    Connection(String),
    /// An answer that makes no sense, or one that cannot be trusted.
    #[error("{0}")]
    Protocol(String),
}
