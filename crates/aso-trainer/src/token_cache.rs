//! Tokenised examples, kept from one run to the next.
//!
//! A file is named by the SHA-256 of all that its content depends on: tokenizer file, encoder settings, texts. It ends
//! with the SHA-256 of what is before. What is missing, cut off or damaged is tokenised again: the folder may be removed
//! at any time, and no result depends on it.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use aso_data::{DataError, EncodedExample, Example, TruncationSide};
use sha2::{Digest, Sha256};

use crate::codec::TextCodec;
use crate::files::{FilesError, write_with_folder};

/// A folder of tokenised examples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenCache {
    dir: PathBuf,
}

/// First bytes of a file and part of every key: to be changed with the format, or with what an encoder does.
const FORMAT: &[u8; 8] = b"asotok01";

/// Length of a SHA-256.
const DIGEST: usize = 32;

impl TokenCache {
    /// The cache in a folder, which need not exist.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// `$ASO_CACHE/tokens`, `$XDG_CACHE_HOME/aso-lora/tokens` or `~/.cache/aso-lora/tokens`; `None` where none of the
    /// variables is set.
    pub fn from_env() -> Option<Self> {
        Self::find(|name| std::env::var_os(name))
    }

    fn find(variable: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let path = |name| {
            let value = variable(name).filter(|value| !value.is_empty());
            value.map(PathBuf::from)
        };
        let dir = path("ASO_CACHE")
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("aso-lora")))
            .or_else(|| Some(path("HOME")?.join(".cache/aso-lora")))?;
        Some(Self::at(dir.join("tokens")))
    }

    /// What the codec's encoder with these limits (source, target) makes of the examples, from the cache if it is there
    /// and else for the next time.
    ///
    /// # Errors
    /// Those of the encoder; nothing about the cache is an error.
    pub fn encode_all(
        &self,
        codec: &TextCodec,
        limits: (usize, usize),
        task: &str,
        examples: &[Example],
    ) -> Result<Vec<EncodedExample>, DataError> {
        let encoder = codec.encoder(limits.0, limits.1)?;
        let Some(fingerprint) = codec.fingerprint() else {
            return encoder.encode_all(task, examples);
        };
        let key = key(&fingerprint, limits, examples);
        let path = self.dir.join(format!("{}.tok", hex(&key)));
        if let Some(kept) = read(&path, examples.len()) {
            tracing::debug!(task, examples = kept.len(), path = %path.display(), "tokens read");
            return Ok(kept);
        }
        let encoded = encoder.encode_all(task, examples)?;
        if let Err(error) = write(&path, &encoded) {
            tracing::warn!("tokens are not kept: {error}");
        }
        Ok(encoded)
    }
}

/// Everything that the tokens depend on.
fn key(fingerprint: &[u8], limits: (usize, usize), examples: &[Example]) -> [u8; DIGEST] {
    let mut hasher = Sha256::new();
    hasher.update(FORMAT);
    hasher.update(env!("CARGO_PKG_VERSION"));
    hasher.update(fingerprint);
    for number in [limits.0, limits.1, examples.len()] {
        hasher.update((number as u64).to_le_bytes());
    }
    for example in examples {
        let Example {
            prefix,
            sentence,
            suffix,
            target,
            // They are compared as text.
            alternatives: _,
            truncation_side,
        } = example;
        for text in [prefix, sentence, suffix, target] {
            update_text(&mut hasher, text);
        }
        hasher.update([u8::from(*truncation_side == TruncationSide::Left)]);
    }
    hasher.finalize().into()
}

/// Text with its length before it, so that no two lists of texts look alike.
pub(crate) fn update_text(hasher: &mut Sha256, text: &str) {
    hasher.update((text.len() as u64).to_le_bytes());
    hasher.update(text);
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The examples in a file; `None`, with a warning unless it is only absent, if it does not hold that many.
fn read(path: &Path, examples: usize) -> Option<Vec<EncodedExample>> {
    let problem = match std::fs::read(path) {
        Ok(bytes) => match parse(&bytes).filter(|found| found.len() == examples) {
            Some(found) => return Some(found),
            None => "cut off or damaged".to_owned(),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => error.to_string(),
    };
    tracing::warn!("{}: {problem}; tokenising again", path.display());
    None
}

/// `FORMAT`, then of each example four lengths (source, target, and what was removed of each) and the ids, every number
/// a little-endian u32, then the digest.
fn parse(bytes: &[u8]) -> Option<Vec<EncodedExample>> {
    let (content, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST)?)?;
    if Sha256::digest(content).as_slice() != digest {
        return None;
    }
    let (numbers, []) = content.strip_prefix(FORMAT)?.as_chunks::<4>() else {
        return None;
    };
    let mut numbers = numbers.iter().map(|bytes| u32::from_le_bytes(*bytes));
    let mut examples = Vec::new();
    while let Some(source) = numbers.next() {
        let [target, source_removed, target_removed] =
            [numbers.next()?, numbers.next()?, numbers.next()?].map(|number| number as usize);
        let mut ids = |count: usize| -> Option<Vec<u32>> {
            let ids: Vec<u32> = numbers.by_ref().take(count).collect();
            (ids.len() == count).then_some(ids)
        };
        examples.push(EncodedExample {
            source: ids(source as usize)?,
            target: ids(target)?,
            source_removed,
            target_removed,
        });
    }
    Some(examples)
}

fn write(path: &Path, examples: &[EncodedExample]) -> Result<(), FilesError> {
    let mut bytes = FORMAT.to_vec();
    for example in examples {
        let lengths = [
            example.source.len(),
            example.target.len(),
            example.source_removed,
            example.target_removed,
        ];
        let lengths = lengths.map(|length| length as u32);
        for number in lengths.iter().chain(&example.source).chain(&example.target) {
            bytes.extend(number.to_le_bytes());
        }
    }
    let digest = Sha256::digest(&bytes);
    bytes.extend_from_slice(&digest);
    write_with_folder(path, &bytes)
}

#[cfg(test)]
mod tests {
    use aso_data::{Split, SyntheticSuite};
    use proptest::prelude::*;

    use super::*;
    use crate::config::ModelSettings;
    use crate::events::Silent;
    use crate::load::{EMBEDDED_SUITE_SEED, load_model};

    fn files(dir: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn cached_tokens_equal_fresh_ones_and_damage_is_a_miss() {
        let dir = tempfile::tempdir().unwrap();
        let cache = TokenCache::at(dir.path().join("new/tokens"));
        let suite = SyntheticSuite::demo(EMBEDDED_SUITE_SEED);
        let examples = &suite.tasks()[0].split(Split::Train)[..50];
        let mut kept = 0;
        for path in ["embedded:demo", "embedded:demo-llama"] {
            let settings = ModelSettings {
                path: path.into(),
                ..ModelSettings::default()
            };
            let device = burn::tensor::Device::flex();
            let loaded = load_model(&settings, &device, &mut Silent).unwrap();
            let codec = loaded.codec;
            for limits in [(512, 50), (40, 2)] {
                let fresh = codec.encoder(limits.0, limits.1).unwrap();
                let fresh = fresh.encode_all("task", examples).unwrap();
                let load = || cache.encode_all(&codec, limits, "task", examples).unwrap();
                assert_eq!(load(), fresh);
                kept += 1;
                let all = files(&cache.dir);
                assert_eq!(all.len(), kept, "a file for every setting");
                assert_eq!(load(), fresh);
                for path in all {
                    let whole = std::fs::read(&path).unwrap();
                    let mut damaged = whole.clone();
                    damaged[20] ^= 1;
                    for bad in [&damaged[..], &whole[..whole.len() - 4], &[]] {
                        std::fs::write(&path, bad).unwrap();
                        assert_eq!(load(), fresh);
                    }
                    std::fs::write(&path, whole).unwrap();
                }
            }
            let fewer = cache.encode_all(&codec, (512, 50), "task", &examples[1..]);
            assert_eq!(fewer.unwrap().len(), 49);
            kept += 1;
        }
        // What cannot be written is only not kept.
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let settings = ModelSettings::default();
        let loaded = load_model(&settings, &burn::tensor::Device::flex(), &mut Silent).unwrap();
        let encoded = TokenCache::at(file).encode_all(&loaded.codec, (512, 50), "task", examples);
        assert_eq!(encoded.unwrap().len(), 50);
    }

    #[test]
    fn the_folder_follows_the_environment() {
        let find = |set: &[(&str, &str)]| {
            let value = |name: &str| {
                set.iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, v)| v.into())
            };
            TokenCache::find(value).map(|cache| cache.dir)
        };
        let (aso, xdg, home) = (
            ("ASO_CACHE", "/a"),
            ("XDG_CACHE_HOME", "/x"),
            ("HOME", "/h"),
        );
        assert_eq!(find(&[aso, xdg, home]), Some("/a/tokens".into()));
        assert_eq!(find(&[xdg, home]), Some("/x/aso-lora/tokens".into()));
        let in_home = Some("/h/.cache/aso-lora/tokens".into());
        assert_eq!(find(&[("ASO_CACHE", ""), home]), in_home);
        assert_eq!(find(&[]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>, sealed: bool) {
            let mut bytes = bytes;
            if sealed {
                bytes.splice(0..0, *FORMAT);
                let digest = Sha256::digest(&bytes);
                bytes.extend_from_slice(&digest);
            }
            parse(&bytes);
        }
    }
}
