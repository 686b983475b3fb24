//! From a model's id to a folder with its files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::cache::RepoCache;
use crate::download::{Downloader, Report};
use crate::id::{is_commit, is_safe_path};
use crate::{FileMetadata, HubConfig, HubError, ModelId, NoRequest, Transport};

const CONFIG: &str = "config.json";
const REQUIRED: [&str; 2] = [CONFIG, "tokenizer.json"];
const OPTIONAL: [&str; 3] = [
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// What a download is doing. Sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// Every file still to come is known. The index of sharded weights is fetched before.
    Planned {
        /// How many files there are to fetch.
        files: usize,
        /// Their sizes together; less may be transferred, as parts can be cached.
        bytes: u64,
    },
    /// A file's transfer starts or, after bytes that turned out wrong, starts again.
    Started {
        /// The file.
        file: &'a str,
        /// Its size.
        size: u64,
        /// How much of it an earlier attempt has left.
        offset: u64,
    },
    /// Bytes have arrived.
    Advanced {
        /// The file.
        file: &'a str,
        /// Its size.
        size: u64,
        /// How much of it is here. It falls where a server cannot resume.
        done: u64,
    },
    /// A request has failed and is repeated after a pause.
    Retrying {
        /// The file.
        file: &'a str,
        /// How many requests have failed in a row.
        attempt: u32,
        /// The pause.
        delay: Duration,
    },
    /// A file is verified and in place.
    Finished {
        /// The file.
        file: &'a str,
        /// Its size.
        size: u64,
    },
}

/// Finds models in the cache and downloads what is missing.
pub struct Hub {
    config: HubConfig,
    transport: Option<Box<dyn Transport>>,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Hub {
    /// A hub that downloads over HTTP, or one without the `http` feature that only reads the cache.
    ///
    /// # Errors
    ///
    /// [`HubError::InvalidSetting`] for an unusable endpoint or token.
    pub fn new(config: HubConfig) -> Result<Self, HubError> {
        #[cfg(feature = "http")]
        let transport: Option<Box<dyn Transport>> =
            Some(Box::new(crate::UreqTransport::new(&config)?));
        #[cfg(not(feature = "http"))]
        let transport = None;
        Ok(Self { config, transport })
    }

    /// A hub whose requests go through `transport`, which also has to send the token.
    ///
    /// # Errors
    ///
    /// [`HubError::InvalidSetting`] for an unusable endpoint.
    pub fn with_transport(
        config: HubConfig,
        transport: Box<dyn Transport>,
    ) -> Result<Self, HubError> {
        config.check("endpoint")?;
        Ok(Self {
            config,
            transport: Some(transport),
        })
    }

    /// The settings.
    pub fn config(&self) -> &HubConfig {
        &self.config
    }

    /// The folder with the files of `id` at `revision` (a branch such as
    /// [`DEFAULT_REVISION`](crate::DEFAULT_REVISION), a tag, or a commit), after downloading those
    /// that are missing:
    ///
    /// - `config.json` and `tokenizer.json`;
    /// - `generation_config.json`, `tokenizer_config.json` and `chat_template.jinja`, where the model
    ///   has them;
    /// - `model.safetensors`, or else `model.safetensors.index.json` and the shards it names.
    ///
    /// All come from one commit: the one `revision` stands for now. A complete snapshot of a
    /// commit given by its full hash costs no request, and one of an unchanged branch one. Where
    /// the server cannot be reached, the last complete snapshot of the revision is used, with a
    /// warning. What was transferred before a failure or a kill is resumed by the next call.
    ///
    /// # Errors
    ///
    /// [`HubError`], which names the model, the revision, the file and the host;
    /// [`HubError::NotCached`] in offline mode.
    pub fn snapshot(
        &self,
        id: &ModelId,
        revision: &str,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PathBuf, HubError> {
        check_revision(revision)?;
        let repo = RepoCache::new(&self.config.cache_dir, id);
        if self.config.offline {
            return find(&repo, id, revision, NoRequest::Offline);
        }
        let Some(transport) = self.transport.as_deref() else {
            return find(&repo, id, revision, NoRequest::NotCompiledIn);
        };
        if is_commit(revision) && is_settled(&repo, revision)? {
            return Ok(repo.snapshot(revision));
        }
        let cached = find(&repo, id, revision, NoRequest::CacheOnly).ok();
        let downloader = Downloader {
            config: &self.config,
            transport,
            repo: &repo,
            id,
        };
        match (
            download(&downloader, revision, cached.is_some(), progress),
            cached,
        ) {
            (Err(error), Some(cached)) if error.is_outage() => {
                tracing::warn!(%error, folder = %cached.display(), "using the cached model");
                Ok(cached)
            }
            (result, _) => result,
        }
    }

    /// The folder [`Hub::snapshot`] would return, without any request.
    ///
    /// # Errors
    ///
    /// [`HubError::NotCached`] lists the files that are missing.
    pub fn cached(&self, id: &ModelId, revision: &str) -> Result<PathBuf, HubError> {
        check_revision(revision)?;
        let repo = RepoCache::new(&self.config.cache_dir, id);
        find(&repo, id, revision, NoRequest::CacheOnly)
    }
}

/// Brings the snapshot of what `revision` stands for up to date. `has_fallback` says that there is
/// something to use should the server be unreachable, so that patience is not called for.
fn download(
    hub: &Downloader<'_>,
    revision: &str,
    has_fallback: bool,
    report: Report<'_>,
) -> Result<PathBuf, HubError> {
    let (repo, retries) = (hub.repo, hub.config.max_retries);
    let mut pending: Vec<(String, FileMetadata)> = Vec::new();

    let commit = if is_commit(revision) && repo.has(revision, CONFIG) {
        revision.to_owned()
    } else {
        let retries = if has_fallback { 0 } else { retries };
        let metadata = hub.head(revision, CONFIG, retries, report)?;
        let commit = metadata.commit.clone();
        if is_settled(repo, &commit)? {
            repo.remember(revision, &commit);
            return Ok(repo.snapshot(&commit));
        }
        if !repo.has(&commit, CONFIG) {
            pending.push((CONFIG.to_owned(), metadata));
        }
        commit
    };
    let commit = commit.as_str();
    // An older snapshot stays the one to use offline until this one is complete.
    if repo.commit_of(revision).is_none() {
        repo.remember(revision, commit);
    }

    for file in REQUIRED.into_iter().filter(|file| *file != CONFIG) {
        if !repo.has(commit, file) {
            pending.push((file.to_owned(), hub.head(commit, file, retries, report)?));
        }
    }
    for file in OPTIONAL {
        if let Some(metadata) = head_optional(hub, commit, file, report)? {
            pending.push((file.to_owned(), metadata));
        }
    }
    if !repo.has(commit, WEIGHTS) {
        let single = if repo.has(commit, INDEX) {
            None
        } else {
            head_optional(hub, commit, WEIGHTS, report)?
        };
        if let Some(metadata) = single {
            pending.push((WEIGHTS.to_owned(), metadata));
        } else {
            if !repo.has(commit, INDEX) {
                let index = head_optional(hub, commit, INDEX, report)?.ok_or_else(|| {
                    HubError::NoWeights {
                        at: hub.at(revision, WEIGHTS),
                    }
                })?;
                hub.fetch(INDEX, &index, report)?;
            }
            for shard in shards(&repo.file(commit, INDEX))? {
                if !repo.has(commit, &shard) {
                    let metadata = hub.head(commit, &shard, retries, report)?;
                    pending.push((shard, metadata));
                }
            }
        }
    }

    report(Progress::Planned {
        files: pending.len(),
        bytes: pending.iter().map(|(_, metadata)| metadata.size).sum(),
    });
    for (file, metadata) in &pending {
        hub.fetch(file, metadata, report)?;
    }
    repo.remember(revision, commit);
    Ok(repo.snapshot(commit))
}

/// The metadata of a file that is not cached and that the commit may lack.
fn head_optional(
    hub: &Downloader<'_>,
    commit: &str,
    file: &str,
    report: Report<'_>,
) -> Result<Option<FileMetadata>, HubError> {
    if hub.repo.has(commit, file) || hub.repo.is_absent(commit, file) {
        return Ok(None);
    }
    match hub.head(commit, file, hub.config.max_retries, report) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(HubError::FileNotFound { .. }) => {
            hub.repo.mark_absent(commit, file);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The cached snapshot of `revision`, if it is complete.
fn find(
    repo: &RepoCache,
    id: &ModelId,
    revision: &str,
    reason: NoRequest,
) -> Result<PathBuf, HubError> {
    let (folder, missing) = match repo.commit_of(revision) {
        Some(commit) => (repo.snapshot(&commit), missing_files(repo, &commit)?),
        None => {
            let files = REQUIRED.into_iter().chain([WEIGHTS]).map(str::to_owned);
            (repo.folder().to_owned(), files.collect())
        }
    };
    if missing.is_empty() {
        return Ok(folder);
    }
    let (repo, revision) = (id.clone(), revision.to_owned());
    Err(HubError::NotCached {
        repo,
        revision,
        missing,
        folder,
        reason,
    })
}

/// The files a model cannot do without and the cached snapshot lacks.
fn missing_files(repo: &RepoCache, commit: &str) -> Result<Vec<String>, HubError> {
    let mut files: Vec<String> = REQUIRED.map(str::to_owned).into();
    if !repo.has(commit, WEIGHTS) && repo.has(commit, INDEX) {
        files.extend(shards(&repo.file(commit, INDEX))?);
    } else {
        files.push(WEIGHTS.to_owned());
    }
    files.retain(|file| !repo.has(commit, file));
    Ok(files)
}

/// Whether the server could add nothing to the cached snapshot.
fn is_settled(repo: &RepoCache, commit: &str) -> Result<bool, HubError> {
    let known = |file: &str| repo.has(commit, file) || repo.is_absent(commit, file);
    Ok(OPTIONAL.into_iter().all(known) && missing_files(repo, commit)?.is_empty())
}

/// The part of a shard index that names files.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// The files an index names, each once.
fn shards(path: &Path) -> Result<BTreeSet<String>, HubError> {
    let fail = |reason| HubError::BadIndex {
        path: path.to_owned(),
        reason,
    };
    let bytes = fs::read(path).map_err(|source| HubError::Io {
        path: path.to_owned(),
        source,
    })?;
    let index: ShardIndex =
        serde_json::from_slice(&bytes).map_err(|error| fail(error.to_string()))?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    if shards.is_empty() {
        return Err(fail("its `weight_map` is empty".to_owned()));
    }
    // The names become paths on this machine.
    match shards
        .iter()
        .find(|name| !is_safe_path(name) || !name.ends_with(".safetensors"))
    {
        Some(name) => Err(fail(format!(
            "`{name}` is not the name of a safetensors shard"
        ))),
        None => Ok(shards),
    }
}

fn check_revision(revision: &str) -> Result<(), HubError> {
    if is_safe_path(revision) && !revision.chars().any(char::is_control) {
        return Ok(());
    }
    Err(HubError::InvalidRevision {
        revision: revision.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A cache with the given files in one snapshot, and `main` standing for it.
    fn cache(files: &[&str]) -> (tempfile::TempDir, ModelId) {
        let dir = tempfile::tempdir().unwrap();
        let id: ModelId = "org/name".parse().unwrap();
        let repo = RepoCache::new(dir.path(), &id);
        fs::create_dir_all(repo.snapshot(COMMIT)).unwrap();
        for file in files {
            let shards = r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
            fs::write(repo.file(COMMIT, file), shards).unwrap();
        }
        repo.remember("main", COMMIT);
        (dir, id)
    }

    #[rstest]
    #[case(&["config.json", "tokenizer.json", WEIGHTS], &[])]
    #[case(&["config.json", "tokenizer.json", INDEX, "1.safetensors", "2.safetensors"], &[])]
    #[case(&["config.json", "tokenizer.json"], &[WEIGHTS])]
    #[case(&["config.json", INDEX, "2.safetensors"], &["tokenizer.json", "1.safetensors"])]
    fn a_cached_model_needs_no_request(#[case] files: &[&str], #[case] absent: &[&str]) {
        let (dir, id) = cache(files);
        let hub = Hub::new(HubConfig::new(dir.path())).unwrap();
        match hub.cached(&id, "main") {
            Ok(folder) => {
                assert!(absent.is_empty());
                assert_eq!(
                    folder,
                    dir.path().join("models--org--name/snapshots").join(COMMIT)
                );
            }
            Err(HubError::NotCached {
                missing, folder, ..
            }) => {
                assert_eq!(missing, absent);
                assert!(folder.ends_with(COMMIT));
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[cfg(not(feature = "http"))]
    #[test]
    fn without_http_only_the_cache_is_used() {
        let (dir, id) = cache(&["config.json", "tokenizer.json", WEIGHTS]);
        let hub = Hub::new(HubConfig::new(dir.path())).unwrap();
        assert!(hub.snapshot(&id, "main", &mut |_| {}).is_ok());
        let message = hub
            .snapshot(&id, "other", &mut |_| {})
            .unwrap_err()
            .to_string();
        assert!(message.contains("not compiled in"), "{message}");
    }

    #[rstest]
    #[case(
        r#"{"weight_map": {"w": "../../../../outside.safetensors"}}"#,
        "outside"
    )]
    #[case(r#"{"weight_map": {"w": "/etc/x.safetensors"}}"#, "/etc/x")]
    #[case(r#"{"weight_map": {"w": "C:\\x.safetensors"}}"#, "C:")]
    #[case(r#"{"weight_map": {"w": "run.sh"}}"#, "run.sh")]
    #[case(r#"{"weight_map": {}}"#, "empty")]
    #[case(r#"{"metadata": {}}"#, "weight_map")]
    #[case("<html>", "expected value")]
    fn refuses_an_index(#[case] json: &str, #[case] reason: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(INDEX);
        fs::write(&path, json).unwrap();
        let message = shards(&path).unwrap_err().to_string();
        assert!(
            message.contains(reason) && message.contains(INDEX),
            "{message}"
        );
    }

    #[rstest]
    #[case("main", true)]
    #[case("refs/pr/1", true)]
    #[case("v1.0", true)]
    #[case("", false)]
    #[case("../main", false)]
    #[case("/main", false)]
    #[case("a\nb", false)]
    fn revisions(#[case] revision: &str, #[case] valid: bool) {
        assert_eq!(check_revision(revision).is_ok(), valid);
    }
}
