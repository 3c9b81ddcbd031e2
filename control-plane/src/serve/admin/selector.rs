//! Label selectors as Kubernetes writes them: `app=orders, tier!=cache, zone in (a, b), !canary`.
//!
//! Pure. All that is asked must hold; a selector that cannot be read says what was found and what is expected.

use equerry_policies::policy::Labels;

/// Longest selector, in bytes.
const LONGEST: usize = 4096;
/// Longest name or value of a label.
const LONGEST_LABEL: usize = 316;

/// Which labels are asked for; nothing asked holds for everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Selector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    label: String,
    is: Is,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Is {
    Present,
    Absent,
    /// It is there, with one of these values.
    OneOf(Vec<String>),
    /// It is not there, or has another value.
    NoneOf(Vec<String>),
}

impl Selector {
    /// Reads a selector.
    ///
    /// # Errors
    /// What was found and what is expected.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > LONGEST {
            return Err(format!("found {} bytes, expected at most {LONGEST}", text.len()));
        }
        requirements(text)
            .into_iter()
            .filter(|part| !part.is_empty())
            .map(requirement)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether all that is asked holds for these labels.
    pub(super) fn holds(&self, labels: &Labels) -> bool {
        self.0.iter().all(|asked| {
            let value = labels.get(&asked.label);
            match &asked.is {
                Is::Present => value.is_some(),
                Is::Absent => value.is_none(),
                Is::OneOf(values) => value.is_some_and(|value| values.contains(value)),
                Is::NoneOf(values) => value.is_none_or(|value| !values.contains(value)),
            }
        })
    }

    /// Whether nothing is asked.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The parts between commas, except those within parentheses.
fn requirements(text: &str) -> Vec<&str> {
    let (mut parts, mut from, mut depth) = (Vec::new(), 0, 0_u32);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(text[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[from..].trim());
    parts
}

fn requirement(part: &str) -> Result<Requirement, String> {
    let asked = |label: &str, is| Ok(Requirement { label: word(label, part)?, is });
    // `!=` first: a label's name holds neither sign.
    if let Some((label, value)) = part.split_once("!=") {
        return asked(label, Is::NoneOf(vec![value_of(value, part)?]));
    }
    if let Some((label, value)) = part.split_once('=') {
        let value = value.strip_prefix('=').unwrap_or(value);
        return asked(label, Is::OneOf(vec![value_of(value, part)?]));
    }
    if let Some((before, values)) = part.split_once('(') {
        let values = values.strip_suffix(')').ok_or_else(|| odd(part))?;
        let values = values.split(',').map(|value| value_of(value, part)).collect::<Result<Vec<_>, _>>()?;
        return match before.trim().rsplit_once(char::is_whitespace) {
            Some((label, "in")) => asked(label, Is::OneOf(values)),
            Some((label, "notin")) => asked(label, Is::NoneOf(values)),
            _ => Err(odd(part)),
        };
    }
    match part.strip_prefix('!') {
        Some(label) => asked(label, Is::Absent),
        None => asked(part, Is::Present),
    }
}

/// The name of a label.
fn word(text: &str, part: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() { Err(odd(part)) } else { value_of(text, part) }
}

/// The value of a label, which may be empty.
fn value_of(text: &str, part: &str) -> Result<String, String> {
    let text = text.trim();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if text.len() <= LONGEST_LABEL && text.chars().all(fits) { Ok(text.to_owned()) } else { Err(odd(part)) }
}

fn odd(part: &str) -> String {
    let shown: String = part.chars().take(80).collect();
    format!("found {shown:?}, expected a=b, a!=b, a in (b,c), a notin (b,c), a or !a, joined by commas")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Selector::parse(selector).unwrap().holds(&labels)
    }

    #[test]
    fn every_form_that_kubernetes_knows_selects_what_it_says() {
        let orders = [("app", "orders"), ("tier", "web"), ("equerry.dev/weight", "2")];
        for (selector, expected) in [
            ("", true),
            ("app=orders", true),
            ("app==orders", true),
            ("app=payments", false),
            ("zone=a", false),
            ("app!=orders", false),
            ("app!=payments", true),
            ("zone!=a", true),
            ("app in (orders, payments)", true),
            ("app in (payments)", false),
            ("zone in (a)", false),
            ("app notin (orders)", false),
            ("zone notin (a,b)", true),
            ("app", true),
            ("zone", false),
            ("!zone", true),
            ("!app", false),
            ("app=orders,tier=web", true),
            ("app=orders, tier in (cache,db), !zone", false),
            ("app=orders,tier in (cache,web),!zone", true),
            ("equerry.dev/weight=2", true),
            ("empty=", false),
        ] {
            assert_eq!(holds(selector, &orders), expected, "{selector}");
        }
        assert!(holds("empty=", &[("empty", "")]));
        assert!(holds("in in (in)", &[("in", "in")]), "a label may be called as an operator is");
    }

    #[test]
    fn what_is_no_selector_is_told_and_never_selects() {
        for odd in ["=a", "a in b", "a in (b", "a within (b)", "a b", "a=b=c", "!", "a=b)", "a in ((b))", "é=1"] {
            let said = Selector::parse(odd).unwrap_err();
            assert!(said.contains("expected a=b"), "{odd}: {said}");
        }
        assert!(Selector::parse(&"a".repeat(LONGEST + 1)).is_err());
    }
}
