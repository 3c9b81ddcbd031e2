//! What a query says, read once: every mistake in it is told, each with the parameter it is about.
//!
//! A list is asked for with [`Listing`]; what else a route takes it reads beside it. A parameter that nobody took is a mistake.

use std::convert::Infallible;
use std::fmt::Display;

use axum::extract::{FromRequestParts, Query};
use equerry_policies::names::{Namespace, nearest};
use http::StatusCode;
use http::request::Parts;

use super::selector::Selector;
use super::shapes::{FieldError, Problem};

/// Most items in one page.
pub(super) const MOST: usize = 1_000;

/// The parameters of a request.
#[derive(Debug, Default)]
pub(super) struct Params {
    given: Vec<(String, String)>,
    known: Vec<&'static str>,
    mistakes: Vec<FieldError>,
}

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let mut params = Self::default();
        match Query::<Vec<(String, String)>>::try_from_uri(&parts.uri) {
            Ok(Query(given)) => params.given = given,
            Err(refused) => params.mistakes.push(FieldError::in_parameter("", refused.body_text())),
        }
        Ok(params)
    }
}

impl Params {
    /// The text of a parameter, when it is given.
    pub(super) fn text(&mut self, name: &'static str) -> Option<String> {
        self.known.push(name);
        let (mut texts, others): (Vec<_>, Vec<_>) = self.given.drain(..).partition(|(given, _)| given == name);
        self.given = others;
        if texts.len() > 1 {
            self.mistake(name, format_args!("found it {} times, expected it once", texts.len()));
        }
        texts.pop().map(|(_, text)| text)
    }

    /// A parameter as what it says, when it is given and can be read.
    pub(super) fn read<T, E: Display>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(name)?;
        read(&text).map_err(|error| self.mistake(name, error)).ok()
    }

    /// A parameter that must be given.
    pub(super) fn needed<T, E: Display>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        if !self.given.iter().any(|(given, _)| given == name) {
            self.mistake(name, "found nothing, expected it in the query");
        }
        self.read(name, read)
    }

    /// A whole number in a range.
    pub(super) fn number(&mut self, name: &'static str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        self.read(name, |text| {
            let number = text.parse().ok().filter(|number| range.contains(number));
            number.ok_or_else(|| {
                let shown: String = text.chars().take(40).collect();
                format!("found {shown:?}, expected a whole number from {} to {}", range.start(), range.end())
            })
        })
    }

    /// A yes or no; no when it is not given.
    pub(super) fn flag(&mut self, name: &'static str) -> bool {
        let flag = self.read(name, |text| match text {
            "1" | "true" => Ok(true),
            "0" | "false" => Ok(false),
            _ => Err(format!("found {:?}, expected 1 or 0", text.chars().take(40).collect::<String>())),
        });
        flag.unwrap_or_default()
    }

    /// A parameter is wrong.
    pub(super) fn mistake(&mut self, name: &str, detail: impl Display) {
        self.mistakes.push(FieldError::in_parameter(name, detail));
    }

    /// All that could be read was read.
    ///
    /// # Errors
    /// Every mistake, parameters that nobody knows included.
    pub(super) fn finish(mut self) -> Result<(), Problem> {
        for (name, _) in std::mem::take(&mut self.given) {
            let near = nearest(&name, self.known.iter().copied());
            let near = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
            let expected = self.known.join(", ");
            let shown: String = name.chars().take(80).collect();
            self.mistake(&shown, format_args!("found a parameter that is not known here, expected {expected}{near}"));
        }
        if self.mistakes.is_empty() {
            return Ok(());
        }
        let all: Vec<String> = self.mistakes.iter().map(FieldError::line).collect();
        let problem = Problem::new(StatusCode::BAD_REQUEST, "bad_request", all.join("; "));
        Err(Problem { errors: self.mistakes.into(), ..problem })
    }
}

/// What every list may be asked for.
#[derive(Debug, Default, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(clippy::struct_field_names, reason = "the names of the parameters")]
pub(super) struct Listing {
    /// At most so many items, 1 to 1,000; without, all. The rest is asked for with `continue`.
    #[param(value_type = Option<u32>, minimum = 1, maximum = 1000)]
    pub(super) limit: Option<usize>,
    /// Goes on after the last item of a page: the `continue` of the answer before.
    #[param(value_type = Option<String>, rename = "continue")]
    pub(super) after: Option<String>,
    /// Only what carries these labels: `a=b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`, `a`, `!a`, joined by commas.
    #[param(value_type = Option<String>, rename = "labelSelector")]
    pub(super) labels: Selector,
    /// Only this namespace.
    #[param(value_type = Option<String>)]
    pub(super) namespace: Option<Namespace>,
    /// As server-sent events: what is there, and then each change of it.
    #[param(value_type = Option<bool>)]
    pub(super) watch: bool,
}

impl Listing {
    /// Reads which page is asked for, of a list that knows no more than that.
    pub(super) fn paged(params: &mut Params) -> Self {
        let limit = params.number("limit", 1..=MOST as u64).and_then(|limit| usize::try_from(limit).ok());
        Self { limit, after: params.text("continue"), ..Self::default() }
    }

    /// Reads what is asked for; mistakes are told by [`Params::finish`].
    pub(super) fn read(params: &mut Params) -> Self {
        let Self { limit, after, .. } = Self::paged(params);
        let labels = params.read("labelSelector", Selector::parse).unwrap_or_default();
        let namespace = params.read("namespace", Namespace::parse);
        let watch = params.flag("watch");
        if watch && (limit.is_some() || after.is_some()) {
            params.mistake(
                "watch",
                "found it together with limit or continue, expected it without: a watch tells everything",
            );
        }
        Self { limit, after, labels, namespace, watch }
    }
}
