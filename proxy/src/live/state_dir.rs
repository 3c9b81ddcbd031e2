//! The proxy's state directory: made 0700, held by one process, written so that a crash leaves the old file or the new.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A state directory that cannot be used: why, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// It cannot be made or written.
    #[error("state directory {}: {error}; give a directory this user can write with --state-dir", .path.display())]
    Unwritable {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
    /// It can be entered, and a file in it is somebody else's.
    #[error(
        "{}: {error}; it was made by another user, perhaps when this proxy was once started as root: `chown -R USER {}` gives it back, \
         or name another directory with --state-dir", .file.display(), .path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
    /// Another process uses it.
    #[error("state directory {} is in use by {holder}; each proxy needs a --state-dir of its own", .path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// `process PID`, as the holder wrote it.
        holder: String,
    },
}

/// The directory, held for as long as this value lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the directory where there is none, and takes it for this process.
    ///
    /// # Errors
    /// [`StateDirError`] when it cannot be written or is taken.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        let unwritable = |error| StateDirError::Unwritable { path: path.to_owned(), error };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(unwritable)?;
        let file = path.join("lock");
        let opening = |error: io::Error| match error.kind() {
            io::ErrorKind::PermissionDenied if file.exists() => {
                StateDirError::Foreign { path: path.to_owned(), file: file.clone(), error }
            }
            _ => unwritable(error),
        };
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&file)
            .map_err(opening)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = lock.take(64).read_to_string(&mut holder);
                let holder = if holder.trim().is_empty() {
                    "another process".to_owned()
                } else {
                    format!("process {}", holder.trim())
                };
                return Err(StateDirError::InUse { path: path.to_owned(), holder });
            }
            Err(TryLockError::Error(error)) => return Err(unwritable(error)),
        }
        let pid = format!("{}\n", std::process::id());
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| lock.write_all(pid.as_bytes()))
            .map_err(unwritable)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Writes `bytes` to `path` (0600) so that after a crash there is the old content or the new, never a mixture.
///
/// # Errors
/// What the operating system says.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    // The rename itself is durable only when the directory is (rename(2), fsync(2)).
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_directory_in_use_is_refused_naming_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let held = StateDir::open(dir.path()).unwrap();
        let refused = StateDir::open(dir.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("in use by process {}", std::process::id())), "{refused}");
        drop(held);
        StateDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_refused_naming_the_setting() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let refused = StateDir::open(&file.join("state")).unwrap_err().to_string();
        assert!(refused.contains("--state-dir"), "{refused}");
    }

    #[test]
    fn a_file_of_somebody_else_in_it_is_named_with_what_helps() {
        let (path, file) = (PathBuf::from("/var/lib/equerry-proxy"), PathBuf::from("/var/lib/equerry-proxy/lock"));
        let said = StateDirError::Foreign { path, file, error: io::ErrorKind::PermissionDenied.into() }.to_string();
        assert!(said.starts_with("/var/lib/equerry-proxy/lock: "), "{said}");
        assert!(said.contains("`chown -R USER /var/lib/equerry-proxy`"), "{said}");
        // Root may open anything, so that only others can be refused.
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join("lock");
        std::fs::write(&lock, "").unwrap();
        std::fs::set_permissions(&lock, std::fs::Permissions::from_mode(0o000)).unwrap();
        if File::open(&lock).is_err() {
            let refused = StateDir::open(dir.path()).unwrap_err();
            assert!(matches!(refused, StateDirError::Foreign { .. }), "{refused}");
        }
    }

    #[test]
    fn what_is_written_is_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sealed");
        write_durably(&path, b"old").unwrap();
        write_durably(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }
}
