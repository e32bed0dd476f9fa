//! Sessions: what is reused, and that it changes nothing.

use gpt_oss_mlx::{GenerateOptions, KvBits, KvPolicy, LoadOptions, Model, Session};

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");

fn tokens(model: &Model, session: &mut Session, prompt: &[u32], n: usize) -> (Vec<u32>, usize) {
    let mut options = GenerateOptions::default();
    options.max_tokens = n;
    options.stop_ids = Some(vec![]);
    options.prefill_chunk = 100;
    let mut generation = model.generate_in(session, prompt, &options).unwrap();
    let ids = generation.by_ref().map(|t| t.unwrap().id).collect();
    (ids, generation.timings().cached_prompt_tokens)
}

#[test]
fn a_prompt_again_costs_one_token() {
    let model = Model::load(DIR, &LoadOptions::default()).unwrap();
    let prompt: Vec<u32> = (0..700).map(|i| i * 7 % 2000).collect();
    for bits in [KvBits::Float, KvBits::Eight, KvBits::Four] {
        let policy = KvPolicy::quantized(bits);
        let mut session = Session::with_policy(&model, &policy).unwrap();
        let (first, cached) = tokens(&model, &mut session, &prompt, 300);
        assert_eq!(cached, 0);
        assert_eq!(session.ids().len(), 999);
        assert_eq!(&session.ids()[..700], prompt);
        assert_eq!(&session.ids()[700..], &first[..299]);
        let (again, cached) = tokens(&model, &mut session, &prompt, 300);
        assert_eq!(cached, 699);
        assert_eq!(first, again);
        let mut other = prompt.clone();
        other[600] += 1;
        let (branch, cached) = tokens(&model, &mut session, &other, 50);
        println!("{bits:?}: branch at 600 keeps {cached}");
        let mut fresh = Session::with_policy(&model, &policy).unwrap();
        assert_eq!(tokens(&model, &mut fresh, &other, 50).0, branch);
    }
}
