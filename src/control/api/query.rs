//! Queries: every key is known and stands once, or the request is told which does not.

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;

use super::error::ApiError;

/// What the query parser gives.
pub(super) type Parsed = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// The values of `keys`, in their order.
pub(super) fn values<const N: usize>(query: Parsed, keys: [&str; N]) -> Result<[Option<String>; N], ApiError> {
    let Query(query) = query.map_err(|rejection| ApiError::Query(rejection.body_text()))?;
    let mut values = [const { None }; N];
    for (key, value) in query {
        let Some(position) = keys.iter().position(|known| *known == key) else {
            return Err(ApiError::Query(format!("unknown key {key:?}; known: {}", keys.join(", "))));
        };
        if values[position].replace(value).is_some() {
            return Err(ApiError::Query(format!("{key} is given twice")));
        }
    }
    Ok(values)
}
