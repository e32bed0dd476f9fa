//! Accidents while writing: a full disk, a killed process, two that write at once, no permission.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use gpt_oss_mlx::{Error, KvPolicy, Model, Session};

use super::{model, place, prompt, session_of};

/// Says to a child what to do: the path, and the numbers of tokens to save in turn.
const CHILD: &str = "SESSION_FILE_CHILD";

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn save(model: &Model, path: &Path, len: usize) -> gpt_oss_mlx::Result<()> {
    session_of(model, &KvPolicy::default(), &prompt(len)).save(path)
}

fn loaded_len(model: &Model, path: &Path) -> usize {
    let session = Session::load(model, path).unwrap();
    assert_eq!(session.ids(), prompt(session.ids().len()));
    session.ids().len()
}

/// This program again, run by `shell` around it.
fn child_in(shell: &str, path: &Path, lens: &str, rounds: usize) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{shell} exec \"$0\" \"$@\"")]);
    command.arg(std::env::current_exe().unwrap());
    command.args(["--exact", "disk::child", "--ignored", "--nocapture"]);
    command.env(CHILD, format!("{lens} {rounds} {}", path.display()));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Saves over and over; prints `ready` before the first and the result of the last.
#[test]
#[ignore = "run by other tests as a process of its own"]
fn child() {
    let Ok(task) = std::env::var(CHILD) else { return };
    let mut task = task.splitn(3, ' ');
    let lens = task.next().unwrap().split(',').map(|len| len.parse::<usize>().unwrap());
    let rounds = task.next().unwrap().parse().unwrap();
    let path = PathBuf::from(task.next().unwrap());
    let model = model();
    let mut sessions: Vec<Session> =
        lens.map(|len| session_of(&model, &KvPolicy::default(), &prompt(len))).collect();
    println!("\nready");
    let mut last = String::new();
    for round in 0..rounds {
        let count = sessions.len();
        last = match sessions[round % count].save(&path) {
            Ok(()) => "saved".into(),
            Err(Error::Io { action, source, .. }) => format!("{action}: {:?}", source.kind()),
            Err(other) => format!("{other:?}"),
        };
    }
    println!("last {last}");
}

/// What the last save of a child came to.
fn outcome(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = text.lines().find_map(|line| line.strip_prefix("last "));
    let stderr = String::from_utf8_lossy(&output.stderr);
    last.unwrap_or_else(|| panic!("{:?} {text} {stderr}", output.status)).to_owned()
}

fn wait_until_ready(child: &mut Child) {
    let mut out = BufReader::new(child.stdout.as_mut().unwrap());
    let mut line = String::new();
    while line.trim() != "ready" {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "the child ended early");
    }
}

/// A file may not become longer than 64 KiB, a session of 6 tokens fits, one of 100 does not.
#[test]
fn a_file_that_cannot_grow_leaves_the_old_one() {
    let model = model();
    let (dir, path) = place();
    save(&model, &path, 5).unwrap();
    let old = fs::read(&path).unwrap();
    // Blocks of 512 bytes; the signal would end the process instead.
    let limited = "trap '' XFSZ; ulimit -f 128;";
    // Refused at the end, when what is collected is written, and before.
    for len in ["100", "500"] {
        let refused = child_in(limited, &path, len, 1).spawn().unwrap();
        assert_eq!(outcome(refused), "write: FileTooLarge");
        assert_eq!(fs::read(&path).unwrap(), old);
        assert_eq!(names(dir.path()), ["session.safetensors"]);
    }

    let fresh = dir.path().join("fresh");
    assert_eq!(
        outcome(child_in(limited, &fresh, "500", 1).spawn().unwrap()),
        "write: FileTooLarge"
    );
    assert_eq!(names(dir.path()), ["session.safetensors"]);
    assert_eq!(outcome(child_in(limited, &path, "6", 1).spawn().unwrap()), "saved");
    assert_eq!(loaded_len(&model, &path), 6);
}

/// The same with a disk of 512 KiB: as root, or else in a name space of its own.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_old_file() {
    let mount =
        |folder: &Path| format!("mount -t tmpfs -o size=512k none '{}' &&", folder.display());
    let can = |program: &str, folder: &Path| {
        let script = format!("{} true", mount(folder));
        let mut args: Vec<&str> = program.split(' ').collect();
        args.extend(["sh", "-c", &script]);
        Command::new(args[0])
            .args(&args[1..])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    };
    let dir = tempfile::tempdir().unwrap();
    let Some(namespace) = ["unshare --mount", "unshare --mount --map-root-user"]
        .into_iter()
        .find(|program| can(program, dir.path()))
    else {
        // Where neither is allowed, the limit on a file's length stands for the full disk.
        return a_file_that_cannot_grow_leaves_the_old_one();
    };
    // 5 tokens, then 500 that do not fit; then how the folder looks, and whether the old one is
    // still read.
    let path = dir.path().join("session");
    let script = format!(
        "{} \"$@\" && sha256sum '{}' >&2 && \
         {CHILD}=\"500 2 {}\" \"$@\" && sha256sum '{}' >&2 && ls -A '{}' >&2",
        mount(dir.path()),
        path.display(),
        path.display(),
        path.display(),
        dir.path().display(),
    );
    let mut args: Vec<&str> = namespace.split(' ').collect();
    args.extend(["sh", "-c", &script, "sh"]);
    let output = Command::new(args[0])
        .args(&args[1..])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "disk::child", "--ignored", "--nocapture"])
        .env(CHILD, format!("5 1 {}", path.display()))
        .output()
        .unwrap();
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout} {stderr}");
    let outcomes: Vec<&str> = stdout.lines().filter_map(|l| l.strip_prefix("last ")).collect();
    assert_eq!(outcomes, ["saved", "write: StorageFull"], "{stdout} {stderr}");
    let sums: Vec<&str> = stderr.lines().filter(|line| line.contains("session")).collect();
    assert_eq!(sums.len(), 3, "{stderr}");
    assert_eq!(sums[0], sums[1], "the old file changed");
    assert_eq!(sums[2], "session", "{stderr}");
    assert!(!stderr.contains(".gpt-oss-mlx"), "{stderr}");
}

#[test]
fn a_killed_process_leaves_a_whole_file() {
    let model = model();
    let (dir, path) = place();
    let mut left_over = 0;
    let mut seen = Vec::new();
    for round in 0..12 {
        let mut child = child_in("", &path, "200,300", usize::MAX).spawn().unwrap();
        wait_until_ready(&mut child);
        // Not twice at the same moment of a save.
        sleep(Duration::from_micros(300 + 1700 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        left_over += names(dir.path()).iter().filter(|name| name.ends_with(".tmp")).count();
        if path.exists() {
            seen.push(loaded_len(&model, &path));
        }
    }
    println!("{left_over} unfinished files were left over; the file held {seen:?}");
    assert!(seen.iter().all(|len| [200, 300].contains(len)), "{seen:?}");
    save(&model, &path, 7).unwrap();
    assert_eq!(loaded_len(&model, &path), 7);
    assert_eq!(names(dir.path()), ["session.safetensors"]);
}

#[test]
fn of_two_processes_that_save_at_once_each_file_is_whole() {
    let model = model();
    let (dir, path) = place();
    let mut children = ["150", "250"].map(|len| child_in("", &path, len, 100).spawn().unwrap());
    children.iter_mut().for_each(wait_until_ready);
    let mut seen = [0, 0];
    while children.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
        if path.exists() {
            match loaded_len(&model, &path) {
                150 => seen[0] += 1,
                250 => seen[1] += 1,
                other => panic!("{other} tokens"),
            }
        }
    }
    println!("loaded {seen:?} times");
    for child in children {
        assert_eq!(outcome(child), "saved");
    }
    assert!([150, 250].contains(&loaded_len(&model, &path)));
    assert_eq!(names(dir.path()), ["session.safetensors"]);
}

fn failure(model: &Model, path: &Path) -> (io::ErrorKind, String) {
    match save(model, path, 5) {
        Err(error) => {
            let hint = error.hint();
            assert!(error.to_string().contains("cannot write"), "{error}");
            match error {
                Error::Io { source, .. } => (source.kind(), hint),
                other => panic!("{other:?}"),
            }
        }
        Ok(()) => panic!("saved to {}", path.display()),
    }
}

#[test]
fn paths_that_cannot_be_written_are_named() {
    let model = model();
    let (dir, path) = place();
    let (kind, hint) = failure(&model, &dir.path().join("missing/session"));
    assert_eq!(kind, io::ErrorKind::NotFound);
    assert!(hint.contains("make the folder"), "{hint}");
    fs::write(&path, "not a folder").unwrap();
    assert_eq!(failure(&model, &path.join("session")).0, io::ErrorKind::NotADirectory);
    assert_eq!(failure(&model, dir.path()).0, io::ErrorKind::IsADirectory);
    assert_eq!(failure(&model, Path::new("/")).0, io::ErrorKind::InvalidInput);
    assert_eq!(failure(&model, Path::new("")).0, io::ErrorKind::InvalidInput);
    assert_eq!(names(dir.path()), ["session.safetensors"]);
    // Neither a device nor a pipe is replaced, even by who may.
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    failure(&model, &pipe);
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
}

#[test]
fn a_folder_that_is_read_only_is_named() {
    let model = model();
    let (dir, path) = place();
    save(&model, &path, 3).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let probe = dir.path().join("probe");
    // Root may write everywhere but where the system itself says no.
    let folder = match fs::write(&probe, "") {
        Ok(()) => Path::new(if cfg!(target_os = "linux") { "/sys" } else { "/System" }),
        Err(_) => dir.path(),
    };
    let (kind, hint) = failure(&model, &folder.join("session.safetensors"));
    let kinds = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];
    assert!(kinds.contains(&kind), "{kind:?}");
    assert!(hint.contains("writable"), "{hint}");
    assert_eq!(loaded_len(&model, &path), 3);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn only_its_owner_may_read_it() {
    let model = model();
    let (_dir, path) = place();
    for before in [None, Some(0o644)] {
        if let Some(mode) = before {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        save(&model, &path, 3).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn a_link_is_replaced_and_its_target_left_alone() {
    let model = model();
    let (dir, path) = place();
    let target = dir.path().join("target");
    fs::write(&target, "precious").unwrap();
    for target in [target.as_path(), dir.path(), Path::new("nowhere")] {
        fs::remove_file(&path).ok();
        symlink(target, &path).unwrap();
        save(&model, &path, 3).unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        assert_eq!(loaded_len(&model, &path), 3);
    }
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    // Reading goes through a link.
    let link = dir.path().join("link");
    symlink(&path, &link).unwrap();
    assert_eq!(loaded_len(&model, &link), 3);
}
