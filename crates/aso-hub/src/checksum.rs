//! The hash that an ETag is.

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::id::is_hex;

/// Hashes a file while it arrives. The Hub's ETag is the SHA-256 of a file in large-file storage
/// and the git blob id of any other; a mirror's may be neither, which leaves the size to check.
#[derive(Clone)]
pub(crate) enum Checksum {
    Sha256(Sha256),
    GitBlob(Sha1),
    Unknown,
}

impl Checksum {
    /// The hash to compute for a file of `size` bytes.
    pub(crate) fn new(etag: &str, size: u64) -> Self {
        if is_hex(etag, 64) {
            Self::Sha256(Sha256::new())
        } else if is_hex(etag, 40) {
            Self::GitBlob(Sha1::new_with_prefix(format!("blob {size}\0")))
        } else {
            Self::Unknown
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::GitBlob(hasher) => hasher.update(bytes),
            Self::Unknown => {}
        }
    }

    /// The algorithm's name, and the hash in hexadecimal digits.
    pub(crate) fn finish(self) -> Option<(&'static str, String)> {
        match self {
            Self::Sha256(hasher) => Some(("SHA-256", hex(&hasher.finalize()))),
            Self::GitBlob(hasher) => Some(("git SHA-1", hex(&hasher.finalize()))),
            Self::Unknown => None,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(etag: &str, content: &[u8]) -> Option<(&'static str, String)> {
        let mut checksum = Checksum::new(etag, content.len() as u64);
        content.chunks(3).for_each(|chunk| checksum.update(chunk));
        checksum.finish()
    }

    #[test]
    fn the_etag_chooses_the_hash() {
        // `printf 'hello\n' | git hash-object --stdin` and `| sha256sum`.
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(hash(git, b"hello\n"), Some(("git SHA-1", git.to_owned())));
        assert_eq!(
            hash(sha256, b"hello\n"),
            Some(("SHA-256", sha256.to_owned()))
        );
        assert_eq!(hash("\"5d41402abc4b2a76\"", b"hello\n"), None);
    }
}
