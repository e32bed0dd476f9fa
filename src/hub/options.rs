//! Where the Hub and its cache are, and how patient to be.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::generate::CancelToken;

/// The Hub itself.
const HUB: &str = "https://huggingface.co";

/// Where the Hub and its cache are, and how patient to be with them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HubOptions {
    /// The cache that is shared with Python's tools: a folder with a folder for each repository.
    pub cache: PathBuf,
    /// The Hub or a mirror of it, without a slash at the end.
    pub endpoint: String,
    /// Sent to `endpoint`, and to no other host.
    pub token: Option<HubToken>,
    /// Look only into the cache.
    pub offline: bool,
    /// Ends a download between two chunks, and a wait at once.
    pub cancel: CancelToken,
    /// Attempts after a failed one that brought nothing. 5 where nothing is said.
    pub retries: u32,
    /// Wait before the first of them; it doubles each time. 1 s where nothing is said.
    pub backoff: Duration,
    /// Longest wait that a server may ask for. 2 min where nothing is said.
    pub max_wait: Duration,
    /// Longest silence of a server. 30 s where nothing is said.
    pub timeout: Duration,
}

impl HubOptions {
    /// The Hub without a token, and this cache.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            cache: cache.into(),
            endpoint: HUB.into(),
            token: None,
            offline: false,
            cancel: CancelToken::default(),
            retries: 5,
            backoff: Duration::from_secs(1),
            max_wait: Duration::from_secs(120),
            timeout: Duration::from_secs(30),
        }
    }

    /// As the environment says, in the variables of Hugging Face's own tools: `HF_HUB_CACHE`, or
    /// else `hub` in `HF_HOME`, or else in `~/.cache/huggingface`; `HF_ENDPOINT`; `HF_HUB_OFFLINE`;
    /// `HF_TOKEN`, or else the file `HF_TOKEN_PATH`, or else `token` in `HF_HOME`.
    ///
    /// # Errors
    /// [`Error::Argument`] when there is no home folder, or when the token is none;
    /// [`Error::Io`] when the token's file cannot be read.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(|name| std::env::var_os(name), std::env::home_dir())
    }

    fn from_variables(
        variable: impl Fn(&str) -> Option<OsString>,
        home: Option<PathBuf>,
    ) -> Result<Self> {
        let home = home.filter(|home| !home.as_os_str().is_empty());
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| set(name).map(|value| expanded(value.into(), home.as_deref()));
        let hf_home = path("HF_HOME")
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(home.as_deref()?.join(".cache/huggingface")));
        let hub = || Some(hf_home.as_deref()?.join("hub"));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).or_else(hub);
        let Some(cache) = cache else {
            return Err(Error::argument("HF_HOME", "is not set, and there is no home folder"));
        };
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
        let truth = |name: &str| {
            text(name).is_some_and(|value| {
                ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str())
            })
        };
        let mut options = Self::new(cache);
        if let Some(endpoint) = text("HF_ENDPOINT") {
            options.endpoint = endpoint.trim_end_matches('/').into();
        }
        options.offline = truth("HF_HUB_OFFLINE");
        if !truth("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            let given = text("HF_TOKEN").filter(|token| !token.trim().is_empty());
            let file = path("HF_TOKEN_PATH").or_else(|| Some(hf_home.as_deref()?.join("token")));
            let token = match (given, file) {
                (Some(token), _) => Some(token),
                (None, Some(file)) => read_token(&file)?,
                (None, None) => None,
            };
            options.token = token.as_deref().map(HubToken::new).transpose()?;
        }
        Ok(options)
    }
}

/// `~` at the start is the home folder, as for Python's tools.
fn expanded(path: PathBuf, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    }
}

/// The token that `hf auth login` left, if any.
fn read_token(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text).filter(|text| !text.trim().is_empty())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// A secret that no text shows.
#[derive(Clone, PartialEq, Eq)]
pub struct HubToken(String);

impl HubToken {
    /// A token as the Hub gave it; white space around it is dropped.
    ///
    /// # Errors
    /// [`Error::Argument`] for what cannot be a token.
    pub fn new(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::argument("token", "is not made of letters, digits and signs"));
        }
        Ok(Self(text.into()))
    }

    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for HubToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HubToken(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<HubOptions> {
        let find = |name: &str| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
        };
        HubOptions::from_variables(find, Some("/home/me".into()))
    }

    #[test]
    fn the_cache_is_where_other_tools_have_it() {
        for (variables, cache) in [
            (&[][..], "/home/me/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/xdg")], "/xdg/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/xdg"), ("HF_HOME", "/hf")], "/hf/hub"),
            (&[("HF_HOME", "~/hf")], "/home/me/hf/hub"),
            (&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/hub")], "/hub"),
            (&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HOME", "/hf")], "/old"),
            (&[("HF_HOME", "")], "/home/me/.cache/huggingface/hub"),
        ] {
            assert_eq!(read(variables).unwrap().cache, Path::new(cache), "{variables:?}");
        }
        let homeless = HubOptions::from_variables(|_| None, None);
        assert!(matches!(homeless, Err(Error::Argument { name: "HF_HOME", .. })));
    }

    #[test]
    fn endpoint_and_offline_mode() {
        let plain = read(&[]).unwrap();
        assert_eq!((plain.endpoint.as_str(), plain.offline), ("https://huggingface.co", false));
        let options = read(&[("HF_ENDPOINT", "http://mirror:80/hf/"), ("HF_HUB_OFFLINE", "yes")]);
        let options = options.unwrap();
        assert_eq!((options.endpoint.as_str(), options.offline), ("http://mirror:80/hf", true));
        assert!(!read(&[("HF_HUB_OFFLINE", "0")]).unwrap().offline);
    }

    #[test]
    fn a_token_comes_from_the_variable_or_a_file_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        let token = |variables: &[(&str, &str)]| read(variables).unwrap().token;
        assert_eq!(token(&[("HF_HOME", home)]), None);
        fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        fs::write(dir.path().join("other"), "hf_other").unwrap();
        let other = dir.path().join("other");
        let cases: [(&[(&str, &str)], _); 5] = [
            (&[("HF_HOME", home)], Some("hf_file")),
            (&[("HF_HOME", home), ("HF_TOKEN_PATH", other.to_str().unwrap())], Some("hf_other")),
            (&[("HF_HOME", home), ("HF_TOKEN", " hf_given\n")], Some("hf_given")),
            (&[("HF_HOME", home), ("HF_TOKEN", " ")], Some("hf_file")),
            (&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")], None),
        ];
        for (variables, expected) in cases {
            let token = token(variables);
            assert_eq!(token.as_ref().map(HubToken::secret), expected, "{variables:?}");
            assert!(!format!("{token:?}").contains("hf_"));
        }
        let options = read(&[("HF_TOKEN", "hf_given")]).unwrap();
        assert!(!format!("{options:?}").contains("hf_given"));
        let error = read(&[("HF_TOKEN", "hf_secret\nX-Header: 1")]).unwrap_err();
        assert!(!format!("{error:?} {error} {}", error.hint()).contains("hf_secret"));
    }
}
