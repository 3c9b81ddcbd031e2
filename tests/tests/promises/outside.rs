//! Names outside the mesh are called by the addresses the DNS gives: those that Services stand for always, any other only
//! where the mesh says so; and while the DNS is away, what it said last holds.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use equerry::demo::ports::HeldPort;
use equerry::demo::process::Process;
use equerry::demo::town::{Home, SHOP};
use equerry_tests::dns::NameServer;
use equerry_tests::{Mesh, eventually};

use crate::program;

const SOON: Duration = Duration::from_secs(30);
const PARTNER: &str = "payments.partner.example";
const API: &str = "api.partner.example";

/// One application and its sidecar, which asks `dns`; the Service `payments` stands for a name that leads to an application of this
/// machine.
struct World {
    mesh: Mesh,
    dns: NameServer,
    sidecar: Process,
}

impl World {
    async fn up() -> Result<Self> {
        let mesh = Mesh::plan(program(), &[SHOP[2]]).await?;
        let dns = NameServer::start().await?;
        mesh.town.start_control_plane(&[]).await?;
        mesh.town.equerry(&["apply", "-f", &mesh.town.policies().display().to_string()]).await?.succeeded()?;
        let home = &mesh.town.homes[0];
        mesh.apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: payments, namespace: shop}}\nspec:\n  type: ExternalName\n  \
             externalName: {PARTNER}\n  ports: [{{port: 80, targetPort: {}}}]\n",
            home.app.number()
        ))
        .await?;
        mesh.town.start_app(home).await?;
        mesh.town.join(home).await?;
        let sidecar = start_sidecar(&mesh, home, &dns).await?;
        Ok(Self { mesh, dns, sidecar })
    }

    fn home(&self) -> &Home {
        &self.mesh.town.homes[0]
    }

    /// A request of the application: its status, and the answer.
    async fn call(&self, host: &str) -> Result<(u16, String)> {
        let answer = self.home().through_sidecar().get(host, "/", &[]).await?;
        Ok((answer.status, answer.shown()))
    }

    /// Whoever may be named outside the mesh, from now on.
    async fn outbound_traffic(&self, mode: &str) -> Result<()> {
        let mesh = format!(
            "apiVersion: equerry.dev/v1\nkind: Mesh\nmetadata: {{name: default}}\n\
             spec: {{outboundTraffic: {mode}, errorDetail: full}}\n"
        );
        self.mesh.apply(&mesh).await.map(drop)
    }

    async fn metric(&self, line: &str) -> Result<f64> {
        let text = self.home().scrape().await?.text;
        let value = text.lines().find_map(|found| found.strip_prefix(line));
        value.with_context(|| format!("no {line} in\n{text}"))?.trim().parse().context("reading a number")
    }
}

async fn start_sidecar(mesh: &Mesh, home: &Home, dns: &NameServer) -> Result<Process> {
    for port in [&home.outbound, &home.inbound, &home.admin, &home.telemetry] {
        port.release();
    }
    let mut args: Vec<OsString> = mesh.town.sidecar_args(home).into_iter().map(OsString::from).collect();
    args.extend(["--dns".into(), dns.address().to_string().into()]);
    let sidecar = Process::start(program(), "sidecar", &args, &mesh.town.dir().join("sidecar.log"))?;
    eventually(SOON, "the sidecar to be ready", async || {
        let answer = home.telemetry().get("localhost", "/healthz/ready", &[]).await?;
        ensure!(answer.status == 200, "{}", answer.shown());
        Ok(Some(()))
    })
    .await?;
    Ok(sidecar)
}

#[tokio::test]
async fn a_service_may_stand_for_a_name_outside_and_outlives_the_dns_and_the_control_plane() -> Result<()> {
    let mut world = World::up().await?;
    let (status, told) = world.call("payments").await?;
    ensure!(status == 503, "nobody of that name is known: {told}");
    world.dns.say(PARTNER, Ipv4Addr::LOCALHOST);
    eventually(SOON, "the application at that name", async || {
        let (status, told) = world.call("payments").await?;
        ensure!(status == 200 && told.contains(world.home().resident.name), "{told}");
        Ok(Some(()))
    })
    .await?;

    world.dns.be_silent(true);
    let stale = "equerry_dns_names{state=\"stale\"}";
    eventually(SOON, "an answer whose time is over", async || Ok((world.metric(stale).await? == 1.0).then_some(())))
        .await?;
    for _ in 0..10 {
        let (status, told) = world.call("payments").await?;
        ensure!(status == 200, "while the DNS is away: {told}");
    }
    let failed = "equerry_dns_lookups_total{outcome=\"failed\"}";
    eventually(SOON, "a lookup to fail", async || Ok((world.metric(failed).await? > 0.0).then_some(()))).await?;

    // A cold start without a control plane knows the name, and asks for it.
    world.dns.be_silent(false);
    world.mesh.town.kill_control_plane().await;
    world.sidecar.stop(Duration::from_secs(10)).await;
    world.sidecar = start_sidecar(&world.mesh, world.home(), &world.dns).await?;
    let (status, told) = world.call("payments").await?;
    ensure!(status == 200, "after a cold start without a control plane: {told}");
    Ok(())
}

#[tokio::test]
async fn any_other_name_is_called_only_where_the_mesh_lets_everybody_be_named() -> Result<()> {
    let world = World::up().await?;
    let Some(address) = own_address() else { return Ok(()) };
    let (port, controls) = (HeldPort::take()?, HeldPort::take()?);
    let listen = SocketAddr::from((address, port.number())).to_string();
    let args = ["demo-app", "--name", "outsider", "--listen", &listen, "--controls", &controls.address()];
    port.release();
    controls.release();
    let log = world.mesh.town.dir().join("outsider.log");
    let _outsider = Process::start(program(), "outsider", &args.map(OsString::from), &log)?;
    world.dns.say(API, address);
    world.dns.say("inside.partner.example", Ipv4Addr::LOCALHOST);
    let api = format!("{API}:{}", port.number());

    let (status, told) = world.call(&api).await?;
    ensure!(status == 502 && told.contains("no_service"), "REGISTRY_ONLY: {told}");
    ensure!(!world.dns.was_asked(API), "the DNS was asked for a name that may not be called");

    world.outbound_traffic("ALLOW_ANY").await?;
    eventually(SOON, "the outsider", async || {
        let (status, told) = world.call(&api).await?;
        ensure!(status == 200 && told.contains("outsider"), "{told}");
        Ok(Some(()))
    })
    .await?;
    let (status, told) = world.call(&listen).await?;
    ensure!(status == 200 && told.contains("outsider"), "by its address: {told}");
    let app = world.home().app.number();
    for inside in [format!("inside.partner.example:{app}"), format!("127.0.0.1:{app}"), "169.254.169.254".to_owned()] {
        let (status, told) = world.call(&inside).await?;
        ensure!(status == 403 && told.contains("Mesh.outboundTraffic"), "{inside}: {told}");
    }
    let (status, told) = world.call("nobody.partner.example").await?;
    ensure!(status == 502 && told.contains("no_service"), "a name that nobody has: {told}");

    world.outbound_traffic("REGISTRY_ONLY").await?;
    let (status, told) = world.call(&api).await?;
    ensure!(status == 502 && told.contains("no_service"), "REGISTRY_ONLY again: {told}");
    let labels = world.home().scrape().await?.text;
    ensure!(labels.contains("outside/the.mesh") && !labels.contains("partner.example"), "{labels}");
    Ok(())
}

/// An address of this machine that is not loopback, where `ALLOW_ANY` never leads. Connecting a datagram socket sends
/// nothing.
fn own_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(198, 51, 100, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        std::net::IpAddr::V4(address) if !address.is_loopback() && !address.is_link_local() => Some(address),
        _ => {
            eprintln!("skipped: this machine has no address but loopback");
            None
        }
    }
}
