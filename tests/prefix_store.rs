//! A store of many conversations: the longest prefix is found, and nobody sees another's tokens.

use gpt_oss_mlx::{GenerateOptions, KvBits, KvPolicy, LoadOptions, Model, PrefixStore, Session};

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");
const LARGE: usize = 1 << 30;

fn model(kv: KvPolicy) -> Model {
    let mut options = LoadOptions::default();
    options.kv = kv;
    Model::load(DIR, &options).unwrap()
}

/// `n` tokens that begin differently for each `seed`.
fn ids(seed: u32, n: u32) -> Vec<u32> {
    (0..n).map(|i| (seed * 131 + i * 7 + i * i * seed) % 2000).collect()
}

/// The next tokens after `prompt`, and how many of the prompt's were cached.
fn generate(model: &Model, session: &mut Session, prompt: &[u32]) -> (Vec<u32>, usize) {
    let mut options = GenerateOptions::default();
    options.max_tokens = 12;
    options.stop_ids = Some(vec![]);
    let mut generation = model.generate_in(session, prompt, &options).unwrap();
    let tokens = generation.by_ref().map(|token| token.unwrap().id).collect();
    (tokens, generation.timings().cached_prompt_tokens)
}

/// Generates from the store and keeps the result; the same as without a store.
fn ask(store: &mut PrefixStore, model: &Model, prompt: &[u32]) -> usize {
    let mut session = store.session_for(model, prompt);
    let (tokens, cached) = generate(model, &mut session, prompt);
    assert_eq!(tokens, generate(model, &mut Session::new(model), prompt).0);
    assert!(store.keep(&session));
    cached
}

#[test]
fn turns_of_one_conversation_are_one_entry_and_are_computed_once() {
    for bits in [KvBits::Float, KvBits::Eight] {
        let model = model(KvPolicy::quantized(bits));
        let mut store = PrefixStore::new(LARGE);
        let mut prompt = ids(1, 100);
        assert_eq!(ask(&mut store, &model, &prompt), 0);
        for turn in 2..5 {
            let held = prompt.len();
            prompt.extend(ids(turn, 90));
            let cached = ask(&mut store, &model, &prompt);
            assert!(cached >= held, "{cached} of {held}");
            assert_eq!(store.stats().entries, 1);
        }
        let stats = store.stats();
        assert_eq!((stats.hits, stats.misses), (3, 1));
    }
}

#[test]
fn the_longest_prefix_is_found() {
    let model = model(KvPolicy::default());
    let mut store = PrefixStore::new(LARGE);
    let common = ids(1, 120);
    let mut long = common.clone();
    long.extend(ids(2, 80));
    ask(&mut store, &model, &[common.as_slice(), &ids(3, 20)].concat());
    ask(&mut store, &model, &long);
    ask(&mut store, &model, &ids(4, 150));
    assert_eq!(store.stats().entries, 3);
    let cached = ask(&mut store, &model, &[long.as_slice(), &ids(5, 9)].concat());
    assert_eq!(cached, long.len());
    assert_eq!(ask(&mut store, &model, &ids(6, 50)), 0);
}

#[test]
fn instructions_shared_by_many_are_computed_once() {
    let model = model(KvPolicy::default());
    let mut store = PrefixStore::new(LARGE);
    let instructions = ids(9, 200);
    for user in 0..5 {
        let prompt = [instructions.as_slice(), &ids(20 + user, 60)].concat();
        let mut session = store.session_for(&model, &prompt);
        session.set_branch_points([instructions.len()]);
        let (tokens, cached) = generate(&model, &mut session, &prompt);
        assert_eq!(cached, if user == 0 { 0 } else { instructions.len() });
        assert_eq!(tokens, generate(&model, &mut Session::new(&model), &prompt).0);
        assert!(store.keep(&session));
    }
    let stats = store.stats();
    assert_eq!((stats.entries, stats.hits, stats.misses), (5, 4, 1));
    assert_eq!(stats.reused_tokens, 4 * 200);
}

#[test]
fn branches_do_not_see_each_other() {
    let model = model(KvPolicy::quantized(KvBits::Four));
    let mut store = PrefixStore::new(LARGE);
    let prompt = ids(1, 150);
    let mut original = store.session_for(&model, &prompt);
    generate(&model, &mut original, &prompt);
    assert!(store.keep(&original));

    let continued = |seed| [original.ids(), &ids(seed, 40)].concat();
    let (first, second, third) = (continued(5), continued(6), continued(7));
    let mut a = store.session_for(&model, &first);
    let mut b = store.session_for(&model, &second);
    let (from_a, cached_a) = generate(&model, &mut a, &first);
    let (from_b, cached_b) = generate(&model, &mut b, &second);
    let mut original = original.clone();
    let (from_original, _) = generate(&model, &mut original, &third);
    let fresh = |prompt: &[u32]| generate(&model, &mut Session::new(&model), prompt).0;
    assert_eq!((cached_a, cached_b), (161, 161));
    assert_eq!([from_a, from_b, from_original], [fresh(&first), fresh(&second), fresh(&third)]);
    // And what the store keeps is as it was.
    let again = continued(8);
    let (tokens, cached) = generate(&model, &mut store.session_for(&model, &again), &again);
    assert_eq!((tokens, cached), (fresh(&again), 161));
}

#[test]
fn the_budget_holds_and_the_least_recently_used_goes_first() {
    let model = model(KvPolicy::default());
    let prompts: Vec<Vec<u32>> = (1..5).map(|seed| ids(seed, 60)).collect();
    let mut session = Session::new(&model);
    generate(&model, &mut session, &prompts[0]);
    let mut store = PrefixStore::new(session.nbytes() * 5 / 2);
    ask(&mut store, &model, &prompts[0]);
    ask(&mut store, &model, &prompts[1]);
    assert_eq!(store.stats().entries, 2);
    // The first is used again, so the second is the one that goes.
    assert_eq!(ask(&mut store, &model, &prompts[0]), 59);
    ask(&mut store, &model, &prompts[2]);
    assert_eq!(store.stats().entries, 2);
    assert!(store.stats().bytes <= session.nbytes() * 5 / 2);
    assert_eq!(store.session_for(&model, &prompts[0]).reusable(&prompts[0]), 59);
    assert!(store.session_for(&model, &prompts[1]).ids().is_empty());

    assert!(!PrefixStore::new(session.nbytes() - 1).keep(&session), "larger than the budget");
    assert!(!store.keep(&Session::new(&model)), "empty");
    store.clear();
    assert_eq!((store.stats().entries, store.stats().bytes), (0, 0));
}

#[test]
fn sessions_of_another_policy_are_not_handed_out() {
    let float = model(KvPolicy::default());
    let eight = model(KvPolicy::quantized(KvBits::Eight));
    let mut store = PrefixStore::new(LARGE);
    let prompt = ids(1, 80);
    ask(&mut store, &float, &prompt);
    assert!(store.session_for(&eight, &prompt).ids().is_empty());
    ask(&mut store, &eight, &prompt);
    assert_eq!(store.stats().entries, 2);
    assert_eq!(ask(&mut store, &eight, &prompt), 79);
    assert_eq!(ask(&mut store, &float, &prompt), 79);
}

#[test]
fn models_do_not_take_each_others_place() {
    let first = model(KvPolicy::default());
    // The same shape and tokens, other weights.
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gpt-oss-tiny-f32");
    let second = Model::load(fixture, &LoadOptions::default()).unwrap();
    let mut store = PrefixStore::new(LARGE);
    let prompt = ids(1, 80);
    ask(&mut store, &first, &prompt);
    assert_eq!(ask(&mut store, &second, &prompt), 0);
    assert_eq!(store.stats().entries, 2);
    assert_eq!(ask(&mut store, &first, &prompt), 79);
    assert_eq!(ask(&mut store, &second, &prompt), 79);
}
