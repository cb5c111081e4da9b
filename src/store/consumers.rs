//! How far consumers are, as rows: a row for each, and one for each range that it has acknowledged beyond its cursor.

use rusqlite::{Transaction, params};

use super::progress::{Altered, Progress};

pub(super) fn store_progress(transaction: &Transaction<'_>, name: &str, progress: &Progress) -> rusqlite::Result<()> {
    transaction.prepare_cached("UPDATE consumer SET cursor = ?2, missed = ?3 WHERE name = ?1")?.execute(params![
        name,
        progress.cursor,
        progress.missed
    ])?;
    transaction.prepare_cached("DELETE FROM consumer_ahead WHERE consumer = ?1")?.execute([name])?;
    for (&first, &last) in &progress.ahead {
        transaction
            .prepare_cached("INSERT INTO consumer_ahead VALUES (?1, ?2, ?3)")?
            .execute(params![name, first, last])?;
    }
    Ok(())
}

/// The same after one acknowledgement: only what that has altered, for there may be many ranges and many acknowledgements.
pub(super) fn store_acknowledged(
    transaction: &Transaction<'_>,
    name: &str,
    progress: &Progress,
    altered: &Altered,
    now_ms: i64,
) -> rusqlite::Result<()> {
    transaction.prepare_cached("UPDATE consumer SET cursor = ?2, seen = ?3 WHERE name = ?1")?.execute(params![
        name,
        progress.cursor,
        now_ms
    ])?;
    let mut delete = transaction.prepare_cached("DELETE FROM consumer_ahead WHERE consumer = ?1 AND first = ?2")?;
    for (first, _) in &altered.gone {
        delete.execute(params![name, first])?;
    }
    if let Some(new) = altered.new {
        transaction
            .prepare_cached("INSERT INTO consumer_ahead VALUES (?1, ?2, ?3)")?
            .execute(params![name, new.first, new.last])?;
    }
    Ok(())
}
