//! Where spans go and how many: the flags, and what they mean together.

use super::{BadSettings, bad};
use crate::observe::B3Form;
use crate::observe::trace::{Endpoint, Forms};

/// Where spans go.
#[derive(Debug, Clone)]
pub struct Traces {
    pub(crate) endpoint: Endpoint,
    /// 0..1, of traces that begin here.
    pub(crate) sampling: f64,
    /// Written beside W3C's.
    pub(crate) forms: Forms,
}

/// What is given of it, by flag, variable or file.
#[derive(Debug, Default)]
pub(super) struct GivenTraces {
    pub(super) endpoint: Option<String>,
    pub(super) sampling: Option<f64>,
    pub(super) headers: Option<Vec<B3Form>>,
}

impl GivenTraces {
    /// What is meant; `None`: nothing is traced.
    ///
    /// # Errors
    /// When one is not of its form, or would do nothing.
    pub(super) fn complete(self) -> Result<Option<Traces>, BadSettings> {
        let Self { endpoint, sampling, headers } = self;
        let Some(endpoint) = endpoint else {
            let useless = [("--trace-sampling", sampling.is_some()), ("--trace-headers", headers.is_some())];
            return match useless.iter().find(|(_, given)| *given) {
                Some((flag, _)) => Err(bad(format!("{flag} without --otlp-endpoint: no spans are kept"))),
                None => Ok(None),
            };
        };
        let sampling = sampling.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&sampling) {
            return Err(bad(format!("--trace-sampling {sampling}: expected a share, 0 to 1, such as 0.01")));
        }
        let endpoint = endpoint.parse().map_err(|error| bad(format!("--otlp-endpoint {error}")))?;
        Ok(Some(Traces { endpoint, sampling, forms: headers.unwrap_or_default().into_iter().collect() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_go_nowhere_unless_asked_for_and_a_flag_that_would_do_nothing_is_refused() {
        let given = |endpoint: Option<&str>, sampling, headers| {
            GivenTraces { endpoint: endpoint.map(str::to_owned), sampling, headers }.complete()
        };
        assert!(given(None, None, None).unwrap().is_none());
        let traces = given(Some("http://127.0.0.1:4318"), None, Some(vec![B3Form::B3])).unwrap().unwrap();
        assert!(traces.sampling >= 1.0 && traces.forms.single && !traces.forms.multi);
        for (wrong, word) in [
            (given(None, Some(0.5), None), "--trace-sampling without"),
            (given(None, None, Some(vec![B3Form::B3])), "--trace-headers without"),
            (given(Some("http://a"), Some(1.5), None), "0 to 1"),
            (given(Some("http://a"), Some(f64::NAN), None), "0 to 1"),
            (given(Some("https://a"), None, None), "--otlp-endpoint"),
        ] {
            assert!(wrong.as_ref().is_err_and(|said| said.to_string().contains(word)), "{wrong:?}");
        }
    }
}
