//! The pages of the program file are given back too: most of what a sidecar at rest holds are pages that only starting, or load
//! that is over, ever read.
//!
//! They stay in the system's cache, where the first who needs one again finds it at the cost of a fault without a disk, sixteen
//! pages at a time.

use std::ops::Range;

/// Gives back every page of the program file that is only read.
#[cfg(target_os = "linux")]
pub(super) fn give_back() {
    let program = std::fs::read_link("/proc/self/exe");
    let (Ok(maps), Ok(program)) = (std::fs::read_to_string("/proc/self/smaps"), program) else { return };
    let Some(program) = program.to_str() else { return };
    for pages in only_read(&maps, program) {
        advise(pages);
    }
}

/// KiB of files, the program's own and libraries', that the process holds; 0 where nobody knows.
#[cfg(target_os = "linux")]
pub(super) fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssFile:"));
    line.and_then(|size| size.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}

/// Elsewhere nobody is asked.
#[cfg(not(target_os = "linux"))]
pub(super) fn give_back() {}

/// Nor does anybody know.
#[cfg(not(target_os = "linux"))]
pub(super) fn resident() -> u64 {
    0
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "what can be read again from the file is left to be read again")]
fn advise(pages: Range<usize>) {
    use rustix::mm::{Advice, madvise};
    let start = std::ptr::with_exposed_provenance_mut(pages.start);
    // SAFETY: the range is one mapping of the running program's own file, which lasts as long as the process. Nobody can write
    // there, and none of its pages differs from the file's, so that whoever reads one next finds what was there before.
    // That it fails costs memory, nothing else.
    let _ = unsafe { madvise(start, pages.len(), Advice::LinuxDontNeed) };
}

/// The mappings of `program` in `maps` (proc(5), smaps) that hold what the file holds: not to be written, and without a page of
/// their own, as those have that were relocated at the start.
fn only_read(maps: &str, program: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        if let Some(pages) = range(first) {
            found.extend(candidate.take());
            let whose = line.split_once('/').map_or("", |(_, path)| path);
            let is_program = program.strip_prefix('/') == Some(whose);
            candidate = Some(pages).filter(|_| matches!(second, "r--p" | "r-xp") && is_program);
        } else if matches!(first, "Anonymous:" | "Swap:" | "Locked:") && second != "0" {
            candidate = None;
        }
    }
    found.extend(candidate);
    found
}

fn range(word: &str) -> Option<Range<usize>> {
    let (start, end) = word.split_once('-')?;
    let address = |digits| usize::from_str_radix(digits, 16).ok();
    Some(address(start)?..address(end)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_that_are_as_the_file_has_them_are_given_back() {
        let mapping = |pages: &str, rights: &str, path: &str, anonymous: u32, swap: u32| {
            format!(
                "{pages} {rights} 00001000 fe:00 247030                     {path}\nSize: 8 kB\nRss: 8 kB\nAnonymous:     \
                 {anonymous} kB\nSwap:    {swap} kB\nLocked:   0 kB\nVmFlags: rd mr mw me\n"
            )
        };
        let maps = [
            mapping("1000-2000", "r--p", "/bin/equerry-proxy", 0, 0),
            mapping("2000-5000", "r-xp", "/bin/equerry-proxy", 0, 0),
            mapping("5000-6000", "r--p", "/bin/equerry-proxy", 4, 0),
            mapping("6000-7000", "r--p", "/bin/equerry-proxy", 0, 4),
            mapping("7000-8000", "rw-p", "/bin/equerry-proxy", 0, 0),
            mapping("8000-9000", "r--s", "/bin/equerry-proxy", 0, 0),
            mapping("a000-b000", "rw-p", "", 4, 0),
            mapping("b000-c000", "r-xp", "/lib/libc.so.6", 0, 0),
            mapping("c000-d000", "r-xp", "/bin/equerry-proxy (deleted)", 0, 0),
            mapping("d000-e000", "r-xp", "[vdso]", 0, 0),
        ]
        .concat();
        assert_eq!(only_read(&maps, "/bin/equerry-proxy"), [0x1000..0x2000, 0x2000..0x5000]);
        assert_eq!(only_read(&maps, "/bin/equerry-proxy (deleted)").first(), Some(&(0xc000..0xd000)));
        assert!(only_read("", "/bin/equerry-proxy").is_empty());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_program_is_smaller_afterwards_and_goes_on() {
        let resident = || {
            let program = std::fs::read_link("/proc/self/exe").unwrap();
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let (mut ours, mut sum) = (false, 0);
            for line in maps.lines() {
                match line.split_once(':') {
                    Some(("Rss", size)) if ours => sum += size.trim_end_matches("kB").trim().parse::<u32>().unwrap(),
                    Some((word, _)) if word.len() < 20 => {}
                    _ => ours = line.ends_with(program.to_str().unwrap()),
                }
            }
            sum
        };
        static SAID: [&str; 2] = ["relocated", "at the start"];
        let (before, told) = (resident(), super::resident());
        give_back();
        let (after, told_after) = (resident(), super::resident());
        assert!(after < before * 3 / 4, "{before} KiB, then {after}");
        assert!(told_after < told, "{told} KiB of files, then {told_after}");
        assert_eq!(std::hint::black_box(&SAID).concat(), "relocatedat the start");
    }
}
