//! The oracles themselves, against values worked out by hand and one run of the reference.

mod common;

use common::attention::{Attention, softmax_with_sink};
use common::block::{Linear, rms_norm};
use common::moe::{Moe, route, swiglu};
use common::rng::Rng;
use common::sampling::{Filters, Penalties, chances, filter, penalize, ranking};
use common::yarn::Yarn;
use common::{affine, mxfp4, reference};

fn close(a: f64, b: f64, tolerance: f64) -> bool {
    (a - b).abs() <= tolerance * b.abs().max(1.0)
}

fn assert_close(a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    for (i, (&a, &b)) in a.iter().zip(b).enumerate() {
        assert!(close(a, b, tolerance), "{a} is not {b} at {i}");
    }
}

#[test]
fn mxfp4_unpacks_the_low_nibble_first() {
    let mut packed = [0u8; 32];
    packed[..4].copy_from_slice(&[0x10, 0x72, 0xF9, 0x08]);
    packed[16] = 0x34;
    // 128 stands for 2, 126 for a half.
    let values = mxfp4::dequantize(&packed, &[128, 126]);
    assert_eq!(values[..8], [0.0, 1.0, 2.0, 12.0, -1.0, -12.0, 0.0, 0.0]);
    assert!(values[6].is_sign_negative(), "code 8 is minus zero");
    assert_eq!(values[32..34], [1.0, 0.75]);
    assert_eq!(mxfp4::scale(0), 2f64.powi(-127));
    assert_eq!(mxfp4::scale(127), 1.0);
    assert!(mxfp4::scale(255).is_nan());
}

#[test]
fn mxfp4_packing_keeps_representable_values_and_rounds_the_others_to_the_nearest() {
    let mut exact: Vec<f32> = mxfp4::E2M1.iter().map(|v| v * 0.25).collect();
    exact.extend(mxfp4::E2M1.iter().rev().map(|v| v * 0.25));
    let (packed, scales) = mxfp4::quantize(&exact);
    assert_eq!(scales, [125]);
    assert_eq!(mxfp4::dequantize(&packed, &scales), exact);

    let values = Rng::new(1).normals(32 * 50, 3.0);
    let (packed, scales) = mxfp4::quantize(&values);
    for (i, (&value, back)) in values.iter().zip(mxfp4::dequantize(&packed, &scales)).enumerate() {
        // In units of the scale: a value is off by half of the gap it lies in, and one between 6
        // and 8 by what it exceeds 6.
        let unit = mxfp4::scale(scales[i / 32]);
        let (v, b) = (f64::from(value).abs() / unit, f64::from(back).abs() / unit);
        let gap = if v < 2.0 {
            0.25
        } else if v < 4.0 {
            0.5
        } else {
            1.0f64.max(v - 6.0)
        };
        assert!(v < 8.0 && (v - b).abs() <= gap + 1e-9, "{value} came back as {back}");
    }
    assert_eq!(mxfp4::quantize(&[0.0; 32]).0, [0; 16]);
}

#[test]
fn affine_unpacks_the_lowest_bits_first() {
    let bytes = affine::dequantize(&[0x0403_0201, 0xFF00_0000], &[0.5, 2.0], &[1.0, -1.0], 8, 4);
    assert_eq!(bytes, [1.5, 2.0, 2.5, 3.0, -1.0, -1.0, -1.0, 509.0]);
    let nibbles = affine::dequantize(&[0xFEDC_3210], &[1.0, 0.25], &[0.0, 10.0], 4, 4);
    assert_eq!(nibbles, [0.0, 1.0, 2.0, 3.0, 13.0, 13.25, 13.5, 13.75]);
}

#[test]
fn affine_packing_is_off_by_half_a_step_at_most() {
    for bits in [4, 8] {
        let values = Rng::new(2).normals(64 * 20, 1.0);
        let (words, scales, biases) = affine::quantize(&values, bits, 64);
        assert_eq!(words.len(), values.len() * bits / 32);
        let back = affine::dequantize(&words, &scales, &biases, bits, 64);
        for (i, (value, back)) in values.iter().zip(back).enumerate() {
            assert!((value - back).abs() <= scales[i / 64] * 0.501, "{value} came back as {back}");
        }
    }
}

#[test]
fn yarn_range_is_the_published_one_in_both_forms() {
    let yarn = Yarn::gpt_oss();
    let (low, high) = yarn.range();
    assert!((low - 8.09278).abs() < 5e-6 && (high - 17.39802).abs() < 5e-6, "{low} {high}");
    assert_eq!(Yarn { truncate: true, ..yarn }.range(), (8.0, 18.0));
}

#[test]
fn yarn_keeps_fast_pairs_divides_slow_ones_and_goes_over_between() {
    for truncate in [false, true] {
        let yarn = Yarn { truncate, ..Yarn::gpt_oss() };
        let freqs = yarn.inv_freq();
        assert_eq!(freqs.len(), 32);
        let plain = |i: usize| 150_000f64.powf(-(i as f64) / 32.0);
        for (i, &freq) in freqs.iter().enumerate() {
            let share = freq / plain(i);
            match i {
                0..=8 => assert!(close(share, 1.0, 1e-12), "pair {i}"),
                18.. => assert!(close(share, 1.0 / 32.0, 1e-12), "pair {i}"),
                _ => assert!(share < freqs[i - 1] / plain(i - 1), "pair {i}"),
            }
        }
        // The middle of the rounded range is pair 13: (1 + 1/32) / 2 of the plain frequency.
        assert_eq!(truncate, close(freqs[13] / plain(13), 0.515_625, 1e-12));
    }
    assert!(close(Yarn::gpt_oss().concentration(), 1.346_573_590_279_972_6, 1e-12));
    let plain = Yarn { factor: 1.0, ..Yarn::gpt_oss() };
    assert_eq!(plain.concentration(), 1.0);
    assert!(close(plain.inv_freq()[31], 150_000f64.powf(-31.0 / 32.0), 1e-12));
}

#[test]
fn rotation_pairs_the_halves_of_a_head() {
    let yarn = Yarn { head_dim: 4, factor: 1.0, base: 10_000.0, ..Yarn::gpt_oss() };
    let mut x = [1.0, 0.0, 0.0, 2.0, 5.0, 6.0, 7.0, 8.0];
    let before = x;
    yarn.rotate(&mut x, 0);
    assert_eq!(x, before);
    // Frequencies 1 and 0.01: (1, 0) of pair 0 turns by 3, (0, 2) of pair 1 by 0.03.
    yarn.rotate(&mut x, 3);
    let (slow_sin, slow_cos) = 0.03f64.sin_cos();
    assert_close(&x[..4], &[3f64.cos(), -2.0 * slow_sin, 3f64.sin(), 2.0 * slow_cos], 1e-15);
    // Scores depend on the distance only, and grow with the square of the concentration.
    let yarn = Yarn::gpt_oss();
    let mut rng = Rng::new(3);
    let (q, k): (Vec<f64>, Vec<f64>) = (0..64).map(|_| (rng.normal(), rng.normal())).unzip();
    let score = |at: usize, from: usize| {
        let (mut q, mut k) = (q.clone(), k.clone());
        yarn.rotate(&mut q, at);
        yarn.rotate(&mut k, from);
        common::attention::dot(&q, &k)
    };
    assert!(close(score(40, 10), score(130, 100), 1e-10));
    let plain = common::attention::dot(&q, &k);
    assert!(close(score(5, 5), plain * yarn.concentration().powi(2), 1e-10));
}

#[test]
fn a_sink_takes_weight_and_gives_no_value() {
    let weights = softmax_with_sink(&[0.0, 3f64.ln()], 0.0);
    assert_close(&weights, &[0.2, 0.6], 1e-15);
    assert_close(&softmax_with_sink(&[7.0, 7.0], f64::NEG_INFINITY), &[0.5, 0.5], 1e-15);
    assert_close(&softmax_with_sink(&[1000.0], -1000.0), &[1.0], 1e-15);

    // One head of width 1, zero query: every score is 0, so n keys get 1 / (n + 1) each.
    let attention = Attention { heads: 1, kv_heads: 1, head_dim: 1, window: None, scale: 1.0 };
    let zeros = vec![vec![0.0]; 3];
    let values = [vec![1.0], vec![10.0], vec![100.0]];
    let rows = attention.forward(&zeros, &zeros, &values, &[0.0], 0);
    assert_close(&rows.concat(), &[0.5, 11.0 / 3.0, 111.0 / 4.0], 1e-15);
}

#[test]
fn the_window_holds_its_own_position_and_those_just_before() {
    let windowed = |window| Attention { heads: 1, kv_heads: 1, head_dim: 1, window, scale: 1.0 };
    let zeros = vec![vec![0.0]; 4];
    let values = [vec![1.0], vec![10.0], vec![100.0], vec![1000.0]];
    let rows = |window| {
        windowed(window).forward(&zeros, &zeros, &values, &[f32::NEG_INFINITY], 0).concat()
    };
    assert_close(&rows(Some(1)), &[1.0, 10.0, 100.0, 1000.0], 1e-15);
    assert_close(&rows(Some(2)), &[1.0, 5.5, 55.0, 550.0], 1e-15);
    assert_eq!(rows(Some(4)), rows(None));
    // A later chunk of queries gives the rows of the whole.
    let tail = windowed(Some(2)).forward(&zeros[2..], &zeros, &values, &[f32::NEG_INFINITY], 2);
    assert_close(&tail.concat(), &rows(Some(2))[2..], 1e-15);
}

#[test]
fn consecutive_query_heads_share_a_key_head() {
    let attention = Attention { heads: 4, kv_heads: 2, head_dim: 2, window: None, scale: 0.5 };
    let query = [vec![1.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 0.0]];
    let keys = [vec![4.0, 2.0, 1.0, 1.0]];
    let values = [vec![1.0, 2.0, 3.0, 4.0]];
    // One key: its weight is σ(score - sink), the scores 2, 1, 1 and 0.
    let rows = attention.forward(&query, &keys, &values, &[0.0, 0.0, 1.0, 0.0], 0);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let (a, b) = (sigmoid(2.0), sigmoid(1.0));
    assert_close(&rows[0], &[a, 2.0 * a, b, 2.0 * b, 1.5, 2.0, 1.5, 2.0], 1e-15);
}

#[test]
fn norm_divides_by_the_root_of_the_mean_square() {
    assert_close(
        &rms_norm(&[3.0, 4.0], &[1.0, 2.0], 0.0),
        &[3.0 / 12.5f64.sqrt(), 8.0 / 12.5f64.sqrt()],
        1e-15,
    );
    assert_close(&rms_norm(&[0.0, 0.0], &[1.0, 1.0], 1e-5), &[0.0, 0.0], 0.0);
    assert_close(&rms_norm(&[1.0], &[1.0], 3.0), &[0.5], 1e-15);
}

#[test]
fn the_router_takes_the_softmax_over_the_chosen_only() {
    let chosen = route(&[2f64.ln(), 50.0f64.ln(), 6f64.ln(), 2f64.ln()], 3);
    assert_eq!(chosen.iter().map(|c| c.0).collect::<Vec<_>>(), [1, 2, 0], "first of equals");
    let weights: Vec<f64> = chosen.iter().map(|c| c.1).collect();
    assert_close(&weights, &[50.0 / 58.0, 6.0 / 58.0, 2.0 / 58.0], 1e-15);
}

#[test]
fn swiglu_clamps_the_gate_above_and_the_other_on_both_sides() {
    let silu = |x: f64| x / (1.0 + (-1.702 * x).exp());
    assert!(close(swiglu(1.0, 0.5, 7.0), silu(1.0) * 1.5, 1e-15));
    assert_eq!(swiglu(9.0, 0.0, 7.0), swiglu(7.0, 0.0, 7.0));
    assert_eq!(swiglu(1.0, 9.0, 7.0), silu(1.0) * 8.0);
    assert_eq!(swiglu(1.0, -9.0, 7.0), silu(1.0) * -6.0);
    assert!(swiglu(-9.0, 0.0, 7.0).abs() < swiglu(-7.0, 0.0, 7.0).abs(), "no clamp below");
    assert_eq!(swiglu(0.0, 3.0, 7.0), 0.0);
}

#[test]
fn experts_are_added_by_their_weights() {
    let linear = |weight: &[f32], bias: &[f32], inputs| Linear {
        weight: weight.to_vec(),
        bias: Some(bias.to_vec()),
        inputs,
    };
    // Gates of 7 give 7 σ(11.9) ≈ 7; each expert e then yields 7 · (0 + 1) · 1 + e.
    let moe = Moe {
        router: linear(&[0.0, 0.0, 0.0], &[0.0, 3f64.ln() as f32, -9.0], 1),
        gate: vec![linear(&[0.0], &[20.0], 1); 3],
        up: vec![linear(&[0.0], &[0.0], 1); 3],
        down: (0..3).map(|e| linear(&[1.0], &[e as f32], 1)).collect(),
        top_k: 2,
        limit: 7.0,
    };
    let seven = 7.0 / (1.0 + (-11.914f64).exp());
    assert_close(&moe.forward(&[123.0]), &[seven + 0.75], 1e-7);
}

#[test]
fn filters_follow_their_definitions() {
    let logits: Vec<f64> = [0.1f64, 0.4, 0.2, 0.1, 0.2].iter().map(|p| p.ln()).collect();
    let alive = |filters: Filters| -> Vec<usize> {
        let left = filter(&logits, &filters);
        (0..left.len()).filter(|&id| left[id].is_finite()).collect()
    };
    let off = Filters::default();
    assert_eq!(ranking(&logits), [1, 2, 4, 0, 3]);
    assert_eq!(alive(off.clone()), [0, 1, 2, 3, 4]);
    assert_eq!(alive(Filters { top_p: 0.0, ..off.clone() }), [1]);
    assert_eq!(alive(Filters { top_p: 0.39, ..off.clone() }), [1]);
    assert_eq!(alive(Filters { top_p: 0.5, ..off.clone() }), [1, 2]);
    assert_eq!(alive(Filters { top_p: 0.85, ..off.clone() }), [0, 1, 2, 4]);
    assert_eq!(alive(Filters { min_p: 0.45, ..off.clone() }), [1, 2, 4]);
    assert_eq!(alive(Filters { min_p: 1.0, ..off.clone() }), [1]);
    assert_eq!(alive(Filters { min_p: 1.0, min_tokens_to_keep: 2, ..off.clone() }), [1, 2]);
    assert_eq!(alive(Filters { top_k: 4, ..off.clone() }), [0, 1, 2, 4]);
    assert_eq!(alive(Filters { top_k: 9, ..off.clone() }), [0, 1, 2, 3, 4]);
    // XTC at 0.15: 1, 2 and 4 are viable, and the least of them (both, being equal) stay.
    let xtc = |threshold, kept| Filters { xtc: Some((threshold, kept)), ..Filters::default() };
    assert_eq!(alive(xtc(0.15, vec![])), [0, 2, 3, 4]);
    assert_eq!(alive(xtc(0.05, vec![])), [0, 3]);
    assert_eq!(alive(xtc(0.05, vec![1])), [0, 1, 3]);
    assert_eq!(alive(xtc(0.35, vec![])), [0, 1, 2, 3, 4], "a single viable token stays");
    assert_eq!(alive(xtc(0.5, vec![])), [0, 1, 2, 3, 4]);
    // top_k counts what XTC has left, and top_p comes before both.
    assert_eq!(alive(Filters { top_k: 2, ..xtc(0.15, vec![]) }), [2, 4]);
    assert_eq!(alive(Filters { top_p: 0.5, ..xtc(0.15, vec![]) }), [2]);
    let halves = chances(&logits, &Filters { top_p: 0.5, ..off.clone() }, 1.0);
    assert_close(&halves, &[0.0, 2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0], 1e-12);
    let cold = chances(&logits, &Filters { top_p: 0.5, ..off }, 0.5);
    assert_close(&cold, &[0.0, 0.8, 0.2, 0.0, 0.0], 1e-12);
}

#[test]
fn penalties_look_back_over_their_context_only() {
    let logits = [2.0, -2.0, 1.0, 0.0];
    let history = [3, 0, 0, 1];
    let penalties = Penalties { repetition: 2.0, presence: 0.5, frequency: 0.25, context: 0 };
    assert_close(&penalize(&logits, &history, &penalties), &[0.0, -4.75, 1.0, -0.75], 1e-15);
    let near = Penalties { context: 2, ..penalties };
    assert_close(&penalize(&logits, &history, &near), &[0.25, -4.75, 1.0, 0.0], 1e-15);
    assert_eq!(penalize(&logits, &[], &near), logits);
}

/// Prompt and answer of mlx-lm 0.32.0 (greedy, f32) to "Explain Dangling References.": 159 tokens,
/// more than twice the window.
const DANGLING: [u32; 159] = [
    2044, 82, 88, 259, 515, 2046, 605, 447, 445, 262, 81, 325, 11, 264, 260, 261, 88, 324, 301,
    369, 584, 910, 269, 365, 322, 13, 1013, 49, 68, 290, 282, 286, 25, 364, 368, 1013, 2, 1718,
    220, 303, 82, 25, 287, 349, 11, 448, 76, 400, 660, 11, 1585, 13, 1846, 312, 350, 486, 869, 359,
    413, 1692, 220, 281, 13, 2045, 2044, 302, 2046, 471, 395, 1743, 1083, 13, 2045, 2044, 305,
    2043, 351, 2046, 316, 346, 352, 309, 395, 1743, 1083, 13, 315, 340, 348, 334, 269, 322, 13,
    2045, 2044, 305, 2043, 353, 2046, 823, 1789, 383, 919, 82, 11, 404, 411, 391, 290, 88, 320,
    747, 81, 1278, 1388, 1397, 264, 321, 1743, 919, 1300, 64, 919, 369, 1087, 264, 1042, 422, 328,
    693, 369, 1609, 542, 1758, 1856, 320, 568, 1278, 1535, 1300, 65, 88, 288, 277, 68, 286, 568,
    693, 1766, 1787, 262, 1126, 264, 919, 320, 369, 693, 13, 2041,
];
/// Where the answer starts.
const ANSWER: usize = 75;

#[test]
fn the_whole_model_says_what_the_reference_says() {
    let model =
        reference::load(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gpt-oss-tiny-f32"));
    let logits = model.forward(&DANGLING);
    assert_eq!(logits.len(), DANGLING.len());
    for (at, next) in DANGLING.iter().enumerate().skip(ANSWER) {
        assert_eq!(ranking(&logits[at - 1])[0], *next as usize, "token {at}");
    }
}

#[test]
fn both_layouts_read_as_the_same_model_up_to_the_quantization() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/");
    let ids = &DANGLING[..24];
    let a = reference::load(format!("{dir}gpt-oss-tiny-f32")).forward(ids);
    let b = reference::load(format!("{dir}gpt-oss-tiny-openai")).forward(ids);
    let (mut squares, mut largest) = (0.0, 0f64);
    for (a, b) in a.iter().flatten().zip(b.iter().flatten()) {
        squares += (a - b).powi(2);
        largest = largest.max((a - b).abs());
    }
    let rms = (squares / (a.len() * a[0].len()) as f64).sqrt();
    assert!(rms > 0.0 && rms < 0.2, "root mean square {rms}, largest {largest}");
}
