//! Requests for names that no Service has, over real sockets and a real name server: who may leave the mesh, and how.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use http::Response;
use tokio::net::TcpListener;

use super::harness::*;
use crate::upstream::resolve::server::{Says, Server};

const MESH: &str = "
apiVersion: equerry.dev/v1
kind: Mesh
metadata: {name: default}
spec: {outboundTraffic: ALLOW_ANY}
---
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop, annotations: {equerry.dev/accounts: orders}}
spec: {selector: {app: orders}, ports: [{port: 80, targetPort: 8080}]}
";

/// A sidecar whose callers may name anybody (or, under `REGISTRY_ONLY`, nobody but Services), and its name server.
async fn frontend(outbound_traffic: &str) -> (Sidecar, Server) {
    let dns = Server::start().await;
    let mut world = World::new(&MESH.replace("ALLOW_ANY", outbound_traffic));
    world.dns = vec![dns.address];
    (world.sidecar("shop/frontend", &[("app", "frontend")], &[], &[]).await, dns)
}

/// An address of this machine that is not loopback, which no caller's choice may lead to. Connecting a datagram socket sends
/// nothing.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.connect((Ipv4Addr::new(198, 51, 100, 1), 9)).ok()?;
    let address = socket.local_addr().unwrap().ip();
    let fit = equerry_traffic::outside::forbidden(address, equerry_traffic::outside::ChosenBy::Caller).is_none();
    if !fit {
        eprintln!("skipped: this machine has no address but loopback");
    }
    fit.then_some(address)
}

fn reason(answered: &Response<bytes::Bytes>) -> (u16, String) {
    let told = answered.headers().get("proxy-status").map(|told| told.to_str().unwrap().to_owned());
    (answered.status().as_u16(), told.unwrap_or_default())
}

#[test]
fn whoever_is_outside_is_called_in_plain_text_by_the_name_that_the_application_wrote() {
    let Some(ip) = own_address() else { return };
    on_one_thread(async {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let partner = application_on(listener, |_, _| async { says(200, "from outside") });
        let (frontend, dns) = frontend("ALLOW_ANY").await;
        dns.say("api.example.com", Says::Addresses(vec![ip], 60));
        let port = partner.address.port();
        let hosts = [format!("api.example.com:{port}"), format!("{}", SocketAddr::new(ip, port))];
        for (number, host) in hosts.iter().enumerate() {
            let answered = call(frontend.outbound, request("GET", host, "/x", "")).await;
            assert_eq!((answered.status().as_u16(), &answered.body()[..]), (200, &b"from outside"[..]), "{host}");
            let seen = partner.seen.borrow()[number].clone();
            assert_eq!((seen.headers["host"].to_str().unwrap(), seen.uri.path()), (host.as_str(), "/x"));
        }
        let answered = call_http2(frontend.outbound, request("GET", &hosts[0], "/2", "")).await;
        assert_eq!(answered.status(), 200);
        assert_eq!(partner.seen.borrow()[2].version, http::Version::HTTP_11, "nobody said that it speaks HTTP/2");
        assert_eq!(dns.asked("api.example.com"), 2, "A and AAAA, once");
        for line in frontend.log(3).await {
            assert_eq!((line["reason"].as_str(), line["upstream_host"].is_null()), (Some("ok"), false), "{line}");
        }
        let counted = frontend.metrics("equerry_requests_total{");
        let label = "destination=\"outside/the.mesh\"";
        assert!(counted.len() == 1 && counted[0].contains(label) && counted[0].contains("tls=\"none\""), "{counted:?}");
    });
}

#[test]
fn connect_reaches_any_port_outside_the_mesh_and_none_that_nobody_may_reach() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let Some(ip) = own_address() else { return };
    on_one_thread(async {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::task::spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"220 welcome\r\n").await.unwrap();
            let mut said = Vec::new();
            stream.read_to_end(&mut said).await.unwrap();
            stream.write_all(&said).await.unwrap();
        });
        let (frontend, dns) = frontend("ALLOW_ANY").await;
        dns.say("mail.example.com", Says::Addresses(vec![ip], 60));
        dns.say("rebound.example.com", Says::Addresses(vec![[127, 0, 0, 1].into()], 60));
        let ask = async |host: &str| {
            let mut stream = tokio::net::TcpStream::connect(frontend.outbound).await.unwrap();
            stream
                .write_all(format!("CONNECT {host}:{port} HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes())
                .await
                .unwrap();
            stream
        };
        let mut stream = ask("mail.example.com").await;
        stream.write_all(b"EHLO me").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "HTTP/1.1 200 OK\r\n\r\n220 welcome\r\nEHLO me");
        let mut refused = [0; 12];
        ask("rebound.example.com").await.read_exact(&mut refused).await.unwrap();
        assert_eq!(&refused, b"HTTP/1.1 403");
        let line = &frontend.log(1).await[0];
        assert_eq!((&line["method"], &line["upstream_cluster"]), (&"CONNECT".into(), &"outside/the.mesh".into()));
    });
}

#[test]
fn where_only_services_may_be_named_nobody_asks_the_dns() {
    on_one_thread(async {
        let (frontend, dns) = frontend("REGISTRY_ONLY").await;
        dns.say("api.example.com", Says::Addresses(vec![[192, 0, 2, 1].into()], 60));
        for host in ["api.example.com", "192.0.2.1:80", "order"] {
            let (status, told) = reason(&call(frontend.outbound, request("GET", host, "/", "")).await);
            assert!(status == 502 && told.contains("no_service"), "{host}: {status} {told}");
        }
        assert_eq!((dns.asked("api.example.com"), dns.asked("order")), (0, 0));
    });
}

#[test]
fn a_caller_gets_nowhere_near_loopback_or_credentials_whatever_name_leads_there() {
    on_one_thread(async {
        let inside = application(|_, _| async { says(200, "secret") }).await;
        let (frontend, dns) = frontend("ALLOW_ANY").await;
        dns.say("rebound.example.com", Says::Addresses(vec![[127, 0, 0, 1].into()], 60));
        dns.say("cloud.example.com", Says::Addresses(vec![[169, 254, 169, 254].into()], 60));
        let port = inside.address.port();
        for host in [
            format!("rebound.example.com:{port}"),
            format!("127.0.0.1:{port}"),
            format!("[::ffff:127.0.0.1]:{port}"),
            "cloud.example.com".to_owned(),
            "169.254.169.254".to_owned(),
        ] {
            let (status, told) = reason(&call(frontend.outbound, request("GET", &host, "/", "")).await);
            assert!(status == 403 && told.contains("authz_denied"), "{host}: {status} {told}");
        }
        assert!(inside.seen.borrow().is_empty(), "somebody got in");
    });
}

#[test]
fn a_name_goes_to_the_dns_only_once_the_control_plane_said_that_no_service_has_it() {
    on_one_thread(async {
        let (frontend, dns) = frontend("ALLOW_ANY").await;
        // This one it has denied; the DNS knows nobody either, and the nearest Service is still told.
        let (status, told) = reason(&call(frontend.outbound, request("GET", "order", "/", "")).await);
        assert!(status == 502 && told.contains("no_service"), "{status} {told}");
        assert_eq!(dns.asked("order"), 2);
        let line = frontend.log(1).await.remove(0).to_string();
        assert!(line.contains("orders"), "{line}");
        // Of this one it has said nothing: it may be a Service that demands mutual TLS.
        let (status, told) = reason(&call(frontend.outbound, request("GET", "payments", "/", "")).await);
        assert!(status == 503 && told.contains("config_unavailable"), "{status} {told}");
        assert_eq!(dns.asked("payments"), 0);
    });
}
