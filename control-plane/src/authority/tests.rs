//! What a start finds in the state directory, in every state a crash, a mistake or a stranger may leave it in.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::files::{ISSUING, ISSUING_KEY, MAKING, ROOT, ROOT_KEY};
use super::trust::Phase;
use super::*;

const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn domain() -> TrustDomain {
    TrustDomain::parse("equerry.local").unwrap()
}

fn open(dir: &Path) -> Result<Authority, AuthorityError> {
    Authority::open(dir, &domain(), LIFETIME, now())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_second_start_reads_what_the_first_made() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).unwrap();
    let second = open(dir.path()).unwrap();
    assert_eq!(first.pin(), second.pin());
    assert_eq!(first.bundle(), second.bundle());
    for (name, expected) in [(ROOT_KEY, 0o600), (ISSUING_KEY, 0o600), (CA_FILE, 0o644)] {
        assert_eq!(mode(&dir.path().join(name)), expected, "{name}");
    }
    let left: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|name| !name.starts_with('.') && name != MAKING), "{left:?}");
}

#[test]
fn a_key_that_others_can_read_is_refused_with_the_command_that_mends_it() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).unwrap();
    let key = dir.path().join(ISSUING_KEY);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let error = open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("mode 0640") && error.contains("chmod 600"), "{error}");
}

#[test]
fn another_trust_domain_is_refused_naming_both() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).unwrap();
    let other = TrustDomain::parse("other.example").unwrap();
    let error = Authority::open(dir.path(), &other, LIFETIME, now()).unwrap_err().to_string();
    assert!(error.contains("equerry.local") && error.contains("other.example"), "{error}");
}

#[test]
fn a_missing_file_is_never_replaced_by_a_new_authority() {
    for name in [ROOT_KEY, ROOT, ISSUING_KEY, ISSUING] {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).unwrap();
        fs::remove_file(dir.path().join(name)).unwrap();
        let error = open(dir.path()).unwrap_err();
        assert!(matches!(&error, AuthorityError::Incomplete { missing, .. } if missing == name), "{error}");
    }
}

#[test]
fn what_people_believe_is_proof_that_there_was_an_authority() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).unwrap();
    for name in [ROOT_KEY, ROOT, ISSUING_KEY, ISSUING] {
        fs::remove_file(dir.path().join(name)).unwrap();
    }
    assert!(matches!(open(dir.path()), Err(AuthorityError::Incomplete { .. })));
}

#[test]
fn a_lost_ca_file_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).unwrap();
    let ca = dir.path().join(CA_FILE);
    let before = fs::read(&ca).unwrap();
    fs::remove_file(&ca).unwrap();
    open(dir.path()).unwrap();
    assert_eq!((fs::read(&ca).unwrap(), mode(&ca)), (before, 0o644));
}

#[test]
fn a_first_start_that_was_interrupted_begins_again() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(MAKING), "").unwrap();
    fs::write(dir.path().join(ROOT_KEY), "half").unwrap();
    fs::write(dir.path().join(".root.pem.new"), "half").unwrap();
    let made = open(dir.path()).unwrap();
    assert_eq!(open(dir.path()).unwrap().pin(), made.pin());
}

#[test]
fn a_crash_between_issuing_key_and_certificate_is_mended_under_the_same_root() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pin = open(dir.path()).unwrap().pin();
    open(other.path()).unwrap();
    fs::copy(other.path().join(ISSUING_KEY), dir.path().join(ISSUING_KEY)).unwrap();
    let mended = open(dir.path()).unwrap();
    assert_eq!(mended.pin(), pin);
    assert_eq!(open(dir.path()).unwrap().pin(), pin);
}

#[test]
fn a_mixed_up_root_is_refused() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    open(dir.path()).unwrap();
    open(other.path()).unwrap();
    fs::copy(other.path().join(ROOT_KEY), dir.path().join(ROOT_KEY)).unwrap();
    assert!(matches!(open(dir.path()), Err(AuthorityError::Broken { .. })));
}

#[test]
fn a_directory_that_cannot_be_written_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("nowhere");
    let error = open(&missing).unwrap_err().to_string();
    assert!(error.contains("nowhere") && error.contains("must be writable"), "{error}");
}

#[test]
fn an_issuing_certificate_near_its_end_is_replaced_and_the_root_stays() {
    let dir = tempfile::tempdir().unwrap();
    let pin = open(dir.path()).unwrap().pin();
    let later = now() + Duration::from_secs(330 * 24 * 60 * 60);
    let before = fs::read_to_string(dir.path().join(ISSUING)).unwrap();
    let renewed = Authority::open(dir.path(), &domain(), LIFETIME, later).unwrap();
    assert_eq!(renewed.pin(), pin);
    assert_ne!(fs::read_to_string(dir.path().join(ISSUING)).unwrap(), before);
    Authority::open(dir.path(), &domain(), LIFETIME, later).unwrap().server_identity(&[], later).unwrap();
}

#[test]
fn the_control_planes_certificate_carries_its_identity_and_its_names() {
    let dir = tempfile::tempdir().unwrap();
    let authority = open(dir.path()).unwrap();
    let identity = authority.server_identity(&["mesh.example.com".into(), "10.1.2.3".into()], now()).unwrap();
    assert_eq!(identity.id(), &control_plane_id(domain()));
    assert!(authority.server_identity(&["not a name".into()], now()).unwrap_err().to_string().contains("not a name"));
}

#[test]
fn an_old_root_that_cannot_be_replaced_on_disk_is_still_believed_and_the_step_can_be_taken_again() {
    let dir = tempfile::tempdir().unwrap();
    let authority = open(dir.path()).unwrap();
    let old = authority.pin();
    authority.rotate(Some(authority.prepare(None, now()).unwrap()), 2).unwrap();
    authority.issue_from_new(3).unwrap();
    // Nothing can take the place of a directory that is not empty.
    fs::remove_file(dir.path().join(ROOT)).unwrap();
    fs::create_dir_all(dir.path().join(ROOT).join("x")).unwrap();
    authority.forget_old(4).unwrap_err();
    let trust = authority.trust();
    assert_eq!((trust.phase, trust.generation, trust.roots.roots().len()), (Phase::Issuing, 3, 2));
    fs::remove_dir_all(dir.path().join(ROOT)).unwrap();
    authority.forget_old(5).unwrap();
    let trust = authority.trust();
    assert_eq!((trust.phase, trust.generation, trust.roots.roots().len()), (Phase::Steady, 5, 1));
    assert_ne!(trust.signing, old);
    assert_eq!(open(dir.path()).unwrap().pin(), trust.signing, "the files say the same");
}
