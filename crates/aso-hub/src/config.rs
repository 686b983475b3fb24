//! Settings, and the environment variables they come from.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::HubError;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// An access token. It can be sent, but neither printed nor logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes a token as a file or variable holds it: surrounding space and line breaks are
    /// dropped, and an empty one is none.
    pub fn new(text: &str) -> Option<Self> {
        let token = text.replace(['\r', '\n'], "").trim().to_owned();
        (!token.is_empty()).then_some(Self(token))
    }

    /// The secret itself, for a [`Transport`](crate::Transport) to send.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

/// Where models come from, where they are kept, and how patiently they are fetched.
///
/// [`HubConfig::from_env`] reads the variables `huggingface_hub` reads:
///
/// | field | variables, first one set wins | else |
/// |---|---|---|
/// | `endpoint` | `HF_ENDPOINT` | `https://huggingface.co` |
/// | `cache_dir` | `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `$HF_HOME/hub` | `$XDG_CACHE_HOME/huggingface/hub`, `~/.cache/huggingface/hub` |
/// | `token` | `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, the file `HF_TOKEN_PATH`, the file `$HF_HOME/token` | none; also none under `HF_HUB_DISABLE_IMPLICIT_TOKEN` |
/// | `offline` | `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`: `1`, `true`, `yes` or `on` | no |
/// | `etag_timeout` | `HF_HUB_ETAG_TIMEOUT`, in seconds | 10 s |
/// | `download_timeout` | `HF_HUB_DOWNLOAD_TIMEOUT`, in seconds | 10 s |
///
/// An empty variable counts as unset.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HubConfig {
    /// The server, without a trailing slash. It may have a path, but no credentials.
    pub endpoint: String,
    /// The folder of the `models--organisation--name` folders.
    pub cache_dir: PathBuf,
    /// Sent to `endpoint`, and to no other host.
    pub token: Option<Token>,
    /// Whether to use the cache only and make no request at all.
    pub offline: bool,
    /// How long to wait for a file's size and hash: for the connection, and for the answer.
    pub etag_timeout: Duration,
    /// How long a download may stand still before it is broken off and resumed.
    pub download_timeout: Duration,
    /// How often in a row a failed request is repeated. A download that has advanced since the
    /// last failure starts counting again.
    pub max_retries: u32,
    /// The pause before the first repetition; each further one doubles it, up to 30 s.
    pub retry_delay: Duration,
}

impl HubConfig {
    /// The public Hub without a token, cached in `cache_dir`.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: DEFAULT_ENDPOINT.to_owned(),
            cache_dir: cache_dir.into(),
            token: None,
            offline: false,
            etag_timeout: DEFAULT_TIMEOUT,
            download_timeout: DEFAULT_TIMEOUT,
            max_retries: 5,
            retry_delay: Duration::from_secs(1),
        }
    }

    /// Reads the process environment and, where it names no token, the token file.
    ///
    /// # Errors
    ///
    /// [`HubError::InvalidSetting`] for a timeout that is no whole number or an unusable endpoint,
    /// [`HubError::NoCacheDir`] where no variable says where the cache is.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_lookup(|name| std::env::var_os(name))
    }

    /// [`HubConfig::from_env`] with variables from elsewhere.
    ///
    /// # Errors
    ///
    /// As for [`HubConfig::from_env`].
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let env = Environment { lookup: &lookup };
        let hf_home = env.path("HF_HOME").or_else(|| {
            let cache = env
                .path("XDG_CACHE_HOME")
                .or_else(|| env.home().map(|home| home.join(".cache")));
            cache.map(|cache| cache.join("huggingface"))
        });
        let cache_dir = env
            .path("HF_HUB_CACHE")
            .or_else(|| env.path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| hf_home.as_ref().map(|home| home.join("hub")))
            .ok_or(HubError::NoCacheDir)?;

        let mut config = Self::new(cache_dir);
        if let Some(endpoint) = env.text("HF_ENDPOINT") {
            config.endpoint = endpoint.trim_end_matches('/').to_owned();
            config.check("HF_ENDPOINT")?;
        }
        if !env.flag("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            config.token = env
                .text("HF_TOKEN")
                .or_else(|| env.text("HUGGING_FACE_HUB_TOKEN"))
                .and_then(|text| Token::new(&text))
                .or_else(|| {
                    let path = env.path("HF_TOKEN_PATH");
                    path.or_else(|| hf_home.map(|home| home.join("token")))
                        .and_then(|path| read_token(&path))
                });
        }
        config.offline = match env.text("HF_HUB_OFFLINE") {
            Some(value) => is_true(&value),
            None => env.flag("TRANSFORMERS_OFFLINE"),
        };
        config.etag_timeout = env.seconds("HF_HUB_ETAG_TIMEOUT")?;
        config.download_timeout = env.seconds("HF_HUB_DOWNLOAD_TIMEOUT")?;
        Ok(config)
    }

    /// Refuses an endpoint that cannot be asked. `setting` is the name it goes by.
    pub(crate) fn check(&self, setting: &'static str) -> Result<(), HubError> {
        let authority = ["https://", "http://"]
            .iter()
            .find_map(|scheme| self.endpoint.strip_prefix(scheme))
            .and_then(|rest| rest.split(['/', '?', '#']).next());
        let expected = match authority {
            // Not shown: it may hold a password.
            Some(authority) if authority.contains('@') => {
                return Err(HubError::InvalidSetting {
                    setting,
                    found: "a URL with credentials".to_owned(),
                    expected: "one without; a token goes into HF_TOKEN",
                });
            }
            Some(authority) if !authority.is_empty() => return Ok(()),
            _ => "a URL such as `https://huggingface.co`",
        };
        Err(HubError::InvalidSetting {
            setting,
            found: format!("`{}`", self.endpoint),
            expected,
        })
    }
}

/// The environment as `huggingface_hub` understands it.
struct Environment<'a> {
    lookup: &'a dyn Fn(&str) -> Option<OsString>,
}

impl Environment<'_> {
    fn raw(&self, name: &str) -> Option<OsString> {
        (self.lookup)(name).filter(|value| !value.is_empty())
    }

    fn text(&self, name: &str) -> Option<String> {
        self.raw(name)
            .map(|value| value.to_string_lossy().into_owned())
    }

    fn flag(&self, name: &str) -> bool {
        self.text(name).is_some_and(|value| is_true(&value))
    }

    /// Whole seconds; 0 stands for the default, as in `huggingface_hub`.
    fn seconds(&self, name: &'static str) -> Result<Duration, HubError> {
        let Some(text) = self.text(name) else {
            return Ok(DEFAULT_TIMEOUT);
        };
        match text.trim().parse() {
            Ok(0) => Ok(DEFAULT_TIMEOUT),
            Ok(seconds) => Ok(Duration::from_secs(seconds)),
            Err(_) => Err(HubError::InvalidSetting {
                setting: name,
                found: format!("`{text}`"),
                expected: "a whole number of seconds",
            }),
        }
    }

    fn home(&self) -> Option<PathBuf> {
        self.raw("HOME")
            .or_else(|| self.raw("USERPROFILE"))
            .map(PathBuf::from)
    }

    /// A path, with `~`, `$NAME` and `${NAME}` expanded.
    fn path(&self, name: &str) -> Option<PathBuf> {
        let raw = self.raw(name)?;
        let Some(text) = raw.to_str() else {
            return Some(raw.into());
        };
        let text = self.expand_variables(text);
        let below_home = match text.strip_prefix('~') {
            Some("") => Some(""),
            Some(rest) => rest.strip_prefix('/'),
            None => None,
        };
        match (below_home, self.home()) {
            (Some(""), Some(home)) => Some(home),
            (Some(rest), Some(home)) => Some(home.join(rest)),
            _ => Some(text.into()),
        }
    }

    /// Variables that are not set stay as they are written.
    fn expand_variables(&self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            out.push_str(before);
            let (name, tail) = match after.strip_prefix('{').and_then(|s| s.split_once('}')) {
                Some(braced) => braced,
                None => {
                    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
                    after.split_at(after.find(|c| !word(c)).unwrap_or(after.len()))
                }
            };
            match (self.lookup)(name).filter(|_| !name.is_empty()) {
                Some(value) => out.push_str(&value.to_string_lossy()),
                None => out.push_str(&rest[before.len()..rest.len() - tail.len()]),
            }
            rest = tail;
        }
        out + rest
    }
}

fn is_true(value: &str) -> bool {
    ["1", "true", "yes", "on"]
        .iter()
        .any(|word| value.eq_ignore_ascii_case(word))
}

fn read_token(path: &Path) -> Option<Token> {
    match fs::read_to_string(path) {
        Ok(text) => Token::new(&text),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the token file cannot be read");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn config(variables: &[(&str, &str)]) -> Result<HubConfig, HubError> {
        HubConfig::from_lookup(|name| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.into())
        })
    }

    #[test]
    fn defaults() {
        let config = config(&[("HOME", "/home/u")]).unwrap();
        assert_eq!(config.endpoint, "https://huggingface.co");
        assert_eq!(
            config.cache_dir,
            Path::new("/home/u/.cache/huggingface/hub")
        );
        assert_eq!((config.token, config.offline), (None, false));
        assert_eq!(
            (config.etag_timeout, config.download_timeout),
            (DEFAULT_TIMEOUT, DEFAULT_TIMEOUT)
        );
    }

    #[rstest]
    #[case(&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub")]
    #[case(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/hf")], "/hf/hub")]
    #[case(&[("HF_HOME", "")], "/home/u/.cache/huggingface/hub")]
    #[case(&[("HF_HOME", "~")], "/home/u/hub")]
    #[case(&[("HF_HOME", "~/hf")], "/home/u/hf/hub")]
    #[case(&[("HF_HOME", "${D}/$UNSET"), ("D", "/d")], "/d/$UNSET/hub")]
    #[case(&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old")]
    #[case(&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "$HOME/new")], "/home/u/new")]
    fn cache_folder(#[case] variables: &[(&str, &str)], #[case] expected: &str) {
        let variables = [variables, &[("HOME", "/home/u")]].concat();
        assert_eq!(config(&variables).unwrap().cache_dir, Path::new(expected));
    }

    #[test]
    fn no_home_no_cache() {
        assert!(matches!(config(&[]), Err(HubError::NoCacheDir)));
        assert!(config(&[("HF_HUB_CACHE", "/c")]).is_ok());
    }

    #[test]
    fn token_sources_in_order() {
        let home = tempfile::tempdir().unwrap();
        let hf_home = home.path().to_str().unwrap();
        let elsewhere = home.path().join("elsewhere");
        let token = |variables: &[(&str, &str)]| {
            let token = config(&[variables, &[("HF_HOME", hf_home)]].concat())
                .unwrap()
                .token;
            token.map(|token| token.expose().to_owned())
        };
        assert_eq!(token(&[]), None);
        fs::write(home.path().join("token"), "hf_default\n").unwrap();
        fs::write(&elsewhere, " hf_file \r\n").unwrap();
        let path = ("HF_TOKEN_PATH", elsewhere.to_str().unwrap());
        assert_eq!(token(&[]).as_deref(), Some("hf_default"));
        assert_eq!(token(&[path]).as_deref(), Some("hf_file"));
        assert_eq!(
            token(&[path, ("HF_TOKEN", "hf_env")]).as_deref(),
            Some("hf_env")
        );
        assert_eq!(
            token(&[path, ("HF_TOKEN", " \n")]).as_deref(),
            Some("hf_file")
        );
        let disabled = [
            ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"),
            ("HF_TOKEN", "hf_env"),
        ];
        assert_eq!(token(&disabled), None);
    }

    #[test]
    fn a_token_is_never_shown() {
        let config = config(&[("HOME", "/h"), ("HF_TOKEN", "hf_secret")]).unwrap();
        assert_eq!(config.token.as_ref().unwrap().expose(), "hf_secret");
        assert!(!format!("{config:?} {:?}", config.token).contains("secret"));
    }

    #[rstest]
    #[case("1", true)]
    #[case("True", true)]
    #[case("YES", true)]
    #[case("on", true)]
    #[case("0", false)]
    #[case("offline", false)]
    fn offline(#[case] value: &str, #[case] expected: bool) {
        for name in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
            assert_eq!(
                config(&[("HOME", "/h"), (name, value)]).unwrap().offline,
                expected
            );
        }
    }

    #[test]
    fn timeouts() {
        let read = |value| config(&[("HOME", "/h"), ("HF_HUB_DOWNLOAD_TIMEOUT", value)]);
        assert_eq!(
            read("30").unwrap().download_timeout,
            Duration::from_secs(30)
        );
        assert_eq!(read("0").unwrap().download_timeout, DEFAULT_TIMEOUT);
        let message = read("soon").unwrap_err().to_string();
        assert!(message.contains("HF_HUB_DOWNLOAD_TIMEOUT") && message.contains("soon"));
    }

    #[test]
    fn endpoints() {
        let read = |value| config(&[("HOME", "/h"), ("HF_ENDPOINT", value)]);
        assert_eq!(
            read("https://mirror/hf/").unwrap().endpoint,
            "https://mirror/hf"
        );
        assert!(
            read("mirror")
                .unwrap_err()
                .to_string()
                .contains("HF_ENDPOINT")
        );
        assert!(read("https://").is_err());
        let message = read("https://me:pass@mirror").unwrap_err().to_string();
        assert!(
            message.contains("credentials") && !message.contains("pass@"),
            "{message}"
        );
    }
}
