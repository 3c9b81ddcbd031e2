//! What curl, nghttp and h2load do works through two sidecars as it does without: nginx behind one, an application that speaks
//! HTTP/2 behind the other.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use equerry_tests::nginx::{self, Nginx};
use equerry_tests::workshop::{Workshop, pattern, sum};
use equerry_tests::{Mesh, eventually, peers};

use crate::{PAIR, program};

/// `files` is nginx, in HTTP/1.1; `work` and `work1` are one application of our own, spoken to in each version.
const DOCUMENTS: &str = "\
apiVersion: v1
kind: Service
metadata: {name: files, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {version: v1}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: work, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {version: v2}, ports: [{port: 80, targetPort: 8080, appProtocol: http2}]}
---
apiVersion: v1
kind: Service
metadata: {name: work1, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {version: v2}, ports: [{port: 80, targetPort: 8080, appProtocol: http}]}
";
/// nginx once more, in HTTP/2.
const RESTLESS: &str = "\
apiVersion: v1
kind: Service
metadata: {name: restless, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {version: v1}, ports: [{port: 80, targetPort: 8080, appProtocol: http2}]}
";
const VERSIONS: [&str; 2] = ["--http1.1", "--http2-prior-knowledge"];
const LARGE: usize = 24 << 20;
const UPLOAD: usize = 8 << 20;

struct Ground {
    mesh: Mesh,
    nginx: Nginx,
    _work: Workshop,
}

impl Ground {
    /// `None` where a program is missing.
    async fn lay(peer: &str, install_with: &str) -> Result<Option<Self>> {
        if !peers::installed(peer, install_with)? || !peers::installed("nginx", nginx::INSTALL)? {
            return Ok(None);
        }
        let mesh = Mesh::found(program(), &PAIR, DOCUMENTS).await?;
        let (files, work) = (mesh.town.home("inventory-v1")?, mesh.town.home("inventory-v2")?);
        files.app.release();
        work.app.release();
        let nginx = Nginx::start("files", files.app.number())?;
        nginx.file("index.html", b"welcome")?;
        let work = Workshop::open(work.app.number()).await?;
        mesh.start_sidecars(&[]).await?;
        let caller = mesh.town.home("orders")?.through_sidecar();
        for (service, path) in [("files", "/"), ("work", "/status/200"), ("work1", "/status/200")] {
            eventually(Duration::from_secs(15), service, async || {
                let answer = caller.get(service, path, &[]).await?;
                ensure!(answer.status == 200, "{}", answer.shown());
                Ok(Some(()))
            })
            .await?;
        }
        Ok(Some(Self { mesh, nginx, _work: work }))
    }

    fn sidecar(&self, path: &str) -> Result<String> {
        Ok(format!("http://{}{path}", self.mesh.town.home("orders")?.outbound.address()))
    }

    /// What curl prints when it calls a Service.
    async fn curl(&self, version: &str, service: &str, args: &[&str]) -> Result<String> {
        let host = format!("host: {service}");
        let common = ["-sS", "--max-time", "20", version, "-H", &host];
        Ok(peers::run("curl", &[common.as_slice(), args].concat()).await?.succeeded()?.out)
    }

    fn scratch(&self, name: &str) -> Result<String> {
        Ok(self.mesh.file(name, "")?.display().to_string())
    }
}

fn holds(file: impl AsRef<Path>, expected: &[u8]) -> Result<()> {
    let found = std::fs::read(file.as_ref())?;
    ensure!(found == expected, "{}: {} bytes, sum {}", file.as_ref().display(), found.len(), sum(&found));
    Ok(())
}

const CURL: (&str, &str) = ("curl", "apt-get install curl");
const NGHTTP: (&str, &str) = ("nghttp", "apt-get install nghttp2-client");
const H2LOAD: (&str, &str) = ("h2load", "apt-get install nghttp2-client");

#[tokio::test]
async fn what_curl_gets_is_what_nginx_has() -> Result<()> {
    let Some(ground) = Ground::lay(CURL.0, CURL.1).await? else { return Ok(()) };
    let large = pattern(LARGE);
    ground.nginx.file("large", &large)?;
    let (out, url) = (ground.scratch("got")?, ground.sidecar("/large")?);
    for version in VERSIONS {
        let curl = async |args: &[&str]| ground.curl(version, "files", args).await;
        let said = curl(&["-o", &out, "-w", "%{http_code} %{size_download}", &url]).await?;
        ensure!(said == format!("200 {LARGE}"), "{version}: {said}");
        holds(&out, &large).context("all of it")?;
        let said = curl(&["-o", &out, "-w", "%{http_code}", "-r", "100000-299999", &url]).await?;
        ensure!(said == "206", "{version}, a range: {said}");
        holds(&out, &large[100_000..300_000]).context("a range")?;

        // A head alone tells the length of a body that does not come; nor does one come with 204 and 304.
        let etag = curl(&["-o", &out, "-w", "%header{etag}", "-I", &url]).await?;
        let (matches, nothing) = (format!("if-none-match: {etag}"), ground.sidecar("/nothing")?);
        let steps = [
            (vec!["-I", &url], format!("200 0 {LARGE}")),
            (vec!["-H", &matches, &url], "304 0 ".to_owned()),
            (vec![&nothing], "204 0 ".to_owned()),
            (vec!["-I", &nothing], "204 0 ".to_owned()),
            (vec!["-r", "0-9", &url], "206 10 10".to_owned()),
        ];
        let tell = ["-o", &out, "-w", "%{http_code} %{size_download} %header{content-length}\\n"];
        for (args, expected) in &steps {
            let said = curl(&[&tell, args.as_slice()].concat()).await?;
            ensure!(said.trim_end_matches('\n') == *expected, "{version} {args:?}: {said} instead of {expected}");
        }
        // All on one connection. Some curls lose a connection of HTTP/2 between requests.
        if version == "--http1.1" {
            let tell = ["-o", &out, "-w", "%{http_code} %{size_download} %header{content-length} %{num_connects}\\n"];
            let again = ["--next", "-sS", version, "-H", "host: files"];
            let first = [tell.as_slice(), &["-r", "0-1", &url]].concat();
            let rest = steps.iter().flat_map(|(args, _)| [again.as_slice(), &tell, args].concat());
            let said = curl(&first.into_iter().chain(rest).collect::<Vec<_>>()).await?;
            let expected: String = steps.iter().map(|(_, expected)| format!("{expected} 0\n")).collect();
            ensure!(said == format!("206 2 2 1\n{expected}"), "{version}: {said} instead of {expected}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_curl_sends_is_what_comes() -> Result<()> {
    let Some(ground) = Ground::lay(CURL.0, CURL.1).await? else { return Ok(()) };
    let content = pattern(UPLOAD);
    let (from, out) = (ground.scratch("upload")?, ground.scratch("got")?);
    std::fs::write(&from, &content)?;
    let tell = ["-o", &out, "-w", "%{http_code}"];
    for version in VERSIONS {
        for (number, more) in [
            ["-H", "Expect: 100-continue", "-H", "x-any: thing"],
            ["-H", "Expect:", "-H", "x-any: thing"],
            ["-H", "Expect: 100-continue", "-H", "Transfer-Encoding: chunked"],
            ["-H", "Expect:", "-H", "Transfer-Encoding: chunked"],
        ]
        .iter()
        .enumerate()
        {
            let name = format!("up/{number}{version}");
            let url = ground.sidecar(&format!("/{name}"))?;
            let said = ground.curl(version, "files", &[&tell, more.as_slice(), &["-T", &from, &url]].concat()).await?;
            ensure!(said == "201", "{version} {more:?}: {said}");
            holds(ground.nginx.files().join(&name), &content).with_context(|| format!("{version} {more:?}"))?;
            for service in ["work", "work1"] {
                let url = ground.sidecar("/sum")?;
                let said = ground.curl(version, service, &[more.as_slice(), &["-T", &from, &url]].concat()).await?;
                let expected = format!("{UPLOAD} bytes, sum {}", sum(&content));
                ensure!(said == expected, "{version} {more:?} to {service}: {said}");
            }
        }
    }
    // A refusal that needs no body to be read; some of it may be sent by then.
    let url = ground.sidecar("/small/one")?;
    for more in [["-H", "Expect: 100-continue"], ["-H", "Expect:"]] {
        let said = ground.curl(VERSIONS[0], "files", &[&tell, more.as_slice(), &["-T", &from, &url]].concat()).await?;
        ensure!(said == "413", "{more:?}, more than nginx takes: {said}");
    }
    if peers::installed(NGHTTP.0, NGHTTP.1)? {
        for more in [["--expect-continue"].as_slice(), &[]] {
            let args = ["-H", ":method: PUT", "-H", ":authority: files", "-d", &from, &url];
            let said = peers::run("nghttp", &[more, &args].concat()).await?.succeeded()?.out;
            ensure!(said.contains("413 Request Entity Too Large"), "{more:?}, more than nginx takes: {said}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn trailers_reach_curl_and_come_from_nghttp() -> Result<()> {
    if !peers::installed(CURL.0, CURL.1)? {
        return Ok(());
    }
    let Some(ground) = Ground::lay(NGHTTP.0, NGHTTP.1).await? else { return Ok(()) };
    let heads = ground.scratch("heads")?;
    let url = ground.sidecar("/bytes/100000")?;
    let expected = sum(&pattern(100_000));
    for version in VERSIONS {
        for service in ["work", "work1"] {
            let args = ["-H", "TE: trailers", "-o", "/dev/null", "-D", &heads, &url];
            ground.curl(version, service, &args).await?;
            let heads = std::fs::read_to_string(&heads)?.to_lowercase();
            ensure!(heads.contains(&format!("x-sum: {expected}")), "{version} from {service}: {heads}");
        }
    }
    let from = ground.scratch("upload")?;
    std::fs::write(&from, pattern(100_000))?;
    for service in ["work", "work1"] {
        let (host, url) = (format!(":authority: {service}"), ground.sidecar("/sum")?);
        for more in [["--no-content-length", "-m1"].as_slice(), &["--no-content-length", "--expect-continue"]] {
            let args = ["-H", &host, "--trailer", "x-tail: wags", "-H", "trailer: x-tail", "-d", &from, &url];
            let said = peers::run("nghttp", &[more, &args].concat()).await?.succeeded()?.out;
            let expected = format!("100000 bytes, sum {expected} x-tail=wags");
            ensure!(said.trim() == expected, "nghttp {more:?} to {service}: {said}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn h2load_uploads_and_downloads_over_either_version_without_a_failure() -> Result<()> {
    let Some(ground) = Ground::lay(H2LOAD.0, H2LOAD.1).await? else { return Ok(()) };
    let from = ground.scratch("upload")?;
    std::fs::write(&from, pattern(20_000))?;
    let sidecar = format!("--connect-to={}", ground.mesh.town.home("orders")?.outbound.address());
    for version in [["--h1"].as_slice(), &["-p", "h2c"]] {
        for service in ["work", "work1"] {
            for (more, path) in [([].as_slice(), "/bytes/50000"), (&["-d", from.as_str()], "/echo")] {
                let url = format!("http://{service}{path}");
                let args = [&["-n", "400", "-c", "4", "-m", "8", &sidecar], version, more, &[&url]].concat();
                let said = peers::run("h2load", &args).await?.succeeded()?.out;
                let well = said.contains("400 succeeded, 0 failed, 0 errored") && said.contains("400 2xx");
                ensure!(well, "{version:?} {url}: {said}");
                let bytes = if path == "/echo" { "(8000000) data" } else { "(20000000) data" };
                ensure!(said.contains(bytes), "{version:?} {url}: {said}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_nginx_that_takes_leave_after_every_twenty_requests_loses_none() -> Result<()> {
    if !peers::installed(H2LOAD.0, H2LOAD.1)? || !peers::installed("nginx", nginx::INSTALL)? {
        return Ok(());
    }
    let mesh = Mesh::found(program(), &PAIR[..2], RESTLESS).await?;
    let home = mesh.town.home("inventory-v1")?;
    home.app.release();
    let _nginx = Nginx::restless("restless", home.app.number(), 20)?;
    mesh.start_sidecars(&[]).await?;
    let orders = mesh.town.home("orders")?;
    eventually(Duration::from_secs(15), "nginx to be reached", async || {
        let answer = orders.through_sidecar().get("restless", "/nothing", &[]).await?;
        ensure!(answer.status == 204, "{}", answer.shown());
        Ok(Some(()))
    })
    .await?;
    let (sidecar, from) =
        (format!("--connect-to={}", orders.outbound.address()), mesh.file("body", "a little")?.display().to_string());
    for version in [["--h1"].as_slice(), &["-p", "h2c"]] {
        // Both GET and POST: what was certainly not processed is sent again.
        for more in [[].as_slice(), &["-d", &from]] {
            let args = ["-n", "1000", "-c", "4", "-m", "8", &sidecar, "http://restless/nothing"];
            let said = peers::run("h2load", &[args.as_slice(), version, more].concat()).await?.succeeded()?.out;
            ensure!(said.contains("1000 succeeded, 0 failed, 0 errored"), "{version:?} {more:?}: {said}");
        }
    }
    Ok(())
}
