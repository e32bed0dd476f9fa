//! Downloads that break, and go on where they ended.

use std::process::{Command, Stdio};

use super::*;
use crate::server::Instead;

/// What a child is to resolve: endpoint and cache.
const CHILD: &str = "HUB_TEST_CHILD";

fn partial(server: &Server, cache: &Path) -> PathBuf {
    blobs(cache).join(format!("{}.incomplete", server.checksum(WEIGHTS)))
}

fn len(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

/// The first bytes that were asked for of the weights.
fn starts(server: &Server) -> Vec<u64> {
    let weights = |(name, from): (String, u64)| (name == WEIGHTS).then_some(from);
    server.downloads().into_iter().filter_map(weights).collect()
}

#[test]
fn a_connection_that_breaks_is_resumed_at_once() {
    let (server, dir, options) = hub();
    server.instead(WEIGHTS, 3, Instead::Break(700_000));
    let mut dones = Vec::new();
    let model = ModelRef::parse(NAME).unwrap();
    model
        .resolve(&options, |event| {
            // No file has its name before it is complete.
            let pointer = snapshot(dir.path()).join(WEIGHTS);
            assert!(!pointer.exists() || len(&pointer) == 2_774_204);
            if let HubProgress::File { name: WEIGHTS, done, .. } = event {
                dones.push(done);
            }
        })
        .unwrap();
    assert_eq!(starts(&server), [0, 700_000, 1_400_000, 2_100_000]);
    assert!(dones.is_sorted(), "{dones:?}");
    assert_complete(&server, dir.path());
}

#[test]
fn a_download_that_was_given_up_goes_on_the_next_time() {
    let (server, dir, mut options) = hub();
    options.retries = 0;
    server.instead(WEIGHTS, 1, Instead::Break(1_000_000));
    let error = resolve(&options).unwrap_err();
    assert!(error.hint().contains("only the rest"), "{}", error.hint());
    let HubProblem::Interrupted { file, done, total, .. } = problem(Err(error)) else { panic!() };
    assert_eq!((file.as_str(), done, total), (WEIGHTS, 1_000_000, 2_774_204));
    assert_eq!(len(&partial(&server, dir.path())), 1_000_000);
    assert!(!snapshot(dir.path()).join(WEIGHTS).exists());
    assert!(!repository(dir.path()).join("refs/main").exists(), "not complete yet");
    server.requests();

    let mut events = Vec::new();
    let model = ModelRef::parse(NAME).unwrap();
    model.resolve(&options, |event| events.push(told(event))).unwrap();
    assert_eq!(server.downloads(), [(WEIGHTS.to_owned(), 1_000_000)]);
    assert_eq!(events[0], "1 files, 1774204 bytes");
    assert_eq!(events[1], "model.safetensors 1000000/2774204");
    assert_complete(&server, dir.path());
}

#[test]
fn a_server_that_ignores_ranges_sends_all_of_it() {
    let (server, dir, options) = hub();
    server.instead(WEIGHTS, 1, Instead::Break(1_000_000));
    server.instead(WEIGHTS, 1, Instead::IgnoreRange);
    resolve(&options).unwrap();
    assert_eq!(starts(&server), [0, 1_000_000]);
    assert_complete(&server, dir.path());
}

#[test]
fn a_server_that_makes_it_begin_anew_again_and_again_is_given_up() {
    let (server, dir, mut options) = hub();
    options.retries = 3;
    let rules = 20;
    for _ in 0..rules {
        server.instead(WEIGHTS, 1, Instead::Break(1_500_000));
        server.instead(WEIGHTS, 1, crate::server::status(416));
    }
    assert!(matches!(problem(resolve(&options)), HubProblem::Interrupted { .. }));
    assert!(starts(&server).len() < rules);
    assert!(!snapshot(dir.path()).join(WEIGHTS).exists());
}

#[test]
fn another_part_than_the_one_asked_for_is_refused() {
    for range in ["bytes 5-2774203/2774204", "bytes 1000000-2774203", "lines 1-2/3", "bytes -/9"] {
        let (server, dir, options) = hub();
        server.instead(WEIGHTS, 1, Instead::Break(1_000_000));
        let headers = vec![("Content-Range", range.to_owned())];
        server.instead(WEIGHTS, 1, Instead::Answer(206, headers, vec![0; 1_774_204]));
        assert!(matches!(problem(resolve(&options)), HubProblem::Malformed { .. }), "{range}");
        // What is here is still right.
        server.requests();
        resolve(&options).unwrap();
        assert_eq!(starts(&server), [1_000_000]);
        assert_complete(&server, dir.path());
    }
}

#[test]
fn what_another_program_left_unfinished_is_used_or_thrown_away() {
    let (server, dir, options) = hub();
    let whole = server.content(WEIGHTS);
    let mut wrong_start = whole[..500_000].to_vec();
    wrong_start[3] ^= 1;
    let too_long = [&whole[..], b"x"].concat();
    let cases = [
        (whole[..500_000].to_vec(), vec![500_000]),
        (vec![], vec![0]),
        (whole.clone(), vec![]),
        (too_long, vec![0]),
        // Only at the end it shows that the beginning is wrong.
        (wrong_start, vec![500_000, 0]),
        (vec![0; whole.len()], vec![0]),
    ];
    for (left, expected) in cases {
        fs::remove_dir_all(dir.path()).unwrap();
        fs::create_dir_all(blobs(dir.path())).unwrap();
        fs::write(partial(&server, dir.path()), &left).unwrap();
        resolve(&options).unwrap();
        assert_eq!(starts(&server), expected);
        assert_complete(&server, dir.path());
    }
}

#[test]
fn a_file_of_unknown_length_is_taken_to_its_end() {
    let (server, dir, options) = hub();
    server.instead("", usize::MAX, Instead::Chunked);
    resolve(&options).unwrap();
    assert_complete(&server, dir.path());
}

#[test]
fn a_server_that_falls_silent_is_not_waited_for_without_end() {
    let (server, dir, mut options) = hub();
    options.timeout = Duration::from_secs(1);
    server.instead(WEIGHTS, 1, Instead::Stall(1_000_000));
    server.instead("/config.json", 1, Instead::Stall(0));
    resolve(&options).unwrap();
    let starts = starts(&server);
    assert_eq!((starts[0], starts.last()), (0, Some(&1_000_000)));
    assert_complete(&server, dir.path());

    let (server, _dir, mut options) = hub();
    options.timeout = Duration::from_secs(1);
    options.retries = 0;
    server.instead(WEIGHTS, 1, Instead::Stall(1_000_000));
    let HubProblem::Interrupted { reason, .. } = problem(resolve(&options)) else { panic!() };
    assert!(reason.contains("in time"), "{reason}");
}

#[test]
fn slow_is_not_silent() {
    let (server, dir, mut options) = hub();
    // All of it takes longer than that.
    options.timeout = Duration::from_secs(2);
    server.instead(WEIGHTS, 1, Instead::Slowly);
    resolve(&options).unwrap();
    assert_eq!(starts(&server), [0]);
    assert_complete(&server, dir.path());
}

#[test]
fn a_download_can_be_cancelled_and_goes_on_later() {
    let (server, dir, options) = hub();
    let model = ModelRef::parse(NAME).unwrap();
    let cancelled = model.resolve(&options, |event| {
        if let HubProgress::File { name: WEIGHTS, done: 1.., .. } = event {
            options.cancel.cancel();
        }
    });
    assert_eq!(problem(cancelled), HubProblem::Cancelled);
    let here = len(&partial(&server, dir.path()));
    assert!(here > 0 && here < 2_774_204, "{here}");
    server.requests();
    // A token stays cancelled.
    assert_eq!(problem(resolve(&options)), HubProblem::Cancelled);
    assert!(server.requests().is_empty());
    resolve(&self::options(&server, dir.path())).unwrap();
    assert_eq!(starts(&server), [here]);
    assert_complete(&server, dir.path());
}

#[test]
fn a_wait_can_be_cancelled() {
    let (server, _dir, mut options) = hub();
    options.backoff = Duration::from_secs(600);
    server.instead("/revision/main", usize::MAX, crate::server::status(500));
    let model = ModelRef::parse(NAME).unwrap();
    let cancelled = model.resolve(&options, |event| {
        if let HubProgress::Waiting { .. } = event {
            options.cancel.cancel();
        }
    });
    assert_eq!(problem(cancelled), HubProblem::Cancelled);
}

/// Resolves, and prints what came of it.
#[test]
#[ignore = "run by other tests as a process of its own"]
fn child() {
    let Ok(task) = std::env::var(CHILD) else { return };
    let (endpoint, cache) = task.split_once(' ').unwrap();
    let mut options = HubOptions::new(cache);
    options.endpoint = endpoint.into();
    println!();
    match resolve(&options) {
        Ok(_) => println!("outcome resolved"),
        Err(Error::Io { action, source, .. }) => println!("outcome {action}: {:?}", source.kind()),
        Err(error) => println!("outcome {error}"),
    }
}

/// This program again, run by `shell` around it.
fn child_in(shell: &str, server: &Server, cache: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{shell} exec \"$0\" \"$@\"")]);
    command.arg(std::env::current_exe().unwrap());
    command.args(["--exact", "resumed::child", "--ignored", "--nocapture"]);
    command.env(CHILD, format!("{} {}", server.url(), cache.display()));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn outcome(mut command: Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = text.lines().find_map(|line| line.strip_prefix("outcome "));
    last.unwrap_or_else(|| panic!("{output:?}")).to_owned()
}

/// A file may not become longer than 1 MiB: the weights do not fit, everything else does.
#[test]
fn a_disk_that_takes_no_more_is_named_and_what_is_there_is_used() {
    let (server, dir, options) = hub();
    // Blocks of 512 bytes; the signal would end the process instead.
    let limited = child_in("trap '' XFSZ; ulimit -f 2048;", &server, dir.path());
    assert_eq!(outcome(limited), "write: FileTooLarge");
    assert_eq!(len(&partial(&server, dir.path())), 1 << 20);
    assert!(!snapshot(dir.path()).join(WEIGHTS).exists());
    server.requests();
    resolve(&options).unwrap();
    assert_eq!(server.downloads(), [(WEIGHTS.to_owned(), 1 << 20)]);
    assert_complete(&server, dir.path());
}

/// A disk of 1 MiB, where that can be had: as root, or else in a name space of its own.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_is_too_small_is_named_before_anything_large_is_downloaded() {
    let (server, dir, _options) = hub();
    let mount = format!("mount -t tmpfs -o size=1m none '{}' &&", dir.path().display());
    let namespace =
        ["unshare --mount", "unshare --mount --map-root-user"].into_iter().find(|way| {
            let mut words = way.split(' ');
            let mut command = Command::new(words.next().unwrap());
            command.args(words).args(["sh", "-c", &format!("{mount} true")]).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        });
    // Where neither is allowed, the list of a huge file stands for the small disk: see `damaged`.
    let Some(namespace) = namespace else { return };
    let inner = child_in(&mount, &server, dir.path());
    let mut words = namespace.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg(inner.get_program()).args(inner.get_args());
    command.env(CHILD, format!("{} {}", server.url(), dir.path().display()));
    let outcome = outcome(command);
    assert!(outcome.contains("2.9 MB are to be downloaded"), "{outcome}");
    assert!(outcome.contains("the disk has 1.0 MB left"), "{outcome}");
    let names: Vec<String> = server.downloads().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["config.json", "model.safetensors.index.json"]);
}

/// Whatever the moment, no file has its name before it is complete, and the next one goes on.
#[test]
fn a_killed_process_leaves_what_the_next_one_uses() {
    let (server, dir, options) = hub();
    server.instead(WEIGHTS, usize::MAX, Instead::Slowly);
    let mut last = 0;
    for round in 0..3 {
        let mut child = child_in("", &server, dir.path()).spawn().unwrap();
        let partial = partial(&server, dir.path());
        // Until it has brought something more.
        while fs::metadata(&partial).map_or(0, |metadata| metadata.len()) <= last {
            assert!(child.try_wait().unwrap().is_none(), "round {round}: it is over already");
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!snapshot(dir.path()).join(WEIGHTS).exists());
        last = len(&partial);
    }
    server.requests();
    resolve(&options).unwrap();
    assert_eq!(server.downloads(), [(WEIGHTS.to_owned(), last)]);
    assert_complete(&server, dir.path());
}

#[test]
fn of_two_processes_one_downloads_and_the_other_waits() {
    let (server, dir, _options) = hub();
    server.instead(WEIGHTS, usize::MAX, Instead::Slowly);
    let children = [0, 1].map(|_| child_in("", &server, dir.path()).spawn().unwrap());
    for child in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("outcome resolved"), "{text}");
    }
    assert_eq!(starts(&server), [0]);
    assert_complete(&server, dir.path());
}
