//! The one place that prints: data to stdout, everything else to stderr, colour only where a person looks.
//!
//! `NO_COLOR`, `CLICOLOR_FORCE` and terminals are anstream's business; a closed pipe (`equerry get ... | head`) ends quietly.

use std::fmt::Display;
use std::io::Write;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

/// Good news.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// Bad news.
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
/// Something to look at.
pub(crate) const NOTE: Style = AnsiColor::Yellow.on_default();
/// Headings.
pub(crate) const HEAD: Style = Style::new().bold();
/// Details.
pub(crate) const DIM: Style = Style::new().dimmed();

/// `text` in `style`.
pub(crate) fn styled(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// One line, or several, of data.
pub(crate) fn data(text: impl Display) {
    // A reader that went away has seen enough: there is nobody left to tell.
    let _ = writeln!(anstream::stdout(), "{text}");
}

/// Lines that take the place of those on the screen; only for a terminal.
pub(crate) fn redraw(text: impl Display) {
    // Not through anstream: without colour, too, the cursor must go home.
    let _ = write!(std::io::stdout(), "\x1b[H\x1b[2J");
    data(text);
}

/// One line, or several, for the person at the terminal.
pub(crate) fn say(text: impl Display) {
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// Rows under headings, as wide as their widest cell; colour codes take no width. Headings are upper case, as kubectl's.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = headings.iter().map(|heading| heading.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(width_of(cell));
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (index, cell) in cells.enumerate() {
            text.push_str(cell);
            if index + 1 < widths.len() {
                text.extend(std::iter::repeat_n(' ', widths[index].saturating_sub(width_of(cell)) + 3));
            }
        }
        text.trim_end().to_owned()
    };
    let mut lines = vec![line(&mut headings.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines.join("\n")
}

/// `value` as JSON, indented.
pub(crate) fn json(value: &impl Serialize) -> String {
    // Values printed here are made of strings, numbers and maps with string keys: they can always be written.
    serde_json::to_string_pretty(value).unwrap_or_else(|error| format!("{{\"error\": {:?}}}", error.to_string()))
}

/// `value` as YAML, without a newline at its end.
pub(crate) fn yaml(value: &impl Serialize) -> String {
    match serde_saphyr::to_string(value) {
        Ok(text) => text.trim_end().to_owned(),
        Err(error) => format!("# cannot be written as YAML: {error}"),
    }
}

/// Printed width: characters, escape sequences not counted.
fn width_of(cell: &str) -> usize {
    anstream::adapter::strip_str(cell).to_string().chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_colour_takes_no_room() {
        let rows = vec![
            vec!["orders".to_owned(), styled(GOOD, "2/2"), "x".to_owned()],
            vec!["a".to_owned(), "10/12".to_owned(), "y".to_owned()],
        ];
        let text = anstream::adapter::strip_str(&table(&["NAME", "HEALTHY", "LAST"], &rows)).to_string();
        assert_eq!(text, "NAME     HEALTHY   LAST\norders   2/2       x\na        10/12     y");
    }
}
