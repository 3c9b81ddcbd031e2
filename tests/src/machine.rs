//! Machines of a test's own: namespaces of this kernel, a file system that shows this one's and keeps what is written to itself,
//! and systemd as the first process. Nothing of it is left when the machine is dropped.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use equerry::demo::process::{Said, run_to_end};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::eventually;

/// Where a machine's shell begins, and where files given to it lie.
pub const HOME: &str = "/srv/equerry";
/// Where the program of this build is found on each.
pub const PROGRAM: &str = "/usr/local/lib/equerry-of-this-build";
/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Run as the first process of the new namespaces, with the directory and the program: makes the file system, and becomes systemd.
const BEGIN: &str = r#"set -eu
dir=$1 program=$2 there=$3
mount --make-rprivate /
mkdir "$dir/rw" "$dir/new"
mount -t tmpfs tmpfs "$dir/rw"
mkdir "$dir/rw/work"
cp -a "$dir/given" "$dir/rw/up"
new=$dir/new
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/rw/up,workdir=$dir/rw/work" "$new"
touch "$new$there"
mount --bind "$program" "$new$there"
mount -t proc proc "$new/proc"
mount -t sysfs -o ro sysfs "$new/sys"
mount -t cgroup2 cgroup2 "$new/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$new/run"
mount -t tmpfs -o mode=1777 tmpfs "$new/tmp"
# What was installed or left on this machine is none of that one's.
for place in etc/systemd/system var/lib var/log root usr/local/bin; do
    mount -t tmpfs -o mode=755 tmpfs "$new/$place"
done
rm -rf "$new/etc/equerry"
mount -t tmpfs -o mode=755 tmpfs "$new/dev"
mkdir "$new/dev/pts" "$new/dev/shm"
mount -t tmpfs -o mode=1777 tmpfs "$new/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$new/dev/pts"
ln -s pts/ptmx "$new/dev/ptmx"
ln -s /proc/self/fd "$new/dev/fd"
for node in null zero full random urandom tty; do
    touch "$new/dev/$node"
    mount --bind "/dev/$node" "$new/dev/$node"
done
cd "$new"
mkdir -p .before
pivot_root . .before
umount -l /.before
cd /
exec env -i container=equerry PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --unit=basic.target --show-status=no --log-level=info
"#;

/// What machines are used for beside cables: users, files, a program behind what hardens a unit.
const TRIAL: &str = "useradd --system trial && \
    systemd-run --quiet --wait -p User=trial -p StateDirectory=trial -p NoNewPrivileges=yes -p PrivateUsers=yes \
    -p PrivateDevices=yes -p PrivateTmp=yes -p ProtectSystem=strict -p ProtectProc=invisible -p ProtectKernelTunables=yes \
    -p SystemCallFilter=@system-service true";

/// A machine.
#[derive(Debug)]
pub struct Machine {
    name: String,
    /// systemd, by this machine's number for it.
    first: u32,
    // Before what it lives in, which goes when it is gone.
    _unshare: Child,
    _group: Group,
    _dir: TempDir,
}

impl Machine {
    /// Whether machines can be had here: one is tried, with all that the others will need. Says why not, which is nobody's fault:
    /// what a container forbids cannot be installed.
    ///
    /// # Errors
    /// When a program is not installed and `EQUERRY_REQUIRE_PEERS=1`.
    pub async fn possible(program: &Path) -> Result<bool> {
        for (needed, package) in [
            ("unshare", "util-linux"),
            ("ip", "iproute2"),
            ("systemctl", "systemd"),
            ("useradd", "passwd"),
            ("curl", "curl"),
        ] {
            if !crate::peers::installed(needed, &format!("apt-get install {package}"))? {
                return Ok(false);
            }
        }
        let tried = async {
            let machine = Self::start("trial", program, &[]).await?;
            cable(&machine, &machine, ["one", "other"]).await?;
            machine.sh(TRIAL).await
        };
        if let Err(error) = tried.await {
            eprintln!("skipped: no machine with a systemd of its own can be made here: {error:#}");
            return Ok(false);
        }
        Ok(true)
    }

    /// Starts one that has these files below [`HOME`] (path, content, mode), and waits until its systemd is up.
    ///
    /// # Errors
    /// When it does not come up, with what was said.
    pub async fn start(name: &str, program: &Path, files: &[(&str, Vec<u8>, u32)]) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::Builder::new().prefix("equerry-machine-").tempdir()?;
        let home = dir.path().join("given").join(HOME.trim_start_matches('/'));
        for (path, content, mode) in files {
            let path = home.join(path);
            std::fs::create_dir_all(path.parent().context("a file in a directory")?)?;
            std::fs::write(&path, content)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode))?;
        }
        std::fs::create_dir_all(&home)?;
        // The root of an overlay is as what is above it.
        std::fs::set_permissions(dir.path().join("given"), std::fs::Permissions::from_mode(0o755))?;
        let group = Group::make(name)?;
        let log = std::fs::File::create(dir.path().join("console.log"))?;
        let enter = "echo $$ > \"$1/cgroup.procs\"; shift; exec unshare -m -u -i -n -p -C -f --kill-child sh -c \"$@\"";
        let mut unshare = Command::new("sh");
        unshare.args(["-c", enter, "sh"]).arg(&group.0).args([BEGIN, "sh"]).arg(dir.path()).arg(program).arg(PROGRAM);
        unshare.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let unshare = unshare.spawn().context("making namespaces")?;
        let console = || std::fs::read_to_string(dir.path().join("console.log")).unwrap_or_default();
        let number = unshare.id().context("it has ended")?;
        let children = format!("/proc/{number}/task/{number}/children");
        let first = eventually(Duration::from_secs(10), "the first process of a machine", async || {
            let told = std::fs::read_to_string(&children).with_context(console)?;
            Ok(told.split_whitespace().next().and_then(|number| number.parse().ok()))
        })
        .await?;
        let machine = Self { name: name.to_owned(), first, _unshare: unshare, _group: group, _dir: dir };
        eventually(Duration::from_secs(60), "systemd to be up", async || {
            let said = machine.try_sh("systemctl is-system-running").await?;
            match said.out.trim() {
                "running" | "degraded" => Ok(Some(())),
                _ => bail!("{} {}", said.everything(), machine.console()),
            }
        })
        .await?;
        Ok(machine)
    }

    fn console(&self) -> String {
        std::fs::read_to_string(self._dir.path().join("console.log")).unwrap_or_default()
    }

    /// Runs a line of a shell there, as root.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub async fn sh(&self, line: &str) -> Result<String> {
        let said = self.try_sh(line).await?.succeeded().with_context(|| format!("{}# {line}", self.name))?;
        Ok(said.out)
    }

    /// The same; how it ends is the answer.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn try_sh(&self, line: &str) -> Result<Said> {
        let target = self.first.to_string();
        let args = ["-t", &target, "-m", "-u", "-i", "-n", "-p", "-C", "env", "-i"];
        let paths = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"];
        let there = format!("cd {HOME} && {line}");
        let args = args.into_iter().chain(paths).chain(["bash", "-c", &there]).map(std::ffi::OsString::from);
        run_to_end(Path::new("nsenter"), &args.collect::<Vec<_>>(), &[], PATIENCE).await
    }
}

/// Lays a cable between two machines and gives each an address.
///
/// # Errors
/// When that is not possible.
pub async fn connect(one: (&Machine, &str), other: (&Machine, &str)) -> Result<()> {
    cable(one.0, other.0, ["eth0"; 2]).await?;
    for (machine, address) in [one, other] {
        let up = format!("ip link set lo up && ip addr add {address}/24 dev eth0 && ip link set eth0 up");
        machine.sh(&up).await?;
    }
    Ok(())
}

async fn cable(one: &Machine, other: &Machine, names: [&str; 2]) -> Result<()> {
    let (a, b) = (one.first.to_string(), other.first.to_string());
    let args = ["link", "add", names[0], "netns", &a, "type", "veth", "peer", "name", names[1], "netns", &b];
    crate::peers::run("ip", &args).await?.succeeded().context("laying a cable").map(drop)
}

/// Processes that belong together, for this kernel.
#[derive(Debug)]
struct Group(PathBuf);

impl Group {
    fn make(name: &str) -> Result<Self> {
        let hybrid = Path::new("/sys/fs/cgroup/unified");
        let root = if hybrid.is_dir() { hybrid } else { Path::new("/sys/fs/cgroup") };
        let own = std::fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("no unified hierarchy of groups")?;
        let path = root.join(own).join(format!("equerry-test-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        /// Groups below first; what still holds a process is left.
        fn remove(path: &Path) {
            for below in std::fs::read_dir(path).into_iter().flatten().flatten() {
                if below.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove(&below.path());
                }
            }
            let _ = std::fs::remove_dir(path);
        }
        // The kernel ends what is in it at once, and lets go of it a moment later.
        let _ = std::fs::write(self.0.join("cgroup.kill"), "1");
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while self.0.is_dir() && std::time::Instant::now() < deadline {
            remove(&self.0);
            std::thread::yield_now();
        }
    }
}

/// What stands on a page in fenced blocks: what kind each is, and its lines.
///
/// # Errors
/// When a block does not end.
pub fn blocks(page: &str) -> Result<Vec<(String, Vec<String>)>> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, Vec<String>)> = None;
    for line in page.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(kind)) => open = Some((kind.to_owned(), Vec::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some((_, lines)), None) => lines.push(line.to_owned()),
            (None, None) => {}
        }
    }
    ensure!(open.is_none(), "a block does not end");
    Ok(blocks)
}
