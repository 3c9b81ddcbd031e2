//! Reads documents without a control plane, and shows mistakes the same way wherever they were found.

use equerry_policies::complaint::Complaint;
use equerry_policies::document::{Document, Reading, default_namespace};
use equerry_policies::interpret::interpret;
use equerry_policies::policy::Meaning;

use crate::args::Output;
use crate::failure::{Code, Failure};
use crate::files::NamedText;
use crate::out;

/// Documents and what they mean together, or every mistake in them.
pub(crate) fn read_all(files: &[NamedText]) -> Result<(Vec<Document>, Meaning), Vec<Complaint>> {
    let mut reading = Reading::default();
    for file in files {
        reading.add(&file.name, &file.text, &default_namespace());
    }
    let Reading { documents, mut complaints } = reading;
    match interpret(&documents) {
        Ok(meaning) if complaints.is_empty() => Ok((documents, meaning)),
        outcome => {
            complaints.extend(outcome.err().unwrap_or_default());
            complaints.sort();
            complaints.dedup();
            Err(complaints)
        }
    }
}

/// Shows every mistake and a count; the failure that ends the command. `after` says what that means for the mesh.
pub(crate) fn show(complaints: &[Complaint], after: &str, output: Output) -> Failure {
    match output {
        Output::Json => out::data(out::json(&complaints)),
        Output::Yaml => out::data(out::yaml(&complaints)),
        Output::Table | Output::Wide | Output::Name => {
            for complaint in complaints {
                out::say(render(complaint));
            }
            out::say(format_args!("{}{after}", out::styled(out::BAD, count(complaints))));
        }
    }
    Failure::silent(Code::Refused)
}

/// Shows what is hardly meant, to people: nothing was refused for it.
pub(crate) fn warn(warnings: &[Complaint]) {
    for warning in warnings {
        out::say(render(warning));
    }
}

/// `4 mistakes in 2 files`.
pub(crate) fn count(complaints: &[Complaint]) -> String {
    let mistakes = || complaints.iter().filter(|complaint| !complaint.warning);
    let mut files: Vec<&str> = mistakes().map(|complaint| complaint.file.as_str()).collect();
    files.sort_unstable();
    files.dedup();
    let number = |count: usize, one: &str| if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") };
    format!("{} in {}", number(mistakes().count(), "mistake"), number(files.len(), "file"))
}

/// The complaint with its caret coloured.
fn render(complaint: &Complaint) -> String {
    let mut text = out::styled(out::HEAD, complaint.line());
    for line in complaint.snippet.iter().flat_map(|snippet| snippet.lines()) {
        let style = if line.trim_end().ends_with('^') { out::BAD } else { out::DIM };
        text.push('\n');
        text.push_str(&out::styled(style, line));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> NamedText {
        NamedText { name: name.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn mistakes_of_several_files_are_told_together_in_the_words_of_the_language() {
        let files = [
            file("a.yaml", "apiVersion: v1\nkind: Servic\nmetadata: {name: a, namespace: shop}\n"),
            file("b.yaml", "apiVersion: equerry.dev/v1\nkind: Mesh\nmetadata: {name: default}\nspec: {mtlss: {}}\n"),
        ];
        let complaints = read_all(&files).unwrap_err();
        assert_eq!(count(&complaints), "2 mistakes in 2 files", "{complaints:#?}");
        for (complaint, place) in complaints.iter().zip(["a.yaml:2:7: ", "b.yaml:4:8: "]) {
            let shown = anstream::adapter::strip_str(&render(complaint)).to_string();
            assert!(shown.starts_with(place), "{shown}");
            assert_eq!(shown, complaint.to_string(), "colour is all that is added");
        }
    }
}
