//! Backups: everything a control plane needs to come back, in one file under a passphrase.
//!
//! A backup is taken while the control plane runs: SQLite gives a consistent copy of the store, and the other files are
//! each replaced whole. A restore is made beside the directory and moved into its place when all of it was proved.

mod sealed;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use equerry_certs::rfc3339;
use rusqlite::{Connection, OpenFlags};

use crate::authority::{self, Authority};
use crate::store::{Store, StoreOptions};
use sealed::{Sealer, Unsealer};

/// The store's name in a backup, and in a directory that was restored.
const STORE: &str = "equerry.db";
/// Says who made the backup and when.
const ABOUT: &str = "about";
/// Shortest passphrase.
const SHORTEST: usize = 12;
/// Longest name of a file in a backup.
const LONGEST_NAME: usize = 64;
/// After a restore epochs and generations of trust go on from here: proxies may have seen some that came after the backup.
const EPOCHS_AHEAD: u64 = 1_000_000;

/// Writes a backup of the control plane in `dir`, whose store is `store`, to a new file.
///
/// # Errors
/// When something cannot be read or written; then there is no file.
pub fn back_up(dir: &Path, store: &Path, to: &Path, passphrase: &str, say: &mut dyn FnMut(&str)) -> Result<()> {
    long_enough(passphrase)?;
    ensure!(!to.exists(), "{} exists already: choose another --to, so that no earlier backup is lost", to.display());
    let copy = dir.join(".backup.db");
    let written = write(dir, store, &copy, to, passphrase, say);
    let _ = fs::remove_file(&copy);
    if written.is_err() {
        let _ = fs::remove_file(partial(to));
    }
    written
}

fn write(dir: &Path, store: &Path, copy: &Path, to: &Path, passphrase: &str, say: &mut dyn FnMut(&str)) -> Result<()> {
    ensure!(store.exists(), "there is no store at {}: is --state-dir the control plane's?", store.display());
    let _ = fs::remove_file(copy);
    say("copying the store as it stands");
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    // SQLite fills a file that is empty, and leaves its mode as it is.
    let empty = OpenOptions::new().write(true).create_new(true).mode(0o600).open(copy);
    drop(empty.with_context(|| format!("writing {}", copy.display()))?);
    let connection =
        Connection::open_with_flags(store, flags).with_context(|| format!("opening {}", store.display()))?;
    connection.busy_timeout(Duration::from_secs(10))?;
    connection
        .execute("VACUUM INTO ?1", [copy.display().to_string()])
        .with_context(|| format!("copying {}", store.display()))?;
    let new = partial(to);
    let said = || format!("writing {}", new.display());
    let _ = fs::remove_file(&new);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).with_context(said)?;
    let mut sealer = Sealer::new(BufWriter::new(file), passphrase).with_context(said)?;
    let about = format!("equerry {} {}\n", env!("CARGO_PKG_VERSION"), rfc3339(SystemTime::now()));
    entry(&mut sealer, ABOUT, about.len() as u64, about.as_bytes()).with_context(said)?;
    for name in authority::FILES {
        let path = dir.join(name);
        let content = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        entry(&mut sealer, name, content.len() as u64, content.as_slice()).with_context(said)?;
    }
    let database = File::open(copy)?;
    let size = database.metadata()?.len();
    say(&format!("sealing {} MiB", size.div_ceil(1 << 20)));
    entry(&mut sealer, STORE, size, database).with_context(said)?;
    let file = sealer.finish().and_then(|writer| writer.into_inner().map_err(io::IntoInnerError::into_error));
    file.and_then(|file| file.sync_all()).with_context(said)?;
    fs::rename(&new, to).with_context(|| format!("naming {}", to.display()))
}

fn partial(to: &Path) -> PathBuf {
    let mut name = to.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

fn entry(to: &mut impl Write, name: &str, size: u64, content: impl Read) -> io::Result<()> {
    to.write_all(&[u8::try_from(name.len()).unwrap_or(u8::MAX)])?;
    to.write_all(name.as_bytes())?;
    to.write_all(&size.to_be_bytes())?;
    let copied = io::copy(&mut content.take(size), to)?;
    if copied == size { Ok(()) } else { Err(io::Error::other(format!("{name} became shorter while it was read"))) }
}

/// Makes `dir` from a backup. It must not be there, or be empty.
///
/// # Errors
/// When the backup cannot be read or does not hold everything, or the directory is in use; then nothing was changed.
pub fn restore(from: &Path, dir: &Path, passphrase: &str, say: &mut dyn FnMut(&str)) -> Result<()> {
    let taken = fs::read_dir(dir).ok().and_then(|mut entries| entries.next()).is_some();
    ensure!(
        !taken,
        "{} is not empty: move it aside first, a restore replaces nothing that may still be wanted",
        dir.display()
    );
    let mut name = dir.as_os_str().to_owned();
    name.push(".restoring");
    let beside = PathBuf::from(name);
    let _ = fs::remove_dir_all(&beside);
    DirBuilder::new().mode(0o700).create(&beside).with_context(|| format!("making {}", beside.display()))?;
    let restored = unpack(from, &beside, passphrase, say).and_then(|()| prove(&beside, say)).and_then(|()| {
        let _ = fs::remove_dir(dir);
        fs::rename(&beside, dir).with_context(|| format!("moving {} into place", beside.display()))
    });
    if restored.is_err() {
        let _ = fs::remove_dir_all(&beside);
    }
    restored
}

fn unpack(from: &Path, into: &Path, passphrase: &str, say: &mut dyn FnMut(&str)) -> Result<()> {
    let said = || format!("the backup {} cannot be used", from.display());
    let file = File::open(from).with_context(said)?;
    let mut plain = Unsealer::new(BufReader::new(file), passphrase).with_context(said)?;
    let mut names = Vec::new();
    loop {
        let mut length = [0];
        if plain.read(&mut length).with_context(said)? == 0 {
            break;
        }
        let mut name = vec![0; usize::from(length[0])];
        plain.read_exact(&mut name).with_context(said)?;
        let name = String::from_utf8_lossy(&name).into_owned();
        let known = [ABOUT, STORE].contains(&name.as_str()) || authority::FILES.contains(&name.as_str());
        ensure!(
            known && name.len() <= LONGEST_NAME,
            "{}: found a file {name:?}, which this version does not know",
            said()
        );
        let mut size = [0; 8];
        plain.read_exact(&mut size).with_context(said)?;
        let size = u64::from_be_bytes(size);
        let mut content = (&mut plain).take(size);
        if name == ABOUT {
            let mut about = String::new();
            content.read_to_string(&mut about).with_context(said)?;
            say(&format!("made by {}", about.trim()));
        } else {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(into.join(&name));
            let mut file = file.with_context(|| format!("writing {name}"))?;
            let copied = io::copy(&mut content, &mut file).with_context(said)?;
            ensure!(copied == size, "{}: {name} is not whole", said());
            file.sync_all()?;
        }
        names.push(name);
    }
    let missing: Vec<_> =
        authority::FILES.iter().chain([&STORE]).filter(|name| !names.iter().any(|found| found == *name)).collect();
    ensure!(missing.is_empty(), "{}: {missing:?} are missing in it", said());
    let ca = into.join(authority::CA_FILE);
    Ok(fs::set_permissions(&ca, fs::Permissions::from_mode(0o644))?)
}

/// That a control plane could start on it; and lets epochs go on where no proxy has been.
fn prove(dir: &Path, say: &mut dyn FnMut(&str)) -> Result<()> {
    say("proving that a control plane can start on it");
    let path = dir.join(STORE);
    drop(Store::open(&path, &StoreOptions::default())?);
    let connection = Connection::open(&path)?;
    let well: String = connection.query_row("PRAGMA integrity_check", (), |row| row.get(0))?;
    if well != "ok" {
        bail!("the store in the backup is damaged: {well}");
    }
    connection.execute(
        "INSERT INTO epochs (epoch, at_unix_ms) SELECT max(epoch) + ?1, max(at_unix_ms) FROM epochs HAVING max(epoch) IS NOT NULL",
        (EPOCHS_AHEAD,),
    )?;
    // So does what is believed: proxies pass over what is older than what they have heard.
    connection.execute("UPDATE trust SET generation = generation + ?1", (EPOCHS_AHEAD,))?;
    connection
        .execute("INSERT INTO trust (one, generation) VALUES (1, 1 + ?1) ON CONFLICT DO NOTHING", (EPOCHS_AHEAD,))?;
    connection.close().map_err(|(_, error)| error)?;
    Authority::probe(dir, SystemTime::now())?;
    Ok(())
}

fn long_enough(passphrase: &str) -> Result<()> {
    ensure!(
        passphrase.chars().count() >= SHORTEST,
        "the passphrase has {} characters, expected {SHORTEST} at least: whoever has it and the file is the mesh's authority",
        passphrase.chars().count()
    );
    Ok(())
}

#[cfg(test)]
mod tests;
