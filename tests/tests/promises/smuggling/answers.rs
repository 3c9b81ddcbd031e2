//! What a hostile application says reaches nobody else: an answer that has more than one meaning is a failure, and what is hidden
//! behind an answer is thrown away with its connection.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use equerry_tests::by_hand::{Wire, find};
use equerry_tests::{Mesh, eventually, listen};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{DOCUMENTS, SOON};
use crate::{PAIR, program};

/// What a hostile application answers, and whether its caller may be told anything but that it failed.
const ANSWERS: [(&str, &str, bool); 24] = [
    ("a length", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", true),
    ("chunks", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", true),
    (
        "a length and chunks",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        false,
    ),
    ("two lengths", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 9\r\n\r\nok", false),
    ("a list of lengths", "HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nok", false),
    ("a negative length", "HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok", false),
    ("a length of 2^63", "HTTP/1.1 200 OK\r\ncontent-length: 9223372036854775808\r\n\r\nok", false),
    ("LF alone", "HTTP/1.1 200 OK\ncontent-length: 2\n\nok", false),
    ("a folded line", "HTTP/1.1 200 OK\r\nx-a: 1\r\n b\r\ncontent-length: 2\r\n\r\nok", false),
    ("a space before the colon", "HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\nok", false),
    ("a NUL", "HTTP/1.1 200 OK\r\nx-a: \0\r\ncontent-length: 2\r\n\r\nok", false),
    ("another coding", "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nok", false),
    ("chunked twice", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", false),
    ("a header without a name", "HTTP/1.1 200 OK\r\n: x\r\ncontent-length: 2\r\n\r\nok", false),
    ("no status", "HTTP/1.1 OK\r\ncontent-length: 2\r\n\r\nok", false),
    ("a status of four digits", "HTTP/1.1 2000 OK\r\ncontent-length: 2\r\n\r\nok", false),
    ("another version", "HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\nok", false),
    (
        "a switch that nobody asked for",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        false,
    ),
    (
        "an interim answer with a body",
        "HTTP/1.1 103 Early Hints\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        false,
    ),
    (
        "an answer that nobody asked for behind it",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhidden",
        true,
    ),
    (
        "an answer hidden in one without a body",
        "HTTP/1.1 204 No Content\r\ncontent-length: 44\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhidden",
        true,
    ),
    (
        "an answer hidden in one that did not change",
        "HTTP/1.1 304 Not Modified\r\ncontent-length: 44\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhidden",
        true,
    ),
    (
        "a line break and another answer",
        "HTTP/1.1 200 OK\r\nx-a: b\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhidden",
        true,
    ),
    ("nothing of HTTP", "SSH-2.0-OpenSSH_9.2p1\r\n", false),
];

/// Answers a request for `/N` with the bytes of that row, and any other with its target.
async fn hostile(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut came = Vec::new();
            loop {
                let Some(end) = find(&came, b"\r\n\r\n") else {
                    match stream.read_buf(&mut came).await {
                        Ok(1..) => continue,
                        _ => return,
                    }
                };
                let head = String::from_utf8_lossy(&came.drain(..end + 4).collect::<Vec<_>>()).into_owned();
                let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let row = target.strip_prefix("/answer-").and_then(|number| ANSWERS.get(number.parse::<usize>().ok()?));
                let said = match row {
                    Some((_, bytes, _)) => (*bytes).to_owned(),
                    None => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{target}", target.len()),
                };
                if stream.write_all(said.as_bytes()).await.is_err() {
                    return;
                }
                // An answer whose end is the connection's.
                if row.is_some_and(|(_, bytes, _)| bytes.contains("x-a: b")) {
                    return;
                }
            }
        });
    }
}

#[tokio::test]
async fn no_answer_hides_in_another_whatever_the_application_says() -> Result<()> {
    let mesh = Mesh::found(program(), &PAIR[..2], DOCUMENTS).await?;
    let (orders, inventory) = (mesh.town.home("orders")?, mesh.town.home("inventory-v1")?);
    inventory.app.release();
    let application = tokio::spawn(hostile(listen(inventory.app.number()).await?));
    mesh.start_sidecars(&[]).await?;
    eventually(SOON, "orders to reach inventory", async || {
        Ok((orders.through_sidecar().get("inventory", "/ready", &[]).await?.status == 200).then_some(()))
    })
    .await?;
    let mut wrong = Vec::new();
    for (door, address) in [("outbound", orders.outbound.address()), ("inbound", inventory.inbound.address())] {
        let address: SocketAddr = address.parse()?;
        for (number, (name, _, good)) in ANSWERS.into_iter().enumerate() {
            let asked = async {
                let mut wire = Wire::to(address).await?;
                wire.say(format!("GET /answer-{number} HTTP/1.1\r\nhost: inventory\r\n\r\n").as_bytes()).await;
                let answer = wire.answer("GET").await?.context("no answer")?;
                ensure!((answer.status < 400) == good, "{answer:?}");
                ensure!(good || answer.status == 502, "{answer:?}");
                ensure!(wire.is_quiet(), "more came than was asked for");
                // Nobody else gets what was hidden: on the same connection where it stays, on fresh ones, several times.
                for (more, wire) in [Some(wire), None, None, None].into_iter().enumerate() {
                    let target = format!("/next-{number}-{more}");
                    let mut wire = match wire {
                        Some(wire) => wire,
                        None => Wire::to(address).await?,
                    };
                    wire.say(format!("GET {target} HTTP/1.1\r\nhost: inventory\r\n\r\n").as_bytes()).await;
                    let answer = wire.answer("GET").await?.context("the next request is not answered")?;
                    ensure!((answer.status, &answer.body) == (200, &target), "the next request got {answer:?}");
                }
                Ok::<_, anyhow::Error>(())
            };
            wrong.extend(asked.await.err().map(|error| format!("{door}, {name}: {error:#}")));
        }
    }
    application.abort();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
