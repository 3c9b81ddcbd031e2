//! The corpora on any compiler: each is given to the body of its fuzz target, whole, cut short everywhere, and with bytes
//! changed, so that what a fuzzer found once stays found where no fuzzer runs.

use std::fs;
use std::path::Path;

/// So many places of a long example are cut or changed.
const PLACES: usize = 200;

/// Gives `body` what lies in `fuzz/corpus/TARGET`, and what is like it.
pub(crate) fn replay(target: &str, body: fn(&[u8])) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = here.ancestors().map(|above| above.join("fuzz/corpus").join(target)).find(|folder| folder.is_dir());
    let folder = folder.unwrap_or_else(|| panic!("no corpus of {target}"));
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 3, "a corpus of {target} with only {} examples", files.len());
    for file in files {
        let bytes = fs::read(&file).unwrap();
        body(&bytes);
        for at in (0..bytes.len()).step_by(bytes.len() / PLACES + 1) {
            body(&bytes[..at]);
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            body(&changed);
        }
    }
}
