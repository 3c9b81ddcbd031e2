//! Bytes under a passphrase: PBKDF2-HMAC-SHA-256 and AES-256-GCM in frames, so that nothing is read that is not whole.
//!
//! A frame's nonce counts frames and marks the last one (the STREAM construction): frames that are cut off, moved or added
//! are found, and a wrong passphrase fails at the first.

use std::io::{self, Read, Write};
use std::num::NonZeroU32;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{pbkdf2, rand};
use equerry_certs::Zeroizing;

/// First bytes: what it is, and in which version.
const MAGIC: &[u8; 6] = b"eqbk1\n";
/// Rounds of PBKDF2-HMAC-SHA-256 (OWASP's 600,000).
const ROUNDS: NonZeroU32 = NonZeroU32::new(600_000).expect("not zero");
const SALT_LEN: usize = 16;
/// Bytes in a frame before it is sealed.
const FRAME: usize = 1 << 20;

/// Why sealed bytes cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unsealable {
    /// Not a backup.
    #[error("it is no backup of a control plane, or one of a newer version")]
    NotOne,
    /// The first frame does not open.
    #[error("the passphrase is another one, or its beginning is damaged")]
    Passphrase,
    /// A later frame does not open.
    #[error("it is damaged after {0} MiB: a part was changed, moved or added")]
    Damaged(u64),
    /// The end is missing.
    #[error("its end is missing after {0} MiB: it was cut off")]
    Truncated(u64),
}

/// Seals what is written to it.
pub(super) struct Sealer<W> {
    to: W,
    key: LessSafeKey,
    frames: u64,
    waiting: Vec<u8>,
}

/// Gives what was sealed.
pub(super) struct Unsealer<R> {
    from: R,
    key: LessSafeKey,
    frames: u64,
    open: Vec<u8>,
    at: usize,
    over: bool,
}

impl<W: Write> Sealer<W> {
    /// Writes the beginning.
    ///
    /// # Errors
    /// When it cannot be written, or there are no random bytes.
    pub(super) fn new(mut to: W, passphrase: &str) -> io::Result<Self> {
        let mut salt = [0; SALT_LEN];
        rand::fill(&mut salt).map_err(|_| io::Error::other("the system gives no random bytes"))?;
        to.write_all(MAGIC)?;
        to.write_all(&salt)?;
        Ok(Self { to, key: derived(passphrase, &salt)?, frames: 0, waiting: Vec::with_capacity(FRAME) })
    }

    /// Writes the end; without it nothing can be read. Returns what was written to.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.frame(true)?;
        Ok(self.to)
    }

    fn frame(&mut self, last: bool) -> io::Result<()> {
        let mut frame = std::mem::replace(&mut self.waiting, Vec::with_capacity(FRAME));
        let sealed = self.key.seal_in_place_append_tag(nonce(self.frames, last), Aad::empty(), &mut frame);
        sealed.map_err(|_| io::Error::other("a frame cannot be sealed"))?;
        self.frames += 1;
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        self.to.write_all(&length.to_be_bytes())?;
        self.to.write_all(&frame)
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.waiting.len() == FRAME {
            self.frame(false)?;
        }
        let taken = bytes.len().min(FRAME - self.waiting.len());
        self.waiting.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl<R: Read> Unsealer<R> {
    /// Reads the beginning.
    ///
    /// # Errors
    /// [`Unsealable`] inside an [`io::Error`], or what reading said.
    pub(super) fn new(mut from: R, passphrase: &str) -> io::Result<Self> {
        let mut head = [0; MAGIC.len() + SALT_LEN];
        from.read_exact(&mut head).map_err(|_| io::Error::other(Unsealable::NotOne))?;
        let (magic, salt) = head.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(io::Error::other(Unsealable::NotOne));
        }
        Ok(Self { from, key: derived(passphrase, salt)?, frames: 0, open: Vec::new(), at: 0, over: false })
    }

    fn frame(&mut self) -> io::Result<()> {
        // A full frame is a MiB, so frames count them.
        let truncated = || io::Error::other(Unsealable::Truncated(self.frames));
        let damaged = || {
            io::Error::other(if self.frames == 0 { Unsealable::Passphrase } else { Unsealable::Damaged(self.frames) })
        };
        let mut length = [0; 4];
        self.from.read_exact(&mut length).map_err(|_| truncated())?;
        let length = u32::from_be_bytes(length) as usize;
        if length > FRAME + AES_256_GCM.tag_len() {
            return Err(damaged());
        }
        let mut frame = vec![0; length];
        self.from.read_exact(&mut frame).map_err(|_| truncated())?;
        let opened = [false, true].into_iter().find_map(|last| {
            let mut frame = frame.clone();
            let size = self.key.open_in_place(nonce(self.frames, last), Aad::empty(), &mut frame).ok()?.len();
            frame.truncate(size);
            Some((frame, last))
        });
        let (open, last) = opened.ok_or_else(damaged)?;
        if last && self.from.read(&mut [0])? > 0 {
            return Err(io::Error::other(Unsealable::Damaged(self.frames)));
        }
        (self.open, self.at, self.over) = (open, 0, last);
        self.frames += 1;
        Ok(())
    }
}

impl<R: Read> Read for Unsealer<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.open.len() {
            if self.over || into.is_empty() {
                return Ok(0);
            }
            self.frame()?;
        }
        let given = into.len().min(self.open.len() - self.at);
        into[..given].copy_from_slice(&self.open[self.at..self.at + given]);
        self.at += given;
        Ok(given)
    }
}

fn derived(passphrase: &str, salt: &[u8]) -> io::Result<LessSafeKey> {
    let mut key = Zeroizing::new([0; 32]);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ROUNDS, salt, passphrase.as_bytes(), key.as_mut());
    let key = UnboundKey::new(&AES_256_GCM, key.as_ref()).map_err(|_| io::Error::other("no key can be made"))?;
    Ok(LessSafeKey::new(key))
}

fn nonce(frame: u64, last: bool) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[0] = u8::from(last);
    bytes[4..].copy_from_slice(&frame.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(plain: &[u8]) -> Vec<u8> {
        let mut sealer = Sealer::new(Vec::new(), "correct horse").unwrap();
        sealer.write_all(plain).unwrap();
        sealer.finish().unwrap()
    }

    fn opened(bytes: &[u8], passphrase: &str) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        Unsealer::new(bytes, passphrase)?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    fn why(bytes: &[u8]) -> String {
        opened(bytes, "correct horse").unwrap_err().to_string()
    }

    #[test]
    fn what_was_sealed_comes_back_whatever_its_size() {
        for size in [0, 1, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME + 7] {
            let plain: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            assert_eq!(opened(&sealed(&plain), "correct horse").unwrap(), plain, "{size}");
        }
    }

    #[test]
    fn a_wrong_passphrase_and_another_file_are_told_apart() {
        let bytes = sealed(b"secret");
        assert!(opened(&bytes, "battery staple").unwrap_err().to_string().contains("passphrase is another"));
        assert!(why(b"PK\x03\x04 something else entirely").contains("no backup"));
        assert!(why(b"").contains("no backup"));
    }

    #[test]
    fn what_was_cut_off_changed_or_added_to_is_found() {
        let bytes = sealed(&vec![7; 2 * FRAME + 7]);
        assert!(why(&bytes[..bytes.len() - 1]).contains("cut off"));
        let second = MAGIC.len() + SALT_LEN + 4 + FRAME + 16;
        assert!(why(&bytes[..second]).contains("end is missing after 1 MiB"), "{}", why(&bytes[..second]));
        let mut changed = bytes.clone();
        changed[second + 100] ^= 1;
        assert!(why(&changed).contains("damaged after 1 MiB"), "{}", why(&changed));
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(why(&longer).contains("damaged"));
        let mut swapped = bytes;
        swapped[MAGIC.len() + SALT_LEN..].rotate_left(4 + FRAME + 16);
        assert!(opened(&swapped, "correct horse").is_err());
    }
}
