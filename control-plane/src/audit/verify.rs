//! Reads a log line by line and finds every edit, removal and truncation.

use equerry_certs::signing::VerifyingKey;

use super::{BEGINNING, Entry, Head};

/// Why a log is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Tampered {
    /// A line that was never written like this.
    #[error("line {line} is no entry of the log ({detail}): it was edited, or the file was damaged")]
    NoEntry {
        /// Counted from 1.
        line: u64,
        /// What the reader said.
        detail: String,
    },
    /// Entries are missing or moved.
    #[error("line {line}: found entry {found}, expected {expected}: entries were removed, added or moved")]
    Gap {
        /// Counted from 1.
        line: u64,
        /// The entry after the one before.
        expected: u64,
        /// The entry that stands there.
        found: u64,
    },
    /// An entry does not follow from the one before.
    #[error("entry {seq} does not follow from entry {}: one of the two was edited after it was written", .seq - 1)]
    Edited {
        /// The later of the two.
        seq: u64,
    },
    /// The log begins in the middle, and no entry says why.
    #[error(
        "the log begins at entry {first}, and no later entry says that those before were removed: its beginning is missing"
    )]
    NoBeginning {
        /// The first entry there is.
        first: u64,
    },
    /// A checkpoint's signature is not its key's.
    #[error("the signature of checkpoint {seq} does not prove what it signs")]
    BadSignature {
        /// The checkpoint.
        seq: u64,
    },
    /// A checkpoint is signed by somebody else.
    #[error("checkpoint {seq} is signed with key {found}, expected {expected}")]
    OtherKey {
        /// The checkpoint.
        seq: u64,
        /// Whose signature it is.
        found: String,
        /// Whose it ought to be.
        expected: String,
    },
    /// The log ends before the entry that is known to be there.
    #[error("the log ends with entry {found}, and entry {expected} is known to have been written: its end is missing")]
    Truncated {
        /// The last entry there is.
        found: u64,
        /// The last one known.
        expected: u64,
    },
    /// The last entry is not the one that was written.
    #[error("entry {seq} is not the one that was written: it was edited")]
    OtherHead {
        /// The entry.
        seq: u64,
    },
}

/// What a log proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proved {
    /// The first entry there is.
    pub first: u64,
    /// The last entry, and the hash of its line.
    pub head: Head,
    /// Everything up to this entry is signed; 0: nothing.
    pub signed: u64,
    /// The key that signed; `None`: nothing is signed.
    pub key: Option<String>,
}

/// Takes the lines of a log, in order.
#[derive(Debug, Clone)]
pub struct Verifier {
    /// Whose signatures are believed; `None`: those of the first key that signs.
    key: Option<String>,
    line: u64,
    first: u64,
    /// What the first entry says of the one before it.
    before: Option<Head>,
    head: Head,
    signed: u64,
    /// A head known from elsewhere.
    known: Option<Head>,
}

impl Verifier {
    /// Believes signatures of `key` (`None`: whoever signed first), and expects the log to contain `known`.
    pub fn new(key: Option<&VerifyingKey>, known: Option<Head>) -> Self {
        let key = key.map(ToString::to_string);
        Self { key, line: 0, first: 0, before: None, head: Head::beginning(), signed: 0, known }
    }

    /// The last line that was taken, and its hash.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Takes the next line.
    ///
    /// # Errors
    /// When it is not the one that was written after those before.
    pub fn line(&mut self, text: &str) -> Result<(), Tampered> {
        self.line += 1;
        let no_entry = |detail: String| Tampered::NoEntry { line: self.line, detail };
        let entry: Entry = serde_json::from_str(text).map_err(|error| no_entry(error.to_string()))?;
        if entry.line() != text {
            return Err(no_entry("it says more than an entry does, or says it differently".to_owned()));
        }
        if self.line == 1 && entry.seq > 0 {
            self.first = entry.seq;
            self.head = Head { seq: entry.seq - 1, hash: entry.previous.clone() };
            if entry.seq == 1 && entry.previous != BEGINNING {
                return Err(Tampered::Edited { seq: 1 });
            }
            self.before = (entry.seq > 1).then(|| self.head.clone());
        }
        if entry.seq != self.head.seq + 1 {
            return Err(Tampered::Gap { line: self.line, expected: self.head.seq + 1, found: entry.seq });
        }
        if entry.previous != self.head.hash {
            return Err(Tampered::Edited { seq: entry.seq });
        }
        self.checkpoint(&entry)?;
        if entry.removed.is_some() && entry.removed == self.before {
            self.before = None;
        }
        self.head = Head::of(entry.seq, text);
        match &self.known {
            Some(known) if known.seq == self.head.seq && *known != self.head => {
                Err(Tampered::OtherHead { seq: self.head.seq })
            }
            _ => Ok(()),
        }
    }

    /// A signature is over the head before its entry.
    fn checkpoint(&mut self, entry: &Entry) -> Result<(), Tampered> {
        let (Some(signature), Some(key)) = (&entry.signature, &entry.key) else { return Ok(()) };
        let expected = self.key.get_or_insert_with(|| key.clone());
        if expected != key {
            let (found, expected) = (key.clone(), expected.clone());
            return Err(Tampered::OtherKey { seq: entry.seq, found, expected });
        }
        let proved = VerifyingKey::parse(key).is_some_and(|key| key.proves(&self.head.to_sign(), signature));
        if !proved {
            return Err(Tampered::BadSignature { seq: entry.seq });
        }
        self.signed = self.head.seq;
        Ok(())
    }

    /// What the lines prove, now that there are no more.
    ///
    /// # Errors
    /// When the beginning or the end is missing.
    pub fn finish(self) -> Result<Proved, Tampered> {
        if self.before.is_some() {
            return Err(Tampered::NoBeginning { first: self.first });
        }
        if let Some(known) = self.known.filter(|known| known.seq > self.head.seq) {
            return Err(Tampered::Truncated { found: self.head.seq, expected: known.seq });
        }
        let key = self.key.filter(|_| self.signed > 0);
        Ok(Proved { first: self.first, head: self.head, signed: self.signed, key })
    }
}
