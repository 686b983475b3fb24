//! Files that are whole or absent, the lock of a run directory, and the log of steps.
//!
//! A process may be killed at any moment, so nothing is written in place: a file or folder is
//! written under a temporary name (`NAME.tmp-..`) beside its final one, flushed to disk and
//! renamed. Temporary names that a killed process leaves behind are removed when the run directory
//! is opened again.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The file whose lock marks a run directory as in use. It is never deleted.
pub const LOCK_FILE: &str = "run.lock";

/// The resolved configuration, the first file that a run writes.
pub const CONFIG_FILE: &str = "config.toml";

/// What names of unfinished files and folders contain.
pub(crate) const TEMPORARY: &str = ".tmp-";

/// What can go wrong with the files of a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    /// A file or folder could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A JSON file does not parse, or a value has no JSON form.
    #[error("{path}: {source}", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        source: serde_json::Error,
    },
    /// Another process works in the directory.
    #[error("{path}: the directory is in use by another process", path = path.display())]
    InUse {
        /// The run directory.
        path: PathBuf,
    },
    /// A new run would be mixed with files that are already there.
    #[error("{path}: the directory is not empty; choose another one, or continue its run with --resume", path = path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The directory to resume holds something else than a run.
    #[error("{path}: there is no run to resume: the directory holds files but no {CONFIG_FILE}", path = path.display())]
    NotARun {
        /// The directory.
        path: PathBuf,
    },
    /// A path has no file name, such as `/` or `..`.
    #[error("{path}: expected a path that ends in a name", path = path.display())]
    NoName {
        /// The path.
        path: PathBuf,
    },
}

/// Names the file in an input/output error.
fn at(path: &Path) -> impl FnOnce(io::Error) -> FilesError {
    move |source| FilesError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Writes a file so that it holds either its old content or `bytes`, even after a crash or a power
/// cut. A link is followed; what is no file, such as `/dev/stdout`, is written into.
///
/// # Errors
/// [`FilesError::Io`] names the path; the old content is then unchanged.
pub fn atomic_write(path: &Path, bytes: &[u8]) -> Result<(), FilesError> {
    if fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        let mut file = File::options().write(true).open(path).map_err(at(path))?;
        return file.write_all(bytes).map_err(at(path));
    }
    let target = match path.is_symlink() && path.exists() {
        true => fs::canonicalize(path).map_err(at(path))?,
        false => path.to_owned(),
    };
    let path = target.as_path();
    let folder = parent(path);
    // `create_new` gives the usual permissions, where a temporary file would be private.
    let mut file = tempfile::Builder::new()
        .prefix(&temporary_name(path)?)
        .rand_bytes(RANDOM)
        .make_in(folder, |path| File::create_new(path))
        .map_err(at(path))?;
    file.write_all(bytes).map_err(at(path))?;
    file.as_file().sync_all().map_err(at(path))?;
    file.persist(path).map_err(|error| at(path)(error.error))?;
    sync_folder(folder)
}

/// Makes a folder, and those that it lies in, where it is missing.
///
/// # Errors
/// [`FilesError::Io`] names the folder.
pub fn create_dir_all(dir: &Path) -> Result<(), FilesError> {
    fs::create_dir_all(dir).map_err(at(dir))
}

/// [`atomic_write`] of a file whose folder may be missing.
///
/// # Errors
/// Those of [`create_dir_all`] and [`atomic_write`].
pub(crate) fn write_with_folder(path: &Path, bytes: &[u8]) -> Result<(), FilesError> {
    create_dir_all(parent(path))?;
    atomic_write(path, bytes)
}

/// [`atomic_write`] of a value as indented JSON.
///
/// # Errors
/// [`FilesError::Json`] when the value has no JSON form, else as [`atomic_write`].
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), FilesError> {
    let json = |source| FilesError::Json {
        path: path.to_owned(),
        source,
    };
    let mut bytes = serde_json::to_vec_pretty(value).map_err(json)?;
    bytes.push(b'\n');
    atomic_write(path, &bytes)
}

/// Reads a JSON file.
///
/// # Errors
/// [`FilesError::Io`] or [`FilesError::Json`], with the path.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, FilesError> {
    let bytes = fs::read(path).map_err(at(path))?;
    serde_json::from_slice(&bytes).map_err(|source| FilesError::Json {
        path: path.to_owned(),
        source,
    })
}

/// Writes a folder as a whole: `fill` gets a temporary folder, which takes the name `path` once
/// everything in it is on disk. When `fill` fails, the temporary folder is removed and nothing else
/// has changed.
///
/// A folder that exists is replaced. A crash between the two renames of a replacement leaves no
/// folder of that name: give what must never be missing a new name each time and publish it by
/// [`atomic_write`] of a file that names it.
///
/// # Errors
/// Those of `fill`, and [`FilesError::Io`] with the path.
pub fn atomic_dir<T, E: From<FilesError>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    let temporary = TemporaryFolder::new(path)?;
    let value = fill(&temporary.path)?;
    sync_tree(&temporary.path)?;
    if path.symlink_metadata().is_ok() {
        let old = TemporaryFolder::new(path)?;
        let aside = old.path.join("old");
        fs::rename(path, &aside).map_err(at(path))?;
        if let Err(source) = fs::rename(&temporary.path, path) {
            let _ = fs::rename(&aside, path);
            return Err(at(path)(source).into());
        }
    } else {
        fs::rename(&temporary.path, path).map_err(at(path))?;
    }
    sync_folder(parent(path))?;
    Ok(value)
}

/// A folder `NAME.tmp-..` beside `NAME` that is removed unless it was renamed.
struct TemporaryFolder {
    path: PathBuf,
}

impl TemporaryFolder {
    fn new(beside: &Path) -> Result<Self, FilesError> {
        // Not `tempdir_in`, whose folders are private.
        let folder = tempfile::Builder::new()
            .prefix(&temporary_name(beside)?)
            .rand_bytes(RANDOM)
            .make_in(parent(beside), |path| fs::create_dir(path))
            .map_err(at(beside))?;
        let path = folder
            .into_temp_path()
            .keep()
            .map_err(|error| at(beside)(error.error))?;
        Ok(Self { path })
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // Gone after a rename; what cannot be removed now is removed by the next `open_run_dir`.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The lock of a run directory, held until dropped. The operating system frees it when the process
/// ends, however it ends, so that no stale file can block a directory.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Locks `dir`, which must exist, by its `run.lock`.
    ///
    /// # Errors
    /// [`FilesError::InUse`] when another process (or another lock of this one) holds it.
    pub fn acquire(dir: &Path) -> Result<Self, FilesError> {
        let path = dir.join(LOCK_FILE);
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(at(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(FilesError::InUse {
                path: dir.to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(FilesError::Io { path, source }),
        }
    }
}

/// A locked run directory.
#[derive(Debug)]
pub struct RunDir {
    /// The directory.
    pub path: PathBuf,
    /// Whether a run was started there before: its `config.toml` exists.
    pub started: bool,
    /// Held as long as the run works in the directory.
    pub lock: RunLock,
}

/// Creates or opens, locks and tidies a run directory.
///
/// A missing or empty directory starts a run, with or without `resume`. A directory that holds
/// anything but `run.lock` and temporary files is refused without `resume`; with `resume` it must
/// hold a `config.toml`.
///
/// # Errors
/// [`FilesError::InUse`], [`FilesError::NotEmpty`], [`FilesError::NotARun`] or [`FilesError::Io`];
/// each names the directory, and a refused directory is left as it was.
pub fn prepare_run_dir(dir: &Path, resume: bool) -> Result<RunDir, FilesError> {
    create_dir_all(dir)?;
    // A directory in use is reported as such, whatever it holds; a foreign one gets no lock file.
    if !dir.join(LOCK_FILE).exists() {
        check_content(dir, resume)?;
    }
    let lock = RunLock::acquire(dir)?;
    check_content(dir, resume)?;
    remove_temporary(dir)?;
    let started = dir.join(CONFIG_FILE).exists();
    Ok(RunDir {
        path: dir.to_owned(),
        started,
        lock,
    })
}

/// Whether a run was started in `dir`, which must exist; refused as by [`prepare_run_dir`], but nothing is
/// locked or written.
///
/// # Errors
/// [`FilesError::NotEmpty`], [`FilesError::NotARun`] or [`FilesError::Io`].
pub fn check_run_dir(dir: &Path, resume: bool) -> Result<bool, FilesError> {
    check_content(dir, resume)?;
    Ok(dir.join(CONFIG_FILE).exists())
}

/// Whether another process, or another lock of this one, works in `dir`.
///
/// # Errors
/// [`FilesError::Io`].
pub fn in_use(dir: &Path) -> Result<bool, FilesError> {
    if !dir.join(LOCK_FILE).exists() {
        return Ok(false);
    }
    match RunLock::acquire(dir) {
        Ok(_) => Ok(false),
        Err(FilesError::InUse { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

fn check_content(dir: &Path, resume: bool) -> Result<(), FilesError> {
    let path = || dir.to_owned();
    let used = entries(dir)?
        .iter()
        .any(|name| name != LOCK_FILE && !is_temporary(name));
    match (used, resume) {
        (true, false) => Err(FilesError::NotEmpty { path: path() }),
        (true, true) if !dir.join(CONFIG_FILE).exists() => {
            Err(FilesError::NotARun { path: path() })
        }
        _ => Ok(()),
    }
}

/// Removes the temporary files and folders below `dir`.
fn remove_temporary(dir: &Path) -> Result<(), FilesError> {
    for name in entries(dir)? {
        let path = dir.join(&name);
        let kind = path.symlink_metadata().map_err(at(&path))?.file_type();
        if is_temporary(&name) {
            tracing::debug!(path = %path.display(), "removing what an interrupted run left");
            let removed = if kind.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.map_err(at(&path))?;
        } else if kind.is_dir() {
            remove_temporary(&path)?;
        }
    }
    Ok(())
}

/// An append-only log with one JSON object a line, such as `metrics.jsonl`.
///
/// A line reaches the operating system in one write when it is appended, so killing the process
/// loses none. A checkpoint stores [`MetricsLog::lines`]; opening the log with that number drops
/// what came later.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
    lines: u64,
}

impl MetricsLog {
    /// Opens or creates the log and keeps its first `keep` lines. An incomplete last line is never
    /// kept.
    ///
    /// # Errors
    /// [`FilesError::Io`] names the file.
    pub fn open(path: &Path, keep: u64) -> Result<Self, FilesError> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(at(path))?;
        let mut reader = BufReader::new(file);
        let (mut lines, mut length, mut line) = (0, 0, Vec::new());
        while lines < keep {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(at(path))?;
            if line.last() != Some(&b'\n') {
                break;
            }
            lines += 1;
            length += read as u64;
        }
        if lines < keep {
            tracing::warn!(path = %path.display(), expected = keep, found = lines, "log lines are missing");
        }
        let mut file = reader.into_inner();
        file.set_len(length).map_err(at(path))?;
        file.seek(SeekFrom::Start(length)).map_err(at(path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            lines,
        })
    }

    /// Appends one line.
    ///
    /// # Errors
    /// [`FilesError::Json`] when the value has no JSON form, [`FilesError::Io`] when it cannot be
    /// written.
    pub fn append<T: Serialize>(&mut self, value: &T) -> Result<(), FilesError> {
        let json = |source| FilesError::Json {
            path: self.path.clone(),
            source,
        };
        let mut line = serde_json::to_vec(value).map_err(json)?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(at(&self.path))?;
        self.lines += 1;
        Ok(())
    }

    /// The number of lines.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// Waits until all lines are on disk; to be called before a checkpoint that stores
    /// [`MetricsLog::lines`].
    ///
    /// # Errors
    /// [`FilesError::Io`] names the file.
    pub fn sync(&self) -> Result<(), FilesError> {
        self.file.sync_all().map_err(at(&self.path))
    }
}

/// The folder that holds `path`.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// `NAME.tmp-`.
fn temporary_name(path: &Path) -> Result<OsString, FilesError> {
    let name = path.file_name().ok_or_else(|| FilesError::NoName {
        path: path.to_owned(),
    })?;
    let mut prefix = name.to_owned();
    prefix.push(TEMPORARY);
    Ok(prefix)
}

/// Whether a name is `NAME.tmp-` and the random characters that [`tempfile`] puts behind a prefix: another file with `.tmp-` in
/// its name is not ours to remove.
fn is_temporary(name: &OsString) -> bool {
    let name = name.to_string_lossy();
    name.rsplit_once(TEMPORARY).is_some_and(|(name, random)| {
        let drawn = random.chars().all(|c| c.is_ascii_alphanumeric());
        !name.is_empty() && random.len() == RANDOM && drawn
    })
}

/// Random characters of a temporary name.
const RANDOM: usize = 6;

/// The names in a folder.
fn entries(dir: &Path) -> Result<Vec<OsString>, FilesError> {
    let names =
        fs::read_dir(dir).and_then(|list| list.map(|entry| Ok(entry?.file_name())).collect());
    names.map_err(at(dir))
}

/// Flushes everything below a folder, and the folder itself.
fn sync_tree(dir: &Path) -> Result<(), FilesError> {
    for name in entries(dir)? {
        let path = dir.join(name);
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(at(&path))?;
        }
    }
    sync_folder(dir)
}

/// Flushes the list of names in a folder. Elsewhere than on Unix folders cannot be opened, and
/// renames are journalled.
fn sync_folder(dir: &Path) -> Result<(), FilesError> {
    if cfg!(unix) {
        File::open(dir)
            .and_then(|folder| folder.sync_all())
            .map_err(at(dir))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    fn names(dir: &Path) -> Vec<OsString> {
        let mut names = entries(dir).unwrap();
        names.sort();
        names
    }

    #[test]
    fn files_are_replaced_as_a_whole() {
        let dir = folder();
        let path = dir.path().join("state.json");
        write_json(&path, &[1, 2]).unwrap();
        atomic_write(&path, b"[3]").unwrap();
        assert_eq!(read_json::<Vec<u8>>(&path).unwrap(), [3]);
        assert_eq!(names(dir.path()), ["state.json"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_and_devices_are_written_through() {
        let dir = folder();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        atomic_write(&link, b"new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");
        // As `/dev/stdout` is: no file that another one could take the place of.
        let device = dir.path().join("device");
        std::os::unix::fs::symlink("/dev/null", &device).unwrap();
        atomic_write(&device, b"x").unwrap();
        assert!(device.is_symlink() && !Path::new("/dev/null").is_file());
    }

    #[cfg(unix)]
    #[test]
    fn files_and_folders_have_the_usual_permissions() {
        use std::os::unix::fs::PermissionsExt;
        let dir = folder();
        let mode = |name: &str| {
            fs::metadata(dir.path().join(name))
                .unwrap()
                .permissions()
                .mode()
        };
        File::create(dir.path().join("plain")).unwrap();
        fs::create_dir(dir.path().join("plain-dir")).unwrap();
        atomic_write(&dir.path().join("file"), b"x").unwrap();
        atomic_dir(&dir.path().join("dir"), |_| Ok::<_, FilesError>(())).unwrap();
        assert_eq!(mode("file"), mode("plain"));
        assert_eq!(mode("dir"), mode("plain-dir"));
    }

    #[test]
    fn errors_name_the_path() {
        let dir = folder();
        let path = dir.path().join("missing").join("file");
        assert!(
            atomic_write(&path, b"")
                .unwrap_err()
                .to_string()
                .contains("missing")
        );
        assert!(matches!(
            atomic_write(Path::new("/"), b""),
            Err(FilesError::NoName { .. })
        ));
        let path = dir.path().join("bad.json");
        atomic_write(&path, b"{").unwrap();
        assert!(
            read_json::<u8>(&path)
                .unwrap_err()
                .to_string()
                .contains("bad.json: ")
        );
    }

    #[test]
    fn folders_appear_and_are_replaced_as_a_whole() {
        let dir = folder();
        let path = dir.path().join("adapter");
        for content in ["old", "new"] {
            let value = atomic_dir(&path, |temporary| {
                assert_ne!(temporary, path);
                assert!(content == "new" || !path.exists());
                fs::create_dir(temporary.join("sub")).unwrap();
                fs::write(temporary.join("sub").join("file"), content).unwrap();
                Ok::<_, FilesError>(content.len())
            });
            assert_eq!(value.unwrap(), 3);
            assert_eq!(
                fs::read_to_string(path.join("sub").join("file")).unwrap(),
                content
            );
        }
        assert_eq!(names(dir.path()), ["adapter"]);
    }

    #[test]
    fn a_failed_folder_leaves_nothing() {
        let dir = folder();
        let path = dir.path().join("adapter");
        fs::create_dir(&path).unwrap();
        let failed = atomic_dir(&path, |temporary| {
            fs::write(temporary.join("half"), "x").unwrap();
            Err::<(), _>(FilesError::NoName { path: "a".into() })
        });
        assert!(matches!(failed, Err(FilesError::NoName { .. })));
        assert_eq!(names(dir.path()), ["adapter"]);
        assert!(names(&path).is_empty());
    }

    #[test]
    fn one_lock_a_directory() {
        let dir = folder();
        let lock = RunLock::acquire(dir.path()).unwrap();
        let second = RunLock::acquire(dir.path()).unwrap_err();
        assert!(
            matches!(&second, FilesError::InUse { path } if path == dir.path()),
            "{second}"
        );
        drop(lock);
        RunLock::acquire(dir.path()).unwrap();
        assert_eq!(names(dir.path()), [LOCK_FILE], "the file stays");
    }

    #[test]
    fn new_empty_and_used_directories() {
        let dir = folder();
        let run = dir.path().join("a").join("run");
        for resume in [false, true, false] {
            let opened = prepare_run_dir(&run, resume).unwrap();
            assert_eq!((opened.started, &opened.path), (false, &run));
            let second = prepare_run_dir(&run, resume);
            assert!(matches!(second, Err(FilesError::InUse { .. })));
        }
        let opened = prepare_run_dir(&run, false).unwrap();
        atomic_write(&run.join(CONFIG_FILE), b"").unwrap();
        let second = prepare_run_dir(&run, false);
        assert!(
            matches!(second, Err(FilesError::InUse { .. })),
            "in use comes first"
        );
        drop(opened);
        let refused = prepare_run_dir(&run, false).unwrap_err();
        assert!(matches!(&refused, FilesError::NotEmpty { path } if *path == run));
        assert!(refused.to_string().contains("--resume"));
        assert!(prepare_run_dir(&run, true).unwrap().started);
    }

    #[test]
    fn foreign_directories_stay_untouched() {
        let dir = folder();
        fs::write(dir.path().join("thesis.tex"), "x").unwrap();
        let refused = prepare_run_dir(dir.path(), false);
        assert!(matches!(refused, Err(FilesError::NotEmpty { .. })));
        let refused = prepare_run_dir(dir.path(), true);
        assert!(matches!(refused, Err(FilesError::NotARun { .. })));
        assert_eq!(names(dir.path()), ["thesis.tex"]);
        let file = prepare_run_dir(&dir.path().join("thesis.tex"), false).unwrap_err();
        assert!(file.to_string().contains("thesis.tex"));
    }

    #[test]
    fn what_a_killed_run_left_is_removed() {
        let dir = folder();
        let run = dir.path();
        atomic_write(&run.join(CONFIG_FILE), b"").unwrap();
        fs::create_dir_all(run.join("adapters").join("1-a.tmp-x1y2Z3")).unwrap();
        fs::create_dir_all(run.join("adapters").join("0-b")).unwrap();
        fs::write(
            run.join("adapters").join("1-a.tmp-x1y2Z3").join("half"),
            "x",
        )
        .unwrap();
        fs::write(run.join("state.json.tmp-y2x1A0"), "x").unwrap();
        prepare_run_dir(run, true).unwrap();
        assert_eq!(names(run), ["adapters", CONFIG_FILE, LOCK_FILE]);
        assert_eq!(names(&run.join("adapters")), ["0-b"]);
    }

    #[test]
    fn what_only_looks_like_a_leftover_is_kept() {
        let dir = folder();
        for name in ["backup.tmp-2024", "notes.tmp-old.txt", ".tmp-x1y2Z3"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            let refused = prepare_run_dir(dir.path(), false);
            assert!(
                matches!(refused, Err(FilesError::NotEmpty { .. })),
                "{name}"
            );
            fs::remove_dir(dir.path().join(name)).unwrap();
        }
    }

    #[test]
    fn leftovers_alone_are_an_empty_directory() {
        let dir = folder();
        fs::write(dir.path().join("config.toml.tmp-y2x1A0"), "x").unwrap();
        assert!(!prepare_run_dir(dir.path(), false).unwrap().started);
        assert_eq!(names(dir.path()), [LOCK_FILE]);
    }

    #[test]
    fn the_log_goes_back_to_the_checkpoint() {
        let dir = folder();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0).unwrap();
        for step in 0..4 {
            log.append(&step).unwrap();
        }
        log.sync().unwrap();
        assert_eq!(log.lines(), 4);
        drop(log);
        // A line cut short, after the fourth.
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"{\"step\":").unwrap();
        let mut log = MetricsLog::open(&path, 2).unwrap();
        log.append(&7).unwrap();
        assert_eq!(log.lines(), 3);
        assert_eq!(fs::read_to_string(&path).unwrap(), "0\n1\n7\n");
        // More than there is: all complete lines stay.
        file.write_all(b"{\"step\":").unwrap();
        assert_eq!(MetricsLog::open(&path, 9).unwrap().lines(), 3);
        assert_eq!(fs::read_to_string(&path).unwrap(), "0\n1\n7\n");
        assert_eq!(MetricsLog::open(&path, 0).unwrap().lines(), 0);
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn any_cut_of_the_log_is_survived(count in 0_u32..8, cut in 0_u64..40, keep in 0_u64..10) {
            let dir = folder();
            let path = dir.path().join("metrics.jsonl");
            let mut log = MetricsLog::open(&path, 0).unwrap();
            (0..count).for_each(|step| log.append(&step).unwrap());
            let length = fs::metadata(&path).unwrap().len();
            log.file.set_len(cut.min(length)).unwrap();
            let log = MetricsLog::open(&path, keep).unwrap();
            let complete = cut.min(length) / 2; // every line is a digit and a newline
            prop_assert_eq!(log.lines(), complete.min(keep));
            let text = fs::read_to_string(&path).unwrap();
            prop_assert_eq!(text.lines().count() as u64, log.lines());
        }
    }
}
