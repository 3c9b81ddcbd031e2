//! What the proxy's readers must bear from whoever connects: heads, bodies, frames and first bytes in any form.
//!
//! Bodies of fuzz targets (`fuzz/`), which replay their corpora as ordinary tests here; no part of the program.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests, and what fuzzers run: they fail by panic")]

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method};
use tokio::io::AsyncReadExt as _;

use crate::accept::detect::{detect, guess};
use crate::codec::http1::{Framing, framing, head};
use crate::codec::http2::{frame, hpack, message};

/// Heads of HTTP/1.1: in two pieces they are read as in one.
pub fn http1_head(bytes: &[u8]) {
    in_two_pieces(bytes, |inbox| head::take_request(inbox, HeaderMap::new()).is_ok());
    for method in [Method::GET, Method::HEAD, Method::CONNECT] {
        in_two_pieces(bytes, |inbox| head::take_response(inbox, &method, HeaderMap::new()).is_ok());
    }
}

fn in_two_pieces(bytes: &[u8], take: impl Fn(&mut BytesMut) -> bool) {
    let mut whole = BytesMut::from(bytes);
    let read = take(&mut whole);
    let mut pieces = BytesMut::from(&bytes[..bytes.len() / 2]);
    let begun = take(&mut pieces);
    if begun && pieces.len() == bytes.len() / 2 {
        pieces.extend_from_slice(&bytes[bytes.len() / 2..]);
        assert_eq!((take(&mut pieces), &pieces), (read, &whole));
    } else if !begun {
        assert!(!read, "refused by its beginning, and taken whole");
    }
}

/// Chunked bodies: byte for byte they hold what they hold at once.
pub fn http1_chunks(bytes: &[u8]) {
    assert_eq!(body(bytes, bytes.len().max(1)), body(bytes, 1));
}

/// What a body holds that comes in pieces of `size` bytes; whether it ended, and whether it broke.
fn body(bytes: &[u8], size: usize) -> (Vec<u8>, bool, bool) {
    let (mut decoder, mut inbox, mut held) = (framing::Decoder::new(Framing::Chunked), BytesMut::new(), Vec::new());
    for piece in bytes.chunks(size) {
        inbox.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut inbox) {
                Ok(framing::Decoded::Data(data)) => held.extend_from_slice(&data),
                Ok(framing::Decoded::More) => break,
                Ok(framing::Decoded::End | framing::Decoded::Trailers(_)) => return (held, true, false),
                Err(_) => return (held, false, true),
            }
        }
    }
    (held, false, false)
}

/// Frames of HTTP/2, and the header blocks in them, until they are wrong: none is larger than what came.
pub fn http2_frames(bytes: &[u8]) {
    let (mut inbox, mut decoder) = (BytesMut::from(bytes), hpack::Decoder::new(hpack::TABLE_SIZE));
    loop {
        let before = inbox.len();
        match frame::take(&mut inbox, frame::SMALLEST_MAX_FRAME) {
            Ok(Some(frame::Frame::Headers { block, end, .. })) => {
                let _ = message::request(&mut decoder, &block, HeaderMap::new(), end);
            }
            Ok(Some(_)) => {}
            Ok(None) => break,
            // Of a connection: nothing is read after it. Of a stream: the frame must be gone.
            Err(_) if inbox.len() == before => break,
            Err(_) => {}
        }
        assert!(inbox.len() < before, "a frame of no bytes");
    }
}

/// Header blocks: what one decoder makes of two of them does not depend on whether anybody wants the first.
pub fn http2_fields(bytes: &[u8]) {
    let block = Bytes::copy_from_slice(bytes);
    let (mut wanted, mut skipped) = (hpack::Decoder::new(hpack::TABLE_SIZE), hpack::Decoder::new(hpack::TABLE_SIZE));
    let read = message::request(&mut wanted, &block, HeaderMap::new(), true);
    let skip = message::skip(&mut skipped, &block);
    assert!(skip.is_ok() || read.is_err(), "read, though it cannot be decompressed");
    if skip.is_ok() {
        let (wanted, skipped) = (
            message::trailers(&mut wanted, &block, HeaderMap::new()),
            message::trailers(&mut skipped, &block, HeaderMap::new()),
        );
        assert_eq!(wanted.ok(), skipped.ok());
    }
}

/// The first bytes of a connection: whatever they are taken for, they are read again.
pub fn first_bytes(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut again = Vec::new();
        match detect(bytes).await {
            Ok((_, mut spoken)) => _ = spoken.read_to_end(&mut again).await.unwrap(),
            Err(_) => assert!(bytes.is_empty()),
        }
        assert_eq!(again, bytes);
        again.clear();
        let (_, mut spoken) = guess(bytes, std::time::Duration::from_secs(1)).await.unwrap();
        spoken.read_to_end(&mut again).await.unwrap();
        assert_eq!(again, bytes);
    });
}

#[cfg(test)]
#[path = "../../fuzz/src/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::replay::replay;
    use super::*;

    #[test]
    fn strangers_heads_chunks_frames_fields_and_first_bytes_are_borne() {
        replay("http1_head", http1_head);
        replay("http1_chunks", http1_chunks);
        replay("http2_frames", http2_frames);
        replay("http2_fields", http2_fields);
        replay("first_bytes", first_bytes);
    }
}
