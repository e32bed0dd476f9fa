//! A loaded session goes on as the saved one would have.

use std::fs;
use std::time::Duration;

use gpt_oss_mlx::{GenerateOptions, KvBits, KvPolicy, LoadOptions, Model, Session};

use super::{DIR, model, place, policies, prompt, session_of, tokens};

/// Continues both with the same prompts: the conversation, then older parts of it.
fn assert_same(model: &Model, mut saved: Session, mut loaded: Session, what: &str) {
    assert_eq!(saved.ids(), loaded.ids(), "{what}");
    assert_eq!(saved.cache().len(), loaded.cache().len(), "{what}");
    assert_eq!(saved.cache().policy(), loaded.cache().policy(), "{what}");
    let held = saved.ids().to_vec();
    let mut longer = held.clone();
    longer.extend([11, 12, 13]);
    let half = &held[..held.len() / 2];
    let branch = [half, &[21, 22]].concat();
    let near = [&held[..held.len().saturating_sub(20)], &[31]].concat();
    for prompt in [longer, near, branch, vec![41, 42]] {
        let len = prompt.len();
        let reusable = saved.reusable(&prompt);
        assert_eq!(loaded.reusable(&prompt), reusable, "{what}, prompt of {len}");
        let expected = tokens(model, &mut saved, &prompt, 12);
        assert_eq!(tokens(model, &mut loaded, &prompt, 12), expected, "{what}, prompt of {len}");
        assert_eq!(expected.1, reusable);
    }
}

fn saved_and_loaded(model: &Model, session: &mut Session) -> Session {
    let (_dir, path) = place();
    session.save(&path).unwrap();
    Session::load_with_policy(model, session.cache().policy(), &path).unwrap()
}

#[test]
fn of_any_length_and_in_any_policy() {
    let model = model();
    // None, one, less than the window of 64, around it, and many windows.
    for policy in policies() {
        for len in [0, 1, 2, 40, 63, 64, 65, 700] {
            let mut saved = session_of(&model, &policy, &prompt(len));
            let loaded = saved_and_loaded(&model, &mut saved);
            assert_same(&model, saved, loaded, &format!("{policy:?}, {len} tokens"));
        }
    }
}

#[test]
fn before_and_after_the_start_of_quantization() {
    let model = model();
    let mut policy = KvPolicy::quantized(KvBits::Eight);
    policy.quantize_from = 100;
    policy.slack = 64;
    for len in [50, 99, 100, 101, 160] {
        let mut saved = session_of(&model, &policy, &prompt(len));
        let loaded = saved_and_loaded(&model, &mut saved);
        assert_same(&model, saved, loaded, &format!("{len} tokens"));
    }
}

/// At `quantize_from` rows can be floats, or packed by steps that were taken back.
#[test]
fn gone_back_to_the_start_of_quantization() {
    let model = model();
    let mut policy = KvPolicy::quantized(KvBits::Four);
    policy.quantize_from = 100;
    let mut saved = session_of(&model, &policy, &prompt(110));
    assert_eq!(saved.reuse(&[&prompt(100)[..], &[1]].concat()).unwrap(), 100);
    let mut loaded = saved_and_loaded(&model, &mut saved);
    // Floats are gone: neither can go back below.
    let below = [&prompt(90)[..], &[1]].concat();
    assert_eq!((saved.reusable(&below), loaded.reusable(&below)), (0, 0));
    let next = [&prompt(100)[..], &[1, 2, 3]].concat();
    assert_eq!(tokens(&model, &mut saved, &next, 20), tokens(&model, &mut loaded, &next, 20));
}

#[test]
fn with_snapshots_it_goes_back_as_far_as_before() {
    let model = model();
    let mut policy = KvPolicy::quantized(KvBits::Eight);
    policy.snapshot_every = 150;
    let ids = prompt(1000);
    let mut saved = session_of(&model, &policy, &ids);
    let mut loaded = saved_and_loaded(&model, &mut saved);
    let mut far_back = 0;
    for to in [990, 900, 500, 333, 160] {
        let mut other = ids[..to].to_vec();
        other.push(1999);
        let kept = loaded.reusable(&other);
        assert_eq!(kept, saved.reusable(&other), "to {to}");
        far_back += usize::from(kept > 64 && kept < 950);
        let mut branch = loaded.clone();
        let (again, cached) = tokens(&model, &mut branch, &other, 20);
        assert_eq!(cached, kept);
        let mut fresh = Session::with_policy(&model, &policy).unwrap();
        assert_eq!(tokens(&model, &mut fresh, &other, 20).0, again, "to {to}");
    }
    assert!(far_back >= 3, "no snapshot was of use");
    assert_same(&model, saved, loaded.clone(), "after looking back");
    // And once more through a file.
    let again = saved_and_loaded(&model, &mut loaded);
    assert_same(&model, loaded, again, "saved twice");
}

#[test]
fn without_sliding_layers_or_with_the_smallest_window() {
    let dir = tempfile::tempdir().unwrap();
    for file in fs::read_dir(DIR).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    let text = fs::read_to_string(dir.path().join("config.json")).unwrap();
    for (from, to) in [
        ("\"sliding_attention\"", "\"full_attention\""),
        ("\"sliding_window\": 64", "\"sliding_window\": 1"),
        ("\"full_attention\"", "\"sliding_attention\""),
    ] {
        assert!(text.contains(from));
        fs::write(dir.path().join("config.json"), text.replace(from, to)).unwrap();
        let model = Model::load(dir.path(), &LoadOptions::default()).unwrap();
        for slack in [0, 5] {
            let mut policy = KvPolicy::default();
            policy.slack = slack;
            policy.snapshot_every = 30;
            let mut saved = session_of(&model, &policy, &prompt(150));
            let loaded = saved_and_loaded(&model, &mut saved);
            assert_same(&model, saved, loaded, &format!("{to}, slack {slack}"));
        }
    }
}

/// The last token of an answer is computed while the host reads it.
#[test]
fn in_the_middle_of_an_answer() {
    let model = model();
    let mut saved = Session::new(&model);
    let mut options = GenerateOptions::default();
    options.stop_ids = Some(vec![]);
    let prompt = prompt(30);
    let mut generation = model.generate_in(&mut saved, &prompt, &options).unwrap();
    generation.by_ref().take(50).for_each(|token| drop(token.unwrap()));
    drop(generation);
    let loaded = saved_and_loaded(&model, &mut saved);
    assert!(loaded.ids().len() >= 79);
    assert_same(&model, saved, loaded, "an answer broken off");
}

#[test]
fn in_another_thread() {
    let model = model();
    let (_dir, path) = place();
    let mut saved = session_of(&model, &KvPolicy::default(), &prompt(100));
    saved.save(&path).unwrap();
    let next = [&prompt(100)[..], &[5]].concat();
    let expected = tokens(&model, &mut saved, &next, 10);
    let loaded = Session::load(&model, &path).unwrap();
    let used = std::thread::spawn(move || {
        let mut loaded = loaded;
        tokens(&model, &mut loaded, &next, 10)
    });
    assert_eq!(used.join().unwrap(), expected);
}

/// Memory behind the rows in use holds what a longer sequence left there.
#[test]
fn nothing_of_an_earlier_conversation_is_saved() {
    let model = model();
    for policy in policies() {
        let (_dir, path) = place();
        let mut session = session_of(&model, &policy, &prompt(250));
        let secret: Vec<u32> = (0..60).map(|i| 1999 - i).collect();
        let kept = prompt(240);
        tokens(&model, &mut session, &[&kept[..], &secret].concat(), 1);
        // Back to where the secret begins: what was computed for it must not be in the file.
        session.reuse(&[&kept[..], &[1]].concat()).unwrap();
        let reached = session.ids().to_vec();
        session.save(&path).unwrap();
        let bytes = fs::read(&path).unwrap();

        let fresh = session_of(&model, &policy, &reached);
        let rows_of = |session: &Session| session.cache().len();
        assert_eq!(rows_of(&session), rows_of(&fresh));
        // Rows in use are counted by the header, and no byte is left over.
        let header = super::damaged::header(&bytes);
        for (name, entry) in header.as_object().unwrap() {
            if name.starts_with("layers.") && entry["dtype"] != "U8" {
                let layer: usize = name.split('.').nth(1).unwrap().parse().unwrap();
                let rows = entry["shape"][2].as_u64().unwrap() as usize;
                // Layers 1 and 3 are full.
                let most = if layer % 2 == 1 { reached.len() } else { 63 + 32 + 64 };
                assert!(rows <= most.min(reached.len()), "{name}: {rows} rows");
                assert!(layer.is_multiple_of(2) || rows == reached.len(), "{name}: {rows} rows");
            }
        }
    }
}

#[test]
fn the_same_session_gives_the_same_bytes() {
    let model = model();
    let (dir, path) = place();
    let other = dir.path().join("other");
    let mut session = session_of(&model, &KvPolicy::default(), &prompt(300));
    session.save(&path).unwrap();
    session.clone().save(&other).unwrap();
    assert_eq!(fs::read(&path).unwrap(), fs::read(&other).unwrap());
    // Also through a file, whose rows lie in memory of another size.
    Session::load(&model, &path).unwrap().save(&other).unwrap();
    assert_eq!(fs::read(&path).unwrap(), fs::read(&other).unwrap());
}

#[test]
fn the_time_that_it_stands_for_is_kept() {
    let model = model();
    let (_dir, path) = place();
    let mut session = session_of(&model, &KvPolicy::default(), &prompt(10));
    for time in [Duration::ZERO, Duration::from_nanos(1), Duration::new(12_345, 678_900_001)] {
        session.set_prefill_time(time);
        session.save(&path).unwrap();
        assert_eq!(Session::load(&model, &path).unwrap().prefill_time(), time);
    }
    session.clear();
    assert_eq!(session.prefill_time(), Duration::ZERO);
}
