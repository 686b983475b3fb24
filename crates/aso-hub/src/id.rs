//! Names: a model's id, a revision, a file inside a repository.

use std::fmt;
use std::str::FromStr;

/// The branch that is meant where no revision is named.
pub const DEFAULT_REVISION: &str = "main";

/// Longest repository name the Hub accepts.
const MAX_NAME: usize = 96;

/// A model on the Hub: `organisation/name`, for example `google-t5/t5-small`.
///
/// The rules are those of `huggingface_hub`, except that the old ids without an organisation are
/// refused: the Hub answers them with a redirect, and the same model would be cached twice.
///
/// ```
/// use aso_hub::ModelId;
/// let id: ModelId = "google-t5/t5-small".parse()?;
/// assert_eq!((id.organisation(), id.name()), ("google-t5", "t5-small"));
/// assert!("t5-small".parse::<ModelId>().is_err());
/// # Ok::<(), aso_hub::InvalidModelId>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId(String);

impl ModelId {
    /// The part before the slash: a user or an organisation.
    pub fn organisation(&self) -> &str {
        self.parts().0
    }

    /// The part after the slash.
    pub fn name(&self) -> &str {
        self.parts().1
    }

    fn parts(&self) -> (&str, &str) {
        self.0.split_once('/').unwrap_or_default()
    }

    /// The folder of the model in the cache. Ids hold no `--`, so this is unambiguous.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}--{}", self.organisation(), self.name())
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A string that is not a [`ModelId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{id}` is not a model id: {reason}; expected `organisation/name`, such as `google-t5/t5-small`"
)]
pub struct InvalidModelId {
    /// What was given.
    pub id: String,
    /// The rule it breaks.
    pub reason: &'static str,
}

impl FromStr for ModelId {
    type Err = InvalidModelId;

    fn from_str(id: &str) -> Result<Self, InvalidModelId> {
        let invalid = |reason| InvalidModelId {
            id: id.to_owned(),
            reason,
        };
        let (organisation, name) = id
            .split_once('/')
            .ok_or_else(|| invalid("it names no organisation"))?;
        if name.contains('/') {
            return Err(invalid("it has more than one slash"));
        }
        for part in [organisation, name] {
            check_part(part).map_err(invalid)?;
        }
        if name.ends_with(".git") {
            return Err(invalid("a name may not end in `.git`"));
        }
        Ok(Self(id.to_owned()))
    }
}

fn check_part(part: &str) -> Result<(), &'static str> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if part.is_empty() {
        return Err("a part is empty");
    }
    if part.len() > MAX_NAME {
        return Err("a part is longer than 96 characters");
    }
    if !part.chars().all(|c| word(c) || matches!(c, '-' | '.')) {
        return Err("only ASCII letters, digits, `-`, `_` and `.` are allowed");
    }
    if !part.starts_with(word) || !part.ends_with(word) {
        return Err("a part may not start or end with `-` or `.`");
    }
    if part.contains("--") || part.contains("..") {
        return Err("`--` and `..` are not allowed");
    }
    Ok(())
}

/// Whether `text` is a full commit hash, which never changes its meaning.
pub(crate) fn is_commit(text: &str) -> bool {
    is_hex(text, 40)
}

/// Whether `text` is `length` lower-case hexadecimal digits.
pub(crate) fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether `path` stays inside the folder it is joined to, on every platform.
pub(crate) fn is_safe_path(path: &str) -> bool {
    !path.contains(['\\', ':', '\0'])
        && path
            .split('/')
            .all(|part| !matches!(part, "" | "." | "..") && !part.ends_with(' '))
}

/// Percent-encodes all but the unreserved characters and those in `keep`.
pub(crate) fn percent_encode(text: &str, keep: &[u8]) -> String {
    text.bytes()
        .fold(String::with_capacity(text.len()), |out, byte| {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.contains(&byte) {
                out + char::from(byte).encode_utf8(&mut [0; 4])
            } else {
                out + &format!("%{byte:02X}")
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("google-t5/t5-small")]
    #[case("meta-llama/Llama-3.2-1B")]
    #[case("_a/b_")]
    fn accepts_ids(#[case] id: &str) {
        assert_eq!(id.parse::<ModelId>().unwrap().to_string(), id);
    }

    #[rstest]
    #[case("t5-small", "organisation")]
    #[case("models/org/name", "more than one slash")]
    #[case("org/", "empty")]
    #[case("/name", "empty")]
    #[case("org/na me", "only ASCII")]
    #[case("org/näme", "only ASCII")]
    #[case("org/.name", "start or end")]
    #[case("org/..", "start or end")]
    #[case("org-/name", "start or end")]
    #[case("org/a--b", "`--`")]
    #[case("org/a..b", "`--`")]
    #[case("org/name.git", ".git")]
    fn refuses_ids(#[case] id: &str, #[case] reason: &str) {
        let message = id.parse::<ModelId>().unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
        assert!(
            message.contains("expected `organisation/name`"),
            "{message}"
        );
    }

    #[test]
    fn names_are_bounded() {
        assert!(format!("o/{}", "n".repeat(96)).parse::<ModelId>().is_ok());
        assert!(format!("o/{}", "n".repeat(97)).parse::<ModelId>().is_err());
    }

    #[rstest]
    #[case("model-00001-of-00002.safetensors", true)]
    #[case("refs/pr/1", true)]
    #[case("", false)]
    #[case("/etc/passwd", false)]
    #[case("a//b", false)]
    #[case("a/../b", false)]
    #[case("./a", false)]
    #[case("..", false)]
    #[case("C:x", false)]
    #[case("a\\b", false)]
    #[case(".. /x", false)]
    fn safe_paths(#[case] path: &str, #[case] safe: bool) {
        assert_eq!(is_safe_path(path), safe);
    }

    #[test]
    fn encodes_paths_and_revisions() {
        assert_eq!(percent_encode("refs/pr/1", b""), "refs%2Fpr%2F1");
        assert_eq!(percent_encode("a b/ü?", b"/"), "a%20b/%C3%BC%3F");
    }
}
