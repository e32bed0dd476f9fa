//! The sampler against its plain-Rust oracle: which tokens are left, how often each is drawn, and
//! what happens at the edges.

mod common;

use std::collections::BTreeMap;

use common::rng::Rng;
use common::sampling::{self as oracle, Filters, Penalties};
use gpt_oss_mlx::sampler::{Sampled, Sampler, Sampling, logprobs};
use gpt_oss_mlx::{Error, Result};
use mlx_rs::{Array, Dtype};

const NEVER: f32 = f32::NEG_INFINITY;

fn row(logits: &[f32]) -> Array {
    Array::from_slice(logits, &[1, logits.len() as i32])
}

fn wide(logits: &[f32]) -> Vec<f64> {
    logits.iter().map(|&l| f64::from(l)).collect()
}

fn sampler(sampling: &Sampling, logits: &[f32]) -> Sampler {
    Sampler::new(sampling, logits.len(), &[]).unwrap()
}

fn one(sampling: &Sampling, logits: &[f32]) -> Result<u32> {
    sampler(sampling, logits).sample(&row(logits))?.read(0)
}

/// The logits of a sampler's candidates, by token id.
fn left(sampler: &Sampler, logits: &[f32]) -> Vec<f64> {
    let (ids, values) = sampler.candidates(&row(logits)).unwrap();
    assert_eq!((ids.dtype(), values.dtype()), (Dtype::Uint32, Dtype::Float32));
    mlx_rs::transforms::eval([&ids, &values]).unwrap();
    let mut by_id = vec![f64::NAN; logits.len()];
    for (&id, &value) in ids.as_slice::<u32>().iter().zip(values.as_slice::<f32>()) {
        assert!(by_id[id as usize].is_nan(), "token {id} twice");
        by_id[id as usize] = f64::from(value);
    }
    assert!(by_id.iter().all(|v| !v.is_nan()), "every token has its place");
    by_id
}

fn alive(logits: &[f64]) -> Vec<bool> {
    logits.iter().map(|l| *l > f64::NEG_INFINITY).collect()
}

fn assert_filters(sampling: &Sampling, keep: &[u32], logits: &[f32], filters: &Filters) {
    let sampler = Sampler::new(sampling, logits.len(), keep).unwrap();
    let got = left(&sampler, logits);
    let want = oracle::filter(&wide(logits), filters);
    assert_eq!(alive(&got), alive(&want), "{sampling:?}\n{logits:?}");
    let greatest = want.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    for (got, want) in got.iter().zip(&want).filter(|(_, want)| want.is_finite()) {
        let want = (want - greatest) / f64::from(sampling.temperature);
        assert!((got - want).abs() <= 1e-5 * (1.0 + want.abs()), "{got} is not {want}");
    }
}

/// False when rounding may decide which tokens are left.
fn clear_cut(logits: &[f32], filters: &Filters) -> bool {
    let shifted = |by: f32| {
        let mut filters = filters.clone();
        filters.top_p = if filters.top_p < 1.0 { (filters.top_p * by).min(0.999_999) } else { 1.0 };
        filters.min_p *= by;
        filters.xtc = filters.xtc.map(|(threshold, keep)| (threshold * by, keep));
        alive(&oracle::filter(&wide(logits), &filters))
    };
    shifted(1.0 - 4e-6) == shifted(1.0 + 4e-6)
}

#[test]
fn greedy_takes_the_most_probable_token_and_the_lowest_id_among_equals() {
    let mut rng = Rng::new(1);
    for _ in 0..50 {
        let n = 1 + rng.below(500);
        // Multiples of a quarter, so that there are many equals.
        let logits: Vec<f32> =
            rng.normals(n, 2.0).iter().map(|l| (l * 4.0).round() / 4.0).collect();
        let best = oracle::ranking(&wide(&logits))[0] as u32;
        assert_eq!(one(&Sampling::default(), &logits).unwrap(), best);
        // What leaves one token is greedy at any temperature.
        let hot = Sampling { temperature: 9.0, ..Sampling::default() };
        assert_eq!(one(&Sampling { top_k: 1, ..hot.clone() }, &logits).unwrap(), best);
        assert_eq!(one(&Sampling { top_p: 0.0, ..hot }, &logits).unwrap(), best);
    }
}

#[test]
fn any_float_type_and_any_leading_ones_will_do() {
    let logits = [0.5f32, -1.0, 2.5, 2.25];
    for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16] {
        for shape in [&[4][..], &[1, 4], &[1, 1, 4]] {
            let array = Array::from_slice(&logits, shape).as_dtype(dtype).unwrap();
            let mut sampler = sampler(&Sampling::default(), &logits);
            let Sampled { token, max_logit } = sampler.sample(&array).unwrap();
            assert_eq!((token.shape(), token.dtype()), (&[1][..], Dtype::Uint32));
            assert_eq!((max_logit.ndim(), max_logit.dtype()), (0, Dtype::Float32));
            assert_eq!(Sampled { token, max_logit }.read(0).unwrap(), 2);
            let (ids, _) = logprobs(&array, 2).unwrap();
            assert_eq!(ids.as_slice::<u32>(), [2, 3]);
        }
    }
    let mut sampler = sampler(&Sampling::default(), &logits);
    for wrong in [row(&logits[..3]), Array::from_slice(&[0.0f32; 8], &[2, 4])] {
        let error = sampler.sample(&wrong).unwrap_err();
        assert!(matches!(error, Error::Argument { name: "logits", .. }), "{error}");
    }
}

#[test]
fn every_filter_leaves_what_the_definition_leaves() {
    let mut rng = Rng::new(2);
    let (mut tried, mut unclear) = (0, 0);
    while tried < 600 {
        let n = [2, 7, 64, 1000][rng.below(4)];
        let spread = 0.5 + 3.0 * rng.uniform();
        let mut logits = rng.normals(n, spread);
        if rng.below(3) == 0 {
            // As bf16 gives them: many equals.
            logits.iter_mut().for_each(|l| *l = (*l * 8.0).round() / 8.0);
        }
        let on = |rng: &mut Rng, share: f64| rng.uniform() < share;
        let keep: Vec<u32> = (0..rng.below(4)).map(|_| rng.below(n) as u32).collect();
        let mut sampling =
            Sampling { temperature: 0.3 + 2.0 * rng.uniform() as f32, ..Sampling::default() };
        let mut filters = Filters::default();
        if on(&mut rng, 0.4) {
            sampling.top_p = rng.uniform() as f32;
            filters.top_p = sampling.top_p;
        }
        if on(&mut rng, 0.4) {
            sampling.min_p = (rng.uniform() * 0.5) as f32;
            sampling.min_tokens_to_keep = 1 + rng.below(5);
            filters.min_p = sampling.min_p;
            filters.min_tokens_to_keep = sampling.min_tokens_to_keep;
        }
        if on(&mut rng, 0.4) {
            sampling.xtc_probability = 1.0;
            sampling.xtc_threshold = (rng.uniform() * 0.3) as f32;
            filters.xtc = Some((sampling.xtc_threshold, keep.clone()));
        }
        if on(&mut rng, 0.4) {
            sampling.top_k = rng.below(n + 5);
            filters.top_k = sampling.top_k;
        }
        tried += 1;
        if clear_cut(&logits, &filters) {
            assert_filters(&sampling, &keep, &logits, &filters);
        } else {
            unclear += 1;
        }
    }
    assert!(unclear < 12, "{unclear} of {tried} cases hang on rounding");
}

#[test]
fn filters_at_their_limits() {
    let logits = [1.0f32, 3.0, 2.0, 3.0, -1.0];
    let warm = Sampling { temperature: 0.7, ..Sampling::default() };
    let ids = |sampling: &Sampling| -> Vec<usize> {
        let left = alive(&left(&sampler(sampling, &logits), &logits));
        (0..left.len()).filter(|&id| left[id]).collect()
    };
    let all = [0, 1, 2, 3, 4];
    assert_eq!(ids(&warm), all);
    for top_k in [0, 5, 6, usize::MAX] {
        assert_eq!(ids(&Sampling { top_k, ..warm.clone() }), all, "k = {top_k}");
    }
    assert_eq!(ids(&Sampling { top_k: 1, ..warm.clone() }), [1], "the lower of two equals");
    assert_eq!(ids(&Sampling { top_k: 4, ..warm.clone() }), [0, 1, 2, 3]);
    assert_eq!(ids(&Sampling { top_p: 1.0, ..warm.clone() }), all);
    assert_eq!(ids(&Sampling { top_p: 0.0, ..warm.clone() }), [1]);
    assert_eq!(ids(&Sampling { top_p: f32::MIN_POSITIVE, ..warm.clone() }), [1]);
    assert_eq!(ids(&Sampling { min_p: 0.0, ..warm.clone() }), all);
    assert_eq!(ids(&Sampling { min_p: 1.0, ..warm.clone() }), [1, 3]);
    let keep_three = Sampling { min_p: 1.0, min_tokens_to_keep: 3, ..warm.clone() };
    assert_eq!(ids(&keep_three), [1, 2, 3]);
    let keep_more = Sampling { min_p: 1.0, min_tokens_to_keep: usize::MAX, ..warm.clone() };
    assert_eq!(ids(&keep_more), all);
    let xtc = Sampling { xtc_probability: 1.0, xtc_threshold: 0.0, ..warm.clone() };
    assert_eq!(ids(&xtc), [4], "every token is a top choice, the last one stays");
    assert_eq!(ids(&Sampling { xtc_threshold: 0.51, ..xtc.clone() }), all);
    assert_eq!(ids(&Sampling { xtc_probability: 0.0, ..xtc }), all);
}

#[test]
fn the_full_vocabulary_of_the_real_models_is_filtered_exactly() {
    let logits = Rng::new(3).normals(201_088, 3.0);
    let hot = Sampling { temperature: 1.0, ..Sampling::default() };
    for (sampling, filters) in [
        (Sampling { top_k: 40, ..hot.clone() }, Filters { top_k: 40, ..Filters::default() }),
        (Sampling { top_p: 0.3, ..hot.clone() }, Filters { top_p: 0.3, ..Filters::default() }),
        (Sampling { min_p: 0.05, ..hot.clone() }, Filters { min_p: 0.05, ..Filters::default() }),
    ] {
        if sampling.top_p == 1.0 {
            assert_filters(&sampling, &[], &logits, &filters);
            continue;
        }
        // The cut lies among thousands of tokens of about 1e-6 each, so f32 may be off by a few.
        let count = |alive: Vec<bool>| alive.iter().filter(|a| **a).count() as f64;
        let got = count(alive(&left(&sampler(&sampling, &logits), &logits)));
        let want = count(alive(&oracle::filter(&wide(&logits), &filters)));
        assert!((got - want).abs() <= 0.01 * want, "{got} are left, not {want}");
    }
    let best = oracle::ranking(&wide(&logits))[0] as u32;
    assert_eq!(one(&Sampling::default(), &logits).unwrap(), best);
}

/// Draws `n` tokens from the same logits, computing many at a time.
fn draw(sampling: &Sampling, logits: &[f32], n: usize) -> Vec<u32> {
    let mut sampler = sampler(sampling, logits);
    let array = row(logits);
    let mut drawn = Vec::with_capacity(n);
    while drawn.len() < n {
        let queued: Vec<Sampled> =
            (0..(n - drawn.len()).min(500)).map(|_| sampler.sample(&array).unwrap()).collect();
        mlx_rs::transforms::eval(queued.iter().flat_map(|s| [&s.token, &s.max_logit])).unwrap();
        drawn.extend(queued.iter().map(|s| s.read(0).unwrap()));
    }
    drawn
}

/// Draws `n` tokens and holds their counts against the chances: no token without a chance, and
/// Pearson's statistic within six standard deviations of its mean.
fn assert_distribution(sampling: &Sampling, logits: &[f32], chances: &[f64], n: usize) {
    let mut counts = vec![0f64; logits.len()];
    draw(sampling, logits, n).into_iter().for_each(|id| counts[id as usize] += 1.0);
    let (mut statistic, mut freedom) = (0.0, -1.0);
    for (id, (&count, &chance)) in counts.iter().zip(chances).enumerate() {
        if chance == 0.0 {
            assert_eq!(count, 0.0, "token {id} has no chance");
            continue;
        }
        let expected = chance * n as f64;
        statistic += (count - expected).powi(2) / expected;
        freedom += 1.0;
    }
    let bound = freedom + 6.0 * (2.0f64 * freedom).sqrt();
    assert!(statistic <= bound, "{statistic} with {freedom} degrees of freedom: {counts:?}");
}

#[test]
fn tokens_are_drawn_as_often_as_they_should_be() {
    let logits = [0.0f32, 1.5, -0.5, 2.0, 0.3, 1.0, -2.0, 0.9];
    let cases = [
        (Sampling { temperature: 1.0, ..Sampling::default() }, Filters::default()),
        (Sampling { temperature: 0.6, ..Sampling::default() }, Filters::default()),
        (
            Sampling { temperature: 1.7, top_k: 5, ..Sampling::default() },
            Filters { top_k: 5, ..Filters::default() },
        ),
        (
            Sampling { temperature: 1.0, top_p: 0.8, ..Sampling::default() },
            Filters { top_p: 0.8, ..Filters::default() },
        ),
        (
            Sampling { temperature: 0.9, min_p: 0.2, ..Sampling::default() },
            Filters { min_p: 0.2, ..Filters::default() },
        ),
    ];
    for (seed, (sampling, filters)) in cases.into_iter().enumerate() {
        let sampling = Sampling { seed: seed as u64, ..sampling };
        let chances = oracle::chances(&wide(&logits), &filters, sampling.temperature);
        assert_distribution(&sampling, &logits, &chances, 5_000);
    }
}

#[test]
fn xtc_applies_as_often_as_asked() {
    let logits = [0.0f32, 1.5, -0.5, 2.0, 0.3];
    let sampling = Sampling {
        temperature: 1.0,
        xtc_probability: 0.3,
        xtc_threshold: 0.15,
        seed: 5,
        ..Sampling::default()
    };
    let xtc = Filters { xtc: Some((0.15, vec![])), ..Filters::default() };
    let with = oracle::chances(&wide(&logits), &xtc, 1.0);
    let without = oracle::chances(&wide(&logits), &Filters::default(), 1.0);
    let share = f64::from(sampling.xtc_probability);
    let chances: Vec<f64> =
        with.iter().zip(&without).map(|(w, wo)| share * w + (1.0 - share) * wo).collect();
    assert_distribution(&sampling, &logits, &chances, 5_000);
}

#[test]
fn many_unlikely_tokens_get_their_share_together() {
    // One token holds half of the probability; the other 50,000 share the rest.
    let n = 50_001usize;
    let mut logits = vec![0f32; n];
    logits[777] = (n as f32 - 1.0).ln();
    let sampling = Sampling { temperature: 1.0, seed: 11, ..Sampling::default() };
    let draws = 600;
    let drawn = draw(&sampling, &logits, draws);
    let hits = drawn.iter().filter(|&&id| id == 777).count() as f64;
    assert!((hits - 300.0).abs() < 5.0 * 150f64.sqrt(), "{hits} of {draws}");
    // And these are spread over all of them: 300 draws hit each fifth about 60 times.
    for fifth in 0..5u32 {
        let hits = drawn.iter().filter(|&&id| id != 777 && id / 10_001 == fifth).count();
        assert!((25..100).contains(&hits), "{hits} in fifth {fifth}");
    }
}

fn run(sampling: &Sampling, steps: usize) -> Vec<u32> {
    let mut rng = Rng::new(77);
    let mut sampler = Sampler::new(sampling, 300, &[]).unwrap();
    sampler.observe_prompt(&[1, 2, 3]).unwrap();
    let queued: Vec<Sampled> =
        (0..steps).map(|_| sampler.sample(&row(&rng.normals(300, 2.0))).unwrap()).collect();
    queued.iter().enumerate().map(|(i, s)| s.read(i).unwrap()).collect()
}

#[test]
fn the_seed_decides_and_nothing_else_does() {
    let sampling = Sampling {
        temperature: 1.2,
        top_p: 0.95,
        xtc_probability: 0.5,
        presence_penalty: 0.3,
        seed: 42,
        ..Sampling::default()
    };
    let first = run(&sampling, 40);
    assert_eq!(first, run(&sampling, 40));
    // Neither another sampler's draws between, nor MLX's own generator.
    mlx_rs::random::seed(9).unwrap();
    run(&Sampling { seed: 1, ..sampling.clone() }, 3);
    assert_eq!(first[..7], run(&sampling, 7));
    for seed in [0, 43, u64::MAX, 42 << 32] {
        assert_ne!(first, run(&Sampling { seed, ..sampling.clone() }, 40), "seed {seed}");
    }
    // Equal logits at every step still give different tokens.
    let flat = vec![0f32; 1000];
    let drawn = draw(&Sampling { temperature: 1.0, ..Sampling::default() }, &flat, 20);
    let mut distinct = drawn.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert!(distinct.len() > 15, "{drawn:?}");
}

#[test]
fn temperatures_from_tiny_to_huge() {
    let logits = [99.0f32, 101.0, -3000.0, 100.0, NEVER];
    for temperature in [1e-2, 1e-6, 1e-30, f32::MIN_POSITIVE, 1e-45] {
        for sampling in [
            Sampling { temperature, ..Sampling::default() },
            Sampling { temperature, top_k: 3, ..Sampling::default() },
        ] {
            for seed in 0..20 {
                let sampling = Sampling { seed, ..sampling.clone() };
                assert_eq!(one(&sampling, &logits).unwrap(), 1, "{temperature}");
            }
        }
    }
    // XTC takes the greatest away; the next one must win just as surely.
    let xtc = Sampling {
        temperature: 1e-30,
        xtc_probability: 1.0,
        xtc_threshold: 0.2,
        ..Sampling::default()
    };
    assert_eq!(one(&xtc, &logits).unwrap(), 3);
    assert_eq!(one(&Sampling { top_k: 1, ..xtc }, &logits).unwrap(), 3);
    // So hot that all but the banned token are equally probable.
    let hot = Sampling { temperature: f32::MAX, ..Sampling::default() };
    assert_distribution(&hot, &logits, &[0.25, 0.25, 0.25, 0.25, 0.0], 4000);
}

#[test]
fn numbers_that_are_none_are_an_error() {
    let mut cases = vec![vec![f32::NAN; 9], vec![f32::INFINITY; 9]];
    for bad in [f32::NAN, f32::INFINITY] {
        for at in [0, 4, 8] {
            let mut logits = vec![1.0f32; 9];
            logits[at] = bad;
            cases.push(logits);
        }
    }
    // More than one vector register, and NaN in the last and odd one.
    let mut long = vec![0.0f32; 4097];
    long[4096] = f32::NAN;
    cases.push(long);
    for logits in cases {
        for sampling in [
            Sampling::default(),
            Sampling { temperature: 1.0, ..Sampling::default() },
            Sampling { temperature: 1.0, top_k: 3, top_p: 0.9, min_p: 0.1, ..Sampling::default() },
            Sampling { repetition_penalty: 1.5, presence_penalty: 1.0, ..Sampling::default() },
            Sampling { logit_bias: (0..9).map(|id| (id, NEVER)).collect(), ..Sampling::default() },
        ] {
            let mut sampler = sampler(&sampling, &logits);
            let sampled = sampler.sample(&row(&logits)).unwrap();
            let error = sampled.read(17).unwrap_err();
            assert!(matches!(error, Error::NotFinite { position: 17 }), "{error}");
            // The next step may already run on the token: it must exist.
            assert!((sampled.token.item_exact::<u32>() as usize) < logits.len());
        }
    }
}

#[test]
fn banning_every_token_is_an_error_and_all_but_one_is_none() {
    let logits = [1.0f32, 5.0, 3.0, 4.0];
    let ban = |ids: &[u32]| ids.iter().map(|&id| (id, NEVER)).collect::<BTreeMap<_, _>>();
    for base in [
        Sampling::default(),
        Sampling { temperature: 1.0, ..Sampling::default() },
        Sampling { temperature: 1.0, top_k: 2, top_p: 0.5, min_p: 0.5, ..Sampling::default() },
        Sampling { temperature: 1.0, xtc_probability: 1.0, ..Sampling::default() },
        Sampling { frequency_penalty: 1.0, ..Sampling::default() },
    ] {
        let banned = Sampling { logit_bias: ban(&[0, 1, 2, 3]), ..base.clone() };
        let mut sampler = sampler(&banned, &logits);
        let sampled = sampler.sample(&row(&logits)).unwrap();
        let error = sampled.read(3).unwrap_err();
        assert!(matches!(error, Error::AllBanned { position: 3 }), "{error}");
        assert!(sampled.token.item_exact::<u32>() < 4);
        for seed in 0..50 {
            let one_left = Sampling { logit_bias: ban(&[0, 1, 3]), seed, ..base.clone() };
            assert_eq!(one(&one_left, &logits).unwrap(), 2);
        }
    }
}

#[test]
fn biases_are_added_before_anything_else() {
    let logits = [1.0f32, 5.0, 3.0, -4.0];
    let bias = |pairs: &[(u32, f32)]| Sampling {
        logit_bias: pairs.iter().copied().collect(),
        ..Sampling::default()
    };
    assert_eq!(one(&bias(&[(3, 10.0)]), &logits).unwrap(), 3);
    assert_eq!(one(&bias(&[(1, -2.5)]), &logits).unwrap(), 2);
    assert_eq!(one(&bias(&[(1, -1.0)]), &logits).unwrap(), 1);
    assert_eq!(one(&bias(&[(1, -100.0), (2, NEVER)]), &logits).unwrap(), 0);
    // A bias that lifts a logit above 0 makes the repetition penalty divide it.
    let both = Sampling { repetition_penalty: 4.0, ..bias(&[(3, 10.0)]) };
    let mut sampler = sampler(&both, &logits);
    sampler.observe_prompt(&[3]).unwrap();
    let sampled = sampler.sample(&row(&logits)).unwrap();
    assert_eq!(sampled.read(0).unwrap(), 1, "6 / 4 is less than 5");
    assert_eq!(sampled.max_logit.item_exact::<f32>(), 5.0);
}

/// Greedy sequences under penalties, queued without reading a token in between.
#[test]
fn penalties_follow_the_sequence_on_the_device() {
    let mut rng = Rng::new(8);
    let vocab = 12;
    for case in 0..60 {
        let penalties = Penalties {
            repetition: [1.0, 1.3, 0.8, 2.0][rng.below(4)],
            presence: [0.0, 0.7, -0.4][rng.below(3)],
            frequency: [0.0, 0.25, -0.1][rng.below(3)],
            context: [0, 1, 2, 5, 20, 1000][rng.below(6)],
        };
        let sampling = Sampling {
            repetition_penalty: penalties.repetition,
            presence_penalty: penalties.presence,
            frequency_penalty: penalties.frequency,
            penalty_context: penalties.context,
            ..Sampling::default()
        };
        let mut sampler = Sampler::new(&sampling, vocab, &[]).unwrap();
        let ids = |rng: &mut Rng, n: usize| -> Vec<u32> {
            (0..n).map(|_| rng.below(vocab) as u32).collect()
        };
        // Prompt, tokens, more of a prompt (a tool's answer), tokens.
        let (first, second) = (rng.below(9), rng.below(9));
        let prompts = [ids(&mut rng, first), ids(&mut rng, second)];
        let mut steps = Vec::new();
        for (turn, prompt) in prompts.iter().enumerate() {
            // In two parts, which must come to the same as one.
            let (a, b) = prompt.split_at(prompt.len() / 2);
            sampler.observe_prompt(a).unwrap();
            sampler.observe_prompt(b).unwrap();
            for _ in 0..10 {
                let logits = rng.normals(vocab, 1.0);
                let sampled = sampler.sample(&row(&logits)).unwrap();
                steps.push((turn, logits, sampled));
            }
        }
        let mut history = prompts[0].clone();
        for (at, (turn, logits, sampled)) in steps.iter().enumerate() {
            if *turn == 1 && at == 10 {
                history.extend(&prompts[1]);
            }
            let want = oracle::penalize(&wide(logits), &history, &penalties);
            let best = oracle::ranking(&want)[0];
            let token = sampled.read(at).unwrap();
            assert_eq!(token as usize, best, "case {case} step {at}: {penalties:?} {want:?}");
            let max = f64::from(sampled.max_logit.item_exact::<f32>());
            assert!((max - want[best]).abs() < 1e-5, "{max} is not {}", want[best]);
            history.push(token);
        }
    }
}

#[test]
fn a_long_prompt_is_counted_only_as_far_back_as_the_context_reaches() {
    let sampling = Sampling { frequency_penalty: 1.0, penalty_context: 4, ..Sampling::default() };
    let logits = [2.5f32, 3.0, 0.0];
    let mut sampler = sampler(&sampling, &logits);
    sampler.observe_prompt(&[1; 5000]).unwrap();
    sampler.observe_prompt(&[2, 2, 2, 1]).unwrap();
    // 3 - 1 for the one 1 that is left.
    let sampled = sampler.sample(&row(&logits)).unwrap();
    assert_eq!(sampled.read(0).unwrap(), 0);
    assert_eq!(sampled.max_logit.item_exact::<f32>(), 2.5);
}

#[test]
fn options_out_of_range_are_refused_by_name() {
    let with = |change: fn(&mut Sampling)| {
        let mut sampling = Sampling::default();
        change(&mut sampling);
        match Sampler::new(&sampling, 10, &[]) {
            Err(Error::Argument { name, .. }) => {
                assert!(sampling.validate().is_err() || name == "logit_bias");
                name
            }
            other => panic!("{other:?} for {sampling:?}"),
        }
    };
    type Change = fn(&mut Sampling);
    let cases: [(&str, [Change; 2]); 14] = [
        ("temperature", [|s| s.temperature = -0.1, |s| s.temperature = f32::NAN]),
        ("temperature", [|s| s.temperature = f32::INFINITY, |s| s.temperature = -f32::INFINITY]),
        ("top_p", [|s| s.top_p = -0.1, |s| s.top_p = 1.1]),
        ("top_p", [|s| s.top_p = f32::NAN, |s| s.top_p = f32::INFINITY]),
        ("min_p", [|s| s.min_p = -0.1, |s| s.min_p = f32::NAN]),
        ("min_tokens_to_keep", [|s| s.min_tokens_to_keep = 0; 2]),
        ("xtc_probability", [|s| s.xtc_probability = 2.0, |s| s.xtc_probability = f32::NAN]),
        ("xtc_threshold", [|s| s.xtc_threshold = -1.0, |s| s.xtc_threshold = f32::NAN]),
        ("repetition_penalty", [|s| s.repetition_penalty = 0.0, |s| s.repetition_penalty = -1.0]),
        ("repetition_penalty", [|s| s.repetition_penalty = f32::NAN; 2]),
        ("presence_penalty", [|s| s.presence_penalty = f32::NAN; 2]),
        ("frequency_penalty", [|s| s.frequency_penalty = f32::INFINITY; 2]),
        (
            "logit_bias",
            [
                |s| s.logit_bias = BTreeMap::from([(1, f32::NAN)]),
                |s| s.logit_bias = BTreeMap::from([(1, f32::INFINITY)]),
            ],
        ),
        ("logit_bias", [|s| s.logit_bias = BTreeMap::from([(10, 1.0)]); 2]),
    ];
    for (name, changes) in cases {
        for change in changes {
            assert_eq!(with(change), name);
        }
    }
    Sampling::default().validate().unwrap();
    let argument = |result: Result<Sampler>| match result {
        Err(Error::Argument { name, .. }) => name,
        other => panic!("{other:?}"),
    };
    let greedy = Sampling::default();
    assert_eq!(argument(Sampler::new(&greedy, 0, &[])), "vocab_size");
    assert_eq!(argument(Sampler::new(&greedy, usize::MAX, &[])), "vocab_size");
    assert_eq!(argument(Sampler::new(&greedy, 10, &[10])), "stop_ids");
    let mut sampler = Sampler::new(&greedy, 10, &[]).unwrap();
    assert!(sampler.observe_prompt(&[9]).is_ok());
    assert!(matches!(sampler.observe_prompt(&[10]), Err(Error::Argument { name: "ids", .. })));
    assert!(sampler.candidates(&row(&[0.0; 10])).is_err(), "nothing to draw from at 0");
}

#[test]
fn logprobs_are_those_of_the_model() {
    let mut rng = Rng::new(6);
    for n in [1usize, 5, 700] {
        let logits: Vec<f32> =
            rng.normals(n, 4.0).iter().map(|l| (l * 4.0).round() / 4.0).collect();
        let chances = oracle::softmax(&wide(&logits));
        let order = oracle::ranking(&wide(&logits));
        for top_n in [1, 5, n, n + 1, usize::MAX] {
            let (ids, values) = logprobs(&row(&logits), top_n).unwrap();
            mlx_rs::transforms::eval([&ids, &values]).unwrap();
            let (ids, values) = (ids.as_slice::<u32>(), values.as_slice::<f32>());
            assert_eq!((ids.len(), values.len()), (top_n.min(n), top_n.min(n)));
            for (rank, (&id, &value)) in ids.iter().zip(values).enumerate() {
                assert_eq!(id as usize, order[rank]);
                assert!((f64::from(value) - chances[id as usize].ln()).abs() < 2e-5);
            }
        }
    }
    let nothing = Array::from_slice(&[0f32; 0], &[0]);
    assert!(matches!(logprobs(&row(&[1.0]), 0), Err(Error::Argument { name: "top_n", .. })));
    assert!(matches!(logprobs(&nothing, 1), Err(Error::Argument { name: "logits", .. })));
}
