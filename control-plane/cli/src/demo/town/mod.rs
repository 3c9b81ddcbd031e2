//! The town: one control plane and some applications with their sidecars, as processes on this machine.
//!
//! It knows who lives there, on which ports, and how to start, stop, kill and ask each. What is to be proved there is
//! somebody else's business.

mod home;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tokio::sync::Mutex;

use super::documents::story_beside;
use super::ports::HeldPort;
use super::process::{Process, Said, run_to_end};

pub use home::Home;

/// The application port of every resident, as the mesh names it; each listens on a port of its own on this machine.
pub const MESH_PORT: u16 = 8080;
/// How long anything may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How often readiness is asked for.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Somebody who lives in a town: an application and its sidecar.
#[derive(Debug, Clone, Copy)]
pub struct Resident {
    /// The instance's name.
    pub name: &'static str,
    /// The account it runs as, in namespace `shop`.
    pub account: &'static str,
    /// Its labels.
    pub labels: &'static [(&'static str, &'static str)],
    /// The Service its application calls for every call it gets.
    pub calls: Option<&'static str>,
}

/// The shop of the demo.
pub const SHOP: [Resident; 4] = [
    Resident { name: "frontend", account: "frontend", labels: &[("app", "frontend")], calls: Some("orders") },
    Resident { name: "orders", account: "orders", labels: &[("app", "orders")], calls: Some("inventory") },
    Resident {
        name: "inventory-v1",
        account: "inventory",
        labels: &[("app", "inventory"), ("version", "v1")],
        calls: None,
    },
    Resident {
        name: "inventory-v2",
        account: "inventory",
        labels: &[("app", "inventory"), ("version", "v2")],
        calls: None,
    },
];

/// The town.
#[derive(Debug)]
pub struct Town {
    program: PathBuf,
    dir: PathBuf,
    /// The control plane's gRPC port.
    pub grpc: HeldPort,
    /// The control plane's admin port.
    pub admin: HeldPort,
    /// Everybody, by name.
    pub homes: Vec<Home>,
    running: Mutex<BTreeMap<String, Process>>,
}

/// The control plane's name among the processes.
const CONTROL_PLANE: &str = "control-plane";

impl Town {
    /// Chooses ports and directories; starts nothing. `program` is the `equerry` command.
    ///
    /// # Errors
    /// When no port is free or a directory cannot be made.
    pub fn plan(program: &Path, dir: &Path, residents: &[Resident]) -> Result<Self> {
        let mut homes = Vec::new();
        for &resident in residents {
            let own = dir.join(resident.name);
            std::fs::create_dir_all(&own).with_context(|| format!("making {}", own.display()))?;
            homes.push(Home::plan(resident, own)?);
        }
        let take = || HeldPort::take().context("choosing a port");
        Ok(Self {
            program: program.to_owned(),
            dir: dir.to_owned(),
            grpc: take()?,
            admin: take()?,
            homes,
            running: Mutex::default(),
        })
    }

    /// A resident's home.
    ///
    /// # Errors
    /// When nobody of that name lives here.
    pub fn home(&self, name: &str) -> Result<&Home> {
        self.homes
            .iter()
            .find(|home| home.resident.name == name)
            .with_context(|| format!("nobody called {name} lives here"))
    }

    /// The program everything here is.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Where everything is kept.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the policy files are.
    pub fn policies(&self) -> PathBuf {
        self.dir.join("policies")
    }

    /// A policy file of the story.
    pub fn story(&self, file: &str) -> PathBuf {
        story_beside(&self.policies()).join(file)
    }

    /// The control plane's state directory.
    pub fn control_plane_state(&self) -> PathBuf {
        self.dir.join(CONTROL_PLANE)
    }

    /// Starts everything in order: control plane, policies, then each application with its sidecar, all ready at the end.
    ///
    /// # Errors
    /// When something does not come up.
    pub async fn bring_up(&self) -> Result<()> {
        self.start_control_plane(&[]).await?;
        self.equerry(&["apply", "-f", &self.policies().display().to_string()])
            .await?
            .succeeded()
            .context("applying the policies")?;
        for home in &self.homes {
            self.start_app(home).await?;
            self.join(home).await?;
            self.start_sidecar(home).await?;
        }
        for home in &self.homes {
            self.wait_ready(home).await?;
        }
        Ok(())
    }

    /// Starts the control plane and waits until its admin API answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn start_control_plane(&self, more: &[&str]) -> Result<()> {
        self.grpc.release();
        self.admin.release();
        let state = self.control_plane_state().display().to_string();
        let (grpc, admin) = (self.grpc.address(), self.admin.address());
        let mut args = vec!["control-plane", "serve", "--state-dir", &state, "--grpc", &grpc, "--admin", &admin];
        args.extend(more);
        self.spawn(CONTROL_PLANE, &args).await?;
        let deadline = Instant::now() + READY_LIMIT;
        while Instant::now() < deadline {
            if tokio::net::TcpStream::connect(admin.as_str()).await.is_ok()
                && self.equerry(&["status", "-o", "json"]).await?.code == Some(0)
            {
                return Ok(());
            }
            self.still_running(CONTROL_PLANE).await?;
            tokio::time::sleep(ASK_AGAIN).await;
        }
        bail!("the control plane was not ready within {READY_LIMIT:?}:\n{}", self.log_tail(CONTROL_PLANE).await)
    }

    /// Starts a resident's application.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start_app(&self, home: &Home) -> Result<()> {
        home.app.release();
        home.controls.release();
        let (listen, controls, sidecar) = (home.app.address(), home.controls.address(), home.outbound.address());
        let mut args = vec!["demo-app", "--name", home.resident.name, "--listen", &listen, "--controls", &controls];
        if let Some(service) = home.resident.calls {
            args.extend(["--calls", service, "--through", &sidecar]);
        }
        self.spawn(&app_name(home), &args).await
    }

    /// Gets a join token for a resident into its directory.
    ///
    /// # Errors
    /// When the control plane refuses.
    pub async fn join(&self, home: &Home) -> Result<()> {
        let token = self.join_token(home.resident.account, "10m").await?;
        write_secret(&home.dir.join("join-token"), &token)
    }

    /// A new join token for an account of namespace `shop`.
    ///
    /// # Errors
    /// When the control plane refuses.
    pub async fn join_token(&self, account: &str, ttl: &str) -> Result<String> {
        let said = self
            .equerry(&["token", "create", "join", "--namespace", "shop", "--account", account, "--ttl", ttl])
            .await?;
        Ok(said.succeeded().with_context(|| format!("creating a join token for shop/{account}"))?.out.trim().to_owned())
    }

    /// Starts a resident's sidecar; its join token must be there unless it has an identity already.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start_sidecar(&self, home: &Home) -> Result<()> {
        self.start_sidecar_with(home, &[]).await
    }

    /// The same, with these settings (flag, value, flag, ...) too, or instead of the usual ones.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start_sidecar_with(&self, home: &Home, more: &[&str]) -> Result<()> {
        for port in [&home.outbound, &home.inbound, &home.admin, &home.telemetry] {
            port.release();
        }
        let mut args = self.sidecar_args(home);
        for flag in more {
            if let Some(usual) = args.iter().position(|arg| arg == flag).filter(|_| *flag != "--label") {
                args.drain(usual..usual + 2);
            }
        }
        let args: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
        self.spawn(&sidecar_name(home), &args).await
    }

    /// The command line of a resident's sidecar.
    pub fn sidecar_args(&self, home: &Home) -> Vec<String> {
        let shown = |path: PathBuf| path.display().to_string();
        let mut args: Vec<String> = ["proxy", "run", "--control-plane"].map(str::to_owned).to_vec();
        args.push(self.grpc.address());
        let mut set = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
        set("--join-token-file", shown(home.dir.join("join-token")));
        set("--instance", home.resident.name.to_owned());
        for (key, value) in home.resident.labels {
            set("--label", format!("{key}={value}"));
        }
        set("--app-port", format!("{MESH_PORT}={}", home.app.number()));
        set("--state-dir", shown(home.state_dir()));
        set("--outbound", home.outbound.address());
        set("--inbound", home.inbound.address());
        set("--advertise", home.inbound.address());
        set("--admin", home.admin.address());
        set("--telemetry", home.telemetry.address());
        set("--access-log", shown(home.access_log()));
        set("--drain-timeout", "3s".to_owned());
        set("--workers", "1".to_owned());
        args
    }

    /// Waits until a sidecar says it is ready.
    ///
    /// # Errors
    /// When it is not in time, with its reason; when it has ended.
    pub async fn wait_ready(&self, home: &Home) -> Result<()> {
        let deadline = Instant::now() + READY_LIMIT;
        let mut last = "nothing yet".to_owned();
        while Instant::now() < deadline {
            match home.telemetry().get("localhost", "/healthz/ready", &[]).await {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) => last = answer.shown(),
                Err(error) => last = format!("{error:#}"),
            }
            self.still_running(&sidecar_name(home)).await?;
            tokio::time::sleep(ASK_AGAIN).await;
        }
        let name = sidecar_name(home);
        bail!("{name} was not ready within {READY_LIMIT:?} (it says: {last}):\n{}", self.log_tail(&name).await)
    }

    /// Runs the `equerry` command against this town's control plane, as its administrator.
    ///
    /// # Errors
    /// When it cannot be run or does not end; what it said, and how it ended, is the answer.
    pub async fn equerry(&self, args: &[&str]) -> Result<Said> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        run_to_end(&self.program, &args, &self.settings(), Duration::from_secs(60)).await
    }

    /// What `equerry` must be told to reach this town's control plane: names and values of environment variables.
    pub fn settings(&self) -> Vec<(&'static str, OsString)> {
        let state = self.control_plane_state();
        vec![
            ("EQUERRY_SERVER", format!("https://{}", self.admin.address()).into()),
            ("EQUERRY_CA", state.join("ca.pem").into()),
            ("EQUERRY_TOKEN_FILE", state.join("admin.token").into()),
            ("EQUERRY_CONFIG", self.dir.join("no-contexts.json").into()),
        ]
    }

    /// Kills the control plane with SIGKILL.
    pub async fn kill_control_plane(&self) {
        self.take_down(CONTROL_PLANE, None).await;
    }

    /// Stops a sidecar (SIGTERM, drained) and waits for its end.
    pub async fn stop_sidecar(&self, home: &Home) {
        self.take_down(&sidecar_name(home), Some(Duration::from_secs(10))).await;
    }

    /// Sends a signal to a sidecar.
    pub async fn signal_sidecar(&self, home: &Home, signal: rustix::process::Signal) {
        if let Some(process) = self.running.lock().await.get(&sidecar_name(home)) {
            process.signal(signal);
        }
    }

    /// The operating system's number for the control plane, while it runs.
    pub async fn control_plane_id(&self) -> Option<u32> {
        self.running.lock().await.get(CONTROL_PLANE).and_then(Process::id)
    }

    /// Whether the control plane has not ended.
    pub async fn control_plane_runs(&self) -> bool {
        self.running.lock().await.get_mut(CONTROL_PLANE).is_some_and(|process| process.ended().is_none())
    }

    /// The operating system's number for a sidecar, while it runs.
    pub async fn sidecar_id(&self, home: &Home) -> Option<u32> {
        self.running.lock().await.get(&sidecar_name(home)).and_then(Process::id)
    }

    /// What a sidecar wrote to its log.
    pub fn sidecar_log(&self, home: &Home) -> String {
        std::fs::read_to_string(self.dir.join(format!("{}.log", sidecar_name(home)))).unwrap_or_default()
    }

    async fn take_down(&self, name: &str, grace: Option<Duration>) {
        // Taken out first, so that its end is nobody's crash.
        let Some(mut process) = self.running.lock().await.remove(name) else { return };
        match grace {
            Some(grace) => process.stop(grace).await,
            None => process.kill().await,
        }
    }

    /// Ends everything: sidecars, applications, control plane.
    pub async fn stop(&self) {
        let mut all = std::mem::take(&mut *self.running.lock().await);
        for process in all.values() {
            process.signal(rustix::process::Signal::TERM);
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        for process in all.values_mut() {
            if process.wait(deadline.saturating_duration_since(Instant::now())).await.is_err() {
                process.kill().await;
            }
        }
    }

    /// Resolves when a child has ended that nobody asked to: names it and shows the end of its log.
    pub async fn first_crash(&self) -> anyhow::Error {
        loop {
            for (name, process) in self.running.lock().await.iter_mut() {
                if let Some(status) = process.ended() {
                    return anyhow!("{name} has ended ({status}); the end of its log:\n{}", process.log_tail(20));
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn still_running(&self, name: &str) -> Result<()> {
        match self.running.lock().await.get_mut(name).map(|process| (process.ended(), process.log_tail(20))) {
            Some((None, _)) => Ok(()),
            Some((Some(status), tail)) => bail!("{name} has ended ({status}); the end of its log:\n{tail}"),
            None => bail!("{name} does not run"),
        }
    }

    async fn log_tail(&self, name: &str) -> String {
        self.running.lock().await.get(name).map(|process| process.log_tail(20)).unwrap_or_default()
    }

    async fn spawn(&self, name: &str, args: &[&str]) -> Result<()> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let process = Process::start(&self.program, name, &args, &self.dir.join(format!("{name}.log")))?;
        self.running.lock().await.insert(name.to_owned(), process);
        Ok(())
    }
}

fn app_name(home: &Home) -> String {
    format!("{}-app", home.resident.name)
}

fn sidecar_name(home: &Home) -> String {
    format!("{}-sidecar", home.resident.name)
}

/// Writes a file that only its owner may read.
///
/// # Errors
/// When it cannot be written.
pub fn write_secret(file: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(file)
        .and_then(|mut out| out.write_all(text.as_bytes()))
        .with_context(|| format!("writing {}", file.display()))
}
