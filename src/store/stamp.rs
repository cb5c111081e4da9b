//! Stamps of retained messages as two columns: what is no other gateway's has none.

use crate::image::Stamp;

/// The clock and the node, whose bits are those of a signed number; NULL: there is none.
pub(super) fn columns(stamp: Stamp) -> (Option<i64>, Option<i64>) {
    if stamp.is_none() { (None, None) } else { (Some(stamp.clock.cast_signed()), Some(stamp.node.cast_signed())) }
}

/// What [`columns`] wrote.
pub(super) fn of(clock: Option<i64>, node: Option<i64>) -> Stamp {
    let number = |column: Option<i64>| column.map_or(0, i64::cast_unsigned);
    Stamp { clock: number(clock), node: number(node) }
}
