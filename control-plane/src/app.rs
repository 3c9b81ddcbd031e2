//! From settings to a running control plane, in the order in which things can go wrong: the directory, its lock, the ports,
//! the store, the authority; and then until somebody says stop.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

use crate::access::{Limits, Role};
use crate::audit::By;
use crate::authority::{Authority, CA_FILE};
use crate::backup;
use crate::config::{self, Command, CommandLine, Given, Settings, Sources};
use crate::control::{ControlPlane, Scope};
use crate::log::Levels;
use crate::serve::{self, Face};
use crate::store::{Store, StoreOptions, trust};

/// Leases are looked through this often.
const EXPIRE_EVERY: Duration = Duration::from_secs(1);
/// Quota windows are looked after this often.
const SETTLE_EVERY: Duration = Duration::from_millis(50);
/// How much of the audit log may be without a signature.
const SIGN_AUDIT_EVERY: Duration = Duration::from_secs(60);
/// All of the audit log is read and proved this often; what was written since, whenever it is signed.
const PROVE_ALL_EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// Old grants are removed from the store this often, and old entries of the audit log.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// A certificate that could not be renewed is tried again after this.
const RENEW_AGAIN: Duration = Duration::from_secs(30);
/// The file that holds the first admin token.
const ADMIN_TOKEN: &str = "admin.token";

/// Runs the control plane with a command line; `args` begins with the program's name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let written: Vec<OsString> = args.into_iter().collect();
    let CommandLine { command, sources } = match config::read(written.iter().cloned()) {
        Ok(line) => line,
        Err(error) => {
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let done = match command {
        Command::Serve(given) => print_or_serve(*given, sources, &written),
        Command::Backup { state_dir, store, to, passphrase } => {
            let store = store.unwrap_or_else(|| state_dir.join("equerry.db"));
            let written = passphrase.read().map_err(Into::into);
            written.and_then(|words| backup::back_up(&state_dir, &store, &to, &words, &mut say)).map(|()| {
                say(&format!("backup {}", to.display()));
            })
        }
        Command::Restore { from, state_dir, passphrase } => {
            let restored = passphrase.read().map_err(Into::into);
            restored.and_then(|words| backup::restore(&from, &state_dir, &words, &mut say)).map(|()| {
                let dir = state_dir.display();
                say(&format!("restored {dir}; next: equerry-control-plane serve --state-dir {dir}"));
                say("its epoch is 1,000,000 ahead of the backup's: proxies may have seen epochs that came after it, and go on only to a later one");
                say("then apply again what was applied after the backup");
            })
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Tells whoever waits what is being done.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn print_or_serve(given: Given, sources: Sources, written: &[OsString]) -> Result<()> {
    let only_printed = given.only_printed();
    let settings = given.complete_from(sources)?;
    if only_printed {
        return Ok(io::stdout().lock().write_all(settings.print().as_bytes())?);
    }
    serve_until_stopped(&settings, written)
}

fn serve_until_stopped(settings: &Settings, written: &[OsString]) -> Result<()> {
    let levels = Levels::start(&settings.log);
    let _lock = lock_state_dir(&settings.state_dir)?;
    let _store = lock_store(&settings.store)?;
    if settings.exit_with_stdin {
        end_with_stdin()?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    runtime.block_on(start_and_serve(settings, (levels, written)))
}

/// Makes the state directory (0700) and locks it, so that two control planes never write one store.
fn lock_state_dir(dir: &Path) -> Result<File> {
    let said = || {
        format!("the state directory {} cannot be used (--state-dir); it must be writable by this user", dir.display())
    };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(said)?;
    let locked = lock(&dir.join("lock")).with_context(said)?;
    locked.map_err(|holder| {
        let dir = dir.display();
        anyhow::anyhow!(
            "the state directory {dir} is in use by another control plane (process {holder}): stop it, or choose another --state-dir"
        )
    })
}

/// Locks the store, which may be elsewhere: two state directories are two authorities.
fn lock_store(store: &Path) -> Result<File> {
    let said = || format!("the store {} cannot be used (--store)", store.display());
    let (dir, name) = (store.parent().unwrap_or(Path::new("")), store.file_name().unwrap_or_default());
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    // By whatever way somebody comes to the same file.
    let real = match store.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => dir.canonicalize().with_context(said)?.join(name),
        found => found.with_context(said)?,
    };
    let mut beside = real.into_os_string();
    beside.push(".lock");
    let locked = lock(Path::new(&beside)).with_context(said)?;
    locked.map_err(|holder| {
        let store = store.display();
        anyhow::anyhow!(
            "the store {store} is in use by another control plane (process {holder}): stop it, or choose another --store"
        )
    })
}

/// Locks a file, which says by whom; `Err`: by that process.
fn lock(path: &Path) -> io::Result<Result<File, String>> {
    let mut lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            lock.read_to_string(&mut holder)?;
            let holder = holder.trim();
            return Ok(Err(if holder.is_empty() { "unknown" } else { holder }.to_owned()));
        }
        Err(TryLockError::Error(error)) => return Err(error),
    }
    lock.set_len(0)?;
    write!(lock, "{}", std::process::id())?;
    Ok(Ok(lock))
}

/// Ends this process, as by SIGTERM's ordinary way out, when standard input closes.
fn end_with_stdin() -> Result<()> {
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(|| {
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            std::process::exit(0);
        })
        .context("cannot start a thread")?;
    Ok(())
}

async fn start_and_serve(settings: &Settings, (levels, written): (Levels, &[OsString])) -> Result<()> {
    // Signals first: one that comes while starting must not be lost.
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot listen for signals")?;
    let grpc = serve::listen("--grpc", settings.grpc).await?;
    let admin = serve::listen("--admin", settings.admin).await?;
    let store = Store::open(&settings.store, &StoreOptions { max_pages: settings.max_pages })?;
    let (dir, trust_domain) = (&settings.state_dir, &settings.trust_domain);
    let kept = trust::read(&store).await?;
    Authority::complete(dir, &kept, trust_domain)?;
    let (lifetime, brought) = (settings.certificate_lifetime, settings.brought.as_ref());
    let authority = Authority::open_brought(dir, trust_domain, lifetime, brought, &kept, SystemTime::now())?;
    let control = ControlPlane::restore(store, Arc::new(authority)).await?;
    control.tell_settings(settings.told());
    let (face, renew_at) = Face::new(control.authority(), &settings.advertise, SystemTime::now())?;
    let face = Arc::new(face);
    let token = first_admin_token(&control, &settings.state_dir).await?;

    say_ready(settings, &token, grpc.local_addr()?, admin.local_addr()?, control.epoch());
    tokio::spawn(keep_leases(control.clone()));
    tokio::spawn(keep_quotas(control.clone()));
    tokio::spawn(keep_audit(control.clone(), settings.audit_retention));
    tokio::spawn(keep_face(control.clone(), Arc::clone(&face), settings.advertise.clone(), renew_at));
    let grpc = tokio::spawn(serve::serve_grpc(control.clone(), Arc::clone(&face), grpc));
    let admin = tokio::spawn(serve::serve_admin(control.clone(), face, admin));
    tell_manager(NotifyState::Ready);

    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => reload(settings, &levels, written, &control),
        }
    }
    tell_manager(NotifyState::Stopping);
    tracing::info!("stopping; sidecars go on with what they know");
    control.stop();
    control.sign_audit().await;
    let _ = tokio::join!(grpc, admin);
    Ok(())
}

/// SIGHUP: takes up what may change while this runs (`log`), and names what takes effect after a restart. No stream notices.
fn reload(settings: &Settings, levels: &Levels, written: &[OsString], control: &ControlPlane) {
    let read_again = || -> Result<Settings> {
        match config::read(written.iter().cloned())? {
            CommandLine { command: Command::Serve(given), sources } => Ok(given.complete_from(sources)?),
            CommandLine { .. } => anyhow::bail!("it was not started by `serve`"),
        }
    };
    let now = match read_again() {
        Ok(now) => now,
        Err(error) => {
            return tracing::error!(%error, "not reloaded: the settings cannot be read; those from before hold");
        }
    };
    if let Err(error) = levels.set_usual(&now.log) {
        tracing::warn!(%error, "the log's filter stays");
    } else {
        let log = now.told().into_iter().filter(|setting| setting.name == "log");
        let kept = settings.told().into_iter().filter(|setting| setting.name != "log");
        control.tell_settings(kept.chain(log).collect());
    }
    let pairs = settings.shown().into_iter().zip(now.shown());
    let changed = pairs.filter(|(before, now)| before.1 != now.1 && before.0 != "log").map(|(before, _)| before.0);
    let changed: Vec<&str> = changed.collect();
    if changed.is_empty() {
        tracing::info!(log = now.log, "reloaded");
    } else {
        tracing::warn!(
            changed = changed.join(", "),
            log = now.log,
            "reloaded; these settings take effect after a restart"
        );
    }
}

/// The file with a token to begin with: made, 0600, when it is not there.
async fn first_admin_token(control: &ControlPlane, dir: &Path) -> Result<PathBuf> {
    let path = dir.join(ADMIN_TOKEN);
    let said = || format!("the admin token cannot be kept in {}", path.display());
    if path.try_exists().with_context(said)? {
        return Ok(path);
    }
    let token = control.create_admin_token("first", Role::Admin, Limits::default(), By::name("first start")).await?;
    let new = dir.join(format!(".{ADMIN_TOKEN}.new"));
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).with_context(said)?;
    file.write_all(token.as_bytes())
        .and_then(|()| file.write_all(b"\n"))
        .and_then(|()| file.sync_all())
        .with_context(said)?;
    fs::rename(&new, &path).with_context(said)?;
    Ok(path)
}

fn say_ready(settings: &Settings, token: &Path, grpc: std::net::SocketAddr, admin: std::net::SocketAddr, epoch: u64) {
    let ca = settings.state_dir.join(CA_FILE);
    let mut stderr = io::stderr().lock();
    let _ = writeln!(stderr, "authority {}", ca.display());
    let _ = writeln!(stderr, "admin token {}", token.display());
    let _ = writeln!(stderr, "store {}", settings.store.display());
    let _ = writeln!(
        stderr,
        "ready grpc={grpc} admin=https://{admin} trust-domain={} epoch={epoch}",
        settings.trust_domain
    );
}

async fn keep_leases(control: ControlPlane) {
    let mut every = tokio::time::interval(EXPIRE_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        control.expire_leases(Instant::now()).await;
        control.forget_calls();
    }
}

/// Follows who is registered, opens windows ahead of their time, and clears away what is over.
async fn keep_quotas(control: ControlPlane) {
    let mut every = tokio::time::interval(SETTLE_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut forget_at = Instant::now() + FORGET_EVERY;
    let mut followed = None;
    loop {
        every.tick().await;
        if Instant::now() >= forget_at {
            forget_at = Instant::now() + FORGET_EVERY;
            control.forget_old_grants().await;
        }
        if control.books().is_empty() {
            followed = None;
        } else {
            control.settle_quotas(&mut followed).await;
        }
    }
}

/// Every minute proves the audit log, all of it now and once a day and else what is new; lets go of what was kept long enough; and signs.
/// One after the other: what is proved does not change meanwhile but at its end.
async fn keep_audit(control: ControlPlane, kept: Duration) {
    let mut every = tokio::time::interval(SIGN_AUDIT_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut retain_at, mut prove_all_at) = (Instant::now(), Instant::now());
    loop {
        every.tick().await;
        if Instant::now() >= prove_all_at {
            prove_all_at = Instant::now() + PROVE_ALL_EVERY;
            control.prove_audit(Scope::All).await;
        } else {
            control.prove_audit(Scope::New).await;
        }
        if Instant::now() >= retain_at {
            retain_at = Instant::now() + FORGET_EVERY;
            control.retain_audit(kept).await;
        }
        control.sign_audit().await;
    }
}

/// Shows a new certificate when the one before ages, and at once when something else is believed.
async fn keep_face(control: ControlPlane, face: Arc<Face>, names: Vec<String>, mut renew_at: SystemTime) {
    let mut changes = control.authority().changes();
    loop {
        tokio::select! {
            () = tokio::time::sleep(renew_at.duration_since(SystemTime::now()).unwrap_or_default()) => {}
            _ = changes.changed() => {}
        }
        renew_at = match face.renew(control.authority(), &names, SystemTime::now()) {
            Ok(next) => next,
            Err(error) => {
                let again = RENEW_AGAIN.as_secs();
                tracing::error!(%error, "the control plane's own certificate cannot be renewed; the one from before is shown, and it is tried again in {again} s");
                SystemTime::now() + RENEW_AGAIN
            }
        };
    }
}

/// Tells the service manager, where one listens; one that does not hear is told of in the log, and nothing else.
fn tell_manager(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_start_on_one_state_directory_is_refused_naming_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock_state_dir(dir.path()).unwrap();
        let error = format!("{:#}", lock_state_dir(dir.path()).unwrap_err());
        assert!(error.contains(&format!("process {}", std::process::id())) && error.contains("--state-dir"), "{error}");
        drop(held);
        lock_state_dir(dir.path()).unwrap();
    }

    #[test]
    fn one_store_under_two_state_directories_is_refused_by_whatever_name_it_is_called() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("equerry.db");
        let _held = lock_store(&store).unwrap();
        fs::write(&store, "").unwrap();
        let other = dir.path().join("other.db");
        std::os::unix::fs::symlink(&store, &other).unwrap();
        for name in [&store, &other] {
            let error = format!("{:#}", lock_store(name).unwrap_err());
            let own = std::process::id().to_string();
            assert!(error.contains("--store") && error.contains(&own), "{error}");
        }
        lock_store(&dir.path().join("third.db")).unwrap();
    }

    #[test]
    fn a_state_directory_that_cannot_be_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = format!("{:#}", lock_state_dir(&file.join("state")).unwrap_err());
        assert!(error.contains("file/state") && error.contains("--state-dir"), "{error}");
    }
}
