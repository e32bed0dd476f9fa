//! Arrays made of bytes that we hold: copied once into MLX's memory, or wrapped where they are.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;
use mlx_rs::{Array, Dtype};

use super::error::{check, install_handler};
use crate::error::{Error, Result};

/// Page size of Apple Silicon, in bytes; Metal wraps whole pages only.
const METAL_PAGE: usize = 16 * 1024;

/// True where [`array_from_map`] wraps memory instead of copying it. MLX can do that on Metal
/// only, where CPU and GPU share their memory.
pub(crate) const fn wraps_maps() -> bool {
    cfg!(target_os = "macos")
}

fn invalid(op: &'static str, message: impl Into<String>) -> Error {
    Error::Mlx { op, message: message.into() }
}

/// Bytes of an array of this shape and type.
fn byte_len(shape: &[i32], dtype: Dtype) -> Option<usize> {
    shape.iter().try_fold(item_size(dtype), |n, &dim| n.checked_mul(usize::try_from(dim).ok()?))
}

/// Bytes of one element.
fn item_size(dtype: Dtype) -> usize {
    // SAFETY: a table lookup without side effects.
    unsafe { mlx_sys::mlx_dtype_size(dtype.into()) }
}

/// A new array whose row-major bytes are `parts` one after another, each copied once.
///
/// # Errors
/// [`Error::Mlx`] when the parts do not add up to the shape, or memory cannot be had.
pub(crate) fn array_from_parts(shape: &[i32], dtype: Dtype, parts: &[&[u8]]) -> Result<Array> {
    const OP: &str = "array_from_parts";
    let total = parts.iter().try_fold(0usize, |sum, part| sum.checked_add(part.len()));
    if total.is_none() || total != byte_len(shape, dtype) {
        return Err(invalid(OP, format!("{total:?} bytes do not make {shape:?} of {dtype:?}")));
    }
    if let [part] = parts
        && part.as_ptr().addr() % item_size(dtype).max(1) == 0
        && !part.is_empty()
    {
        return copy_of(part, shape, dtype);
    }
    let array = mlx_rs::ops::zeros_dtype(shape, dtype)?;
    array.eval()?;
    if !is_row_major(&array) || array.nbytes() != total.unwrap_or(0) {
        return Err(invalid(OP, "zeros are not laid out in rows"));
    }
    let mut to = data(&array)?.cast_mut();
    for part in parts {
        // SAFETY: the parts add up to the array's bytes (checked above), so that every part ends
        // within them; source and target are different allocations; the array is evaluated and
        // this function holds its only handle, so that nothing else reads or writes it.
        unsafe {
            std::ptr::copy_nonoverlapping(part.as_ptr(), to, part.len());
            to = to.add(part.len());
        }
    }
    Ok(array)
}

/// A new array with a copy of aligned bytes that fit `shape` and `dtype` exactly.
fn copy_of(bytes: &[u8], shape: &[i32], dtype: Dtype) -> Result<Array> {
    install_handler();
    // SAFETY: the caller checked length and alignment; MLX copies before it returns.
    let array = unsafe { Array::from_raw_data(bytes.as_ptr().cast(), shape, dtype) };
    filled("array", array)
}

/// Refuses the empty handle that MLX's constructors return on failure.
fn filled(op: &'static str, array: Array) -> Result<Array> {
    if array.as_ptr().ctx.is_null() {
        check(op, 1)?;
    }
    Ok(array)
}

fn is_row_major(array: &Array) -> bool {
    let mut expected = 1usize;
    array.shape().iter().zip(array.strides()).rev().all(|(&dim, &stride)| {
        let dim = usize::try_from(dim).unwrap_or(0);
        let fits = dim <= 1 || stride == expected;
        expected = expected.saturating_mul(dim);
        fits
    })
}

/// Where the bytes of an evaluated array begin.
fn data(array: &Array) -> Result<*const u8> {
    // SAFETY: reads a pointer out of a live, evaluated array.
    let data = unsafe { mlx_sys::mlx_array_data_uint8(array.as_ptr()) };
    if data.is_null() && array.nbytes() > 0 {
        return Err(invalid("data", "the array has no data"));
    }
    Ok(data)
}

/// The bytes of the first `rows` rows along axis 2 of an array [1, heads, length, width], one slice
/// for each head. Rows must lie one behind the other; heads may lie apart, as in a view of longer
/// ones. Evaluates the array.
///
/// # Errors
/// [`Error::Mlx`] when the array has another form or fewer rows, or its evaluation fails.
pub(crate) fn row_bytes(array: &Array, rows: i32) -> Result<Vec<&[u8]>> {
    const OP: &str = "row_bytes";
    array.eval()?;
    let wrong = || invalid(OP, format!("{rows} rows of {:?}", array.shape()));
    let (&[1, heads, length, width], &[_, head_stride, row_stride, stride]) =
        (array.shape(), array.strides())
    else {
        return Err(wrong());
    };
    let [heads, width] = [heads, width].map(|n| usize::try_from(n).unwrap_or(0));
    let in_rows = (stride == 1 || width <= 1) && (row_stride == width || length <= 1);
    if rows < 0 || rows > length || !in_rows {
        return Err(wrong());
    }
    let item = item_size(array.dtype());
    let bytes = usize::try_from(rows).ok().and_then(|n| n.checked_mul(width)?.checked_mul(item));
    let bytes = bytes.ok_or_else(wrong)?;
    if bytes == 0 {
        return Ok(vec![&[]; heads]);
    }
    let start = data(array)?;
    let head = |head: usize| {
        let offset = head.checked_mul(head_stride).and_then(|n| n.checked_mul(item));
        let offset = offset.ok_or_else(wrong)?;
        // SAFETY: the array is evaluated, and MLX keeps all elements that shape and strides name
        // within its memory; the first `rows` rows of a head are such elements without gaps, as
        // checked above. They live as long as the borrowed handle, and MLX writes in place only to
        // memory that no other handle holds.
        Ok(unsafe { std::slice::from_raw_parts(start.add(offset), bytes) })
    };
    (0..heads).map(head).collect()
}

/// The window of whole pages around `bytes` of a map of `len` bytes: where it begins and ends, and
/// where `bytes` begins within it. The last page of a map may be used to its end: it exists even
/// where the file does not fill it.
fn page_window(bytes: &Range<usize>, len: usize) -> Option<(Range<usize>, usize)> {
    if bytes.start > bytes.end || bytes.end > len {
        return None;
    }
    let start = bytes.start - bytes.start % METAL_PAGE;
    let end = bytes.end.checked_next_multiple_of(METAL_PAGE)?;
    Some((start..end, bytes.start - start))
}

/// The tensor at `bytes` of a mapped file, wrapped without a copy where MLX can do that, else
/// copied. The array keeps the map alive for as long as it needs it.
///
/// # Errors
/// [`Error::Mlx`] when the range does not fit the map or the shape.
pub(crate) fn array_from_map(
    map: &Arc<Mmap>,
    bytes: Range<usize>,
    shape: &[i32],
    dtype: Dtype,
) -> Result<Array> {
    const OP: &str = "array_from_map";
    let data =
        map.get(bytes.clone()).ok_or_else(|| invalid(OP, format!("{bytes:?} leaves the file")))?;
    if byte_len(shape, dtype) != Some(data.len()) {
        return Err(invalid(OP, format!("{} bytes do not make {shape:?}", data.len())));
    }
    let window = page_window(&bytes, map.len())
        .filter(|(_, lead)| wraps_maps() && !data.is_empty() && lead % item_size(dtype) == 0)
        .and_then(|(pages, lead)| Some((i32::try_from(pages.len()).ok()?, pages, lead)));
    let Some((window_len, pages, lead)) = window else {
        return array_from_parts(shape, dtype, &[data]);
    };
    install_handler();
    let payload = Box::into_raw(Box::new(Arc::clone(map)));
    // SAFETY: the map starts on a page and is mapped to the end of its last page, so the window
    // lies within it; the payload keeps the map alive until MLX calls `release_map`, once. MLX
    // does not write to arrays that it did not allocate while another handle exists, and this
    // one is only ever read as a weight.
    let handle = unsafe {
        mlx_sys::mlx_array_new_data_managed_payload(
            map.as_ptr().add(pages.start).cast_mut().cast(),
            [window_len].as_ptr(),
            1,
            Dtype::Uint8.into(),
            payload.cast(),
            Some(release_map),
        )
    };
    // SAFETY: a new handle that nothing else owns.
    let window = filled(OP, unsafe { Array::from_ptr(handle) })?;
    let start = i32::try_from(lead).map_err(|_| invalid(OP, "page offset"))?;
    let stop = i32::try_from(lead.saturating_add(data.len())).map_err(|_| invalid(OP, "length"))?;
    let tensor = super::slice(&window, &[start], &[stop])?;
    Ok(tensor.view_dtype(dtype)?.reshape(shape)?)
}

unsafe extern "C" fn release_map(payload: *mut c_void) {
    // SAFETY: MLX hands back, once, the pointer that `array_from_map` made with `Box::into_raw`.
    drop(unsafe { Box::from_raw(payload.cast::<Arc<Mmap>>()) });
}

/// Whether an array has been computed. Does not start it: one that was never queued stays without.
#[cfg(test)]
pub(crate) fn is_available(array: &Array) -> bool {
    let mut available = false;
    // SAFETY: the array is alive, and the result is written to a live bool.
    let status = unsafe { mlx_sys::_mlx_array_is_available(&mut available, array.as_ptr()) };
    status == 0 && available
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_joined_in_order() {
        let [a, b] = [[1u32, 2].map(u32::to_le_bytes), [3, 4].map(u32::to_le_bytes)];
        let (a, b) = (a.concat(), b.concat());
        let array = array_from_parts(&[2, 2], Dtype::Uint32, &[&a, &b]).unwrap();
        assert_eq!(array.as_slice::<u32>(), &[1, 2, 3, 4]);
    }

    #[test]
    fn rows_are_read_head_by_head() {
        // [1, 2 heads, 3 rows, 2]: counted up from 0.
        let array = Array::from_iter(0u32..12, &[1, 2, 3, 2]);
        let read = |array: &Array, rows| -> Vec<Vec<u8>> {
            row_bytes(array, rows).unwrap().iter().map(|head| head.to_vec()).collect()
        };
        let bytes =
            |numbers: &[u32]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(read(&array, 2), [bytes(&[0, 1, 2, 3]), bytes(&[6, 7, 8, 9])]);
        assert_eq!(read(&array, 0), [bytes(&[]), bytes(&[])]);
        // A view of the last two rows of each head.
        let view = super::super::slice(&array, &[0, 0, 1, 0], &[1, 2, 3, 2]).unwrap();
        assert_eq!(read(&view, 1), [bytes(&[2, 3]), bytes(&[8, 9])]);
        assert!(row_bytes(&array, 4).is_err());
        assert!(row_bytes(&array, -1).is_err());
        assert!(row_bytes(&array.reshape(&[2, 3, 2]).unwrap(), 1).is_err());
        let turned = mlx_rs::ops::swap_axes(&array, 2, 3).unwrap();
        assert!(row_bytes(&turned, 1).is_err());
    }

    #[test]
    fn a_misaligned_part_is_copied_byte_by_byte() {
        let mut bytes = vec![0u8];
        bytes.extend([7u32, 8].map(u32::to_le_bytes).concat());
        let array = array_from_parts(&[2], Dtype::Uint32, &[&bytes[1..]]).unwrap();
        assert_eq!(array.as_slice::<u32>(), &[7, 8]);
    }

    #[test]
    fn parts_of_the_wrong_length_are_refused() {
        assert!(array_from_parts(&[3], Dtype::Uint8, &[&[1, 2]]).is_err());
        assert!(array_from_parts(&[-1], Dtype::Uint8, &[&[1, 2]]).is_err());
        assert!(array_from_parts(&[i32::MAX; 4], Dtype::Float32, &[&[]]).is_err());
    }

    #[test]
    fn windows_cover_whole_pages() {
        let page = METAL_PAGE;
        assert_eq!(page_window(&(8..16), page), Some((0..page, 8)));
        assert_eq!(page_window(&(page + 8..page + 16), 3 * page), Some((page..2 * page, 8)));
        assert_eq!(page_window(&(0..page), page), Some((0..page, 0)));
        // A file that does not fill its last page.
        assert_eq!(page_window(&(page..page + 5), page + 5), Some((page..2 * page, 0)));
        assert_eq!(page_window(&(0..page + 1), page), None);
    }

    #[test]
    fn a_mapped_tensor_is_the_files_bytes() {
        let path = std::env::temp_dir().join(format!("gpt-oss-mlx-map-{}", std::process::id()));
        std::fs::write(&path, [9u32, 8, 7].map(u32::to_le_bytes).concat()).unwrap();
        let map = Arc::new(super::super::map_file(&path).unwrap());
        let array = array_from_map(&map, 4..12, &[2], Dtype::Uint32).unwrap();
        assert_eq!(array.as_slice::<u32>(), &[8, 7]);
        assert!(array_from_map(&map, 4..16, &[3], Dtype::Uint32).is_err());
        std::fs::remove_file(path).unwrap();
    }
}
