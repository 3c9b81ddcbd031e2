//! The specification's examples (RFC 7541 appendix C), what is refused, and that both ends keep the same table.

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};

use super::huffman::tests::encode as huffman;
use super::*;
use crate::codec::{MAX_HEADER_BYTES, MAX_HEADERS};

fn bytes(hex: &str) -> Bytes {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect::<Vec<_>>().into()
}

fn text(field: &Field) -> String {
    let value = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    match field {
        Field::Method(method) => format!(":method: {method}"),
        Field::Scheme(scheme) => format!(":scheme: {scheme}"),
        Field::Authority(authority) => format!(":authority: {authority}"),
        Field::Path(path) => format!(":path: {path}"),
        Field::Protocol => ":protocol".to_owned(),
        Field::Status(status) => format!(":status: {}", status.as_str()),
        Field::Host(host) => format!("host: {}", value(host)),
        Field::Length(length, written) => {
            assert_eq!(value(written).parse(), Ok(*length));
            format!("content-length: {length}")
        }
        Field::Header(name, each) => format!("{name}: {}", value(each)),
        Field::Malformed(_, why) => format!("malformed: {why}"),
    }
}

fn decode(decoder: &mut Decoder, block: &Bytes) -> Result<Vec<String>, &'static str> {
    let mut fields = Vec::new();
    decoder.decode(block, |field| fields.push(text(&field))).map(|_| fields)
}

/// Blocks one after another on one connection: what each says, and the size and length of the table behind it.
#[track_caller]
fn examples(table: u32, each: &[(&str, &[&str], u32, usize)]) {
    let mut decoder = Decoder::new(table);
    for (hex, expected, size, length) in each {
        assert_eq!(decode(&mut decoder, &bytes(hex)).unwrap(), *expected);
        assert_eq!((decoder.table().size(), decoder.table().len()), (*size, *length), "{hex}");
    }
}

#[test]
fn each_form_of_a_field_is_read_as_in_appendix_c2() {
    let key = "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572";
    examples(4096, &[(key, &["custom-key: custom-header"], 55, 1)]);
    examples(4096, &[("040c 2f73 616d 706c 652f 7061 7468", &[":path: /sample/path"], 0, 0)]);
    examples(4096, &[("82", &[":method: GET"], 0, 0)]);
    let mut sensitive = Vec::new();
    let password = bytes("1008 7061 7373 776f 7264 0673 6563 7265 74");
    Decoder::new(4096).decode(&password, |field| sensitive.push(field.into_owned())).unwrap();
    assert_eq!(text(&sensitive[0]), "password: secret");
    assert!(
        matches!(&sensitive[0], Field::Header(_, value) if value.is_sensitive()),
        "never indexed, here and behind us"
    );
}

const FIRST: &[&str] = &[":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"];
const SECOND: &[&str] =
    &[":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com", "cache-control: no-cache"];
const THIRD: &[&str] = &[
    ":method: GET",
    ":scheme: https",
    ":path: /index.html",
    ":authority: www.example.com",
    "custom-key: custom-value",
];

#[test]
fn requests_are_read_as_in_appendix_c3() {
    examples(
        4096,
        &[
            ("8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", FIRST, 57, 1),
            ("8286 84be 5808 6e6f 2d63 6163 6865", SECOND, 110, 2),
            ("8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65", THIRD, 164, 3),
        ],
    );
}

#[test]
fn requests_in_huffman_code_are_read_as_in_appendix_c4() {
    examples(
        4096,
        &[
            ("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", FIRST, 57, 1),
            ("8286 84be 5886 a8eb 1064 9cbf", SECOND, 110, 2),
            ("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf", THIRD, 164, 3),
        ],
    );
}

const MOVED: &[&str] = &[
    ":status: 302",
    "cache-control: private",
    "date: Mon, 21 Oct 2013 20:13:21 GMT",
    "location: https://www.example.com",
];
const MOVED_AGAIN: &[&str] = &[
    ":status: 307",
    "cache-control: private",
    "date: Mon, 21 Oct 2013 20:13:21 GMT",
    "location: https://www.example.com",
];
const FOUND: &[&str] = &[
    ":status: 200",
    "cache-control: private",
    "date: Mon, 21 Oct 2013 20:13:22 GMT",
    "location: https://www.example.com",
    "content-encoding: gzip",
    "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
];

#[test]
fn responses_that_push_others_out_are_read_as_in_appendix_c5() {
    examples(
        256,
        &[
            (
                "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 \
                 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                MOVED,
                222,
                4,
            ),
            ("4803 3330 37c1 c0bf", MOVED_AGAIN, 222, 4),
            (
                "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 \
                 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 \
                 3630 303b 2076 6572 7369 6f6e 3d31",
                FOUND,
                215,
                3,
            ),
        ],
    );
}

#[test]
fn responses_in_huffman_code_are_read_as_in_appendix_c6() {
    examples(
        256,
        &[
            (
                "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 \
                 63c7 8f0b 97c8 e9ae 82ae 43d3",
                MOVED,
                222,
                4,
            ),
            ("4883 640e ffc1 c0bf", MOVED_AGAIN, 222, 4),
            (
                "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 \
                 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
                FOUND,
                215,
                3,
            ),
        ],
    );
}

#[test]
fn the_table_that_everybody_knows_is_that_of_appendix_a() {
    let names = "method method path path scheme scheme status status status status status status status";
    let values = "GET POST / /index.html http https 200 204 206 304 400 404 500";
    for ((index, name), value) in (2u8..).zip(names.split(' ')).zip(values.split(' ')) {
        let field = decode(&mut Decoder::new(0), &Bytes::from(vec![0x80 | index])).unwrap();
        assert_eq!(field, [format!(":{name}: {value}")]);
    }
    let names = "accept-charset accept-encoding accept-language accept-ranges accept access-control-allow-origin age allow \
                 authorization cache-control content-disposition content-encoding content-language content-length \
                 content-location content-range content-type cookie date etag expect expires from host if-match \
                 if-modified-since if-none-match if-range if-unmodified-since last-modified link location max-forwards \
                 proxy-authenticate proxy-authorization range referer refresh retry-after server set-cookie \
                 strict-transport-security transfer-encoding user-agent vary via www-authenticate";
    for (index, name) in (15u8..).zip(names.split(' ')) {
        // Its name with a value of ours: an index beyond four bits goes on in a second byte.
        let block = Bytes::from(vec![0x0f, index - 15, 1, b'7']);
        let expected = match name {
            "transfer-encoding" => "malformed: a header that only concerns an HTTP/1.1 connection".to_owned(),
            _ => format!("{name}: 7"),
        };
        assert_eq!(decode(&mut Decoder::new(0), &block).unwrap(), [expected]);
        let empty = decode(&mut Decoder::new(0), &Bytes::from(vec![0x80 | index])).unwrap();
        let expected = match name {
            "transfer-encoding" => "malformed: a header that only concerns an HTTP/1.1 connection".to_owned(),
            "content-length" => "malformed: a content-length that is no length".to_owned(),
            "accept-encoding" => "accept-encoding: gzip, deflate".to_owned(),
            _ => format!("{name}: "),
        };
        assert_eq!(empty, [expected]);
    }
    assert_eq!(table::STATIC.len(), 61);
}

#[test]
fn a_static_entry_counts_for_its_text() {
    for entry in &table::STATIC {
        if let Field::Header(name, value) = &entry.field {
            assert_eq!(entry.size as usize, name.as_str().len() + value.len() + 32, "{name}");
            assert_eq!(entry.name as usize, name.as_str().len());
        }
    }
}

#[test]
fn what_is_no_block_is_refused_by_name() {
    const INDEX: &str = "a field that the table does not have";
    const CUT: &str = "a header block that ends inside a field";
    const LARGE: &str = "an integer that is too large";
    const SIZE: &str = "a table larger than was allowed";
    for (block, why) in [
        ("80", INDEX),
        ("be", INDEX),
        ("7e 01 61", INDEX),
        ("82 c0", INDEX),
        ("40", CUT),
        ("40 01", CUT),
        ("40 02 61", CUT),
        ("40 01 61", CUT),
        ("40 01 61 02 62", CUT),
        ("00 ff", CUT),
        ("ff", CUT),
        ("ff 80", CUT),
        ("ff 80 80 80 80 00", LARGE),
        ("ff ff ff ff ff ff ff ff ff ff 7f", LARGE),
        ("00 7f ff ff ff ff 0f", LARGE),
        ("00 7f ff ff ff 7f 61", CUT),
        ("3f e2 1f", SIZE),
        ("3f ff ff ff 7f", SIZE),
        ("20 3f e2 1f", SIZE),
        ("82 20", "a change of the table's size behind a field"),
        ("20 20 20", "a change of the table's size behind a field"),
        ("04 81 00", "a Huffman-coded string that is not padded with ones"),
        ("04 81 ff", "a Huffman-coded string that ends with more than seven bits of padding"),
        ("00 84 ff ff ff ff 00", "the end of a string inside a Huffman-coded string"),
    ] {
        assert_eq!(Decoder::new(4096).decode(&bytes(block), |_| ()), Err(why), "{block}");
    }
    assert_eq!(Decoder::new(4096).decode(&bytes(""), |_| ()), Ok(Extent::Whole));
    assert_eq!(Decoder::new(4096).decode(&bytes("20 3f e1 1f"), |_| ()), Ok(Extent::Whole));
}

#[test]
fn a_field_that_is_not_allowed_is_one_for_the_table_nevertheless() {
    let mut decoder = Decoder::new(4096);
    // "A: x", then "a: <NUL>", both into the table; then both again, and the second's name with a good value.
    let block = bytes("40 01 41 01 78  40 01 61 01 00  bf be 7e 01 62 be");
    let name = "malformed: the name of a header is not in lower case";
    let value = "malformed: a control character in the value of a header";
    assert_eq!(decode(&mut decoder, &block).unwrap(), [name, value, name, value, "a: b", "a: b"]);
    assert_eq!((decoder.table().size(), decoder.table().len()), (102, 3));
}

#[test]
fn every_field_is_judged_where_it_is_made() {
    let judge = |name: &str, value: &str| {
        let mut block = vec![0x00, name.len() as u8];
        block.extend_from_slice(name.as_bytes());
        block.push(value.len() as u8);
        block.extend_from_slice(value.as_bytes());
        decode(&mut Decoder::new(4096), &block.into()).unwrap().remove(0)
    };
    let blank = "malformed: white space around the value of a header";
    let control = "malformed: a control character in the value of a header";
    let length = "malformed: a content-length that is no length";
    let http1 = "malformed: a header that only concerns an HTTP/1.1 connection";
    for (name, value, expected) in [
        ("x", "", "x: "),
        ("x", "a b\tc", "x: a b\tc"),
        ("x", " a", blank),
        ("x", "a ", blank),
        ("x", "\ta", blank),
        ("x", "a\t", blank),
        ("x", " ", blank),
        ("x", "a\0", control),
        ("x", "a\rb", control),
        ("x", "a\nb", control),
        ("x", "a\x7fb", control),
        ("host", " a", blank),
        ("", "a", "malformed: a header without a name"),
        ("X", "a", "malformed: the name of a header is not in lower case"),
        ("x y", "a", "malformed: the name of a header is no token"),
        ("x:y", "a", "malformed: the name of a header is no token"),
        ("x\0", "a", "malformed: the name of a header is no token"),
        ("connection", "close", http1),
        ("keep-alive", "1", http1),
        ("proxy-connection", "close", http1),
        ("transfer-encoding", "chunked", http1),
        ("upgrade", "h2c", http1),
        ("te", "trailers", "te: trailers"),
        ("te", "gzip", "malformed: a te other than trailers"),
        ("te", "", "malformed: a te other than trailers"),
        ("content-length", "0", "content-length: 0"),
        ("content-length", "9223372036854775807", "content-length: 9223372036854775807"),
        ("content-length", "9223372036854775808", length),
        ("content-length", "99999999999999999999", length),
        ("content-length", "+1", length),
        ("content-length", "1 ", length),
        ("content-length", "1,1", length),
        (":method", "PURGE", ":method: PURGE"),
        (":method", "", "malformed: the method is no token"),
        (":method", "GE T", "malformed: the method is no token"),
        (":scheme", "ftp", "malformed: a scheme other than http and https"),
        (":scheme", "HTTP", "malformed: a scheme other than http and https"),
        (":authority", "a.b:80", ":authority: a.b:80"),
        (":authority", "[::1]:80", ":authority: [::1]:80"),
        (":authority", "", "malformed: the authority is none"),
        (":authority", "a/b", "malformed: the authority is none"),
        (":authority", "a b", "malformed: the authority is none"),
        (":authority", "u@a", "malformed: an authority with user information"),
        (":path", "/a?b=c", ":path: /a?b=c"),
        (":path", "*", ":path: *"),
        (":path", "", "malformed: the path does not begin with a slash"),
        (":path", "a", "malformed: the path does not begin with a slash"),
        (":path", "http://a/", "malformed: the path does not begin with a slash"),
        (":path", "*a", "malformed: the path does not begin with a slash"),
        (":path", "/a#b", "malformed: a path with a fragment"),
        (":path", "/a b", "malformed: the path is none"),
        (":path", "/a\nb", "malformed: the path is none"),
        (":status", "99", "malformed: the status is no number of three digits"),
        (":status", "2000", "malformed: the status is no number of three digits"),
        (":status", "+20", "malformed: the status is no number of three digits"),
        (":protocol", "websocket", ":protocol"),
        (":reason", "OK", "malformed: a pseudo-header that nobody knows"),
        (":", "", "malformed: a pseudo-header that nobody knows"),
    ] {
        assert_eq!(judge(name, value), expected, "{name:?}: {value:?}");
    }
}

#[test]
fn more_than_is_taken_is_told_and_the_table_goes_on() {
    let mut decoder = Decoder::new(4096);
    let mut block = vec![0x40, 1, b'a', 0x7f, 0xa1, 0x1e];
    block.extend(std::iter::repeat_n(b'v', 4_000));
    assert_eq!(decode(&mut decoder, &block.clone().into()).unwrap().len(), 1);
    // A field of 4,033 bytes, each time in one byte: a bomb.
    let bomb = Bytes::from(vec![0xbe; 20_000]);
    let mut taken = 0;
    assert_eq!(decoder.decode(&bomb, |_| taken += 1), Ok(Extent::TooLarge));
    assert_eq!(taken, MAX_HEADER_BYTES as usize / 4_033);
    // Many small ones.
    let many = Bytes::from([vec![0x82; MAX_HEADERS], vec![0x40, 1, b'b', 1, b'c']].concat());
    let mut taken = 0;
    assert_eq!(decoder.decode(&many, |_| taken += 1), Ok(Extent::TooLarge));
    assert_eq!(taken, MAX_HEADERS);
    assert_eq!(decoder.decode(&many.slice(..MAX_HEADERS), |_| ()), Ok(Extent::Whole));
    // What came behind the last that was taken is in the table.
    assert_eq!(decode(&mut decoder, &bytes("be")).unwrap(), ["b: c"]);
}

#[test]
fn a_field_larger_than_the_table_empties_it_and_is_read() {
    let mut decoder = Decoder::new(64);
    let block = bytes("40 01 61 01 62");
    decode(&mut decoder, &block).unwrap();
    assert_eq!(decoder.table().len(), 1);
    let large = [vec![0x40, 1, b'a', 40], vec![b'x'; 40]].concat();
    assert_eq!(decode(&mut decoder, &large.into()).unwrap(), [format!("a: {}", "x".repeat(40))]);
    assert_eq!((decoder.table().len(), decoder.table().size()), (0, 0));
}

#[test]
fn a_table_that_shrinks_forgets_the_oldest() {
    let mut decoder = Decoder::new(4096);
    decode(&mut decoder, &bytes("40 01 61 01 78  40 01 62 01 79")).unwrap();
    assert_eq!(decode(&mut decoder, &bytes("3f 03 be")).unwrap(), ["b: y"]);
    assert_eq!(decoder.decode(&bytes("bf"), |_| ()), Err("a field that the table does not have"));
    assert_eq!(decode(&mut decoder, &bytes("20 3f e1 1f 82")).unwrap(), [":method: GET"]);
    assert_eq!(decoder.table().len(), 0);
}

fn header(name: &str, value: &str) -> (HeaderName, HeaderValue) {
    (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
}

fn encode(encoder: &mut Encoder, headers: &[(HeaderName, HeaderValue)]) -> Bytes {
    let mut out = Vec::new();
    encoder.begin(&mut out);
    for (name, value) in headers {
        encoder.header(&mut out, name, value);
    }
    out.into()
}

#[test]
fn what_comes_again_becomes_one_byte_and_what_changes_enters_no_table() {
    let mut encoder = Encoder::new();
    let heads = |id: u32| [header("accept", "text/html"), header("x-id", &id.to_string()), header("x-t", "acme")];
    let lengths: Vec<_> = (100..105).map(|id| encode(&mut encoder, &heads(id)).len()).collect();
    // At first names that nobody knows are written out; then what is there again enters; then it is there.
    assert_eq!(lengths, [12 + 10 + 10, 11 + 6 + 1, 1 + 6 + 1, 1 + 6 + 1, 1 + 6 + 1]);
    let table = encoder.table();
    assert_eq!(table, [(&b"accept"[..], &b"text/html"[..]), (b"x-t", b"acme"), (b"x-id", b"100")]);
}

#[test]
fn every_field_of_a_large_head_enters_the_table_when_it_comes_again() {
    let mut encoder = Encoder::new();
    let head: Vec<_> = (0..50).map(|at| header("accept", &format!("text/{at}"))).collect();
    let lengths: Vec<_> = (0..3).map(|_| encode(&mut encoder, &head).len()).collect();
    assert!(lengths[0] > 400 && lengths[1] > 400, "{lengths:?}");
    assert_eq!(lengths[2], 50);
}

#[test]
fn what_is_secret_never_enters_a_table() {
    let mut encoder = Encoder::new();
    let mut marked = header("x-key", "k");
    marked.1.set_sensitive(true);
    for (name, value) in
        [header("authorization", "Bearer x"), header("proxy-authorization", "Basic x"), header("cookie", "a=1"), marked]
    {
        for _ in 0..3 {
            let block = encode(&mut encoder, &[(name.clone(), value.clone())]);
            assert_eq!(block[0] & 0xf0, 0x10, "{name}");
            let mut read = Vec::new();
            Decoder::new(4096).decode(&block, |field| read.push(field.into_owned())).unwrap();
            assert!(matches!(&read[..], [Field::Header(_, value)] if value.is_sensitive()), "{name}");
        }
    }
    assert!(encoder.table().is_empty());
    let long = header("cookie", "session=0123456789abcdef");
    encode(&mut encoder, &[long.clone(), long]);
    assert_eq!(encoder.table().len(), 1);
}

#[test]
fn both_ends_keep_the_same_table_whatever_is_written() {
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
        let names =
            ["accept", "x-one", "x-two", "x-three", "content-type", "content-length", "cookie", "a", "set-cookie"];
        for round in 0..400 {
            if random.u8(..20) == 0 {
                for _ in 0..random.usize(1..4) {
                    let size = *random.choice(&[0, 33, 60, 100, 500, 4096, 1 << 20]).unwrap();
                    encoder.resize(size);
                }
            }
            let headers: Vec<_> = (0..random.usize(..12))
                .map(|_| {
                    let name = if random.u8(..30) == 0 {
                        format!("x-{}", random.u16(..))
                    } else {
                        (*random.choice(&names).unwrap()).to_owned()
                    };
                    let value = match random.u8(..10) {
                        0 => "v".repeat(random.usize(..1_500)),
                        1..3 => random.u64(..).to_string(),
                        // Alike at both ends.
                        3..5 => format!("{:a<40}{}{:z<40}", "", random.u8(..4), ""),
                        _ => random.u8(..6).to_string(),
                    };
                    header(&name, if name == "content-length" { "12" } else { &value })
                })
                .collect();
            let expected: Vec<_> =
                headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
            let block = encode(&mut encoder, &headers);
            assert_eq!(decode(&mut decoder, &block), Ok(expected), "seed {seed}, round {round}");
            let count = encoder.table().len();
            assert_eq!(decoder.table().len(), count);
            for ((name, value), index) in encoder.table().iter().zip(62..) {
                let line = [name, &b": "[..], value].concat();
                assert_eq!(text(&decoder.table().get(index).unwrap().field).into_bytes(), line);
            }
        }
    }
}

#[test]
fn pseudo_headers_are_read_as_they_were_written() {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
    for method in [Method::GET, Method::POST, Method::DELETE, Method::from_bytes(b"PURGE").unwrap()] {
        for path in ["/", "/index.html", "/a", "/b?c=d"] {
            for status in [200, 201, 204, 206, 304, 400, 404, 500, 503, 999] {
                let mut out = Vec::new();
                encoder.begin(&mut out);
                encoder.method(&mut out, &method);
                encoder.scheme(&mut out, if path == "/" { "http" } else { "https" });
                encoder.authority(&mut out, "orders.shop:8080");
                encoder.path(&mut out, path);
                encoder.status(&mut out, StatusCode::from_u16(status).unwrap());
                let scheme = if path == "/" { ":scheme: http" } else { ":scheme: https" };
                let expected = [
                    format!(":method: {method}"),
                    scheme.to_owned(),
                    ":authority: orders.shop:8080".to_owned(),
                    format!(":path: {path}"),
                    format!(":status: {status}"),
                ];
                assert_eq!(decode(&mut decoder, &out.into()).unwrap(), expected);
            }
        }
    }
}

#[test]
fn whatever_comes_is_read_or_refused() {
    for seed in 0..2_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut decoder = Decoder::new(random.u32(..5_000));
        for _ in 0..20 {
            let mut block = vec![0; random.usize(..60)];
            random.fill(&mut block);
            // Short lengths, so that many fields are whole.
            if random.bool() {
                block.iter_mut().skip(1).step_by(2).for_each(|byte| *byte &= 0x87);
            }
            if decoder.decode(&block.into(), |_| ()).is_err() {
                break;
            }
            assert!(decoder.table().size() <= 5_000);
        }
    }
}

#[test]
fn a_string_in_huffman_code_is_the_string() {
    let mut random = fastrand::Rng::with_seed(5);
    for _ in 0..500 {
        let value: String = std::iter::repeat_with(|| random.char('!'..='~')).take(30).collect();
        let (name, coded) = (huffman(b"x-coded"), huffman(value.as_bytes()));
        let block = [&[0x00, 0x80 | name.len() as u8][..], &name, &[0x80 | coded.len() as u8], &coded].concat();
        assert_eq!(decode(&mut Decoder::new(0), &block.into()).unwrap(), [format!("x-coded: {value}")]);
    }
}
