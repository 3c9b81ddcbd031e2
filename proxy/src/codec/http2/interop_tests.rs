//! Heads by chance, through `h2`'s compression to ours and through ours to `h2`'s: what arrives is what was sent, whatever
//! the tables of both have come to hold.

use std::rc::Rc;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response};

use super::call::{self, Head};
use super::harness::*;
use crate::codec::{Early, Link};

const HEADS: usize = 400;

/// Some that come again, some that never do, large and small ones.
fn headers(random: &mut fastrand::Rng) -> HeaderMap {
    const NAMES: [&str; 12] = [
        "accept",
        "accept-encoding",
        "authorization",
        "cookie",
        "user-agent",
        "x-request-id",
        "traceparent",
        "x-tenant",
        "x-a-name-that-is-rather-long-for-what-it-says",
        "content-type",
        "etag",
        "set-cookie",
    ];
    let mut headers = HeaderMap::new();
    for _ in 0..random.usize(..14) {
        let name = match random.u8(..20) {
            0 => format!("x-{}", random.u32(..500)),
            _ => (*random.choice(NAMES).unwrap()).to_owned(),
        };
        let value: Vec<u8> = match random.u8(..10) {
            0 => Vec::new(),
            1 => std::iter::repeat_with(|| *random.choice(b"abcxyz09~!|<>{}%\xe9\xff").unwrap()).take(40).collect(),
            2 => vec![b'v'; 3_000],
            3..6 => random.u64(..).to_string().into(),
            _ => random.u8(..5).to_string().into(),
        };
        headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(&value).unwrap());
    }
    headers
}

fn path(random: &mut fastrand::Rng) -> String {
    if random.bool() { "/204".to_owned() } else { format!("/204?{}", random.u32(..1_000)) }
}

#[tokio::test]
async fn what_h2_compresses_is_read_the_same() {
    local(async {
        for table in [0, 100, 4_096, 65_536] {
            let mut random = fastrand::Rng::with_seed(u64::from(table));
            let responder: Rc<ByPath> = Rc::default();
            let (stream, _serving) = our_server(&responder);
            let mut builder = h2::client::Builder::new();
            builder.header_table_size(table);
            let (mut client, connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
            tokio::task::spawn_local(async move {
                let _ = connection.await;
            });
            for _ in 0..HEADS {
                let (path, headers) = (path(&mut random), headers(&mut random));
                let mut request = ask("GET", &path);
                *request.headers_mut() = headers.clone();
                let (response, _) = client.send_request(request, true).unwrap();
                assert_eq!(response.await.unwrap().status(), 204);
                let seen = responder.seen.borrow_mut().pop().unwrap();
                assert_eq!((seen.uri().path_and_query().unwrap().as_str(), seen.headers()), (path.as_str(), &headers));
            }
        }
    })
    .await;
}

/// A server that is the `h2` crate and answers with what it was asked, beside what it saw.
async fn mirror(stream: tokio::io::DuplexStream, table: u32) {
    let mut builder = h2::server::Builder::new();
    builder.header_table_size(table);
    let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let mut response = Response::new(());
        *response.headers_mut() = Request::from_parts(request.into_parts().0, ()).headers().clone();
        respond.send_response(response, true).unwrap();
    }
}

#[tokio::test]
async fn what_we_compress_h2_reads_the_same_and_its_answers_we_do() {
    local(async {
        for table in [0, 100, 4_096, 65_536] {
            let mut random = fastrand::Rng::with_seed(u64::from(table) + 1);
            let (theirs, ours) = tokio::io::duplex(64 * 1024);
            tokio::task::spawn_local(mirror(theirs, table));
            let (caller, driving) = call::begin(Link::new(ours));
            tokio::task::spawn_local(driving);
            let (method, early) = (Method::GET, Early::new());
            for number in 0..HEADS {
                let (path, headers) = (path(&mut random), headers(&mut random));
                let head =
                    Head { method: &method, authority: "orders.shop", target: &path, headers: &headers, early: &early };
                let sent = caller.send(head, Content::of(Bytes::new())).await;
                let (parts, _call) = sent.unwrap_or_else(|failed| panic!("{}", failed.detail));
                assert_eq!(parts.headers, headers, "table {table}, head {number}");
            }
        }
    })
    .await;
}
