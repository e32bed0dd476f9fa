//! Headers of safetensors files, three ways: the input is a whole file; it is the length of the
//! data and the header's text, so that the fuzzer need not guess lengths and the file can be longer
//! than any memory; it is numbers that a well-formed header is made from, so that places and shapes
//! can be wrong in ways that text rarely is.

#![no_main]
#![allow(dead_code)]

#[path = "../../src/checkpoint/header.rs"]
mod checkpoint;
#[path = "../../src/error.rs"]
mod error;

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use safetensors::{Dtype, SafeTensors};

use checkpoint::{TensorInfo, parse_header};

/// Files up to this length are made whole and compared with the safetensors crate.
const COMPARED: usize = 1 << 16;

/// What the highest bytes stand for where a byte is an axis: sizes that come to grief
/// when they are added or multiplied.
const HUGE: [u64; 8] = [
    1 << 32,
    (1 << 32) + 1,
    (1 << 61) - 1,
    1 << 61,
    (1 << 62) + 1,
    1 << 63,
    u64::MAX - 8,
    u64::MAX,
];

fuzz_target!(|input: &[u8]| {
    check(input, input.len());
    if let Some((data, text)) = input.split_first_chunk::<8>() {
        let data = usize::try_from(u64::from_le_bytes(*data)).unwrap_or(usize::MAX);
        check_framed(text, data);
    }
    if let Some((&lie, tensors)) = input.split_first() {
        let (text, data) = composed(tensors);
        check_framed(text.as_bytes(), distort(data, lie) as usize);
    }
});

/// A header with a tensor for each five bytes, and the length of its data. Type and two axes are
/// taken as they come; start and end are what they should be, unless the other two bytes say that
/// they are not.
fn composed(bytes: &[u8]) -> (String, u64) {
    const DTYPES: [Dtype; 8] = [
        Dtype::U8,
        Dtype::BF16,
        Dtype::F32,
        Dtype::I64,
        Dtype::F4,
        Dtype::F6_E2M3,
        Dtype::BOOL,
        Dtype::C64,
    ];
    let (mut entries, mut reached) = (Vec::new(), 0);
    for (i, &[dtype, rows, columns, gap, lie]) in bytes.as_chunks::<5>().0.iter().enumerate() {
        let dtype = DTYPES[usize::from(dtype) % DTYPES.len()];
        let (rows, columns) = (number(rows), number(columns));
        let bits = rows.wrapping_mul(columns).wrapping_mul(dtype.bitsize() as u64);
        let start = distort(reached, gap);
        reached = distort(start.wrapping_add(bits / 8), lie);
        entries.push(format!(
            r#""t{i}":{{"dtype":"{dtype}","shape":[{rows},{columns}],"data_offsets":[{start},{reached}]}}"#
        ));
    }
    (format!("{{{}}}", entries.join(",")), reached)
}

fn number(byte: u8) -> u64 {
    let huge = usize::from(byte).checked_sub(256 - HUGE.len());
    huge.map_or(u64::from(byte), |i| HUGE[i])
}

/// Nothing for most bytes, a small step to either side for the others.
fn distort(value: u64, byte: u8) -> u64 {
    match byte {
        0..224 => value,
        224..240 => value.wrapping_add(u64::from(byte) - 223),
        240.. => value.wrapping_sub(u64::from(byte) - 239),
    }
}

/// Puts the length before a header's text, and tries it with `data` bytes behind it.
fn check_framed(text: &[u8], data: usize) {
    let mut head = (text.len() as u64).to_le_bytes().to_vec();
    head.extend(text);
    check(&head, head.len().saturating_add(data));
}

/// Parses, and checks what was accepted: the tensors lie one behind the other from the header to
/// the end of the file, and are as long as their shapes say.
fn check(head: &[u8], file_len: usize) {
    let Ok(tensors) = parse_header(Path::new("fuzz"), head, file_len) else { return };
    let text = u64::from_le_bytes(head[..8].try_into().unwrap());
    let mut reached = 8 + usize::try_from(text).unwrap();
    for (_, TensorInfo { dtype, shape, offset, nbytes, .. }) in &tensors {
        assert_eq!(*offset, reached);
        reached = offset.checked_add(*nbytes).unwrap();
        let elements: u128 = shape.iter().map(|&axis| axis as u128).product();
        assert_eq!(elements * dtype.bitsize() as u128, *nbytes as u128 * 8);
    }
    assert_eq!(reached, file_len);
    if file_len <= COMPARED {
        let mut file = head.to_vec();
        file.resize(file_len, 0);
        let reference = SafeTensors::deserialize(&file).unwrap();
        assert_eq!(reference.len(), tensors.len());
        for (name, info) in tensors {
            let view = reference.tensor(&name).unwrap();
            assert_eq!((view.dtype(), view.shape()), (info.dtype, info.shape.as_slice()));
            assert_eq!(view.data().len(), info.nbytes);
        }
    }
}
