//! Tokens whose signatures were verified lately. Callers send the same token for minutes, and a signature takes a hundred
//! times as long as everything else that is decided about a request.
//!
//! Only tokens that were believed are kept, whole, and compared whole; those of another configuration are forgotten, so a
//! key taken out of a key set believes nothing any more. Times are not remembered: they are judged at each use.

use std::sync::{Arc, Weak};

use equerry_policies::compile::CompiledWorkload;
use equerry_policies::quick::Quick;

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

/// Tokens by their ends. Nobody gains by tokens of one end: one pushes out the other, and only an issuer could make any that stay.
type Half = Quick<u64, (Box<str>, Known)>;

/// The last eight bytes, of the signature: as good as random, which makes hashing the whole needless.
fn end_of(token: &str) -> u64 {
    token.as_bytes().last_chunk().map_or(0, |end| u64::from_le_bytes(*end))
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
        let end = end_of(token);
        if !self.young.contains_key(&end)
            && let Some((whole, known)) = self.old.remove(&end)
        {
            self.keep(end, whole, known);
        }
        let (whole, known) = self.young.get(&end)?;
        (**whole == *token && known.port == port).then_some(known)
    }

    /// Remembers a token that was believed. `recall` with the same configuration came just before.
    pub(super) fn remember(&mut self, token: &str, known: Known) {
        self.keep(end_of(token), token.into(), known);
    }

    fn keep(&mut self, end: u64, token: Box<str>, known: Known) {
        if self.young.len() >= HALF || self.young_bytes >= HALF_BYTES {
            // Whatever was not asked for since the last turn goes.
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += token.len();
        self.young.insert(end, (token, known));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}
