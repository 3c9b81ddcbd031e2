//! Installed as services: the programs tell the service manager how they stand, and their units hold together.

mod page;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use equerry_tests::{Mesh, peers};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};

use crate::{PAIR, program};

/// How long a program may take to say something.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_service_manager_hears_when_a_sidecar_is_ready_and_when_it_stops() -> Result<()> {
    let mesh = Mesh::plan(program(), &PAIR).await?;
    mesh.town.start_control_plane(&[]).await?;
    let home = mesh.town.home("orders")?;
    mesh.town.start_app(home).await?;
    mesh.town.join(home).await?;
    for port in [&home.outbound, &home.inbound, &home.admin, &home.telemetry] {
        port.release();
    }
    let documents = mesh.town.policies().display().to_string();
    mesh.town.equerry(&["apply", "-f", &documents]).await?.succeeded()?;
    let mut service = Service::start(&mesh.town.sidecar_args(home), mesh.town.dir())?;
    ensure!(service.says().await? == "READY=1");
    let ready = home.telemetry().get("localhost", "/healthz/ready", &[]).await?;
    ensure!(ready.status == 200, "said READY=1 and answers {}", ready.shown());
    service.stops().await
}

#[tokio::test]
async fn a_service_manager_hears_when_the_control_plane_is_ready_and_when_it_stops() -> Result<()> {
    let mesh = Mesh::plan(program(), &[]).await?;
    mesh.town.grpc.release();
    mesh.town.admin.release();
    let state = mesh.town.control_plane_state().display().to_string();
    let args = ["control-plane", "serve", "--state-dir", &state, "--grpc", &mesh.town.grpc.address(), "--admin"];
    let args: Vec<String> = args.into_iter().map(str::to_owned).chain([mesh.town.admin.address()]).collect();
    let mut service = Service::start(&args, mesh.town.dir())?;
    ensure!(service.says().await? == "READY=1");
    mesh.town.equerry(&["status"]).await?.succeeded().context("said READY=1")?;
    service.stops().await
}

/// A program under a service manager that is this test.
struct Service {
    child: Child,
    manager: UnixDatagram,
}

impl Service {
    fn start(args: &[String], dir: &Path) -> Result<Self> {
        let socket = dir.join("notify");
        let manager = UnixDatagram::bind(&socket)?;
        let log = std::fs::File::create(dir.join("service.log"))?;
        let mut command = Command::new(program());
        command.args(args).env("NOTIFY_SOCKET", &socket).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        Ok(Self { child: command.spawn()?, manager })
    }

    async fn says(&self) -> Result<String> {
        let mut text = [0; 256];
        let heard = tokio::time::timeout(PATIENCE, self.manager.recv(&mut text)).await;
        let length = heard.context("the service said nothing")??;
        Ok(String::from_utf8_lossy(&text[..length]).trim_end().to_owned())
    }

    /// Is asked to stop, says so, and ends well.
    async fn stops(&mut self) -> Result<()> {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw).context("has ended")?;
        kill_process(id, Signal::TERM)?;
        ensure!(self.says().await? == "STOPPING=1");
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await.context("does not end")??;
        ensure!(ended.success(), "ended with {ended}");
        Ok(())
    }
}

#[tokio::test]
async fn systemd_finds_no_fault_with_the_units() -> Result<()> {
    if !peers::installed("systemd-analyze", "apt-get install systemd")? {
        return Ok(());
    }
    let (dir, units) = (tempfile::tempdir()?, Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd"));
    for unit in ["equerry-proxy", "equerry-control-plane"] {
        let text = std::fs::read_to_string(units.join(format!("{unit}.service")))?;
        let installed = format!("ExecStart=/usr/local/bin/{unit} ");
        ensure!(text.contains(&installed), "{unit} starts something else");
        // The program of this build stands in for the one that is not installed on this machine.
        let text = text.replace(&installed, &format!("ExecStart={} ", program().display()));
        let path = dir.path().join(format!("{unit}.service"));
        std::fs::write(&path, text)?;
        let said = peers::run("systemd-analyze", &["verify", &path.display().to_string()]).await?.succeeded()?;
        ensure!(!said.everything().contains(unit), "systemd-analyze verify: {}", said.everything());
        let threshold = ["security", "--offline=true", "--threshold=20", &path.display().to_string()];
        peers::run("systemd-analyze", &threshold)
            .await?
            .succeeded()
            .with_context(|| format!("{unit} is not hardened"))?;
    }
    Ok(())
}

/// A real builder of images, with storage of its own, and what the first stage of the recipe leaves (it compiles, which needs a
/// registry of images).
struct Builder(tempfile::TempDir);

impl Builder {
    /// With these binaries, of which each stands for what that stage compiles; `None`: there is no builder here.
    async fn with(binaries: &[(&str, &Path)]) -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() || !peers::installed("buildah", "apt-get install buildah")? {
            return Ok(None);
        }
        let (builder, deploy) = (Self(tempfile::tempdir()?), Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy"));
        let compiled = builder.0.path().join("build/src/target/dist");
        std::fs::create_dir_all(&compiled)?;
        let script = deploy.join("image-root.sh").display().to_string();
        for (name, binary) in binaries {
            std::fs::copy(binary, compiled.join(name))?;
            let root = builder.at("build/out/base");
            peers::run("sh", &[&script, &root, &binary.display().to_string()]).await?.succeeded()?;
        }
        std::fs::create_dir_all(builder.0.path().join("build/out/lib/equerry"))?;
        let recipe = std::fs::read_to_string(deploy.join("Dockerfile"))?;
        let (_, last_stages) = recipe.split_once("FROM scratch").context("the images are made from nothing")?;
        std::fs::write(builder.0.path().join("Dockerfile"), format!("FROM scratch{last_stages}"))?;
        std::fs::create_dir(builder.0.path().join("context"))?;
        Ok(Some(builder))
    }

    fn at(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    async fn buildah(&self, args: &[&str]) -> Result<String> {
        let (root, runroot) = (self.at("storage"), self.at("run"));
        let storage = ["--storage-driver", "vfs", "--root", &root, "--runroot", &runroot];
        let args = [&storage[..], args].concat();
        let said = peers::run("buildah", &args).await?.succeeded().with_context(|| args.join(" "))?;
        Ok(said.everything())
    }

    /// Builds one image; the sizes of its layers, in bytes.
    async fn build(&self, target: &str) -> Result<Vec<u64>> {
        let (stage, file, context) = (format!("build={}", self.at("build")), self.at("Dockerfile"), self.at("context"));
        let from = ["bud", "--isolation", "chroot", "--build-context", &stage, "-f", &file];
        self.buildah(&[&from[..], &["--target", target, "-t", target, &context]].concat()).await?;
        let image: serde_json::Value =
            serde_json::from_str(&self.buildah(&["inspect", "--type", "image", target]).await?)?;
        ensure!(image["OCIv1"]["config"]["User"] == "1337:1337", "{image}");
        let manifest: serde_json::Value = serde_json::from_str(image["Manifest"].as_str().context("no manifest")?)?;
        let layers = manifest["layers"].as_array().context("no layers")?;
        Ok(layers.iter().filter_map(|layer| layer["size"].as_u64()).collect())
    }
}

/// What the images hold beside their binary is small, belongs to nobody else, and is enough: built from the recipe's own last
/// stages, and run as the user it names.
#[tokio::test]
async fn an_image_runs_its_program_as_an_unprivileged_user_on_little_more_than_its_libraries() -> Result<()> {
    let Some(builder) = Builder::with(&[("equerry", program())]).await? else { return Ok(()) };
    let beside = builder.build("equerry").await?[0];
    ensure!(beside < 6 << 20, "{beside} bytes beside the program: the images are to stay below 30 MiB");

    let container = "equerry-of-this-test";
    builder.buildah(&["from", "--name", container, "equerry"]).await?;
    let inside = ["run", "--isolation", "chroot", "--user", "1337:1337", container, "/usr/local/bin/equerry"];
    // Only a directory that this user may write can be locked and get an authority.
    let serve = ["control-plane", "serve", "--grpc", "192.0.2.1:15012"];
    let said = builder.buildah(&[&inside[..], &serve].concat()).await;
    let said = format!("{:#}", said.err().context("that address is nobody's")?);
    ensure!(said.contains("--grpc") && !said.contains("state directory"), "{said}");
    let known = builder.buildah(&[&inside[..], &["--version"]].concat()).await?;
    ensure!(known.contains(&format!("equerry {}", env!("CARGO_PKG_VERSION"))), "{known:?}");
    Ok(())
}

/// Measured where there is an optimized build to measure: a debug build says nothing about what is shipped.
#[tokio::test]
async fn the_sidecars_image_is_smaller_than_30_mebibytes() -> Result<()> {
    let target = program().parent().and_then(Path::parent).context("programs lie below target")?;
    let built = ["dist", "release"].map(|profile| target.join(profile).join("equerry-proxy"));
    let Some(binary) = built.iter().find(|path| path.is_file()) else {
        eprintln!("skipped: no optimized build; make one with `cargo build --profile dist -p equerry-proxy`");
        return Ok(());
    };
    let Some(builder) = Builder::with(&[("equerry-proxy", binary)]).await? else { return Ok(()) };
    let layers = builder.build("proxy").await?;
    let size: u64 = layers.iter().sum();
    ensure!(size < 30 << 20, "the image has {size} bytes: {layers:?}");

    builder.buildah(&["from", "--name", "sidecar-of-this-test", "proxy"]).await?;
    let inside = ["run", "--isolation", "chroot", "--user", "1337:1337", "sidecar-of-this-test"];
    let known = builder.buildah(&[&inside[..], &["/usr/local/bin/equerry-proxy", "--version"]].concat()).await?;
    ensure!(known.contains("equerry-proxy"), "{known:?}");
    let shell = builder.buildah(&[&inside[..], &["/bin/sh", "-c", "true"]].concat()).await;
    ensure!(shell.is_err(), "there is a shell in it");
    Ok(())
}
