//! Requests: where they may lead, who gets the token, what an answer's status means, and when to
//! try again.

use std::io;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use ureq::http::header::{AUTHORIZATION, LOCATION, RANGE, RETRY_AFTER};
use ureq::http::{HeaderValue, Request, Response, StatusCode, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::HubProgress;
use super::error::{Attempt, Checked, Fault, HubProblem};
use super::listing::malformed;
use super::options::HubOptions;

/// Redirections that one request may lead through.
const MAX_REDIRECTS: usize = 8;

/// Longest wait between two attempts, where the server does not say.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// How often a wait looks whether it was cancelled.
const SLICE: Duration = Duration::from_millis(50);

/// A client of one Hub.
pub(super) struct Client<'a> {
    agent: Agent,
    options: &'a HubOptions,
    home: Origin,
    authorization: Option<HeaderValue>,
}

/// Whom a request is for: all three must be the same for a token to be sent.
#[derive(Clone, PartialEq, Eq)]
struct Origin {
    secure: bool,
    host: String,
    port: u16,
}

/// How a request is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// The content from this byte on.
    Content(u64),
    /// Only the Hub's headers: what leads elsewhere is not followed.
    Headers,
}

impl<'a> Client<'a> {
    pub(super) fn new(options: &'a HubOptions) -> Checked<Self> {
        let unusable =
            || malformed(format!("{:?} is no address of a Hub", shown_address(&options.endpoint)));
        let uri: Uri = options.endpoint.parse().map_err(|_| unusable())?;
        let home = Origin::of(&uri).filter(|_| uri.query().is_none()).ok_or_else(unusable)?;
        let authorization = match &options.token {
            None => None,
            Some(token) => {
                let bearer = format!("Bearer {}", token.secret());
                let mut value = HeaderValue::from_str(&bearer).map_err(|_| unusable())?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let patience = Some(options.timeout);
        let agent = Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
            .user_agent(concat!("gpt-oss-mlx/", env!("CARGO_PKG_VERSION")))
            // Which redirections are followed, and with what, is decided here.
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_resolve(patience)
            .timeout_connect(patience)
            .timeout_send_request(patience)
            .timeout_recv_response(patience)
            .timeout_per_read(patience)
            .build()
            .new_agent();
        Ok(Self { agent, options, home, authorization })
    }

    /// The Hub's name.
    pub(super) fn host(&self) -> &str {
        &self.home.host
    }

    /// Makes a request and follows where it leads. The answer's status is 200, 206 or 416.
    pub(super) fn send(&self, url: &str, ask: Ask) -> Attempt<Response<Body>> {
        let unusable = || malformed("it leads to an address that is none");
        let mut uri: Uri = url.parse().map_err(|_| unusable())?;
        let mut with_token = self.authorization.is_some();
        for _ in 0..=MAX_REDIRECTS {
            self.check_cancelled()?;
            let origin = Origin::of(&uri).ok_or_else(unusable)?;
            // Who was sent elsewhere once gets it no more, wherever it leads then.
            with_token &= origin == self.home;
            let mut request = match ask {
                Ask::Content(_) => Request::get(&uri),
                Ask::Headers => Request::head(&uri),
            };
            if let (true, Some(authorization)) = (with_token, &self.authorization) {
                request = request.header(AUTHORIZATION, authorization);
            }
            if let Ask::Content(from @ 1..) = ask {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let request = request.body(()).map_err(|_| unusable())?;
            let answer = self.agent.run(request).map_err(|error| {
                let (host, reason) = (origin.host.clone(), reason_of(&error));
                let problem = HubProblem::Network { host, reason };
                match is_lasting(&error) {
                    true => problem.into(),
                    false => Fault::Retry(problem, None),
                }
            })?;
            uri = match answer.headers().get(LOCATION) {
                Some(location) if answer.status().is_redirection() => next(&uri, location)?,
                _ => return self.checked(answer, &origin.host, with_token),
            };
            if ask == Ask::Headers && Origin::of(&uri).as_ref() != Some(&origin) {
                return Ok(answer);
            }
        }
        Err(malformed("it leads from one address to another without end").into())
    }

    /// What a status means.
    fn checked(
        &self,
        answer: Response<Body>,
        host: &str,
        with_token: bool,
    ) -> Attempt<Response<Body>> {
        let status = answer.status();
        let code = answer.headers().get("x-error-code").and_then(|code| code.to_str().ok());
        let host = host.to_owned();
        let server = HubProblem::Server { host: host.clone(), status: status.as_u16() };
        Err(match (status.as_u16(), code) {
            (200 | 206 | 416, _) => return Ok(answer),
            (401 | 403, Some("GatedRepo")) => HubProblem::Gated { with_token }.into(),
            (404, Some("RevisionNotFound")) => {
                HubProblem::Revision { revision: String::new() }.into()
            }
            // The Hub does not tell strangers what exists.
            (404, _) | (401, Some("RepoNotFound")) => HubProblem::NotFound { with_token }.into(),
            (401, None) if !with_token => HubProblem::NotFound { with_token }.into(),
            (401 | 403, _) => HubProblem::Refused { status: status.as_u16(), with_token }.into(),
            (429, _) => {
                let retry_after = retry_after(&answer);
                Fault::Retry(HubProblem::RateLimited { host, retry_after }, retry_after)
            }
            (408 | 500..=599, _) => Fault::Retry(server, retry_after(&answer)),
            _ => server.into(),
        })
    }

    /// Ends what the caller wants no more.
    pub(super) fn check_cancelled(&self) -> Checked<()> {
        match self.options.cancel.is_cancelled() {
            true => Err(HubProblem::Cancelled),
            false => Ok(()),
        }
    }

    /// Waits, unless it is cancelled.
    pub(super) fn pause(&self, wait: Duration) -> Checked<()> {
        let start = Instant::now();
        loop {
            self.check_cancelled()?;
            let left = wait.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(SLICE));
        }
    }

    /// Tries until it works, or until patience ends.
    pub(super) fn persist<T>(
        &self,
        progress: &mut dyn FnMut(HubProgress<'_>),
        retries: u32,
        mut attempt: impl FnMut(&mut dyn FnMut(HubProgress<'_>), &mut Patience) -> Attempt<T>,
    ) -> Attempt<T> {
        let mut patience = Patience { failed: 0 };
        loop {
            match attempt(progress, &mut patience) {
                Err(Fault::Retry(problem, asked)) => {
                    if patience.failed >= retries || asked > Some(self.options.max_wait) {
                        return Err(problem.into());
                    }
                    let factor = 1_u32.checked_shl(patience.failed).unwrap_or(u32::MAX);
                    let doubled = self.options.backoff.saturating_mul(factor).min(MAX_BACKOFF);
                    patience.failed += 1;
                    let wait = asked.unwrap_or(doubled);
                    progress(HubProgress::Waiting { wait, reason: &problem.to_string() });
                    self.pause(wait)?;
                }
                other => return other,
            }
        }
    }
}

/// How often it failed in a row.
pub(super) struct Patience {
    failed: u32,
}

impl Patience {
    /// It was of some use, so that the count begins anew.
    pub(super) fn renew(&mut self) {
        self.failed = 0;
    }
}

impl Origin {
    /// `None` for what is neither http nor https, has no host, or has a name and a password in it.
    fn of(uri: &Uri) -> Option<Self> {
        let secure = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?;
        let host = authority.host().to_ascii_lowercase();
        let default = if secure { 443 } else { 80 };
        let port = authority.port_u16().unwrap_or(default);
        let plain = !host.is_empty() && !authority.as_str().contains('@');
        plain.then_some(Self { secure, host, port })
    }
}

/// Where a redirection leads.
fn next(from: &Uri, location: &HeaderValue) -> Checked<Uri> {
    let unusable = || malformed("it leads to an address that is none");
    let location = location.to_str().map_err(|_| unusable())?;
    let scheme = from.scheme_str().ok_or_else(unusable)?;
    let whole = if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{}{location}", from.authority().ok_or_else(unusable)?)
    } else {
        // One that is relative to a folder has no scheme: no Hub sends that.
        location.to_owned()
    };
    let next: Uri = whole.parse().map_err(|_| unusable())?;
    let origin = Origin::of(&next).ok_or_else(unusable)?;
    match scheme == "https" && !origin.secure {
        true => Err(malformed("it leads from https to http")),
        false => Ok(next),
    }
}

/// How long the server asks to wait: seconds or a date.
fn retry_after(answer: &Response<Body>) -> Option<Duration> {
    let text = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    let wait = date.timestamp().duration_since(Timestamp::now());
    Some(Duration::try_from(wait).unwrap_or_default())
}

/// Whether it would be no different the next time: a certificate that is not trusted, say.
fn is_lasting(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Io(error) => error.kind() == io::ErrorKind::InvalidData,
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) => true,
        _ => false,
    }
}

/// What failed, without addresses: theirs may be signed.
pub(super) fn reason_of(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Timeout(phase) => format!("no answer in time ({phase})"),
        ureq::Error::HostNotFound => "no host of this name is known".into(),
        ureq::Error::Rustls(error) => error.to_string(),
        ureq::Error::Tls(error) => (*error).into(),
        ureq::Error::Protocol(error) => error.to_string(),
        ureq::Error::ConnectProxyFailed(_) | ureq::Error::InvalidProxyUrl => {
            "the proxy refuses".into()
        }
        _ => "the connection failed".into(),
    }
}

/// An address without what may be secret in it.
fn shown_address(address: &str) -> String {
    let shown = address.rsplit_once('@').map_or(address, |(_, host)| host);
    crate::checkpoint::printable(shown.split_once('?').map_or(shown, |(path, _)| path))
}

/// Whether going on from where it ended was refused.
pub(super) fn is_beyond_end(answer: &Response<Body>) -> bool {
    answer.status() == StatusCode::RANGE_NOT_SATISFIABLE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Option<(bool, String, u16)> {
        Origin::of(&text.parse().unwrap()).map(|o| (o.secure, o.host, o.port))
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert_eq!(origin("https://Hub.co/a?b"), Some((true, "hub.co".into(), 443)));
        assert_eq!(origin("https://hub.co:443"), Some((true, "hub.co".into(), 443)));
        assert_eq!(origin("http://127.0.0.1:8080"), Some((false, "127.0.0.1".into(), 8080)));
        for none in ["/path", "ftp://hub.co", "https://me:secret@hub.co/"] {
            assert_eq!(origin(none), None, "{none}");
        }
    }

    #[test]
    fn where_a_redirection_leads() {
        let from = "https://hub.co/a/b?c=d".parse().unwrap();
        let join = |location: &str| {
            next(&from, &HeaderValue::from_str(location).unwrap()).ok().map(|uri| uri.to_string())
        };
        assert_eq!(join("/x/y?z=1").unwrap(), "https://hub.co/x/y?z=1");
        assert_eq!(join("/x?u=http://other/").unwrap(), "https://hub.co/x?u=http://other/");
        assert_eq!(join("//cdn.co/x").unwrap(), "https://cdn.co/x");
        assert_eq!(join("https://cdn.co/x").unwrap(), "https://cdn.co/x");
        for none in ["x/y", "http://hub.co/a", "http://cdn.co/x", "file:///etc/passwd", ""] {
            assert_eq!(join(none), None, "{none}");
        }
    }

    #[test]
    fn waits_in_seconds_and_dates() {
        let after = |text: &str| {
            let answer = Response::builder().header(RETRY_AFTER, text);
            retry_after(&answer.body(Body::builder().data("")).unwrap())
        };
        assert_eq!(after("17"), Some(Duration::from_secs(17)));
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let later = after("Sun, 21 Oct 2300 07:28:00 GMT").unwrap();
        assert!(later > Duration::from_secs(86_400 * 365));
        for none in ["", "-1", "soon", "1e9"] {
            assert_eq!(after(none), None, "{none}");
        }
    }

    #[test]
    fn an_address_with_a_password_is_refused_without_showing_it() {
        for address in
            ["https://me:hunter2@hub.co", "hub.co", "ftp://hub.co", "https://hub.co?hunter2"]
        {
            let mut options = HubOptions::new("cache");
            options.endpoint = address.into();
            let problem = Client::new(&options).err().unwrap();
            assert!(problem.to_string().contains("hub.co"), "{problem}");
            assert!(!problem.to_string().contains("hunter2"), "{problem}");
        }
    }
}
