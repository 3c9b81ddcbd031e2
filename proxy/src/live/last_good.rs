//! What this proxy can start from while its control plane is away: the last good configuration and its identity.
//!
//! Two files, each sealed with AES-256-GCM under `seal.key` (0600, made once). That detects corruption, and a copy taken
//! without the key; it does not keep out root. A file that cannot be read is kept aside under another name and said.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use equerry_certs::{Identity, TrustBundle, Zeroizing};
use equerry_policies::names::SpiffeId;
use serde::{Deserialize, Serialize};

use super::state_dir::{StateDir, write_durably};

/// First bytes of a sealed file: what it is, and in which version.
const MAGIC: &[u8; 6] = b"eqlg1\n";
/// Bytes of the key.
const KEY_LEN: usize = 32;
/// The files; the name is sealed with the content, so that one cannot be put in the other's place.
const CONFIG: &str = "config.sealed";
const IDENTITY: &str = "identity.sealed";
const KEYS: &str = "keys.sealed";
const KEY: &str = "seal.key";

/// The last configuration that was in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SavedConfig {
    /// Its epoch.
    pub epoch: u64,
    /// Whose configuration it is, and in which trust domain.
    pub own: SpiffeId,
    /// Every resource held, as it was received.
    pub resources: Vec<SavedResource>,
    /// What was granted in the last connected window, by quota.
    #[serde(default)]
    pub shares: Vec<(String, u64)>,
}

/// One resource as it was received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedResource {
    /// `workload`, `destination` or `endpoints`.
    pub kind: String,
    /// `self` or `namespace/name`.
    pub name: String,
    /// Hash of the body.
    pub version: String,
    /// JSON of the view.
    pub body: String,
}

/// The keys of one issuer as they were fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SavedKeys {
    /// Whose they are, where they came from, and by whose word: a hash.
    pub source: String,
    /// The key set.
    pub text: String,
    /// When they came, in milliseconds since 1970.
    pub fetched_at: u64,
}

/// The identity as it was issued.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedIdentity {
    /// Key and chain.
    pub identity: Identity,
    /// Whom to believe.
    pub bundle: TrustBundle,
    /// Pin of the root that the certificate leads to, as the control plane said; empty: it did not.
    #[serde(default)]
    pub root: String,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// `seal.key` is gone, so nothing sealed with it can be read.
    #[error("{} is missing, so {} cannot be read; it was kept aside as {}", .key.display(), .path.display(), .aside.display())]
    KeyLost {
        /// Where the key should be.
        key: PathBuf,
        /// The file.
        path: PathBuf,
        /// Its new name.
        aside: PathBuf,
    },
    /// It is not what was written.
    #[error("{} is damaged ({why}); it was kept aside as {}", .path.display(), .aside.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Its new name.
        aside: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It is there and cannot be read.
    #[error("{}: {error}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
}

/// Reads and writes both files.
#[derive(Debug)]
pub struct LastGood {
    config: PathBuf,
    identity: PathBuf,
    keys: PathBuf,
    key_path: PathBuf,
    key: Option<LessSafeKey>,
}

impl LastGood {
    /// Opens the key. Where there is none, one is made when the first file is written.
    ///
    /// # Errors
    /// When the key cannot be read, is not a key, or may be read by others.
    pub fn open(dir: &StateDir) -> io::Result<Self> {
        let key_path = dir.file(KEY);
        let key = match std::fs::read(&key_path) {
            Ok(bytes) => {
                let bytes = Zeroizing::new(bytes);
                private(&key_path)?;
                // A key that is not one is as lost as a missing one; it is told when a file needs it.
                cipher(&bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", key_path.display()))),
        };
        Ok(Self { config: dir.file(CONFIG), identity: dir.file(IDENTITY), keys: dir.file(KEYS), key_path, key })
    }

    /// The last good configuration; `None`: there was none yet.
    ///
    /// # Errors
    /// [`Unreadable`], the file kept aside.
    pub fn config(&self) -> Result<Option<SavedConfig>, Unreadable> {
        let Some(plain) = self.unseal(&self.config, CONFIG)? else { return Ok(None) };
        serde_json::from_slice(&plain).map(Some).map_err(|_| damaged(&self.config, "its content is of another version"))
    }

    /// The identity; `None`: there was none yet.
    ///
    /// # Errors
    /// [`Unreadable`], the file kept aside.
    pub fn identity(&self) -> Result<Option<SavedIdentity>, Unreadable> {
        let Some(plain) = self.unseal(&self.identity, IDENTITY)? else { return Ok(None) };
        serde_json::from_slice(&plain).map(Some).map_err(|_| damaged(&self.identity, "its content is no identity"))
    }

    /// The keys of issuers; `None`: there were none yet.
    ///
    /// # Errors
    /// [`Unreadable`], the file kept aside.
    pub fn keys(&self) -> Result<Option<Vec<SavedKeys>>, Unreadable> {
        let Some(plain) = self.unseal(&self.keys, KEYS)? else { return Ok(None) };
        serde_json::from_slice(&plain).map(Some).map_err(|_| damaged(&self.keys, "its content is of another version"))
    }

    /// Replaces the keys of issuers.
    ///
    /// # Errors
    /// What the operating system says; the old file is then still there.
    pub fn save_keys(&mut self, keys: &[SavedKeys]) -> io::Result<()> {
        let plain = serde_json::to_vec(keys).map_err(io::Error::other)?;
        self.seal(&self.keys.clone(), KEYS, plain)
    }

    /// Replaces the last good configuration.
    ///
    /// # Errors
    /// What the operating system says; the old file is then still there.
    pub fn save_config(&mut self, config: &SavedConfig) -> io::Result<()> {
        let plain = serde_json::to_vec(config).map_err(io::Error::other)?;
        self.seal(&self.config.clone(), CONFIG, plain)
    }

    /// Replaces the identity.
    ///
    /// # Errors
    /// What the operating system says; the old file is then still there.
    pub fn save_identity(&mut self, identity: &SavedIdentity) -> io::Result<()> {
        let plain = serde_json::to_vec(identity).map_err(io::Error::other)?;
        self.seal(&self.identity.clone(), IDENTITY, plain)
    }

    fn unseal(&self, path: &Path, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, Unreadable> {
        let sealed = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Unreadable::Io { path: path.to_owned(), error }),
        };
        let Some(key) = &self.key else {
            return Err(Unreadable::KeyLost {
                key: self.key_path.clone(),
                path: path.to_owned(),
                aside: keep_aside(path),
            });
        };
        let Some(rest) = sealed.strip_prefix(MAGIC) else {
            return Err(damaged(path, "it does not begin like one of ours"));
        };
        let Some((nonce, sealed)) = rest.split_first_chunk::<NONCE_LEN>() else {
            return Err(damaged(path, "it is cut short"));
        };
        let mut content = Zeroizing::new(sealed.to_vec());
        let opened = key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(name.as_bytes()), &mut content);
        let Ok(length) = opened.map(|plain| plain.len()) else { return Err(damaged(path, "its seal is broken")) };
        content.truncate(length);
        Ok(Some(content))
    }

    fn seal(&mut self, path: &Path, name: &str, plain: Vec<u8>) -> io::Result<()> {
        let mut content = Zeroizing::new(plain);
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| io::Error::other("no randomness"))?;
        let key = match &self.key {
            Some(key) => key,
            None => self.key.insert(make_key(&self.key_path)?),
        };
        let tag = key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(name.as_bytes()), &mut content)
            .map_err(|_| io::Error::other("the content cannot be sealed"))?;
        write_durably(path, &[MAGIC.as_slice(), &nonce, &content, tag.as_ref()].concat())
    }
}

/// A key made of 32 bytes; `None` when they are not 32.
fn cipher(bytes: &[u8]) -> Option<LessSafeKey> {
    (bytes.len() == KEY_LEN).then(|| UnboundKey::new(&AES_256_GCM, bytes).ok().map(LessSafeKey::new)).flatten()
}

/// Makes a new key. One that is there but is not a key is replaced: everything sealed with it is lost already.
fn make_key(path: &Path) -> io::Result<LessSafeKey> {
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    rand::fill(bytes.as_mut_slice()).map_err(|_| io::Error::other("no randomness"))?;
    if path.exists() {
        write_durably(path, bytes.as_slice())?;
    } else {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes.as_slice())?;
        file.sync_all()?;
    }
    cipher(bytes.as_slice()).ok_or_else(|| io::Error::other("the key cannot be used"))
}

fn private(path: &Path) -> io::Result<()> {
    let mode = std::fs::metadata(path)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let said = format!("{} may be read by others (mode {mode:o}); run chmod 600 on it", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, said));
    }
    Ok(())
}

fn damaged(path: &Path, why: &'static str) -> Unreadable {
    Unreadable::Damaged { path: path.to_owned(), aside: keep_aside(path), why }
}

/// Renames a file that cannot be used, so that it is there for whoever looks into it and is not tried again.
fn keep_aside(path: &Path) -> PathBuf {
    let aside = path.with_extension("unreadable");
    if let Err(error) = std::fs::rename(path, &aside) {
        tracing::warn!(path = %path.display(), %error, "an unreadable file cannot be renamed");
    }
    aside
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use equerry_certs::{Authority, Request};

    use super::*;

    fn config() -> SavedConfig {
        SavedConfig {
            epoch: 42,
            own: SpiffeId::parse("spiffe://equerry.local/ns/shop/sa/orders").unwrap(),
            resources: vec![SavedResource {
                kind: "workload".into(),
                name: "self".into(),
                version: "v".into(),
                body: "{}".into(),
            }],
            shares: vec![("acme/0".into(), 25)],
        }
    }

    fn identity() -> SavedIdentity {
        let now = std::time::SystemTime::now();
        let authority = Authority::create(config().own.trust_domain.clone(), now).unwrap();
        let request = Request::new().unwrap();
        let issued =
            authority.sign(&request.csr_der, &config().own, std::time::Duration::from_secs(3600), now).unwrap();
        SavedIdentity {
            identity: Identity::new(request.key, issued.chain).unwrap(),
            bundle: authority.roots().unwrap(),
            root: String::new(),
        }
    }

    fn saved() -> (tempfile::TempDir, StateDir) {
        let (dir, state, _) = saved_identity();
        (dir, state)
    }

    fn saved_identity() -> (tempfile::TempDir, StateDir, SavedIdentity) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let mut last_good = LastGood::open(&state).unwrap();
        assert!(last_good.config().unwrap().is_none() && last_good.identity().unwrap().is_none());
        last_good.save_config(&config()).unwrap();
        let identity = identity();
        last_good.save_identity(&identity).unwrap();
        (dir, state, identity)
    }

    #[test]
    fn what_was_saved_is_read_by_the_next_process() {
        let (_dir, state, identity) = saved_identity();
        let again = LastGood::open(&state).unwrap();
        assert_eq!(again.config().unwrap(), Some(config()));
        let read = again.identity().unwrap().unwrap();
        assert_eq!(read.identity.key(), identity.identity.key());
        assert_eq!((read.identity.chain(), read.bundle), (identity.identity.chain(), identity.bundle));
    }

    #[test]
    fn the_key_of_the_identity_does_not_stand_in_the_file() {
        let (_dir, state, identity) = saved_identity();
        let bytes = std::fs::read(state.file(IDENTITY)).unwrap();
        let key = identity.identity.key();
        let needles = [key.to_vec(), base64::engine::general_purpose::STANDARD.encode(key).into_bytes()];
        assert!(
            needles.iter().all(|needle| !bytes.windows(20).any(|window| window == &needle[needle.len() / 2..][..20]))
        );
    }

    #[test]
    fn each_kind_of_damage_is_noticed_and_the_file_kept_aside() {
        type Damage = fn(&mut Vec<u8>);
        let kinds: [(&str, Damage); 6] = [
            ("a flipped bit in the content", |bytes| bytes[MAGIC.len() + NONCE_LEN + 3] ^= 1),
            ("a flipped bit in the nonce", |bytes| bytes[MAGIC.len()] ^= 1),
            ("a flipped bit in the tag", |bytes| *bytes.last_mut().unwrap() ^= 1),
            ("cut to half", |bytes| bytes.truncate(bytes.len() / 2)),
            ("emptied", Vec::clear),
            ("something else", |bytes| *bytes = b"{}".to_vec()),
        ];
        for name in [CONFIG, IDENTITY] {
            for (kind, damage) in kinds {
                let (_dir, state) = saved();
                let path = state.file(name);
                let mut bytes = std::fs::read(&path).unwrap();
                damage(&mut bytes);
                std::fs::write(&path, &bytes).unwrap();

                let last_good = LastGood::open(&state).unwrap();
                let error = match name {
                    CONFIG => last_good.config().unwrap_err(),
                    _ => last_good.identity().unwrap_err(),
                };
                let Unreadable::Damaged { aside, .. } = &error else { panic!("{name} {kind}: {error}") };
                assert_eq!(std::fs::read(aside).unwrap(), bytes, "{name} {kind}");
                assert!(!path.exists() && error.to_string().contains("kept aside"), "{name} {kind}: {error}");
            }
        }
    }

    #[test]
    fn a_config_put_in_the_place_of_the_identity_is_noticed() {
        let (_dir, state) = saved();
        std::fs::copy(state.file(CONFIG), state.file(IDENTITY)).unwrap();
        assert!(matches!(LastGood::open(&state).unwrap().identity(), Err(Unreadable::Damaged { .. })));
    }

    #[test]
    fn a_lost_or_broken_key_is_said_and_a_new_one_made_with_the_next_file() {
        for breakage in [None, Some(b"short".as_slice())] {
            let (_dir, state) = saved();
            std::fs::remove_file(state.file(KEY)).unwrap();
            if let Some(bytes) = breakage {
                let mut file =
                    OpenOptions::new().write(true).create_new(true).mode(0o600).open(state.file(KEY)).unwrap();
                file.write_all(bytes).unwrap();
            }
            let mut last_good = LastGood::open(&state).unwrap();
            assert!(matches!(last_good.identity(), Err(Unreadable::KeyLost { .. })));
            last_good.save_identity(&identity()).unwrap();
            assert!(LastGood::open(&state).unwrap().identity().unwrap().is_some());
        }
    }

    #[test]
    fn a_key_that_others_may_read_is_refused_with_the_command_that_mends_it() {
        let (_dir, state) = saved();
        std::fs::set_permissions(state.file(KEY), std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = LastGood::open(&state).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }
}
