//! The documents a person names with `-f`: files, directories with everything below them, `-` for standard input.
//!
//! Names are kept as they were written, so that a complaint about line 7 can be clicked.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::failure::Failure;

/// Largest file; the same limit holds in the language itself, this one keeps a mistaken path from being read whole.
const MAX_FILE: u64 = 1024 * 1024;
/// Deepest directory; deeper ones are loops of symbolic links.
const MAX_DEPTH: usize = 32;
/// What standard input is called in complaints.
const STDIN: &str = "stdin";

/// `-f FILE|DIR|-`
#[derive(Debug, Clone, Args)]
pub(crate) struct FileArgs {
    /// File, directory (with everything below it: .yaml, .yml, .json), or - for standard input; may be repeated
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR|-", required = true)]
    pub(crate) files: Vec<PathBuf>,
}

/// A file's name as it was reached, and its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct NamedText {
    /// For complaints.
    pub(crate) name: String,
    /// What it holds.
    pub(crate) text: String,
}

/// Reads everything under `paths`, sorted within each directory; each file once.
pub(crate) fn collect(paths: &[PathBuf]) -> Result<Vec<NamedText>, Failure> {
    let mut found = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            found.push(NamedText { name: STDIN.to_owned(), text: read_limited(STDIN, std::io::stdin())? });
        } else {
            walk(path, true, 0, &mut found)?;
        }
    }
    if found.is_empty() {
        let named: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        return Err(Failure::refused(format_args!("there is no .yaml, .yml or .json file in {}", named.join(", "))));
    }
    Ok(found)
}

fn walk(path: &Path, named_by_hand: bool, depth: usize, found: &mut Vec<NamedText>) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::refused(format_args!("cannot read {}: {error}", path.display()));
    let metadata = fs::metadata(path).map_err(failed)?;
    if metadata.is_dir() {
        if depth == MAX_DEPTH {
            return Err(Failure::refused(format_args!(
                "{} is more than {MAX_DEPTH} directories deep; is it a loop of symbolic links?",
                path.display()
            )));
        }
        let mut below = fs::read_dir(path)
            .map_err(failed)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed)?;
        below.sort();
        for path in below.iter().filter(|path| !is_hidden(path)) {
            walk(path, false, depth + 1, found)?;
        }
        return Ok(());
    }
    if !named_by_hand && !is_document(path) {
        return Ok(());
    }
    let name = path.display().to_string();
    if found.iter().any(|file| file.name == name) {
        return Ok(());
    }
    let text = read_limited(&name, fs::File::open(path).map_err(failed)?)?;
    found.push(NamedText { name, text });
    Ok(())
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn is_document(path: &Path) -> bool {
    path.extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|extension| matches!(extension, "yaml" | "yml" | "json"))
}

fn read_limited(name: &str, from: impl Read) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    from.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::refused(format_args!("cannot read {name}: {error}")))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Failure::refused(format_args!(
            "{name} is too large: found more than 1 MiB, expected at most 1 MiB"
        ))
        .hint("split it into several files of one directory"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line =
            1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        Failure::refused(format_args!("{name}:{line}: found bytes that are not UTF-8, expected text"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_read_with_everything_below_it_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("b")).unwrap();
        for name in ["c.yml", "a.yaml", "b/z.json", "notes.txt", ".hidden.yaml"] {
            fs::write(root.join(name), name).unwrap();
        }
        let texts: Vec<_> = collect(&[root.to_owned()]).unwrap().into_iter().map(|file| file.text).collect();
        assert_eq!(texts, ["a.yaml", "b/z.json", "c.yml"]);
        assert_eq!(
            collect(&[root.join("notes.txt"), root.join("notes.txt")]).unwrap().len(),
            1,
            "a file named by hand may have any name, and counts once"
        );
    }

    #[test]
    fn an_empty_directory_a_large_file_and_binary_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(collect(&[folder.path().to_owned()]).unwrap_err().message.contains("there is no .yaml"));
        let large = folder.path().join("large.yaml");
        fs::write(&large, vec![b'#'; 1024 * 1024 + 1]).unwrap();
        assert!(collect(&[large]).unwrap_err().message.contains("too large"));
        let binary = folder.path().join("binary.yaml");
        fs::write(&binary, b"a: 1\n\xff").unwrap();
        assert!(collect(&[binary]).unwrap_err().message.contains("binary.yaml:2"));
    }
}
