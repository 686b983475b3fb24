//! Folders that must be there.

use std::path::Path;

use crate::files::FilesError;

/// Makes a folder, and those that it lies in, where it is missing.
///
/// # Errors
/// [`FilesError::Io`] names the folder.
pub fn create_dir(dir: &Path) -> Result<(), FilesError> {
    std::fs::create_dir_all(dir).map_err(|source| FilesError::Io {
        path: dir.to_owned(),
        source,
    })
}
