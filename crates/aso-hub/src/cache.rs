//! One model's folder in the cache, laid out as `huggingface_hub` lays it out:
//!
//! ```text
//! <cache>/models--<organisation>--<name>/
//!     blobs/<etag>                    the files' content
//!     blobs/<etag>.incomplete         what has arrived of one
//!     refs/<revision>                 a text file with the commit the revision stood for
//!     snapshots/<commit>/<file>       a link to ../../blobs/<etag>
//!     .no_exist/<commit>/<file>       an empty file: the commit has no such file
//! <cache>/.locks/models--<organisation>--<name>/<etag>.lock
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::Builder;

use crate::id::is_commit;
use crate::{HubError, ModelId};

#[derive(Debug)]
pub(crate) struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(crate) fn new(cache_dir: &Path, id: &ModelId) -> Self {
        Self {
            folder: cache_dir.join(id.folder()),
            locks: cache_dir.join(".locks").join(id.folder()),
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    pub(crate) fn file(&self, commit: &str, file: &str) -> PathBuf {
        self.snapshot(commit).join(file)
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    pub(crate) fn partial(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Whether the commit's file is here. A link whose blob is gone does not count.
    pub(crate) fn has(&self, commit: &str, file: &str) -> bool {
        self.file(commit, file).is_file()
    }

    /// The commit `revision` stood for when it was last looked up.
    pub(crate) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Remembers what `revision` stands for. Only offline use depends on it, and the cache may be
    /// read-only, so a failure is logged and no more.
    pub(crate) fn remember(&self, revision: &str, commit: &str) {
        if self.commit_of(revision).as_deref() != Some(commit) {
            let path = self.folder.join("refs").join(revision);
            if let Err(error) = self.write(&path, commit) {
                tracing::warn!(%error, "the revision cannot be remembered for offline use");
            }
        }
    }

    fn absence(&self, commit: &str, file: &str) -> PathBuf {
        self.folder.join(".no_exist").join(commit).join(file)
    }

    /// Whether the commit is known to lack the file.
    pub(crate) fn is_absent(&self, commit: &str, file: &str) -> bool {
        self.absence(commit, file).is_file()
    }

    /// Remembers that the commit lacks the file, which saves the next request.
    pub(crate) fn mark_absent(&self, commit: &str, file: &str) {
        if let Err(error) = self.write(&self.absence(commit, file), "") {
            tracing::debug!(%error, "the absence of a file cannot be remembered");
        }
    }

    /// Makes the blob appear as the commit's file: by a link, or where neither kind of link works,
    /// by a copy.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let path = self.file(commit, file);
        if path.is_file() {
            return Ok(());
        }
        let blob = self.blob(etag);
        let mut target = PathBuf::from("../..");
        target.extend(file.split('/').skip(1).map(|_| ".."));
        target.extend(["blobs", etag]);
        self.install(&path, |temporary| place(&blob, &target, temporary))
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), HubError> {
        self.install(path, |temporary| {
            File::create_new(temporary)?.write_all(text.as_bytes())
        })
    }

    /// Lets `make` create a file or link under a temporary name and renames it to `path`, replacing
    /// what is there. The temporary name is outside of the folders that are listed by others.
    fn install(
        &self,
        path: &Path,
        make: impl FnMut(&Path) -> io::Result<()>,
    ) -> Result<(), HubError> {
        create_dir(path.parent().unwrap_or(&self.folder))?;
        Builder::new()
            .make_in(&self.folder, make)
            .and_then(|made| made.into_temp_path().persist(path).map_err(io::Error::from))
            .map_err(|source| HubError::Io {
                path: path.to_owned(),
                source,
            })
    }

    /// Waits until no other process or thread writes the blob. The lock ends with the result, or
    /// with the process.
    pub(crate) fn lock(&self, etag: &str) -> Result<File, HubError> {
        create_dir(&self.locks)?;
        let path = self.locks.join(format!("{etag}.lock"));
        let fail = |source| HubError::Io {
            path: path.clone(),
            source,
        };
        loop {
            let file = File::options()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(&path)
                .map_err(fail)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    tracing::info!(lock = %path.display(), "waiting for another download");
                    file.lock().map_err(fail)?;
                }
                // Some network file systems have no locks. The blob is still written by a rename
                // and verified before, so all that is at stake is a repeated download.
                Err(TryLockError::Error(error)) => {
                    tracing::warn!(lock = %path.display(), %error, "downloading without a lock");
                    return Ok(file);
                }
            }
            // Other programs remove the file when they are done; a lock on what they removed
            // keeps nobody out.
            if !is_unlinked(&file).map_err(fail)? {
                return Ok(file);
            }
        }
    }
}

#[cfg(unix)]
fn is_unlinked(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(file.metadata()?.nlink() == 0)
}

#[cfg(not(unix))]
fn is_unlinked(_: &File) -> io::Result<bool> {
    Ok(false)
}

fn place(blob: &Path, target: &Path, path: &Path) -> io::Result<()> {
    match symlink(target, path).or_else(|_| fs::hard_link(blob, path)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            fs::copy(blob, path).map(|_| ())
        }
        result => result,
    }
}

#[cfg(unix)]
fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(windows)]
fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    // Windows resolves a link's target without translating slashes.
    let target: PathBuf = target.components().collect();
    std::os::windows::fs::symlink_file(target, path)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn create_dir(path: &Path) -> Result<(), HubError> {
    fs::create_dir_all(path).map_err(|source| HubError::Io {
        path: path.to_owned(),
        source,
    })
}

/// Whether an ETag can name a file. Hashes can; so can the ETags of the mirrors seen so far.
pub(crate) fn is_safe_etag(etag: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !etag.is_empty() && !etag.starts_with('.') && etag.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn cache() -> (tempfile::TempDir, RepoCache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(dir.path(), &"org/name".parse().unwrap());
        fs::create_dir_all(cache.folder.join("blobs")).unwrap();
        (dir, cache)
    }

    #[test]
    fn links_are_relative_at_any_depth() {
        let (_dir, cache) = cache();
        fs::write(cache.blob("abc"), "content").unwrap();
        for file in ["config.json", "a/b/weights.safetensors"] {
            cache.link(COMMIT, file, "abc").unwrap();
            assert_eq!(
                fs::read_to_string(cache.file(COMMIT, file)).unwrap(),
                "content"
            );
        }
        #[cfg(unix)]
        assert_eq!(
            fs::read_link(cache.file(COMMIT, "config.json")).unwrap(),
            Path::new("../../blobs/abc")
        );
    }

    #[test]
    fn a_link_without_its_blob_is_replaced() {
        let (_dir, cache) = cache();
        fs::write(cache.blob("old"), "old").unwrap();
        fs::write(cache.blob("new"), "new").unwrap();
        cache.link(COMMIT, "f", "old").unwrap();
        fs::remove_file(cache.blob("old")).unwrap();
        cache.link(COMMIT, "f", "new").unwrap();
        assert_eq!(fs::read_to_string(cache.file(COMMIT, "f")).unwrap(), "new");
    }

    #[test]
    fn without_symlinks_the_content_is_there_all_the_same() {
        let (dir, cache) = cache();
        fs::write(cache.blob("abc"), "content").unwrap();
        let path = dir.path().join("copy");
        // The name of an impossible link: what follows is the hard link.
        place(&cache.blob("abc"), Path::new(""), &path).unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "content");
    }

    #[test]
    fn revisions_are_remembered() {
        let (_dir, cache) = cache();
        assert_eq!(cache.commit_of("refs/pr/1"), None);
        cache.remember("refs/pr/1", COMMIT);
        assert_eq!(cache.commit_of("refs/pr/1").as_deref(), Some(COMMIT));
        assert_eq!(
            fs::read_to_string(cache.folder.join("refs/refs/pr/1")).unwrap(),
            COMMIT
        );
        fs::write(cache.folder.join("refs/broken"), "../../elsewhere").unwrap();
        assert_eq!(cache.commit_of("broken"), None);
        assert_eq!(cache.commit_of(COMMIT).as_deref(), Some(COMMIT));
    }

    #[test]
    fn etags_that_name_files() {
        assert!(is_safe_etag(COMMIT) && is_safe_etag("5d41402abc4b2a76-3"));
        assert!(!is_safe_etag("") && !is_safe_etag("../x") && !is_safe_etag(".locks"));
    }
}
