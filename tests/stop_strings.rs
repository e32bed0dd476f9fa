//! Stop strings over text that arrives in pieces.

use gpt_oss_mlx::Error;
use gpt_oss_mlx::stop::StopMatcher;
use proptest::prelude::*;

fn matcher(stops: &[&str]) -> StopMatcher {
    StopMatcher::new(stops.iter().map(|s| (*s).to_owned()).collect()).unwrap()
}

/// What is shown after each piece, and at the end.
fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<usize>) {
    let mut matcher = matcher(stops);
    let mut shown: Vec<_> = pieces.iter().map(|piece| matcher.push(piece).0).collect();
    shown.push(matcher.finish());
    (shown, matcher.stopped())
}

/// The definition: the first end of a match; of several, the longest; of equal ones, the first.
fn naive(stops: &[String], text: &str) -> (String, Option<usize>) {
    for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
        let found = (0..stops.len())
            .filter(|&i| text[..end].ends_with(&stops[i]))
            .max_by_key(|&i| (stops[i].len(), std::cmp::Reverse(i)));
        if let Some(i) = found {
            return (text[..end - stops[i].len()].to_owned(), Some(i));
        }
    }
    (text.to_owned(), None)
}

/// The longest end of `text` that some stop string begins with: what has to be held back.
fn naive_held(stops: &[String], text: &str) -> usize {
    let begins = |at: usize| stops.iter().any(|stop| stop.starts_with(&text[at..]));
    let starts = (0..=text.len()).filter(|&at| text.is_char_boundary(at));
    starts.filter(|&at| begins(at)).map(|at| text.len() - at).max().unwrap_or(0)
}

#[test]
fn within_one_piece() {
    assert_eq!(run(&["END"], &["text END more"]), (vec!["text ".into(), String::new()], Some(0)));
}

#[test]
fn across_pieces() {
    let (shown, stopped) = run(&["END"], &["text E", "N", "D more"]);
    assert_eq!((shown.concat().as_str(), stopped), ("text ", Some(0)));
}

#[test]
fn held_back_and_released() {
    let (shown, stopped) = run(&["END"], &["text E", "N", "OUGH E"]);
    assert_eq!(shown, ["text ", "", "ENOUGH ", "E"]);
    assert_eq!(stopped, None);
}

/// The start of a match may lie inside a failed one.
#[test]
fn overlapping_starts() {
    assert_eq!(run(&["aab"], &["aaab"]).0.concat(), "a");
    assert_eq!(run(&["aab"], &["a", "a", "a", "b"]).0.concat(), "a");
    assert_eq!(run(&["ababc"], &["abab", "abc"]).0.concat(), "ab");
    assert_eq!(run(&["nano"], &["nanano!"]), (vec!["na".into(), String::new()], Some(0)));
}

#[test]
fn the_match_that_ends_first_wins() {
    // "bc" is complete before "abcd", although it begins later.
    assert_eq!(run(&["abcd", "bc"], &["xabcd"]), (vec!["xa".into(), String::new()], Some(1)));
    // Of matches that end together the longest, so that no part of it is shown.
    assert_eq!(run(&["c", "bc", "abc"], &["xabc"]), (vec!["x".into(), String::new()], Some(2)));
    // Of equal strings the first.
    assert_eq!(run(&["q", "x", "x"], &["ax"]).1, Some(1));
}

#[test]
fn characters_of_several_bytes() {
    // The stop string and the text share the first three bytes of a character.
    assert_eq!(
        run(&["🦀"], &["🦁🦂", "🦀x"]),
        (vec!["🦁🦂".into(), "".into(), "".into()], Some(0))
    );
    assert_eq!(run(&["é漢"], &["ééé", "漢"]).0, ["éé", "", ""]);
}

#[test]
fn nothing_to_stop_at() {
    assert_eq!(
        run(&[], &["a", "", "b"]),
        (vec!["a".into(), "".into(), "b".into(), "".into()], None)
    );
}

#[test]
fn after_the_match_nothing_comes() {
    let mut matcher = matcher(&["."]);
    assert_eq!(matcher.push("one. two."), ("one".into(), Some(0)));
    assert_eq!(matcher.push("three"), (String::new(), Some(0)));
    assert_eq!(matcher.finish(), "");
    assert_eq!(matcher.stopped(), Some(0));
}

/// After `finish` a matcher starts afresh: text before and after it does not join to a match.
#[test]
fn finish_forgets() {
    let mut matcher = matcher(&["ab"]);
    assert_eq!(matcher.push("a"), (String::new(), None));
    assert_eq!(matcher.finish(), "a");
    assert_eq!(matcher.push("b"), ("b".into(), None));
}

#[test]
fn an_empty_stop_string_is_refused() {
    let error = StopMatcher::new(vec!["x".into(), String::new()]).unwrap_err();
    assert!(matches!(error, Error::Argument { name: "stop", .. }), "{error:?}");
    assert_eq!(error.to_string(), "argument `stop`: stop string 2 is empty");
}

/// A long stop string that almost matches everywhere stays cheap.
#[test]
fn work_is_linear() {
    let stop = format!("{}b", "a".repeat(20_000));
    let mut matcher = matcher(&[&stop]);
    let mut shown = 0;
    for _ in 0..2_000 {
        shown += matcher.push(&"a".repeat(1_000)).0.len();
    }
    assert_eq!(shown, 2_000_000 - 20_000);
    assert_eq!(matcher.push("b"), (String::new(), Some(0)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    /// Few letters, so that matches, near misses and overlaps are frequent.
    #[test]
    fn as_the_naive_search_however_cut(
        stops in prop::collection::vec("[abé🦀]{1,5}", 0..4),
        pieces in prop::collection::vec("[abcé🦀🦁]{0,6}", 0..12),
    ) {
        let text = pieces.concat();
        let (expected, stop) = naive(&stops, &text);
        let mut matcher = StopMatcher::new(stops.clone()).unwrap();
        let mut shown = String::new();
        let mut seen = String::new();
        for piece in &pieces {
            let (now, stopped) = matcher.push(piece);
            shown.push_str(&now);
            seen.push_str(piece);
            if stopped.is_some() {
                break;
            }
            // As much is shown as can be, and not more.
            prop_assert_eq!(shown.len(), seen.len() - naive_held_proper(&stops, &seen));
        }
        shown.push_str(&matcher.finish());
        prop_assert_eq!(matcher.stopped(), stop);
        prop_assert_eq!(shown, expected);
    }
}

/// As `naive_held`, for a text in which no stop string is complete.
fn naive_held_proper(stops: &[String], text: &str) -> usize {
    let held = naive_held(stops, text);
    assert!(stops.iter().all(|stop| held == 0 || *stop != text[text.len() - held..]));
    held
}
