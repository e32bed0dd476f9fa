//! Files that are no safetensors files, or no longer.

use std::fs;
use std::path::Path;

use gpt_oss_mlx::checkpoint::parse_header;
use safetensors::Dtype;

use super::common::safetensors::{file, frame, header, place, spec};
use super::{SINGLE, folder, refused};

/// Asserts that `model.safetensors` of these bytes is refused for a reason with `part` in it.
#[track_caller]
fn refused_for(bytes: &[u8], part: &str) {
    let dir = folder(bytes);
    let reason = refused(dir.path(), SINGLE);
    assert!(reason.contains(part), "{reason:?} does not say {part:?}");
}

#[test]
fn an_empty_file() {
    refused_for(b"", "is empty");
}

#[test]
fn a_file_too_short_for_a_header() {
    refused_for(&[1, 0, 0, 0, 0, 0, 0], "7 bytes hold no safetensors header");
}

#[test]
fn a_truncated_header() {
    let whole = file(&header(&place(&[spec("a", Dtype::U8, &[2])])), 2);
    refused_for(&whole[..40], "is cut off");
}

#[test]
fn a_header_longer_than_the_file() {
    let mut bytes = file("{}", 100);
    bytes[..8].copy_from_slice(&103_u64.to_le_bytes());
    refused_for(&bytes, "its header should have 103 bytes, the file has 110");
    // Far more than there is memory, and more than fits when eight is added.
    for claimed in [1 << 62, u64::MAX - 8, u64::MAX - 7, u64::MAX] {
        bytes[..8].copy_from_slice(&claimed.to_le_bytes());
        refused_for(&bytes, &format!("its header should have {claimed} bytes"));
    }
}

#[test]
fn a_header_longer_than_the_format_allows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(SINGLE);
    fs::write(&path, 100_000_001_u64.to_le_bytes()).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(200_000_000).unwrap();
    let reason = refused(dir.path(), SINGLE);
    assert!(reason.contains("more than the 100000000 that are allowed"), "{reason}");
}

#[test]
fn a_header_that_is_not_json() {
    refused_for(&file("{\"a", 0), "its header is not valid: EOF while parsing");
    refused_for(&file("", 0), "its header is not valid: EOF while parsing");
    refused_for(&file("{} x", 0), "trailing characters");
    refused_for(&file("[]", 0), "expected an object with a tensor's name for each key");
    let mut bytes = file("{\"aa\":1}", 0);
    bytes[10..12].copy_from_slice(&[0xff, 0xfe]);
    refused_for(&bytes, "its header is not valid: invalid unicode");
    refused_for(&file(&"[".repeat(100_000), 0), "its header is not valid");
}

#[test]
fn an_entry_with_wrong_fields() {
    for (entry, part) in [
        ("{\"dtype\":\"U8\",\"shape\":[1]}", "tensor a: missing field `data_offsets`"),
        ("{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]}", "tensor a: invalid value"),
        ("{\"dtype\":\"U8\",\"shape\":[1.0],\"data_offsets\":[0,1]}", "tensor a: invalid type"),
        ("{\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]}", "tensor a: invalid type"),
        ("{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]}", "tensor a: "),
        ("{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1e30]}", "tensor a: invalid type"),
        ("{\"dtype\":\"U8\",\"shape\":[18446744073709551616],\"data_offsets\":[0,1]}", "tensor a"),
        ("7", "tensor a: invalid type"),
        ("null", "tensor a: invalid type"),
    ] {
        refused_for(&file(&format!("{{\"a\":{entry}}}"), 1), part);
    }
}

#[test]
fn an_unknown_dtype() {
    let text = r#"{"a":{"dtype":"Q4","shape":[1],"data_offsets":[0,1]}}"#;
    refused_for(&file(text, 1), "tensor a: unknown variant `Q4`");
}

#[test]
fn a_shape_or_dtype_that_does_not_fit_the_bytes() {
    let entry = |dtype: &str, shape: &str| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,4]}}}}"#)
    };
    refused_for(&file(&entry("U8", "[5]"), 4), "tensor a has 4 bytes, which is not U8 [5]");
    refused_for(&file(&entry("F32", "[4]"), 4), "tensor a has 4 bytes, which is not F32 [4]");
    refused_for(&file(&entry("U8", "[0]"), 4), "which is not U8 [0]");
    // Half a byte more than four; and products that wrap to 4.
    refused_for(&file(&entry("F4", "[9]"), 4), "which is not F4 [9]");
    refused_for(&file(&entry("U8", "[4611686018427387905,4]"), 4), "is not U8 [46116860");
    refused_for(&file(&entry("U32", "[4611686018427387905]"), 4), "which is not U32 [46116860");
}

/// A header with tensors `a` and `b`, both U8, at these places.
fn two(a: (u64, u64), b: (u64, u64)) -> String {
    let entry = |name: &str, (start, end): (u64, u64)| {
        let length = end.saturating_sub(start);
        format!(r#""{name}":{{"dtype":"U8","shape":[{length}],"data_offsets":[{start},{end}]}}"#)
    };
    format!("{{{},{}}}", entry("a", a), entry("b", b))
}

#[test]
fn overlapping_tensors() {
    let part = "tensor b starts at byte 3, but the one before it ends at 4: they overlap";
    refused_for(&file(&two((0, 4), (3, 8)), 8), part);
    refused_for(&file(&two((0, 4), (0, 4)), 4), "they overlap");
    refused_for(&file(&two((0, 8), (2, 4)), 8), "tensor b starts at byte 2");
}

#[test]
fn tensors_out_of_range() {
    let part = "tensor b ends at byte 9, behind the 8 bytes of data";
    refused_for(&file(&two((0, 4), (4, 9)), 8), part);
    refused_for(&file(&two((0, 4), (4, 1 << 62)), 8), "behind the 8 bytes of data");
    refused_for(&file(&two((0, 4), (8, 4)), 8), "ends at byte 4, before its start at 8");
}

#[test]
fn sizes_that_add_up_beyond_the_address_space() {
    // Eight tensors that each fit a usize in bits, and together with the header wrap around to the
    // length of the file: whoever adds unchecked reads out of bounds.
    let (chunk, mut entries) = ((1_u64 << 61) - 1, Vec::new());
    for i in 0..8 {
        let (start, end) = (i * chunk, (i + 1) * chunk);
        let place = format!(r#""dtype":"U8","shape":[{chunk}],"data_offsets":[{start},{end}]"#);
        entries.push(format!(r#""t{i}":{{{place}}}"#));
    }
    let text = format!("{{{}}}", entries.join(","));
    let bytes = frame(&text);
    let wrapped = (8 * chunk).wrapping_add(8).wrapping_add(text.len() as u64);
    assert_eq!(wrapped, text.len() as u64, "the sum wraps around");
    for file_len in [bytes.len(), wrapped as usize] {
        assert!(parse_header(Path::new(SINGLE), &bytes, file_len).is_err());
    }
    refused_for(&bytes, "behind the 0 bytes of data");
}

#[test]
fn gaps_and_bytes_left_over() {
    refused_for(&file(&two((0, 4), (6, 8)), 8), "there is a gap of 2 bytes before tensor b");
    refused_for(&file(&two((1, 4), (4, 8)), 8), "there is a gap of 1 bytes before tensor a");
    refused_for(&file(&two((0, 4), (4, 8)), 9), "has 1 bytes behind its last tensor");
}

#[test]
fn a_truncated_file() {
    let whole = file(&two((0, 4), (4, 8)), 8);
    refused_for(&whole[..whole.len() - 1], "the file is cut off or damaged");
}

#[test]
fn a_tensor_twice_in_one_header() {
    let once = r#""a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    refused_for(&file(&format!("{{{once},{once}}}"), 1), "a is there twice");
    let text = r#""__metadata__":{"format":"pt"}"#;
    refused_for(&file(&format!("{{{text},{text}}}"), 0), "__metadata__ is there twice");
}

#[test]
fn metadata_that_is_not_text() {
    refused_for(&file(r#"{"__metadata__":{"steps":1}}"#, 0), "invalid type: integer `1`");
    refused_for(&file(r#"{"__metadata__":null}"#, 0), "invalid type: null");
}

#[test]
fn names_that_would_garble_a_message() {
    let named =
        |name: &str| format!(r#"{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#);
    refused_for(&file(&named(r"\u001b[2J"), 1), "too long or not printable");
    refused_for(&file(&named(&"n".repeat(2000)), 1), "too long or not printable");
    // A wrong type is quoted by the parser: it is escaped and cut.
    let text = format!(r#"{{"a":{{"dtype":"\u001b[2J{}"}}}}"#, "x".repeat(5000));
    let reason = refused(folder(&file(&text, 0)).path(), SINGLE);
    assert!(!reason.contains('\u{1b}') && reason.len() < 1000, "{reason}");
}

#[test]
fn any_prefix_and_any_flipped_byte_of_a_header_are_survived() {
    let whole =
        file(&header(&place(&[spec("a", Dtype::U8, &[2]), spec("b", Dtype::F32, &[1])])), 6);
    let path = Path::new(SINGLE);
    assert_eq!(parse_header(path, &whole, whole.len()).unwrap().len(), 2);
    for end in 0..whole.len() {
        assert!(parse_header(path, &whole[..end], end).is_err(), "cut at {end}");
    }
    for i in 0..whole.len() - 6 {
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[i] ^= 1 << bit;
            // Some flips are harmless, such as one in a name; what is accepted must be in range.
            for (name, info) in parse_header(path, &bytes, bytes.len()).unwrap_or_default() {
                assert!(info.range().end <= bytes.len(), "{name}: byte {i}, bit {bit}");
            }
        }
    }
}
