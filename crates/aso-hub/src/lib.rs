//! Hugging Face models into the standard cache: resumed, verified, and usable offline.
//!
//! ```no_run
//! use aso_hub::{DEFAULT_REVISION, Hub, HubConfig};
//!
//! let hub = Hub::new(HubConfig::from_env()?)?;
//! let id = "google-t5/t5-small".parse()?;
//! let folder = hub.snapshot(&id, DEFAULT_REVISION, &mut |progress| eprintln!("{progress:?}"))?;
//! assert!(folder.join("config.json").exists());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Hub::snapshot`] fetches what a model folder needs and nothing else: `config.json`,
//! `tokenizer.json`, the optional configuration files and chat template, and the safetensors weights,
//! in one file or in shards. The result is a folder in the cache Python's `huggingface_hub` uses, and each of the
//! two finds what the other has downloaded.
//!
//! # Why not `hf-hub`
//!
//! The official client, version 1.0, falls short of a trainer's needs in three ways, each of which
//! costs hours on a model of many gigabytes:
//!
//! 1. It does not resume: a download that breaks starts at byte 0. Here it goes on where it
//!    stopped, also in a later process.
//! 2. It does not check what it caches. The status of the download, its length and its hash go
//!    unread, so that a proxy's error page becomes "the weights" for good. Here a file enters the
//!    cache with the announced size and hash or not at all.
//! 3. It does not know `HF_HUB_OFFLINE`, and brings 225 crates with an asynchronous runtime and a
//!    C library. Here offline mode makes no request and says which files are missing, and the
//!    client is [`ureq`](https://docs.rs/ureq) with `rustls`.
//!
//! # Guarantees
//!
//! - **One commit.** The revision is resolved once; every file comes from the resulting commit.
//! - **Verified.** Size always; SHA-256 for files in large-file storage and the git blob id for all
//!   others, while they arrive. Wrong bytes are thrown away and fetched once more.
//! - **Atomic.** A file is written beside its place, synced and renamed. A lock per file, the one
//!   `huggingface_hub` takes, keeps processes from downloading the same thing twice.
//! - **Patient.** Broken connections, stalls, 5xx and 429 are repeated with growing pauses, as
//!   [`HubConfig`] says. Where the server is out of reach, a complete cached model does.
//! - **Discreet.** The token goes to the endpoint and to no host it redirects to, and is in no
//!   error, log or `Debug` output.
//!
//! # Modules
//!
//! | item | is |
//! |---|---|
//! | [`Hub`] | the entry point |
//! | [`HubConfig`], [`Token`] | settings, from the environment |
//! | [`ModelId`] | `organisation/name` |
//! | [`Progress`] | what a progress bar needs |
//! | [`Transport`], `UreqTransport` | the requests; the latter with the cargo feature `http` (default) |
//! | [`HubError`] | what can go wrong |

mod cache;
mod checksum;
mod config;
mod download;
mod error;
#[cfg(feature = "http")]
mod http;
mod hub;
mod id;
mod transport;

pub use config::{HubConfig, Token};
pub use error::{HubError, NoRequest, RemoteFile};
#[cfg(feature = "http")]
pub use http::UreqTransport;
pub use hub::{Hub, Progress};
pub use id::{DEFAULT_REVISION, InvalidModelId, ModelId};
pub use transport::{Download, FileMetadata, Transport, TransportError, TransportErrorKind};
