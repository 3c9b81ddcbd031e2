//! Bodies in every split, and everything that is no body.

use bytes::BytesMut;

use super::framing::{Decoded, Decoder};
use super::write;
use super::{Bad, Framing};

/// What a body came to: its data, its trailers, and what was left of the stream behind it.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    data: Vec<u8>,
    trailers: Vec<(String, String)>,
    rest: Vec<u8>,
    ended: bool,
}

/// Decodes pieces as they come.
fn decode(framing: Framing, pieces: &[&[u8]]) -> Result<Read, Bad> {
    let mut decoder = Decoder::new(framing);
    let mut inbox = BytesMut::new();
    let mut read = Read { data: Vec::new(), trailers: Vec::new(), rest: Vec::new(), ended: false };
    for piece in pieces {
        inbox.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut inbox)? {
                Decoded::Data(data) => {
                    assert!(!data.is_empty());
                    read.data.extend_from_slice(&data);
                }
                Decoded::Trailers(trailers) => {
                    let shown = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
                        (name.to_string(), value.to_str().unwrap().to_owned())
                    };
                    read.trailers.extend(trailers.iter().map(shown));
                }
                Decoded::More => break,
                Decoded::End => {
                    assert!(decoder.is_end());
                    break;
                }
            }
        }
    }
    read.ended = decoder.is_end();
    read.rest = inbox.to_vec();
    Ok(read)
}

/// The same in one piece, in two at every place, and byte by byte.
#[track_caller]
fn in_every_split(framing: Framing, stream: &[u8]) -> Result<Read, Bad> {
    let whole = decode(framing, &[stream]);
    for at in 0..=stream.len() {
        let (first, second) = stream.split_at(at);
        assert_eq!(decode(framing, &[first, second]), whole, "split at {at}");
    }
    let bytes: Vec<&[u8]> = stream.chunks(1).collect();
    assert_eq!(decode(framing, &bytes), whole, "byte by byte");
    whole
}

#[track_caller]
fn refused(stream: &[u8]) {
    match in_every_split(Framing::Chunked, stream) {
        Err(Bad::Malformed(_)) => {}
        other => panic!("{}: {other:?}", String::from_utf8_lossy(stream)),
    }
}

#[test]
fn a_body_of_known_length_ends_there() {
    let read = in_every_split(Framing::Length(5), b"helloGET /").unwrap();
    assert_eq!((&read.data[..], &read.rest[..], read.ended), (&b"hello"[..], &b"GET /"[..], true));
    assert!(!in_every_split(Framing::Length(5), b"hell").unwrap().ended);
}

#[test]
fn an_empty_body_is_over_before_it_begins() {
    for framing in [Framing::Empty, Framing::Length(0)] {
        assert!(Decoder::new(framing).is_end());
        let read = in_every_split(framing, b"GET /").unwrap();
        assert_eq!((read.data.len(), &read.rest[..]), (0, &b"GET /"[..]));
    }
}

#[test]
fn a_body_until_close_takes_everything() {
    let read = in_every_split(Framing::UntilClose, b"anything\r\n\r\n").unwrap();
    assert_eq!((&read.data[..], read.ended), (&b"anything\r\n\r\n"[..], false));
}

#[test]
fn chunks_are_joined_and_their_framing_is_gone() {
    let stream = b"5\r\nhello\r\n1\r\n,\r\n0006;ext=\"a b\";x\r\n world\r\nA\r\n0123456789\r\n0\r\n\r\nGET /";
    let read = in_every_split(Framing::Chunked, stream).unwrap();
    assert_eq!(&read.data[..], b"hello, world0123456789");
    assert_eq!((&read.rest[..], read.ended, read.trailers.len()), (&b"GET /"[..], true, 0));
}

#[test]
fn trailers_come_after_the_last_chunk() {
    let stream = b"1\r\nx\r\n000;last\r\nGrpc-Status: 0\r\ngrpc-message:\r\n\r\nrest";
    let read = in_every_split(Framing::Chunked, stream).unwrap();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(read.trailers, [pair("grpc-status", "0"), pair("grpc-message", "")]);
    assert_eq!((&read.rest[..], read.ended), (&b"rest"[..], true));
}

#[test]
fn a_chunk_size_is_hexadecimal_digits_and_nothing_else() {
    for size in [
        "",
        "+1",
        "-1",
        "0x1",
        "1_0",
        "1 ",
        " 1",
        "\t1",
        "1\t",
        "1 ;x",
        "g",
        "1g",
        "1,",
        "1.0",
        "\u{661}",
        "\0",
        "1\0",
        "1\r",
        "8000000000000000",
        "ffffffffffffffff",
        "10000000000000000",
        "00000000000000001",
    ] {
        refused(format!("{size}\r\nx\r\n0\r\n\r\n").as_bytes());
    }
    let largest = decode(Framing::Chunked, &[b"7fffffffffffffff\r\nabc"]).unwrap();
    assert_eq!((&largest.data[..], largest.ended), (&b"abc"[..], false));
    assert!(decode(Framing::Chunked, &[b"0000000000000001\r\nx\r\n0\r\n\r\n"]).unwrap().ended);
}

#[test]
fn a_chunk_that_readers_could_differ_on_is_refused() {
    for stream in [
        "1\nx\r\n0\r\n\r\n",
        "1\rx\r\n0\r\n\r\n",
        "1\r\nx\n0\r\n\r\n",
        "1\r\nx\r0\r\n\r\n",
        "1\r\nxy\r\n0\r\n\r\n",
        "1\r\nx0\r\n\r\n",
        "1\r\nx\r\n\r\n0\r\n\r\n",
        "\r\n1\r\nx\r\n0\r\n\r\n",
        "1;a\nb\r\nx\r\n0\r\n\r\n",
        "1;a\rb\r\nx\r\n0\r\n\r\n",
        "1;a\0\r\nx\r\n0\r\n\r\n",
        "0\n\r\n",
        "0\r\n\n",
        "0\r\nx: a\n\r\n",
        "0\r\nx: a\r\n b\r\n\r\n",
        "0\r\nx : a\r\n\r\n",
        "0\r\nx: a\0\r\n\r\n",
        "0\r\nx: a\rb\r\n\r\n",
        "0\r\n: a\r\n\r\n",
        "0\r\nx\r\n\r\n",
    ] {
        refused(stream.as_bytes());
    }
}

#[test]
fn extensions_are_bounded_by_line_and_by_body() {
    let chunk = |length: usize| format!("1;{}\r\nx\r\n", "e".repeat(length - 1));
    assert!(decode(Framing::Chunked, &[chunk(256).as_bytes()]).is_ok());
    assert!(decode(Framing::Chunked, &[chunk(257).as_bytes()]).is_err());
    // Before its end has come.
    assert!(decode(Framing::Chunked, &[&chunk(1000).as_bytes()[..400]]).is_err());
    assert!(decode(Framing::Chunked, &[chunk(256).repeat(64).as_bytes()]).is_ok());
    assert!(decode(Framing::Chunked, &[chunk(256).repeat(65).as_bytes()]).is_err());
}

#[test]
fn trailers_have_the_limits_of_heads() {
    let stream = |count: usize| format!("0\r\n{}\r\n", "a: b\r\n".repeat(count));
    assert_eq!(decode(Framing::Chunked, &[stream(100).as_bytes()]).unwrap().trailers.len(), 100);
    assert_eq!(decode(Framing::Chunked, &[stream(101).as_bytes()]), Err(Bad::TooLarge));
    let long = format!("0\r\na: {}", "b".repeat(60 * 1024));
    assert_eq!(decode(Framing::Chunked, &[long.as_bytes()]), Err(Bad::TooLarge));
}

#[test]
fn a_stream_may_end_only_where_a_body_does() {
    let mut decoder = Decoder::new(Framing::UntilClose);
    assert!(!decoder.is_end() && decoder.eof().is_ok() && decoder.is_end());
    assert!(Decoder::new(Framing::Empty).eof().is_ok());
    assert_eq!(Decoder::new(Framing::Length(1)).eof(), Err(Bad::Cut));
    for came in ["", "1", "1\r\n", "1\r\nx", "1\r\nx\r\n", "0\r\n", "0\r\na: b\r\n"] {
        let mut decoder = Decoder::new(Framing::Chunked);
        let mut inbox = BytesMut::from(came);
        while matches!(decoder.decode(&mut inbox), Ok(Decoded::Data(_))) {}
        assert_eq!(decoder.eof(), Err(Bad::Cut), "{came:?}");
    }
}

#[test]
fn what_is_left_is_told_where_it_is_known() {
    let mut decoder = Decoder::new(Framing::Length(5));
    let mut inbox = BytesMut::from("abc");
    assert_eq!(decoder.left(), Some(5));
    assert!(matches!(decoder.decode(&mut inbox), Ok(Decoded::Data(_))));
    assert_eq!(decoder.left(), Some(2));
    inbox.extend_from_slice(b"de");
    assert!(matches!(decoder.decode(&mut inbox), Ok(Decoded::Data(_))));
    assert_eq!((decoder.left(), decoder.is_end()), (Some(0), true));
    assert_eq!(Decoder::new(Framing::Chunked).left(), None);
    assert_eq!(Decoder::new(Framing::UntilClose).left(), None);
}

#[test]
fn data_is_handed_on_where_it_lies() {
    let mut inbox = BytesMut::from("5\r\nhello\r\n");
    let place = inbox[3..].as_ptr();
    match Decoder::new(Framing::Chunked).decode(&mut inbox) {
        Ok(Decoded::Data(data)) => assert_eq!((&data[..], data.as_ptr()), (&b"hello"[..], place)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn any_body_survives_being_chunked_and_split_anywhere() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..500 {
        let (mut stream, mut data) = (Vec::new(), Vec::new());
        for _ in 0..rng.usize(..6) {
            let chunk: Vec<u8> = (0..rng.usize(1..40)).map(|_| rng.u8(..)).collect();
            write::chunk_start(&mut stream, chunk.len());
            stream.extend_from_slice(&chunk);
            stream.extend_from_slice(b"\r\n");
            data.extend_from_slice(&chunk);
        }
        write::last_chunk(&mut stream, None);
        let mut pieces = Vec::new();
        let mut left = &stream[..];
        while !left.is_empty() {
            let (piece, rest) = left.split_at(rng.usize(1..=left.len()));
            pieces.push(piece);
            left = rest;
        }
        let read = decode(Framing::Chunked, &pieces).unwrap();
        assert_eq!((read.data, read.ended, read.rest.len()), (data, true, 0));
    }
}

#[test]
fn garbage_never_panics_and_no_split_changes_its_meaning() {
    const PIECES: [&str; 14] =
        ["0", "1", "a", "f", "7fffffffffffffff", ";", "x", "\r\n", "\r\n", "\r", "\n", ": ", " ", "\0"];
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..2_000 {
        let stream: String = (0..rng.usize(..14)).map(|_| PIECES[rng.usize(..PIECES.len())]).collect();
        let _ = in_every_split(Framing::Chunked, stream.as_bytes());
    }
}

#[test]
fn after_a_body_that_broke_nothing_is_taken_for_what_follows_it() {
    for broken in ["0\r\nno trailer\r\n\r\n", "0\r\nx-a: 1\r\n folded\r\n\r\n", "zz\r\n", "1\r\nxx\r\n"] {
        let mut decoder = Decoder::new(Framing::Chunked);
        let mut inbox = BytesMut::from(&*format!("{broken}GET /hidden HTTP/1.1\r\n\r\n"));
        while let Ok(read) = decoder.decode(&mut inbox) {
            assert!(matches!(read, Decoded::Data(_)), "{broken:?}: {read:?}");
        }
        decoder.decode(&mut inbox).unwrap_err();
        assert!(!decoder.is_end(), "{broken:?}");
    }
}
