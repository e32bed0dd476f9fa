//! What a sound checkpoint gives.

use std::fs;
use std::path::Path;

use gpt_oss_mlx::Error;
use gpt_oss_mlx::checkpoint::Checkpoint;
use safetensors::{Dtype, SafeTensors};

use super::common::safetensors::{
    file, frame, header, place, spec, write_index, write_sparse, write_with,
};
use super::{INDEX, SINGLE, folder, shards};

#[test]
fn tensors_are_where_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = place(&[
        spec("words", Dtype::U32, &[2, 3]),
        spec("byte", Dtype::U8, &[1]),
        spec("scalar", Dtype::F32, &[]),
        spec("nothing", Dtype::BF16, &[0, 7]),
        spec("half", Dtype::BF16, &[5]),
    ]);
    let fill = |name: &str, n: usize| -> Vec<u8> {
        (0..n).map(|i| name.len() as u8 * 16 + i as u8).collect()
    };
    write_with(&dir.path().join(SINGLE), &tensors, |tensor, bytes| {
        bytes.copy_from_slice(&fill(&tensor.name, bytes.len()));
    });
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.tensors().len(), 5);
    assert_eq!(checkpoint.total_bytes(), 24 + 1 + 4 + 10);
    for tensor in &tensors {
        let info = checkpoint.info(&tensor.name).unwrap();
        assert_eq!((info.dtype, &info.shape), (tensor.dtype, &tensor.shape));
        let expected = fill(&tensor.name, (tensor.end - tensor.start) as usize);
        assert_eq!(checkpoint.data(&tensor.name).unwrap(), expected, "{}", tensor.name);
        let (map, range) = checkpoint.map(&tensor.name).unwrap();
        assert_eq!(map[range], expected);
        assert_eq!(checkpoint.path(info.file).unwrap(), dir.path().join(SINGLE));
    }
}

#[test]
fn order_and_padding_of_the_header_do_not_matter() {
    let text = "  {\"b\":{\"shape\":[2],\"data_offsets\":[1,3],\"dtype\":\"U8\"},\
                \"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}} \n ";
    let mut bytes = frame(text);
    bytes.extend([7, 8, 9]);
    let dir = folder(&bytes);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.data("a").unwrap(), [7]);
    assert_eq!(checkpoint.data("b").unwrap(), [8, 9]);
}

#[test]
fn the_bundled_models_read_as_the_safetensors_crate_reads_them() {
    for model in ["assets/gpt-oss-tiny", "tests/fixtures/gpt-oss-tiny-openai"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(model);
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let bytes = fs::read(dir.join(SINGLE)).unwrap();
        let reference = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(checkpoint.tensors().len(), reference.len());
        for (name, view) in reference.iter() {
            let info = checkpoint.info(name).unwrap();
            assert_eq!((info.dtype, info.shape.as_slice()), (view.dtype(), view.shape()));
            assert_eq!(checkpoint.data(name).unwrap(), view.data(), "{name}");
        }
    }
}

#[test]
fn shards_are_joined_by_an_index_without_metadata() {
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let dir = shards(&[("a", one), ("b", two), ("c", one)], &[(one, &["a", "c"]), (two, &["b"])]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let names: Vec<&str> = checkpoint.tensors().map(|(name, _)| name).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let file_of = |name| checkpoint.path(checkpoint.info(name).unwrap().file).unwrap();
    assert_eq!(file_of("a"), dir.path().join(one));
    assert_eq!(file_of("b"), dir.path().join(two));
    assert_eq!(checkpoint.file_count(), 2);
    assert_eq!(checkpoint.total_bytes(), 3);
}

#[test]
fn an_index_wins_over_a_file_that_it_does_not_list() {
    let dir = shards(&[("a", "x.safetensors")], &[("x.safetensors", &["a"]), (SINGLE, &["b"])]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(checkpoint.info("a").is_some() && checkpoint.info("b").is_none());
}

#[cfg(unix)]
#[test]
fn links_out_of_the_folder_are_followed_as_in_a_download_cache() {
    let cache = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (cache.path().join("blobs"), cache.path().join("snapshots/main"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    write_sparse(&blobs.join("0a1b"), &place(&[spec("a", Dtype::U8, &[4])]));
    write_index(&blobs, [("a", "one.safetensors")]);
    std::os::unix::fs::symlink("../../blobs/0a1b", snapshot.join("one.safetensors")).unwrap();
    std::os::unix::fs::symlink(format!("../../blobs/{INDEX}"), snapshot.join(INDEX)).unwrap();
    let checkpoint = Checkpoint::open(&snapshot).unwrap();
    assert_eq!(checkpoint.data("a").unwrap(), [0; 4]);
}

#[test]
fn a_released_file_keeps_its_headers_and_the_maps_given_out() {
    let dir =
        folder(&[file(&header(&place(&[spec("a", Dtype::U8, &[2])])), 0), vec![1, 2]].concat());
    let mut checkpoint = Checkpoint::open(dir.path()).unwrap();
    let (map, range) = checkpoint.map("a").unwrap();
    checkpoint.release(0);
    assert_eq!(checkpoint.info("a").unwrap().shape, [2]);
    assert!(checkpoint.map("a").is_none());
    let error = checkpoint.data("a").unwrap_err();
    assert!(error.to_string().contains("released"), "{error}");
    assert_eq!(map[range], [1, 2]);
    assert_eq!(std::sync::Arc::strong_count(&map), 1);
}

#[test]
fn a_tensor_that_is_not_there_is_named() {
    let dir = folder(&file("{}", 0));
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(checkpoint.map("a").is_none());
    match checkpoint.data("a").unwrap_err() {
        Error::Tensors(mismatch) => assert_eq!(mismatch.missing, ["a"]),
        other => panic!("{other:?}"),
    }
}
