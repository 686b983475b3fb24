//! One file from the server into the cache: resumed, retried, verified.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::cache::{RepoCache, create_dir, is_safe_etag};
use crate::checksum::Checksum;
use crate::id::{is_commit, percent_encode};
use crate::{
    FileMetadata, HubConfig, HubError, ModelId, Progress, RemoteFile, Transport, TransportError,
    TransportErrorKind,
};

const BUFFER: usize = 128 * 1024;
const MAX_DELAY: Duration = Duration::from_secs(30);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);

/// Where [`Progress`] goes.
pub(crate) type Report<'a> = &'a mut dyn FnMut(Progress<'_>);

/// Fetches the files of one model.
pub(crate) struct Downloader<'a> {
    pub(crate) config: &'a HubConfig,
    pub(crate) transport: &'a dyn Transport,
    pub(crate) repo: &'a RepoCache,
    pub(crate) id: &'a ModelId,
}

impl Downloader<'_> {
    /// What the server says about a file, asked up to `1 + retries` times.
    pub(crate) fn head(
        &self,
        revision: &str,
        file: &str,
        retries: u32,
        report: Report<'_>,
    ) -> Result<FileMetadata, HubError> {
        let url = self.url(revision, file);
        let mut backoff = Backoff::new(retries, self.config.retry_delay);
        let metadata = loop {
            match self.transport.head(&url) {
                Ok(metadata) => break metadata,
                Err(error) => backoff.wait(self.error(revision, file, error), file, report)?,
            }
        };
        let expected_commit = is_commit(revision).then_some(revision);
        if !is_commit(&metadata.commit) || expected_commit.is_some_and(|c| c != metadata.commit) {
            let reason = format!("it names `{}` as the commit", metadata.commit);
            return Err(HubError::BadResponse {
                at: self.at(revision, file),
                reason,
            });
        }
        if !is_safe_etag(&metadata.etag) {
            let reason = format!("its ETag is `{}`", metadata.etag);
            return Err(HubError::BadResponse {
                at: self.at(revision, file),
                reason,
            });
        }
        Ok(metadata)
    }

    /// Makes a file part of its snapshot, downloading it unless the cache has the content.
    pub(crate) fn fetch(
        &self,
        file: &str,
        metadata: &FileMetadata,
        report: Report<'_>,
    ) -> Result<(), HubError> {
        let FileMetadata { commit, etag, size } = metadata;
        let blob = self.repo.blob(etag);
        let is_whole = || blob.metadata().is_ok_and(|found| found.len() == *size);
        if !is_whole() {
            let _lock = self.repo.lock(etag)?;
            // Another process may have been faster.
            if !is_whole() {
                self.download(file, metadata, &blob, report)?;
            }
        }
        self.repo.link(commit, file, etag)?;
        report(Progress::Finished { file, size: *size });
        Ok(())
    }

    /// Downloads a blob; content that turns out wrong is thrown away and fetched once more.
    fn download(
        &self,
        file: &str,
        metadata: &FileMetadata,
        blob: &Path,
        report: Report<'_>,
    ) -> Result<(), HubError> {
        match self.download_once(file, metadata, blob, report) {
            Err(error) if error.is_corruption() => {
                tracing::warn!(%error, "downloading the file again");
                self.download_once(file, metadata, blob, report)
            }
            result => result,
        }
    }

    fn download_once(
        &self,
        file: &str,
        metadata: &FileMetadata,
        blob: &Path,
        report: Report<'_>,
    ) -> Result<(), HubError> {
        let FileMetadata { commit, etag, size } = metadata;
        let mut partial = Partial::open(self.repo.partial(etag), etag, *size)?;
        report(Progress::Started {
            file,
            size: *size,
            offset: partial.len,
        });

        let mut backoff = Backoff::new(self.config.max_retries, self.config.retry_delay);
        let mut furthest = partial.len;
        while partial.len < *size {
            if let Err(error) = self.pull(file, commit, &mut partial, report) {
                // Progress renews the patience, but not the progress of a server that cannot
                // resume and breaks off at the same place each time.
                if partial.len > furthest {
                    furthest = partial.len;
                    backoff.reset();
                }
                backoff.wait(error, file, report)?;
            }
        }

        let hash = partial.checksum.clone().finish();
        if let Some((algorithm, found)) = hash.filter(|(_, found)| found != etag) {
            partial.discard()?;
            let (at, expected) = (self.at(commit, file), etag.clone());
            return Err(HubError::HashMismatch {
                at,
                algorithm,
                expected,
                found,
            });
        }
        partial.finish(blob)
    }

    /// One GET, appended to what there is.
    fn pull(
        &self,
        file: &str,
        commit: &str,
        partial: &mut Partial,
        report: Report<'_>,
    ) -> Result<(), HubError> {
        // The file's own URL each time, not the place it last redirected to: that is signed and
        // expires.
        let mut download = self
            .transport
            .get(&self.url(commit, file), partial.len)
            .map_err(|error| self.error(commit, file, error))?;
        let size = partial.size;
        let too_long = |found| HubError::SizeMismatch {
            at: self.at(commit, file),
            expected: size,
            found,
        };
        if let Some(found) = download.size.filter(|found| *found != size) {
            return Err(too_long(found));
        }
        if download.start == 0 {
            if partial.len > 0 {
                tracing::info!(file, "the server cannot resume; starting over");
                partial.restart()?;
            }
        } else if download.start != partial.len {
            let reason = format!(
                "asked for byte {}, got byte {}",
                partial.len, download.start
            );
            return Err(HubError::BadResponse {
                at: self.at(commit, file),
                reason,
            });
        }

        let mut buffer = vec![0; BUFFER];
        loop {
            let count = match download.body.read(&mut buffer) {
                Ok(0) if partial.len < size => {
                    let reason = format!("the connection ended at byte {} of {size}", partial.len);
                    return Err(HubError::Network {
                        at: self.at(commit, file),
                        reason,
                    });
                }
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(HubError::Timeout {
                        at: self.at(commit, file),
                    });
                }
                Err(error) => {
                    let reason = format!("at byte {} of {size}: {error}", partial.len);
                    return Err(HubError::Network {
                        at: self.at(commit, file),
                        reason,
                    });
                }
            };
            let end = partial.len + count as u64;
            if end > size {
                partial.restart()?;
                return Err(too_long(end));
            }
            partial.append(&buffer[..count])?;
            report(Progress::Advanced {
                file,
                size,
                done: end,
            });
        }
    }

    fn url(&self, revision: &str, file: &str) -> String {
        let revision = percent_encode(revision, b"");
        let file = percent_encode(file, b"/");
        format!(
            "{}/{}/resolve/{revision}/{file}",
            self.config.endpoint, self.id
        )
    }

    pub(crate) fn at(&self, revision: &str, file: &str) -> Box<RemoteFile> {
        let endpoint = &self.config.endpoint;
        let rest = endpoint
            .split_once("://")
            .map_or(endpoint.as_str(), |(_, rest)| rest);
        let host = rest.split('/').next().unwrap_or(rest).to_owned();
        Box::new(RemoteFile {
            repo: self.id.clone(),
            revision: revision.to_owned(),
            file: file.to_owned(),
            host,
        })
    }

    /// A failed request in the caller's terms.
    fn error(&self, revision: &str, file: &str, error: TransportError) -> HubError {
        let mut at = self.at(revision, file);
        at.host = error.host;
        let token_sent = self.config.token.is_some();
        match error.kind {
            TransportErrorKind::Timeout => HubError::Timeout { at },
            TransportErrorKind::Connection(reason) => HubError::Network { at, reason },
            TransportErrorKind::Protocol(reason) => HubError::BadResponse { at, reason },
            TransportErrorKind::Status {
                status,
                code,
                message,
                retry_after,
            } => {
                match (code.as_deref(), status) {
                    // The Hub answers 401 for a repository that does not exist.
                    (Some("RepoNotFound"), _) => HubError::RepoNotFound { at, token_sent },
                    (Some("RevisionNotFound"), _) => HubError::RevisionNotFound { at },
                    (Some("EntryNotFound"), _) | (None, 404) => HubError::FileNotFound { at },
                    (code, 401 | 403) => {
                        let gated = code == Some("GatedRepo");
                        HubError::AccessDenied {
                            at,
                            status,
                            gated,
                            token_sent,
                        }
                    }
                    _ => HubError::Status {
                        at,
                        status,
                        message,
                        retry_after,
                    },
                }
            }
        }
    }
}

/// The pauses between repetitions of a request.
struct Backoff {
    failures: u32,
    limit: u32,
    base: Duration,
}

impl Backoff {
    fn new(limit: u32, base: Duration) -> Self {
        Self {
            failures: 0,
            limit,
            base,
        }
    }

    fn reset(&mut self) {
        self.failures = 0;
    }

    /// Waits for the next repetition, or gives `error` back where there shall be none.
    fn wait(&mut self, error: HubError, file: &str, report: Report<'_>) -> Result<(), HubError> {
        if !error.is_transient() || self.failures >= self.limit {
            return Err(error);
        }
        let factor = 2u32.saturating_pow(self.failures);
        let mut delay = self.base.saturating_mul(factor).min(MAX_DELAY);
        if let HubError::Status {
            retry_after: Some(asked),
            ..
        } = error
        {
            delay = delay.max(asked.min(MAX_RETRY_AFTER));
        }
        self.failures += 1;
        tracing::warn!(%error, attempt = self.failures, ?delay, "the request is repeated");
        report(Progress::Retrying {
            file,
            attempt: self.failures,
            delay,
        });
        thread::sleep(delay);
        Ok(())
    }
}

/// The beginning of a blob, hashed as far as it goes.
struct Partial {
    path: PathBuf,
    file: File,
    len: u64,
    size: u64,
    checksum: Checksum,
    /// The hash of nothing, for starting over.
    empty: Checksum,
}

impl Partial {
    /// Takes up what an earlier attempt, perhaps of another process, has left.
    fn open(path: PathBuf, etag: &str, size: u64) -> Result<Self, HubError> {
        if let Some(folder) = path.parent() {
            create_dir(folder)?;
        }
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|source| HubError::Io {
                path: path.clone(),
                source,
            })?;
        let empty = Checksum::new(etag, size);
        let mut partial = Self {
            path,
            file,
            len: 0,
            size,
            checksum: empty.clone(),
            empty,
        };
        partial.take_up().map_err(|source| partial.io(source))?;
        if partial.len > size {
            partial.restart()?;
        }
        Ok(partial)
    }

    fn take_up(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            match self.file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    self.checksum.update(&buffer[..count]);
                    self.len += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file
            .write_all(bytes)
            .map_err(|source| self.io(source))?;
        self.checksum.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Result<(), HubError> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .map_err(|source| self.io(source))?;
        self.len = 0;
        self.checksum = self.empty.clone();
        Ok(())
    }

    fn discard(self) -> Result<(), HubError> {
        drop(self.file);
        fs::remove_file(&self.path).map_err(|source| HubError::Io {
            path: self.path,
            source,
        })
    }

    /// Makes the content durable, then visible.
    fn finish(self, blob: &Path) -> Result<(), HubError> {
        self.file.sync_all().map_err(|source| self.io(source))?;
        drop(self.file);
        fs::rename(&self.path, blob).map_err(|source| HubError::Io {
            path: blob.to_owned(),
            source,
        })?;
        // Makes the new name durable too, where folders can be synced.
        if cfg!(unix)
            && let Some(folder) = blob.parent()
        {
            let _ = File::open(folder).and_then(|folder| folder.sync_all());
        }
        Ok(())
    }

    fn io(&self, source: io::Error) -> HubError {
        HubError::Io {
            path: self.path.clone(),
            source,
        }
    }
}
