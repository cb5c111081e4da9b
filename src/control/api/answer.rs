//! Answers within the memory that there is for them ([`crate::control::answers`]): long ones are counted from before they are made until
//! the socket has taken them.

use std::sync::Arc;

use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::{ConnectInfo, Request, State as Shared};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use super::{METRICS, is_probe, page};
use crate::control::State;
use crate::control::answers::{NoRoom, Reservation, SHORT, Unread};
use crate::control::api_listener::ApiPeer;

/// The room that was reserved for an answer before it was made; the answer carries it.
#[derive(Clone)]
struct Reserved(Arc<Reservation>);

/// An answer with the room that it has.
pub(super) fn within(reservation: Reservation, answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    response.extensions_mut().insert(Reserved(Arc::new(reservation)));
    response
}

/// Holds what a long answer takes until it has been read. One for which nothing was reserved waits for room now, unless something was
/// done for it, or it is one that is needed most when all else is too much.
pub(super) async fn bound_answers(
    Shared(state): Shared<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<ApiPeer>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    // They are there once for all.
    let is_shared = page::is_part(path) || path == "/v1/openapi.json";
    let may_wait = request.method() == Method::GET && path != METRICS && !is_probe(&request);
    let mut response = next.run(request).await;
    let reserved = response.extensions_mut().remove::<Reserved>().and_then(|reserved| Arc::into_inner(reserved.0));
    // A stream has no length: its readers are counted, and what each holds is bounded.
    let Some(length) = response.body().size_hint().exact() else { return response };
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length <= SHORT || is_shared {
        return response;
    }
    let reservation = match settle(&state, &peer, reserved, length, may_wait).await {
        Ok(Some(reservation)) => reservation,
        Ok(None) => return response,
        Err(NoRoom) => return ApiError::AnswersUnread.into_response(),
    };
    let (head, body) = response.into_parts();
    let bytes = match to_bytes(body, usize::MAX).await {
        // Without what its buffer had to spare.
        Ok(bytes) => Vec::from(bytes).into_boxed_slice(),
        Err(error) => return ApiError::Body(error.to_string()).into_response(),
    };
    let unread = Unread::begin(bytes, reservation, Arc::clone(&state.answers), peer);
    Response::from_parts(head, Body::from(unread))
}

/// The room for an answer of which it is known how long it is; `None`: it goes without.
async fn settle(
    state: &State,
    peer: &ApiPeer,
    reserved: Option<Reservation>,
    length: usize,
    may_wait: bool,
) -> Result<Option<Reservation>, NoRoom> {
    match reserved {
        Some(mut reservation) if reservation.bytes() >= length || !may_wait => {
            reservation.shrink(length);
            return Ok(Some(reservation));
        }
        // Who holds room waits for none.
        reserved => drop(reserved),
    }
    if may_wait {
        state.answers.reserve(peer, length).await.map(Some)
    } else {
        Ok(state.answers.reserve_now(peer, length))
    }
}
