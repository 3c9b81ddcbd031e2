//! A control plane comes back from its backup, and from nothing else.

use equerry_policies::names::TrustDomain;

use super::*;
use crate::access::{Limits, Role};
use crate::audit::By;
use crate::control::ControlPlane;
use std::sync::Arc;

const WORDS: &str = "correct horse battery staple";
const MESH: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: orders, namespace: shop}\nspec: {ports: [{port: 80}]}\n";

async fn opened(dir: &Path) -> ControlPlane {
    let domain = TrustDomain::parse("equerry.local").unwrap();
    let authority = Authority::open(dir, &domain, Duration::from_secs(3600), SystemTime::now()).unwrap();
    let store = Store::open(&dir.join(STORE), &StoreOptions::default()).unwrap();
    ControlPlane::restore(store, Arc::new(authority)).await.unwrap()
}

fn quiet(_: &str) {}

/// A control plane with a document and a token, still running, and its backup.
async fn backed_up() -> (tempfile::TempDir, ControlPlane, String, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("state");
    fs::create_dir(&dir).unwrap();
    let control = opened(&dir).await;
    let mut reading = equerry_policies::document::Reading::default();
    reading.add("mesh.yaml", MESH, &equerry_policies::document::default_namespace());
    control.apply(reading.documents, crate::control::ApplyOptions::default()).await.unwrap();
    let token = control.create_admin_token("ada", Role::Operator, Limits::default(), By::name("test")).await.unwrap();
    let file = folder.path().join("mesh.backup");
    let (copy, mut looked) = (dir.join(".backup.db"), false);
    let mut look = |_: &str| {
        if let Ok(found) = fs::metadata(&copy) {
            assert_eq!(found.permissions().mode() & 0o777, 0o600, "nobody else can read the copy on its way");
            looked |= found.len() > 0;
        }
    };
    back_up(&dir, &dir.join(STORE), &file, WORDS, &mut look).unwrap();
    assert!(looked && !copy.exists());
    (folder, control, token, file)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_running_control_plane_brings_back_all_of_it() {
    let (folder, running, token, file) = backed_up().await;
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let again = folder.path().join("again");
    let mut said = String::new();
    restore(&file, &again, WORDS, &mut |line| said.push_str(line)).unwrap();
    assert!(said.contains(concat!("equerry ", env!("CARGO_PKG_VERSION"))), "{said}");
    let back = opened(&again).await;
    assert_eq!(
        back.authority().pin(),
        running.authority().pin(),
        "the same authority: every workload still believes it"
    );
    assert_eq!(back.documents(&crate::control::DocumentFilter::default()).len(), 1);
    assert_eq!(back.bearer(&token).map(|actor| actor.role), Some(Role::Operator));
    assert!(back.epoch() > running.epoch() + 1000, "proxies may have seen what came after the backup");
    let (before, after) = (running.authority().trust().generation, back.authority().trust().generation);
    assert!(after > before + 1000, "and revocations: {after}");
    let key = back.authority().audit_key().verifying_key();
    assert_eq!(key, running.authority().audit_key().verifying_key());
    assert_eq!(back.audit_lines(0, 10).await.unwrap(), running.audit_lines(0, 10).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_cannot_be_used_restores_nothing_and_says_why() {
    let (folder, _running, _, file) = backed_up().await;
    let again = folder.path().join("again");
    let refused = |from: &Path, words: &str| {
        let error = format!("{:#}", restore(from, &again, words, &mut quiet).unwrap_err());
        assert!(!again.exists() && !folder.path().join("again.restoring").exists(), "nothing is half restored");
        error
    };
    let error = refused(&file, "another passphrase");
    assert!(error.contains("passphrase is another one") && error.contains("mesh.backup"), "{error}");
    let whole = fs::read(&file).unwrap();
    let cut = folder.path().join("cut.backup");
    fs::write(&cut, &whole[..whole.len() - 100]).unwrap();
    assert!(refused(&cut, WORDS).contains("cut off"));
    let mut changed = whole;
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    fs::write(&cut, changed).unwrap();
    assert!(refused(&cut, WORDS).contains("the backup"));
    assert!(refused(&folder.path().join("nothing"), WORDS).contains("nothing"));
    fs::create_dir(&again).unwrap();
    fs::write(again.join("equerry.db"), "wanted").unwrap();
    let error = restore(&file, &again, WORDS, &mut quiet).unwrap_err().to_string();
    assert!(error.contains("is not empty"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_never_written_over_another_nor_with_a_short_passphrase() {
    let (folder, _running, _, file) = backed_up().await;
    let dir = folder.path().join("state");
    let error = back_up(&dir, &dir.join(STORE), &file, WORDS, &mut quiet).unwrap_err().to_string();
    assert!(error.contains("exists already"), "{error}");
    let short = back_up(&dir, &dir.join(STORE), &folder.path().join("b"), "12345", &mut quiet).unwrap_err().to_string();
    assert!(short.contains("5 characters"), "{short}");
    let nowhere =
        back_up(&dir, &dir.join("x.db"), &folder.path().join("b"), WORDS, &mut quiet).unwrap_err().to_string();
    assert!(nowhere.contains("no store"), "{nowhere}");
    assert!(!folder.path().join("b").exists() && !folder.path().join("b.partial").exists());
}
