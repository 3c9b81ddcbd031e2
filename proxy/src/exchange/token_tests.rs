//! Tokens of an issuer that publishes its keys, over real sockets: a caller, two sidecars, an application, and the issuer.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::*;
use crate::keys::issuer::{Issuer, Says};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop, annotations: {equerry.dev/accounts: orders}}
spec:
  selector: {app: orders}
  ports: [{port: 80, targetPort: 8080, appProtocol: http}]
";
const LABELS: &[(&str, &str)] = &[("app", "orders")];

/// A key of the issuer, under this id.
struct Signer(&'static str, Ed25519KeyPair);

impl Signer {
    fn new(id: &'static str) -> Self {
        Self(id, Ed25519KeyPair::generate().unwrap())
    }

    fn published(keys: &[&Self]) -> String {
        let key = |one: &&Self| json!({"kty": "OKP", "crv": "Ed25519", "kid": one.0, "x": URL_SAFE_NO_PAD.encode(one.1.public_key())});
        json!({"keys": keys.iter().map(key).collect::<Vec<_>>()}).to_string()
    }

    /// A token that is good for so long.
    fn token(&self, life: Duration) -> String {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let exp = (SystemTime::now() + life).duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        let claims =
            json!({"iss": "https://login", "sub": "alice", "exp": exp, "jti": NUMBER.fetch_add(1, Ordering::Relaxed)});
        let header = json!({"alg": "EdDSA", "kid": self.0});
        let signed =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(self.1.sign(signed.as_bytes())))
    }
}

/// The Service, and what it asks of tokens of this issuer.
fn policy(issuer: &Issuer, more: &str) -> String {
    let ca = issuer.ca_pem().lines().map(|line| format!("      {line}\n")).collect::<String>();
    format!(
        "{SERVICE}---\napiVersion: equerry.dev/v1\nkind: RequestAuthentication\nmetadata: {{name: tokens, namespace: shop}}\nspec:\n  \
         targetRefs: [{{kind: Service, name: orders}}]\n  jwtRules:\n  - issuer: https://login\n    required: true\n    \
         jwksUri: https://127.0.0.1:{}/keys\n    timeout: 1s\n    jwksCa: |\n{ca}{more}",
        issuer.address.port()
    )
}

struct Pair {
    frontend: Sidecar,
    orders: Sidecar,
    world: World,
}

/// frontend → orders, whose application listens there.
async fn pair(issuer: &Issuer, more: &str, application: SocketAddr) -> Pair {
    let world = World::new(&policy(issuer, more));
    let orders = world.sidecar("shop/orders", LABELS, &[(8080, application)], &[]).await;
    let at = vec![At::Mesh(orders.inbound)];
    let frontend = world.sidecar("shop/frontend", &[], &[], &[("shop/orders", at)]).await;
    Pair { frontend, orders, world }
}

impl Pair {
    async fn get(&self, target: &str, headers: &[(&'static str, String)]) -> (u16, String) {
        let mut asked = request("GET", "orders", target, "");
        for (name, value) in headers {
            asked.headers_mut().append(*name, value.parse().unwrap());
        }
        let answer = call(self.frontend.outbound, asked).await;
        let reason = answer.headers().get("proxy-status").map(|value| value.to_str().unwrap().to_owned());
        (answer.status().as_u16(), reason.unwrap_or_default())
    }

    async fn with(&self, token: &str) -> (u16, String) {
        self.get("/", &[("authorization", format!("Bearer {token}"))]).await
    }
}

const LIFE: Duration = Duration::from_secs(300);

#[test]
fn keys_are_followed_through_a_rotation_without_a_wrong_answer() {
    on_one_thread(async {
        let (old, new, never) = (Signer::new("old"), Signer::new("new"), Signer::new("never"));
        for more in ["", ENDS] {
            keys_are_followed(more, [&old, &new, &never]).await;
        }
    });
}

async fn keys_are_followed(more: &str, [old, new, never]: [&Signer; 3]) {
    let issuer = Issuer::start(Says::Body(Signer::published(&[old]))).await;
    let application = application(|_, _| async { says(200, "") }).await;
    let mesh = pair(&issuer, more, application.address).await;
    assert_eq!(mesh.with(&old.token(LIFE)).await.0, 200, "the very first request waits for the keys");
    assert!(!application.seen.borrow()[0].headers.contains_key("authorization"), "the token is not forwarded");
    issuer.say(Says::Body(Signer::published(&[old, new])));
    assert_eq!(mesh.with(&new.token(LIFE)).await.0, 200, "a key that was just published");
    assert_eq!(mesh.with(&old.token(LIFE)).await.0, 200);
    let (status, reason) = mesh.with(&never.token(LIFE)).await;
    assert!(status == 401 && reason.contains("token_unknown_key"), "{status} {reason}");
    let forged = Signer("new", Ed25519KeyPair::generate().unwrap());
    let before = issuer.asked();
    let (status, reason) = mesh.with(&forged.token(LIFE)).await;
    assert!(status == 401 && reason.contains("token_invalid"), "{status} {reason}");
    assert_eq!(issuer.asked(), before, "nobody is asked about a key that is known");
}

#[test]
fn while_nobody_knows_the_keys_no_token_is_called_bad() {
    on_one_thread(async {
        let (key, other) = (Signer::new("a"), Signer::new("b"));
        let issuer = Issuer::start(Says::Closed).await;
        let application = application(|_, _| async { says(200, "") }).await;
        let mesh = pair(&issuer, "", application.address).await;
        let (status, reason) = mesh.with(&key.token(LIFE)).await;
        assert!(status == 503 && reason.contains("keys_unavailable"), "{status} {reason}");
        let (status, reason) = mesh.get("/", &[]).await;
        assert!(status == 401 && reason.contains("token_missing"), "{status} {reason}");
        assert_eq!(mesh.with("x.y.z").await.0, 401, "what no key could save is refused as such");
        issuer.say(Says::Body(Signer::published(&[&key])));
        let answered = async {
            while mesh.with(&key.token(LIFE)).await.0 != 200 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), answered)
            .await
            .expect("the keys are fetched again by themselves");
        issuer.say(Says::Closed);
        assert_eq!(mesh.with(&key.token(LIFE)).await.0, 200, "keys from before hold while the issuer is away");
        let (status, reason) = mesh.with(&other.token(LIFE)).await;
        assert!(status == 503 && reason.contains("keys_unavailable"), "it may be new: {status} {reason}");
    });
}

#[test]
fn a_token_in_the_query_is_neither_forwarded_nor_logged() {
    on_one_thread(async {
        let key = Signer::new("a");
        let issuer = Issuer::start(Says::Body(Signer::published(&[&key]))).await;
        let application = application(|_, _| async { says(200, "") }).await;
        let mesh =
            pair(&issuer, "    fromParams: [access_token]\n    fromCookies: [session]\n", application.address).await;
        let token = key.token(LIFE);
        assert_eq!(mesh.get(&format!("/a?x=1&access_token={token}&y=2"), &[]).await.0, 200);
        assert_eq!(mesh.get("/b", &[("cookie", format!("a=b; session={token}"))]).await.0, 200);
        {
            let seen = application.seen.borrow();
            assert_eq!(seen[0].uri.to_string(), "/a?x=1&y=2");
            assert_eq!(seen[1].headers["cookie"], "a=b");
        }
        assert_eq!(mesh.get(&format!("/c?access_token={token}x"), &[]).await.0, 401);
        for sidecar in [&mesh.frontend, &mesh.orders] {
            let lines = serde_json::to_string(&sidecar.log(3).await).unwrap();
            assert!(!lines.contains(&token[..20]) && lines.contains("/a"), "{lines}");
        }
    });
}

/// An application that answers with this head, and then goes on sending a byte every 20 ms, or nothing.
async fn endless(head: &'static str, drips: bool) -> SocketAddr {
    let (address, _) = listen(move |mut stream, _| async move {
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => read.push(byte),
                Err(_) => return,
            }
        }
        let _ = stream.write_all(head.as_bytes()).await;
        let (mut reads, mut writes) = stream.split();
        let drip = async {
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                if drips && writes.write_all(b"1\r\nx\r\n").await.is_err() {
                    return;
                }
            }
        };
        let mut rest = [0; 64];
        tokio::select! {
            () = drip => {}
            _ = async { while reads.read(&mut rest).await.is_ok_and(|read| read > 0) {} } => {}
        }
    })
    .await;
    address
}

/// What is said to the caller's sidecar, and everything that comes back until the end.
async fn until_the_end(sidecar: SocketAddr, said: &str) -> String {
    let mut stream = TcpStream::connect(sidecar).await.unwrap();
    stream.write_all(said.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut read).await;
    String::from_utf8_lossy(&read).into_owned()
}

const STREAM: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n";
const TAKEN: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chatter\r\n\r\n";
const ENDS: &str = "    clockSkew: 0s\n    endStreamsWithToken: true\n";

#[test]
fn what_a_token_let_in_ends_with_it_where_the_rule_says_so() {
    on_one_thread(async {
        let key = Signer::new("a");
        let issuer = Issuer::start(Says::Body(Signer::published(&[&key]))).await;
        let get = |token: &str, more: &str| {
            format!("GET / HTTP/1.1\r\nhost: orders\r\nauthorization: Bearer {token}\r\n{more}\r\n")
        };
        let upgrade = "connection: upgrade\r\nupgrade: chatter\r\n";
        for (what, head, drips, more, begins) in [
            ("a stream that flows", STREAM, true, "", "HTTP/1.1 200"),
            ("a stream that stands still", STREAM, false, "", "HTTP/1.1 200"),
            ("an answer that does not come", "", false, "", "HTTP/1.1 401"),
            ("another protocol", TAKEN, false, upgrade, "HTTP/1.1 101"),
        ] {
            let mesh = pair(&issuer, ENDS, endless(head, drips).await).await;
            let life = Duration::from_millis(700);
            let said = get(
                &key.token(life),
                &format!("connection: close\r\n{more}")
                    .replace("connection: close\r\nconnection: upgrade", "connection: upgrade"),
            );
            let read = tokio::time::timeout(Duration::from_secs(8), until_the_end(mesh.frontend.outbound, &said)).await;
            let read = read.unwrap_or_else(|_| panic!("{what} goes on"));
            assert!(read.starts_with(begins) && !read.ends_with("0\r\n\r\n"), "{what}: {read}");
            let line = &mesh.orders.log(1).await[0];
            assert_eq!(line["reason"], "token_expired", "{what}: {line}");
        }
    });
}

#[test]
fn a_stream_ends_when_its_key_is_withdrawn_and_only_where_the_rule_says_so() {
    on_one_thread(async {
        let (key, next) = (Signer::new("a"), Signer::new("b"));
        for (more, ends) in [(ENDS, true), ("", false)] {
            let issuer = Issuer::start(Says::Body(Signer::published(&[&key]))).await;
            let mesh = pair(&issuer, more, endless(STREAM, true).await).await;
            let said = format!("GET / HTTP/1.1\r\nhost: orders\r\nauthorization: Bearer {}\r\n\r\n", key.token(LIFE));
            let mut stream = TcpStream::connect(mesh.frontend.outbound).await.unwrap();
            stream.write_all(said.as_bytes()).await.unwrap();
            let mut read = Vec::new();
            hear_more(&mut stream, &mut read).await;
            // Its key came to the request itself, and what is published next may not hold it yet.
            let live = mesh.orders.shared.live.load();
            let again = (**live.workload.as_ref().unwrap()).clone();
            let early =
                crate::live::Live { workload: Some(again.into()), ..crate::live::Live::nothing(live.own.clone()) };
            mesh.orders.shared.live.publish(early);
            // A key that is new is not withdrawn.
            hear_more(&mut stream, &mut read).await;
            withdraw(&mesh.orders, &issuer, &Signer::published(&[&next])).await;
            if ends {
                let end = stream.read_to_end(&mut read);
                let _ = tokio::time::timeout(Duration::from_secs(20), end).await.expect("it ends");
                let read = String::from_utf8_lossy(&read);
                assert!(read.starts_with("HTTP/1.1 200") && !read.ends_with("0\r\n\r\n"), "{read}");
                let lines = mesh.orders.log(1).await;
                assert!(lines.iter().any(|line| line["reason"] == "token_unknown_key"), "{lines:?}");
            } else {
                hear_more(&mut stream, &mut read).await;
            }
        }
    });
}

/// Hears five more pieces of a stream that flows: it goes on.
async fn hear_more(stream: &mut TcpStream, read: &mut Vec<u8>) {
    let (mut heard, mut in_body) = (0, read.windows(4).any(|end| end == b"\r\n\r\n"));
    while heard < 5 {
        let byte = stream.read_u8().await.expect("it ended");
        heard += usize::from(in_body && byte == b'x');
        read.push(byte);
        in_body |= read.ends_with(b"\r\n\r\n");
    }
}

/// Has the issuer publish other keys, and puts them in force, as the subscriber does when they were fetched.
async fn withdraw(sidecar: &Sidecar, issuer: &Issuer, set: &str) {
    issuer.say(Says::Body(set.to_owned()));
    let live = sidecar.shared.live.load();
    let workload = live.workload.as_ref().unwrap();
    let from = workload.tokens.sources().next().unwrap();
    let known = sidecar.shared.keys.newest(from);
    let keys = sidecar.shared.keys.learn(from, known.as_deref()).await.unwrap();
    let next = workload.with_keys_of(from, &keys);
    let next =
        crate::live::Live { epoch: 8, workload: Some(next.into()), ..crate::live::Live::nothing(live.own.clone()) };
    sidecar.shared.live.publish(next);
}

#[test]
fn a_stream_is_judged_again_by_the_claims_that_let_it_in() {
    on_one_thread(async {
        let key = Signer::new("a");
        let issuer = Issuer::start(Says::Body(Signer::published(&[&key]))).await;
        let only = |who: &str| {
            format!(
                "---\napiVersion: equerry.dev/v1\nkind: AuthorizationPolicy\nmetadata: {{name: who, namespace: shop}}\nspec:\n  \
                 targetRefs: [{{kind: Service, name: orders}}]\n  rules: [{{when: [{{key: 'request.auth.claims[sub]', values: \
                 [{who}]}}]}}]\n"
            )
        };
        let application = endless(STREAM, true).await;
        let mut mesh = pair(&issuer, &only("alice"), application).await;
        let said = format!("GET / HTTP/1.1\r\nhost: orders\r\nauthorization: Bearer {}\r\n\r\n", key.token(LIFE));
        let mut stream = TcpStream::connect(mesh.frontend.outbound).await.unwrap();
        stream.write_all(said.as_bytes()).await.unwrap();
        let mut read = vec![0; 12];
        stream.read_exact(&mut read).await.unwrap();
        assert_eq!(read, b"HTTP/1.1 200");
        mesh.world.mean(&policy(&issuer, &only("bob")));
        let next = mesh.world.live("shop/orders", LABELS, &[(8080, application)], &[]);
        mesh.orders.shared.live.publish(next);
        let ended = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut read)).await;
        assert!(ended.is_ok() && !read.ends_with(b"0\r\n\r\n"), "it goes on");
        let line = &mesh.orders.log(1).await[0];
        assert_eq!((&line["reason"], &line["policy"]), (&"authz_denied".into(), &"no rule of shop/who matched".into()));
    });
}
