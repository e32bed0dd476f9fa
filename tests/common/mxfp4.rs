//! MXFP4: blocks of 32 four-bit floats (E2M1) that share one power-of-two scale (E8M0), as in the
//! OCP Microscaling Formats specification 1.0. Two values to a byte, the earlier one in the low
//! nibble.

/// Values that share one scale.
pub const BLOCK: usize = 32;

/// The sixteen values of E2M1, indexed by their bits (sign, two of exponent, one of mantissa).
pub const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// What the E8M0 byte stands for: 2^(byte - 127), with 255 for NaN.
pub fn scale(byte: u8) -> f64 {
    if byte == u8::MAX { f64::NAN } else { 2f64.powi(i32::from(byte) - 127) }
}

/// Unpacks 16 bytes per scale into 32 values each.
pub fn dequantize(packed: &[u8], scales: &[u8]) -> Vec<f32> {
    assert_eq!(packed.len(), scales.len() * BLOCK / 2, "16 bytes per scale");
    let mut values = Vec::with_capacity(packed.len() * 2);
    for (bytes, &byte) in packed.chunks(BLOCK / 2).zip(scales) {
        for &pair in bytes {
            for code in [pair & 15, pair >> 4] {
                values.push((f64::from(E2M1[usize::from(code)]) * scale(byte)) as f32);
            }
        }
    }
    values
}

/// Packs a multiple of 32 values: (bytes, scales). The scale brings the block's largest magnitude
/// into 4..8 (so that it is rounded to 4 or 6), each value goes to the nearest of E2M1, and a tie
/// to the code with an even mantissa.
pub fn quantize(values: &[f32]) -> (Vec<u8>, Vec<u8>) {
    assert_eq!(values.len() % BLOCK, 0, "whole blocks");
    let (mut packed, mut scales) = (Vec::new(), Vec::new());
    for block in values.chunks(BLOCK) {
        let largest = block.iter().fold(0f64, |m, &v| m.max(f64::from(v).abs()));
        let exponent = if largest == 0.0 { -127.0 } else { largest.log2().floor() - 2.0 };
        let byte = (exponent + 127.0).clamp(0.0, 254.0) as u8;
        let codes: Vec<u8> = block.iter().map(|&v| nearest(f64::from(v) / scale(byte))).collect();
        packed.extend(codes.chunks(2).map(|pair| pair[0] | pair[1] << 4));
        scales.push(byte);
    }
    (packed, scales)
}

fn nearest(value: f64) -> u8 {
    let distance = |code: u8| (f64::from(E2M1[usize::from(code)]) - value.abs()).abs();
    let mut best = 0;
    for code in 1..8 {
        let (old, new) = (distance(best), distance(code));
        if new < old || (new == old && code % 2 == 0) {
            best = code;
        }
    }
    if value < 0.0 { best | 8 } else { best }
}
