//! Tokens whose signatures were verified lately. Callers send the same token for minutes, and a signature takes a hundred
//! times as long as everything else that is decided about a request.
//!
//! Only tokens that were believed are kept, whole, and compared whole; those of another configuration are forgotten, so a
//! key taken out of a key set believes nothing any more. Times are not remembered: they are judged at each use.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Weak};

use equerry_policies::compile::CompiledWorkload;
use twox_hash::XxHash3_64;

use super::Verified;

/// Tokens in one of the two halves.
const HALF: usize = 2048;
/// Bytes of tokens in one of the two halves.
const HALF_BYTES: usize = 1 << 20;

/// The tokens that one worker has seen verified: at least the last 2,048, or a megabyte of them, and at most twice that.
#[derive(Debug, Default)]
pub struct Believed {
    workload: Weak<CompiledWorkload>,
    young: Half,
    young_bytes: usize,
    old: Half,
}

/// Tokens by their hash. Nobody gains by tokens of one hash: one pushes out the other, and only an issuer could make them.
type Half = HashMap<u64, (Box<str>, Known), BuildHasherDefault<Hashed>>;

/// What is a hash already is not hashed again.
#[derive(Debug, Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = XxHash3_64::oneshot(bytes);
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// What was found out about a token.
#[derive(Debug, Clone)]
pub(super) struct Known {
    /// The application port it was sent to: which rules hold depends on it.
    pub(super) port: u16,
    /// Which of the rules of that port believed it.
    pub(super) rule: usize,
    /// What it says.
    pub(super) verified: Arc<Verified>,
}

impl Believed {
    /// What is known of a token sent to `port`, under this configuration.
    pub(super) fn recall(&mut self, workload: &Arc<CompiledWorkload>, port: u16, token: &str) -> Option<&Known> {
        // A `Weak` keeps the address taken, so another configuration can never look like this one.
        if !std::ptr::eq(self.workload.as_ptr(), Arc::as_ptr(workload)) {
            *self = Self { workload: Arc::downgrade(workload), ..Self::default() };
        }
        let hash = XxHash3_64::oneshot(token.as_bytes());
        if !self.young.contains_key(&hash)
            && let Some((whole, known)) = self.old.remove(&hash)
        {
            self.keep(hash, whole, known);
        }
        let (whole, known) = self.young.get(&hash)?;
        (**whole == *token && known.port == port).then_some(known)
    }

    /// Remembers a token that was believed. `recall` with the same configuration came just before.
    pub(super) fn remember(&mut self, token: &str, known: Known) {
        self.keep(XxHash3_64::oneshot(token.as_bytes()), token.into(), known);
    }

    fn keep(&mut self, hash: u64, token: Box<str>, known: Known) {
        if self.young.len() >= HALF || self.young_bytes >= HALF_BYTES {
            // Whatever was not asked for since the last turn goes.
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += token.len();
        self.young.insert(hash, (token, known));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}
