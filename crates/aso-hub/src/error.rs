//! What can go wrong between a model's id and a folder of files.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::ModelId;

/// A file on a server, as errors name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// The model.
    pub repo: ModelId,
    /// The branch, tag or commit that was asked for.
    pub revision: String,
    /// The file's path in the repository.
    pub file: String,
    /// The host that was asked, which differs from the endpoint's after a redirect.
    pub host: String,
}

impl fmt::Display for RemoteFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            repo,
            revision,
            file,
            host,
        } = self;
        write!(f, "`{file}` of `{repo}`, revision `{revision}`, at {host}")
    }
}

/// Why no request was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoRequest {
    /// [`HubConfig::offline`](crate::HubConfig::offline) is set.
    Offline,
    /// The crate was built without its `http` feature.
    NotCompiledIn,
    /// [`Hub::cached`](crate::Hub::cached) was asked.
    CacheOnly,
}

impl fmt::Display for NoRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Offline => "offline mode (HF_HUB_OFFLINE) allows no download",
            Self::NotCompiledIn => "downloading is not compiled in (cargo feature `http`)",
            Self::CacheOnly => "only the cache was searched",
        })
    }
}

/// Errors of this crate. None of them ever holds the token or a full URL.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A setting or environment variable cannot be used.
    #[error("{setting} is {found}; expected {expected}")]
    InvalidSetting {
        /// The variable or field.
        setting: &'static str,
        /// Its value, unless that is secret.
        found: String,
        /// What would do.
        expected: &'static str,
    },
    /// No variable says where the cache is.
    #[error("no folder for models: set HF_HOME or HF_HUB_CACHE (there is no home folder)")]
    NoCacheDir,
    /// A revision that no branch, tag or commit can have.
    #[error("`{revision}` is not a revision; expected a branch, a tag or a commit hash")]
    InvalidRevision {
        /// What was given.
        revision: String,
    },
    /// The server knows no such model, or does not admit it to this user.
    #[error("{at}: no such repository, or it is private or gated{}", access_hint(*.token_sent))]
    RepoNotFound {
        /// What was asked for.
        at: Box<RemoteFile>,
        /// Whether a token was sent.
        token_sent: bool,
    },
    /// The model exists, its revision does not.
    #[error("{at}: no such branch, tag or commit")]
    RevisionNotFound {
        /// What was asked for.
        at: Box<RemoteFile>,
    },
    /// The revision exists and lacks a file that a model needs.
    #[error("{at}: no such file")]
    FileNotFound {
        /// What was asked for.
        at: Box<RemoteFile>,
    },
    /// The repository holds no weights that could be read.
    #[error(
        "{at}: no such file, and no `model.safetensors.index.json` either; \
         weights in other formats are not read"
    )]
    NoWeights {
        /// `model.safetensors`, which was asked for first.
        at: Box<RemoteFile>,
    },
    /// The server refuses access: 401 or 403.
    #[error(
        "{at}: access denied (HTTP {status}{}){}",
        if *.gated { ", gated model" } else { "" },
        access_hint(*.token_sent)
    )]
    AccessDenied {
        /// What was asked for.
        at: Box<RemoteFile>,
        /// 401 or 403.
        status: u16,
        /// Whether the model's owner has to grant access.
        gated: bool,
        /// Whether a token was sent.
        token_sent: bool,
    },
    /// The cache lacks files, and no request was made.
    #[error(
        "`{repo}`, revision `{revision}`: {reason}, and {} {} missing in {}",
        .missing.iter().map(|file| format!("`{file}`")).collect::<Vec<_>>().join(", "),
        if .missing.len() == 1 { "is" } else { "are" },
        .folder.display()
    )]
    NotCached {
        /// The model.
        repo: ModelId,
        /// The branch, tag or commit.
        revision: String,
        /// The files that are not there. `model.safetensors` stands for the weights where neither
        /// it nor an index is cached.
        missing: Vec<String>,
        /// Where they were looked for: the snapshot, or the model's folder where the cache does
        /// not know the revision.
        folder: PathBuf,
        /// Why they were not downloaded.
        reason: NoRequest,
    },
    /// A body is not as long as the server said.
    #[error("{at}: expected {expected} bytes, the server sends {found}")]
    SizeMismatch {
        /// The file.
        at: Box<RemoteFile>,
        /// The announced size in bytes.
        expected: u64,
        /// The size of what came.
        found: u64,
    },
    /// A body has the right length and the wrong content, twice in a row.
    #[error("{at}: expected {algorithm} {expected}, the received bytes have {found}")]
    HashMismatch {
        /// The file.
        at: Box<RemoteFile>,
        /// `SHA-256`, or `git SHA-1` for small files.
        algorithm: &'static str,
        /// The announced hash in hexadecimal digits.
        expected: String,
        /// The hash of what came.
        found: String,
    },
    /// The server answers with an error.
    #[error(
        "{at}: HTTP {status}{}",
        .message.as_ref().map(|message| format!(": {message}")).unwrap_or_default()
    )]
    Status {
        /// What was asked for.
        at: Box<RemoteFile>,
        /// The status code.
        status: u16,
        /// The server's explanation.
        message: Option<String>,
        /// How long the server asks to wait.
        retry_after: Option<Duration>,
    },
    /// The server does not answer, or stops in the middle of a body.
    #[error("{at}: timed out (HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT set the limits)")]
    Timeout {
        /// What was asked for.
        at: Box<RemoteFile>,
    },
    /// The server cannot be reached, or the connection breaks.
    #[error("{at}: {reason}")]
    Network {
        /// What was asked for.
        at: Box<RemoteFile>,
        /// What happened.
        reason: String,
    },
    /// An answer that no Hub gives: a proxy, a portal, a wrong endpoint.
    #[error("{at}: not the answer of a Hugging Face Hub: {reason}")]
    BadResponse {
        /// What was asked for.
        at: Box<RemoteFile>,
        /// What is wrong with it.
        reason: String,
    },
    /// A shard index that cannot be used.
    #[error("{}: not a usable index of shards: {reason}", .path.display())]
    BadIndex {
        /// The index file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The cache cannot be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

fn access_hint(token_sent: bool) -> &'static str {
    if token_sent {
        "; the token that was sent (HF_TOKEN or the token file) may not read it"
    } else {
        "; no token was sent: set HF_TOKEN to one that may read it"
    }
}

impl HubError {
    /// Whether the same request may well succeed a little later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Network { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
            _ => false,
        }
    }

    /// Whether the server could not be asked, which says nothing about the model.
    pub(crate) fn is_outage(&self) -> bool {
        self.is_transient() || matches!(self, Self::BadResponse { .. })
    }

    /// Whether the bytes received are not the bytes announced.
    pub(crate) fn is_corruption(&self) -> bool {
        matches!(self, Self::SizeMismatch { .. } | Self::HashMismatch { .. })
    }
}
