//! MLX's affine quantization: in each group of a row, value = scale · code + bias, with the codes
//! packed into u32 words from the lowest bits upwards.

/// Unpacks rows whose length is a multiple of `group_size`; `scales` and `biases` have one entry
/// per group.
pub fn dequantize(
    packed: &[u32],
    scales: &[f32],
    biases: &[f32],
    bits: usize,
    group_size: usize,
) -> Vec<f32> {
    assert!(bits == 4 || bits == 8, "codes that divide a byte");
    let per_word = 32 / bits;
    assert_eq!(packed.len() * per_word, scales.len() * group_size, "one scale per group");
    assert_eq!(scales.len(), biases.len(), "a bias for every scale");
    let mask = (1u32 << bits) - 1;
    let code = |i: usize| packed[i / per_word] >> (bits * (i % per_word)) & mask;
    (0..packed.len() * per_word)
        .map(|i| {
            let group = i / group_size;
            (f64::from(scales[group]) * f64::from(code(i)) + f64::from(biases[group])) as f32
        })
        .collect()
}

/// Packs values, spreading the codes evenly between each group's least and greatest value:
/// (words, scales, biases).
pub fn quantize(values: &[f32], bits: usize, group_size: usize) -> (Vec<u32>, Vec<f32>, Vec<f32>) {
    assert!(bits == 4 || bits == 8, "codes that divide a byte");
    assert_eq!(values.len() % group_size, 0, "whole groups");
    let per_word = 32 / bits;
    let steps = f64::from((1u32 << bits) - 1);
    let (mut codes, mut scales, mut biases) = (Vec::new(), Vec::new(), Vec::new());
    for group in values.chunks(group_size) {
        let low = group.iter().fold(f64::INFINITY, |m, &v| m.min(f64::from(v)));
        let high = group.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(f64::from(v)));
        let scale = ((high - low) / steps).max(1e-7) as f32;
        let bias = low as f32;
        for &value in group {
            let code = ((f64::from(value) - f64::from(bias)) / f64::from(scale)).round();
            codes.push(code.clamp(0.0, steps) as u32);
        }
        scales.push(scale);
        biases.push(bias);
    }
    (codes.chunks(per_word).map(|codes| word(codes, bits)).collect(), scales, biases)
}

/// Packs values as MLX does, in f32 like MLX: the edge of a group that is larger in magnitude is
/// kept exactly, as the bias, and zero falls on a code. The scale is negative where the greater value
/// is that edge. `mlx::core::quantize`, `mlx/backend/cpu/quantized.cpp`.
pub fn quantize_as_mlx(
    values: &[f32],
    bits: usize,
    group_size: usize,
) -> (Vec<u32>, Vec<f32>, Vec<f32>) {
    assert!(bits == 4 || bits == 8, "codes that divide a byte");
    assert_eq!(values.len() % group_size, 0, "whole groups");
    let steps = ((1u32 << bits) - 1) as f32;
    let (mut codes, mut scales, mut biases) = (Vec::new(), Vec::new(), Vec::new());
    for group in values.chunks(group_size) {
        let low = group.iter().copied().fold(f32::INFINITY, f32::min);
        let high = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let from_low = low.abs() > high.abs();
        let edge = if from_low { low } else { high };
        let scale = ((high - low) / steps).max(1e-7);
        let scale = if from_low { scale } else { -scale };
        let zero = (edge / scale).round_ties_even();
        let (scale, bias) = if zero == 0.0 { (scale, 0.0) } else { (edge / zero, edge) };
        let code = |&v: &f32| ((v - bias) / scale).round_ties_even().clamp(0.0, steps) as u32;
        codes.extend(group.iter().map(code));
        scales.push(scale);
        biases.push(bias);
    }
    (codes.chunks(32 / bits).map(|codes| word(codes, bits)).collect(), scales, biases)
}

/// What is left of values that go through [`quantize_as_mlx`].
pub fn through_mlx(values: &[f32], bits: usize, group_size: usize) -> Vec<f32> {
    let (words, scales, biases) = quantize_as_mlx(values, bits, group_size);
    dequantize(&words, &scales, &biases, bits, group_size)
}

/// How far [`quantize_as_mlx`] is from rounding any number of these to the next code, in steps: 0.5
/// at most. Numbers that differ by less get the same codes.
pub fn rounding_margin(values: &[f32], bits: usize, group_size: usize) -> f64 {
    let steps = f64::from((1u32 << bits) - 1);
    let from_boundary = |code: f64| (code - code.floor() - 0.5).abs();
    let (_, scales, biases) = quantize_as_mlx(values, bits, group_size);
    let mut margin = 0.5;
    for ((group, scale), bias) in values.chunks(group_size).zip(scales).zip(biases) {
        let low = f64::from(group.iter().copied().fold(f32::INFINITY, f32::min));
        let high = f64::from(group.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let step = (high - low) / steps;
        // Which edge is the larger, and the code of zero.
        margin = f64::min(margin, (high + low).abs() / step);
        margin = f64::min(margin, from_boundary(high.max(-low) / step));
        for &value in group {
            let code = (f64::from(value) - f64::from(bias)) / f64::from(scale);
            margin = f64::min(margin, from_boundary(code));
        }
    }
    margin
}

fn word(codes: &[u32], bits: usize) -> u32 {
    codes.iter().enumerate().fold(0, |word, (i, code)| word | code << (bits * i))
}
