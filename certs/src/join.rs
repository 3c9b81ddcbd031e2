//! Tokens that let a workload or a person in: `eqj1.ID.SECRET.PIN` and `eqa1.ID.SECRET`.
//!
//! The secret is 256 random bits; a server keeps only its SHA-256 and compares in constant time. A secret is never
//! printed by `Debug`, and its memory is overwritten when dropped.

use std::fmt;

use aws_lc_rs::{constant_time, digest, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::bundle::{Pin, hex};
use crate::request::KeyFault;

/// Bytes of a token's public id.
const ID_BYTES: usize = 8;
/// Bytes of a token's secret.
const SECRET_BYTES: usize = 32;
/// Characters of a secret in base64url without padding.
const SECRET_TEXT: usize = 43;

/// A text that is not the token it was taken for. It never repeats the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not {expected}; check that it was copied whole")]
pub struct BadToken {
    /// What is expected.
    pub expected: &'static str,
}

const JOIN: BadToken = BadToken { expected: "a join token of the form eqj1.ID.SECRET.PIN (equerry token create join)" };
const CREDENTIAL: BadToken = BadToken { expected: "the ID.SECRET of a join token" };
const ADMIN: BadToken = BadToken { expected: "an admin token of the form eqa1.ID.SECRET (equerry token create admin)" };

/// What a server keeps of a secret.
#[derive(Clone, Copy)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// Takes a hash that was kept; `None` when it has not 32 bytes.
    pub fn from_kept(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes to keep.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether both are of the same secret, in constant time.
    pub fn matches(&self, other: &Self) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }

    /// The hash of a secret text.
    pub fn of(secret: &str) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, secret.as_bytes()).as_ref());
        Self(hash)
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(..)")
    }
}

/// A join token: one use, short-lived, bound to one identity by the control plane that made it.
#[derive(Clone)]
pub struct JoinToken {
    id: String,
    secret: Zeroizing<String>,
    pin: Pin,
}

impl JoinToken {
    /// Makes a new token for a control plane whose root has this pin.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn create(pin: Pin) -> Result<Self, KeyFault> {
        let (id, secret) = new_pair()?;
        Ok(Self { id, secret, pin })
    }

    /// Reads `eqj1.ID.SECRET.PIN`; white space around it is allowed, as files end with a line feed.
    ///
    /// # Errors
    /// When it is not of that form.
    pub fn parse(text: &str) -> Result<Self, BadToken> {
        let rest = text.trim().strip_prefix("eqj1.").ok_or(JOIN)?;
        let (credential, pin) = rest.rsplit_once('.').ok_or(JOIN)?;
        let (id, secret) = pair_in(credential).ok_or(JOIN)?;
        Ok(Self { id: id.to_owned(), secret: Zeroizing::new(secret.to_owned()), pin: Pin::parse(pin).ok_or(JOIN)? })
    }

    /// Names the token in lists and logs; not secret.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The pin of the root that the control plane must show before the secret is sent.
    pub fn pin(&self) -> &Pin {
        &self.pin
    }

    /// What is sent to the control plane, once its root is known to be the right one: `ID.SECRET`.
    pub fn credential(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}.{}", self.id, self.secret.as_str()))
    }

    /// What the control plane keeps.
    pub fn secret_hash(&self) -> SecretHash {
        SecretHash::of(&self.secret)
    }

    /// The whole token, to be shown once.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("eqj1.{}.{}.{}", self.id, self.secret.as_str(), self.pin))
    }

    /// Reads a credential that arrived, `ID.SECRET`, into its id and the hash of its secret.
    ///
    /// # Errors
    /// When it is not of that form.
    pub fn read_credential(text: &str) -> Result<(String, SecretHash), BadToken> {
        let (id, secret) = pair_in(text).ok_or(CREDENTIAL)?;
        Ok((id.to_owned(), SecretHash::of(secret)))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "eqj1.{}.[secret].{}", self.id, self.pin)
    }
}

/// An admin token: what a person shows to the admin API.
#[derive(Clone)]
pub struct AdminToken {
    id: String,
    secret: Zeroizing<String>,
}

impl AdminToken {
    /// Makes a new token.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn create() -> Result<Self, KeyFault> {
        let (id, secret) = new_pair()?;
        Ok(Self { id, secret })
    }

    /// Reads `eqa1.ID.SECRET`; white space around it is allowed.
    ///
    /// # Errors
    /// When it is not of that form.
    pub fn parse(text: &str) -> Result<Self, BadToken> {
        let (id, secret) = text.trim().strip_prefix("eqa1.").and_then(pair_in).ok_or(ADMIN)?;
        Ok(Self { id: id.to_owned(), secret: Zeroizing::new(secret.to_owned()) })
    }

    /// Names the token in lists and logs; not secret.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What the control plane keeps: the hash of the whole token, so that a presented text is checked without parsing.
    pub fn secret_hash(&self) -> SecretHash {
        SecretHash::of(&self.reveal())
    }

    /// The whole token, to be shown once.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("eqa1.{}.{}", self.id, self.secret.as_str()))
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "eqa1.{}.[secret]", self.id)
    }
}

fn new_pair() -> Result<(String, Zeroizing<String>), KeyFault> {
    let mut id = [0; ID_BYTES];
    let mut secret = Zeroizing::new([0; SECRET_BYTES]);
    rand::fill(&mut id).and_then(|()| rand::fill(secret.as_mut())).map_err(|_| KeyFault::NoRandomness)?;
    Ok((hex(&id), Zeroizing::new(URL_SAFE_NO_PAD.encode(secret.as_slice()))))
}

fn pair_in(text: &str) -> Option<(&str, &str)> {
    let (id, secret) = text.split_once('.')?;
    let id_fits = id.len() == 2 * ID_BYTES && id.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
    let secret_fits =
        secret.len() == SECRET_TEXT && secret.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_');
    (id_fits && secret_fits).then_some((id, secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin() -> Pin {
        Pin::parse(&"a1".repeat(32)).unwrap()
    }

    #[test]
    fn a_join_token_is_read_back_as_it_was_shown() {
        let made = JoinToken::create(pin()).unwrap();
        let read = JoinToken::parse(&format!("{}\n", made.reveal().as_str())).unwrap();
        assert_eq!(read.id(), made.id());
        assert_eq!(read.pin(), &pin());
        assert!(read.secret_hash().matches(&made.secret_hash()));
        let (id, hash) = JoinToken::read_credential(&read.credential()).unwrap();
        assert_eq!(id, made.id());
        assert!(hash.matches(&made.secret_hash()));
    }

    #[test]
    fn a_token_that_was_cut_or_changed_is_refused_without_being_repeated() {
        let whole = JoinToken::create(pin()).unwrap().reveal().to_string();
        for bad in [
            "",
            "eqj1",
            &whole[..whole.len() - 1],
            &whole[1..],
            &whole.replace('.', ":"),
            &whole.to_uppercase(),
            &format!("{whole}0"),
        ] {
            let error = JoinToken::parse(bad).unwrap_err().to_string();
            assert!(error.contains("eqj1.ID.SECRET.PIN"), "{error}");
            assert!(bad.len() < 20 || !error.contains(&bad[10..20]), "{error}");
        }
        assert!(AdminToken::parse(&whole).is_err());
    }

    #[test]
    fn debug_shows_no_secret() {
        let join = JoinToken::create(pin()).unwrap();
        let admin = AdminToken::create().unwrap();
        let secret = join.credential().split_once('.').unwrap().1.to_owned();
        assert!(!format!("{join:?} {admin:?} {:?}", join.secret_hash()).contains(&secret));
        assert!(!format!("{admin:?}").contains(admin.reveal().rsplit_once('.').unwrap().1));
    }

    #[test]
    fn two_secrets_do_not_match() {
        let (a, b) = (JoinToken::create(pin()).unwrap(), JoinToken::create(pin()).unwrap());
        assert!(!a.secret_hash().matches(&b.secret_hash()));
        assert_ne!(a.id(), b.id());
    }
}
