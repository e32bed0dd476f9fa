//! What the Hub does not give, and tokens.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use gpt_oss_mlx::hub::HubToken;

use super::*;
use crate::server::{Instead, status};

const SECRET: &str = "hf_secretsecretsecret";

fn with_token(mut options: HubOptions) -> HubOptions {
    options.token = Some(HubToken::new(SECRET).unwrap());
    options
}

fn coded(status: u16, code: &str) -> Instead {
    Instead::Answer(status, vec![("X-Error-Code", code.to_owned())], SECRET.into())
}

/// The problem with the repository's list, and that nothing is written for it.
fn refusal(answer: Instead, token: bool) -> HubProblem {
    let (server, dir, options) = hub();
    server.instead("/revision/main", 1, answer);
    let options = if token { with_token(options) } else { options };
    let error = resolve(&options).unwrap_err();
    assert!(!format!("{error} {error:?} {}", error.hint()).contains(SECRET));
    assert_eq!(server.requests().len(), 1, "no use to ask again");
    assert_eq!(tree(dir.path()).len(), 0);
    problem(Err(error))
}

#[test]
fn a_name_that_does_not_exist() {
    let (server, _dir, options) = hub();
    let model = ModelRef::parse("someone/else").unwrap();
    let error = model.resolve(&options, |_| ()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("someone/else: there is no such folder"), "{text}");
    assert!(text.contains("no repository"), "{text}");
    assert!(error.hint().contains("spelling"), "{}", error.hint());
    assert_eq!(server.requests().len(), 1);

    assert_eq!(refusal(status(404), false), HubProblem::NotFound { with_token: false });
    // What the Hub says to strangers about any name that it does not show them.
    assert_eq!(refusal(status(401), false), HubProblem::NotFound { with_token: false });
    let hidden = coded(401, "RepoNotFound");
    assert_eq!(refusal(hidden, true), HubProblem::NotFound { with_token: true });
}

#[test]
fn a_revision_that_does_not_exist() {
    let revision = HubProblem::Revision { revision: "main".into() };
    assert_eq!(refusal(coded(404, "RevisionNotFound"), false), revision);
}

#[test]
fn a_gated_repository_says_what_to_do() {
    for (status, token) in [(401, false), (403, true)] {
        let problem = refusal(coded(status, "GatedRepo"), token);
        assert_eq!(problem, HubProblem::Gated { with_token: token });
    }
    // The list of a gated repository is open, its files are not.
    let (server, dir, options) = hub();
    server.instead("/config.json", usize::MAX, coded(403, "GatedRepo"));
    let error = resolve(&options).unwrap_err();
    assert!(error.hint().contains("accept the conditions"), "{}", error.hint());
    assert!(error.hint().contains("HF_TOKEN"), "{}", error.hint());
    assert_eq!(problem(Err(error)), HubProblem::Gated { with_token: false });
    assert!(!snapshot(dir.path()).exists());
}

#[test]
fn a_token_that_is_not_good_enough() {
    for status in [401, 403] {
        let problem = refusal(server::status(status), true);
        assert_eq!(problem, HubProblem::Refused { status, with_token: true });
    }
    let problem = refusal(server::status(403), false);
    assert_eq!(problem, HubProblem::Refused { status: 403, with_token: false });
    assert!(matches!(refusal(server::status(418), false), HubProblem::Server { status: 418, .. }));
}

#[test]
fn a_token_opens_what_needs_one() {
    let (server, dir, options) = hub();
    server.require(SECRET);
    assert_eq!(problem(resolve(&options)), HubProblem::Gated { with_token: false });
    resolve(&with_token(options)).unwrap();
    assert_complete(&server, dir.path());
}

#[test]
fn a_token_goes_to_no_other_host() {
    let (server, dir, options) = hub();
    server.require(SECRET);
    let cdn = Server::of(Path::new(BUNDLED));
    // Another port is another host; one that sends the client back is not to be trusted either.
    server.redirect_large_files(&cdn.url());
    let back = format!("{}/{NAME}/resolve/{COMMIT}/chat_template.jinja", server.url());
    cdn.instead("/there", 1, Instead::Answer(302, vec![("Location", back)], vec![]));
    let there = format!("{}/there", cdn.url());
    let away = Instead::Answer(302, vec![("Location", there)], vec![]);
    server.instead("/chat_template.jinja", 1, away);
    assert_eq!(
        problem(resolve(&with_token(options.clone()))),
        HubProblem::Gated { with_token: false }
    );
    resolve(&with_token(options)).unwrap();
    assert_complete(&server, dir.path());
    let requests = cdn.requests();
    assert!(requests.iter().any(|request| request.path.contains(WEIGHTS)), "{requests:?}");
    assert!(requests.iter().all(|request| request.authorization.is_none()), "{requests:?}");
    let bearer = Some(format!("Bearer {SECRET}"));
    let (with, without): (Vec<_>, Vec<_>) =
        server.requests().into_iter().partition(|request| request.authorization == bearer);
    assert_eq!(without.len(), 1, "{without:?}");
    assert!(with.len() > FILES.len());
}

#[test]
fn a_repository_that_was_renamed_is_followed_with_the_token() {
    let (server, _dir, options) = hub();
    server.require(SECRET);
    let new = format!("/api/models/{NAME}/revision/main?blobs=true");
    let moved = Instead::Answer(307, vec![("Location", new)], vec![]);
    server.instead("/old-name/revision/main", 1, moved);
    let new = format!("/{NAME}/resolve/{COMMIT}/");
    for file in FILES {
        let moved = Instead::Answer(307, vec![("Location", format!("{new}{file}"))], vec![]);
        server.instead(&format!("/someone/old-name/resolve/{COMMIT}/{file}"), 1, moved);
    }
    let model = ModelRef::parse("someone/old-name").unwrap();
    let folder = model.resolve(&with_token(options), |_| ()).unwrap();
    assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), server.content(WEIGHTS));
}

#[test]
fn redirections_without_end_or_to_nowhere_are_refused() {
    let to = |location: &str| Instead::Answer(302, vec![("Location", location.to_owned())], vec![]);
    for location in ["/around/revision/main", "http://", "ftp://127.0.0.1/x", "relative"] {
        let (server, _dir, options) = hub();
        server.instead("/revision/main", usize::MAX, to(location));
        let problem = problem(resolve(&options));
        assert!(matches!(problem, HubProblem::Malformed { .. }), "{location:?}: {problem:?}");
        assert!(server.requests().len() < 20);
    }
}

#[test]
fn a_server_that_asks_to_wait_is_waited_for() {
    let (server, dir, mut options) = hub();
    options.retries = 3;
    let busy =
        |seconds: &str| Instead::Answer(429, vec![("Retry-After", seconds.to_owned())], vec![]);
    server.instead("/revision/main", 1, busy("1"));
    server.instead(WEIGHTS, 2, busy("0"));
    let mut waits = Vec::new();
    let model = ModelRef::parse(NAME).unwrap();
    let start = std::time::Instant::now();
    model
        .resolve(&options, |event| {
            if let HubProgress::Waiting { wait, reason } = event {
                waits.push((wait.as_secs(), reason.to_owned()));
            }
        })
        .unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1), "it waits as long as it is told");
    assert_eq!(waits.iter().map(|(wait, _)| *wait).collect::<Vec<_>>(), [1, 0, 0], "{waits:?}");
    assert!(waits[0].1.contains("fewer requests"), "{waits:?}");
    assert_complete(&server, dir.path());
}

#[test]
fn a_wait_has_bounds() {
    let (server, _dir, mut options) = hub();
    let busy =
        |seconds: &str| Instead::Answer(429, vec![("Retry-After", seconds.to_owned())], vec![]);
    // Longer than anyone wants to wait.
    server.instead("/revision/main", 1, busy("100000"));
    let error = resolve(&options).unwrap_err();
    assert!(error.to_string().contains("in 100000 s"), "{error}");
    assert!(matches!(problem(Err(error)), HubProblem::RateLimited { .. }));
    assert_eq!(server.requests().len(), 1);
    // More often than anyone wants to be told.
    options.retries = 2;
    server.instead("/revision/main", usize::MAX, busy("0"));
    assert!(matches!(problem(resolve(&options)), HubProblem::RateLimited { .. }));
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn a_server_with_a_problem_of_its_own_is_asked_again() {
    let (server, dir, mut options) = hub();
    for (path, code) in [("/revision/main", 500), ("/config.json", 502), (WEIGHTS, 503)] {
        server.instead(path, 2, status(code));
    }
    options.retries = 2;
    resolve(&options).unwrap();
    assert_complete(&server, dir.path());

    let (server, _dir, mut options) = hub();
    options.retries = 2;
    server.instead(WEIGHTS, usize::MAX, status(500));
    let expected = HubProblem::Server { host: "127.0.0.1".into(), status: 500 };
    assert_eq!(problem(resolve(&options)), expected);
    let asked = server.downloads().iter().filter(|(name, _)| name == WEIGHTS).count();
    assert_eq!(asked, 3);
}

#[test]
fn a_host_that_is_not_there() {
    let (_server, dir, mut options) = hub();
    options.retries = 0;
    // Reserved: no name server knows it.
    options.endpoint = "http://hub.invalid".into();
    let error = resolve(&options).unwrap_err();
    assert!(error.to_string().contains("hub.invalid cannot be reached"), "{error}");
    assert!(error.hint().contains("connection"), "{}", error.hint());
    assert!(matches!(problem(Err(error)), HubProblem::Network { .. }));
    assert_eq!(tree(dir.path()).len(), 0);
}

/// As with a certificate that nobody trusts.
#[test]
fn a_server_that_cannot_prove_who_it_is_is_not_asked_again() {
    let (_server, _dir, mut options) = hub();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    options.endpoint = format!("https://{}", listener.local_addr().unwrap());
    let without_tls = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 This is no TLS\r\n\r\n").unwrap();
        // Until the client has gone.
        stream.read_to_end(&mut Vec::new()).ok();
    });
    let model = ModelRef::parse(NAME).unwrap();
    let refused = model.resolve(&options, |event| panic!("{event:?}"));
    let HubProblem::Network { reason, .. } = problem(refused) else { panic!() };
    assert!(!reason.contains("time"), "{reason}");
    without_tls.join().unwrap();
}

#[test]
fn a_model_of_another_kind_is_refused_before_its_weights() {
    let (server, _dir, options) = hub();
    server.put("config.json", r#"{"model_type": "llama"}"#);
    let error = resolve(&options).unwrap_err();
    assert!(matches!(error, Error::Config { .. }), "{error:?}");
    assert_eq!(server.downloads(), [("config.json".to_owned(), 0)]);

    for name in ["config.json", "tokenizer.json", WEIGHTS] {
        let (server, _dir, options) = hub();
        server.remove(name);
        server.remove("model.safetensors.index.json");
        let HubProblem::Unsuitable { reason } = problem(resolve(&options)) else { panic!() };
        assert!(reason.contains(name), "{reason}");
        assert!(!server.downloads().iter().any(|(name, _)| name == WEIGHTS));
    }
}
