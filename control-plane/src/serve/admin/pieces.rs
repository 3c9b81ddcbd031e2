//! Long lists, sent piece by piece: whoever asks reads the first items while the last ones are not made yet, and nobody waits for a
//! thread that makes ten thousand of them in one go.

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde::Serialize;

use super::shapes::Problem;

/// So much is made, and sent, at a time.
const PIECE: usize = 64 * 1024;

/// A list whose `items` are made as they are sent: `around` is all the rest of it, and has none under the name of `field`.
///
/// # Errors
/// When `around` cannot be written.
pub(super) fn in_pieces<T: Serialize>(
    around: &impl Serialize,
    field: &str,
    items: impl Iterator<Item = T> + Send + 'static,
) -> Result<Response, Problem> {
    let internal = |error: &dyn std::fmt::Display| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error);
    let text = serde_json::to_string(around).map_err(|error| internal(&error))?;
    // Within a text its marks would be escaped.
    let empty = format!("\"{field}\":[]");
    let place = text.find(&empty).ok_or_else(|| internal(&format_args!("a list without {field}")))?;
    let (begin, end) = text.split_at(place + empty.len() - "]".len());
    let mut pieces = Pieces { begin: begin.into(), items: items.fuse(), any: false, end: Some(end.into()) };
    let kind = [(header::CONTENT_TYPE, "application/json")];
    let first = pieces.next().transpose().map_err(|error| internal(&error))?.unwrap_or_default();
    if pieces.end.is_none() {
        return Ok((kind, first).into_response());
    }
    let all = std::iter::once(Ok(first)).chain(pieces);
    Ok((kind, Body::from_stream(futures_util::stream::iter(all))).into_response())
}

/// The pieces of a list.
struct Pieces<I> {
    begin: Vec<u8>,
    items: std::iter::Fuse<I>,
    /// One was written already.
    any: bool,
    /// What comes after the items, until it was written.
    end: Option<Vec<u8>>,
}

impl<T: Serialize, I: Iterator<Item = T>> Iterator for Pieces<I> {
    type Item = serde_json::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        self.end.as_ref()?;
        let mut piece = std::mem::take(&mut self.begin);
        piece.reserve(PIECE);
        while piece.len() < PIECE {
            let Some(item) = self.items.next() else {
                piece.extend(self.end.take().into_iter().flatten());
                break;
            };
            if std::mem::replace(&mut self.any, true) {
                piece.push(b',');
            }
            if let Err(error) = serde_json::to_writer(&mut piece, &item) {
                // Half a list must not look like a whole one: the answer breaks off.
                self.end = None;
                return Some(Err(error));
            }
        }
        Some(Ok(piece.into()))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use serde_json::{Value, json};

    use super::super::shapes::{ProxyList, Rest};
    use super::*;

    #[tokio::test]
    async fn a_list_in_pieces_is_the_list_however_long_it_is() {
        for count in [0, 1, 2, 500, 20_000_u64] {
            let rest = Rest { next: Some("\"items\":[]".into()), remaining: Some(7) };
            let around = ProxyList { epoch: 3, items: Vec::new(), rest };
            let item = |number| json!({"number": number, "text": "\"items\":[]"});
            let response = in_pieces(&around, "items", (0..count).map(item)).unwrap();
            assert_eq!(response.headers()["content-type"], "application/json");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let told: Value = serde_json::from_slice(&body).unwrap();
            let items: Vec<Value> = (0..count).map(item).collect();
            assert_eq!(told, json!({"epoch": 3, "items": items, "continue": "\"items\":[]", "remaining": 7}));
        }
    }

    /// Something that can be written or not.
    struct Item(bool);

    impl Serialize for Item {
        fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            if self.0 { to.serialize_str("well") } else { Err(serde::ser::Error::custom("odd")) }
        }
    }

    #[tokio::test]
    async fn what_cannot_be_written_breaks_the_answer_off() {
        let around = json!({"items": []});
        assert!(in_pieces(&around, "items", std::iter::once(Item(false))).is_err(), "nothing was sent yet");
        let response = in_pieces(&around, "items", (0..20_000).map(|number| Item(number != 19_000))).unwrap();
        assert!(response.into_body().collect().await.is_err(), "half of it must not pass for all");
        assert!(in_pieces(&json!({"others": []}), "items", std::iter::once(Item(true))).is_err());
    }
}
