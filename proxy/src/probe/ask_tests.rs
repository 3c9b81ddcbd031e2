//! Questions over real sockets: what each kind takes for a good answer, and the words for every other.

use std::convert::Infallible;

use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpListener;

use super::*;

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

/// Somebody who answers each request, over HTTP/1.1 or HTTP/2, as `answer` says.
async fn server(answer: fn(&Request<Bytes>) -> Response<Body>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    Ok::<_, Infallible>(answer(&Request::from_parts(head, body)))
                });
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

fn question(address: SocketAddr, ask: Ask, http2: bool) -> Question {
    Question { address, ask, http2, patience: Duration::from_secs(5) }
}

fn http(path: &str, host: Option<&str>, statuses: &[(u16, u16)]) -> Ask {
    Ask::Http { path: path.to_owned(), host: host.map(str::to_owned), statuses: statuses.to_vec() }
}

/// What stands in the path is the status; the Host must be one of ours.
fn by_path(request: &Request<Bytes>) -> Response<Body> {
    let authority = request.uri().authority().map(ToString::to_string);
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    let host = authority.or(host).unwrap_or_default();
    let known = host.starts_with("127.0.0.1:") || host == "search.example";
    let status = if known { request.uri().path()[1..].parse().unwrap() } else { 421 };
    Response::builder().status(status).body(Full::default().boxed_unsync()).unwrap()
}

#[tokio::test]
async fn an_expected_status_is_well_and_any_other_is_named_over_both_versions_of_http() {
    let address = server(by_path).await;
    for http2 in [false, true] {
        let ask = async |ask: Ask| question(address, ask, http2).put().await;
        assert_eq!(ask(http("/200", None, &[(200, 200)])).await, Ok(()));
        assert_eq!(ask(http("/299", Some("search.example"), &[(200, 299), (418, 418)])).await, Ok(()));
        assert_eq!(ask(http("/418", None, &[(200, 299), (418, 418)])).await, Ok(()));
        let sick = format!("GET /503 at {address}: status 503");
        assert_eq!(ask(http("/503", None, &[(200, 200)])).await, Err(sick));
        assert_eq!(ask(http("/204", None, &[(200, 200)])).await, Err(format!("GET /204 at {address}: status 204")));
    }
}

#[tokio::test]
async fn a_connection_is_enough_where_nothing_else_is_asked_and_a_closed_port_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    assert_eq!(question(address, Ask::Tcp {}, false).put().await, Ok(()));
    drop(listener);
    let closed = question(address, Ask::Tcp {}, false).put().await.unwrap_err();
    assert!(closed.starts_with(&format!("connecting to {address}: ")) && closed.contains("refused"), "{closed}");
}

#[tokio::test]
async fn who_speaks_something_else_or_nothing_is_not_well() {
    let strange = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = strange.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = strange.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"SSH-2.0-x\r\n").await;
        }
    });
    for http2 in [false, true] {
        assert!(question(address, http("/", None, &[(200, 200)]), http2).put().await.is_err());
    }
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ask = http("/", None, &[(200, 200)]);
    let question =
        Question { patience: Duration::from_millis(50), ..question(silent.local_addr().unwrap(), ask, false) };
    let said = question.put().await.unwrap_err();
    assert!(said.ends_with("no answer within 50ms"), "{said}");
}

/// A gRPC health service: the service asked for stands for what it answers.
fn health(request: &Request<Bytes>) -> Response<Body> {
    let right = request.uri().path() == "/grpc.health.v1.Health/Check"
        && request.headers().get("te").is_some_and(|te| te == "trailers")
        && request.headers()[CONTENT_TYPE] == "application/grpc";
    assert!(right, "{request:?}");
    let (message, status): (Option<&'static [u8]>, _) = match &request.body()[5..] {
        [] | b"\x0a\x02ok" => (Some(&[0, 0, 0, 0, 2, 8, 1]), "0"),
        b"\x0a\x03not" => (Some(&[0, 0, 0, 0, 2, 8, 2]), "0"),
        _ => (None, "5"),
    };
    let trailers = Frame::trailers([("grpc-status".parse().unwrap(), status.parse().unwrap())].into_iter().collect());
    let data = message.map(|message| Frame::data(Bytes::from_static(message)));
    let frames = data.into_iter().chain([trailers]).map(Ok::<_, Infallible>);
    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
    Response::builder().header(CONTENT_TYPE, "application/grpc").body(body).unwrap()
}

#[tokio::test]
async fn grpc_health_says_serving_for_the_server_or_one_service_and_anything_else_is_named() {
    let address = server(health).await;
    let ask = async |service: &str| question(address, Ask::Grpc { service: service.to_owned() }, true).put().await;
    assert_eq!((ask("").await, ask("ok").await), (Ok(()), Ok(())));
    assert_eq!(ask("not").await, Err(format!("gRPC health of not at {address}: NOT_SERVING")));
    let unknown = ask("other").await.unwrap_err();
    assert!(unknown.contains("gRPC status 5"), "{unknown}");
    let none = question(server(by_path_404).await, Ask::Grpc { service: String::new() }, true).put().await;
    assert!(none.as_ref().is_err_and(|said| said.ends_with("status 404")), "{none:?}");
}

fn by_path_404(_: &Request<Bytes>) -> Response<Body> {
    Response::builder().status(404).body(Full::default().boxed_unsync()).unwrap()
}

#[test]
fn a_health_request_is_framed_and_an_answer_of_any_other_form_is_refused() {
    assert_eq!(framed(""), [0, 0, 0, 0, 0]);
    assert_eq!(framed("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
    assert_eq!(framed(&"x".repeat(200))[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 1]);
    assert_eq!(serving(&[0, 0, 0, 0, 2, 8, 1]), Ok(()));
    for wrong in [&[][..], &[0, 0, 0, 0, 0], &[0, 0, 0, 0, 2, 8, 3], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 9, 8, 1]] {
        assert!(serving(wrong).is_err(), "{wrong:?}");
    }
}
