//! What may be there and what may be there often, as bytes.

use super::ImageError;
use crate::wire::{Reader, Writer};

/// A flag, and the value if there is one.
pub(super) fn put_optional<T>(value: Option<T>, out: &mut Writer, put: impl FnOnce(T, &mut Writer)) {
    out.flag(value.is_some());
    if let Some(value) = value {
        put(value, out);
    }
}

/// See [`put_optional`].
pub(super) fn get_optional<'a, T>(
    from: &mut Reader<'a>,
    get: impl FnOnce(&mut Reader<'a>) -> Result<T, ImageError>,
) -> Result<Option<T>, ImageError> {
    if from.flag()? { get(from).map(Some) } else { Ok(None) }
}

/// How many, and each.
pub(super) fn put_all<T>(values: &[T], out: &mut Writer, mut put: impl FnMut(&T, &mut Writer)) {
    out.length(u32::try_from(values.len()).expect("what is kept is bounded far below 4 billion"));
    for value in values {
        put(value, out);
    }
}

/// See [`put_all`]. What the input claims to hold is not allocated before it is there.
pub(super) fn get_all<'a, T>(
    from: &mut Reader<'a>,
    mut get: impl FnMut(&mut Reader<'a>) -> Result<T, ImageError>,
) -> Result<Vec<T>, ImageError> {
    let count = from.length()?;
    let mut values = Vec::new();
    for _ in 0..count {
        values.push(get(from)?);
    }
    Ok(values)
}
