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

/// Tokens by their ends, and the application port they were sent to: which rules hold depends on it. Nobody gains by tokens of one
/// end: one pushes out the other, and only an issuer could make any that stay.
type Half = Quick<(u64, u16), (Box<str>, Known)>;

/// Where a token is found: by its last eight bytes, of the signature, which are as good as random and make hashing the whole needless.
fn place(token: &str, port: u16) -> (u64, u16) {
    (token.as_bytes().last_chunk().map_or(0, |end| u64::from_le_bytes(*end)), port)
}

/// What was found out about a token.
#[derive(Debug, Clone)]
pub(super) struct Known {
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
        let place = place(token, port);
        if !self.young.contains_key(&place)
            && let Some((whole, known)) = self.old.remove(&place)
        {
            self.keep(place, whole, known);
        }
        let (whole, known) = self.young.get(&place)?;
        (**whole == *token).then_some(known)
    }

    /// Remembers a token that was believed. `recall` with the same configuration came just before.
    pub(super) fn remember(&mut self, port: u16, token: &str, known: Known) {
        self.keep(place(token, port), token.into(), known);
    }

    fn keep(&mut self, place: (u64, u16), token: Box<str>, known: Known) {
        if self.young.len() >= HALF || self.young_bytes >= HALF_BYTES {
            // Whatever was not asked for since the last turn goes.
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += token.len();
        self.young.insert(place, (token, known));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}
