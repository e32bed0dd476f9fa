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
    let word = |codes: &[u32]| {
        codes.iter().enumerate().fold(0u32, |word, (i, code)| word | code << (bits * i))
    };
    (codes.chunks(per_word).map(word).collect(), scales, biases)
}
