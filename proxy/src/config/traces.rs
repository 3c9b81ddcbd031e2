//! Where spans go and how many: the flags, and what they mean together.

use std::path::PathBuf;

use super::{BadSettings, bad};
use crate::observe::B3Form;
use crate::observe::trace::{Collector, Endpoint, Forms, Headers};

/// Where spans go.
#[derive(Debug, Clone)]
pub struct Traces {
    pub(crate) to: Collector,
    /// 0..1, of traces that begin here.
    pub(crate) sampling: f64,
    /// Written beside W3C's.
    pub(crate) forms: Forms,
}

/// Where headers for the collector come from.
#[derive(Debug)]
pub(super) enum HeadersFrom {
    Pairs(Vec<String>),
    File(PathBuf),
}

impl HeadersFrom {
    /// What is given in one place.
    pub(super) fn either(pairs: Option<Vec<String>>, file: Option<PathBuf>) -> Option<Self> {
        pairs.map(Self::Pairs).or(file.map(Self::File))
    }
}

impl Traces {
    /// Reads the files that it names.
    ///
    /// # Errors
    /// Names the setting, its file, and what is wrong.
    pub(crate) fn check(&self) -> Result<(), BadSettings> {
        self.to.check().map_err(bad)
    }
}

/// What is given of it, by flag, variable or file.
#[derive(Debug, Default)]
pub(super) struct GivenTraces {
    pub(super) endpoint: Option<String>,
    pub(super) ca: Option<PathBuf>,
    pub(super) told: Option<HeadersFrom>,
    pub(super) sampling: Option<f64>,
    pub(super) headers: Option<Vec<B3Form>>,
}

impl GivenTraces {
    /// What is meant; `None`: nothing is traced.
    ///
    /// # Errors
    /// When one is not of its form, or would do nothing.
    pub(super) fn complete(self) -> Result<Option<Traces>, BadSettings> {
        let Self { endpoint, ca, told, sampling, headers } = self;
        let Some(endpoint) = endpoint else {
            let useless = [
                ("--otlp-ca", ca.is_some()),
                ("--otlp-headers", matches!(told, Some(HeadersFrom::Pairs(_)))),
                ("--otlp-headers-file", matches!(told, Some(HeadersFrom::File(_)))),
                ("--trace-sampling", sampling.is_some()),
                ("--trace-headers", headers.is_some()),
            ];
            return match useless.iter().find(|(_, given)| *given) {
                Some((flag, _)) => Err(bad(format!("{flag} without --otlp-endpoint: no spans are kept"))),
                None => Ok(None),
            };
        };
        let sampling = sampling.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&sampling) {
            return Err(bad(format!("--trace-sampling {sampling}: expected a share, 0 to 1, such as 0.01")));
        }
        let endpoint: Endpoint = endpoint.parse().map_err(|error| bad(format!("--otlp-endpoint {error}")))?;
        if ca.is_some() && !endpoint.is_secure() {
            return Err(bad(format!(
                "--otlp-ca with --otlp-endpoint {endpoint}: no certificate is asked for, write https://"
            )));
        }
        let headers_to_it = match told {
            None => Headers::None,
            Some(HeadersFrom::Pairs(pairs)) => {
                Headers::of_pairs(&pairs).map_err(|error| bad(format!("--otlp-headers: {error}")))?
            }
            Some(HeadersFrom::File(path)) => Headers::File(path),
        };
        let to = Collector { endpoint, ca, headers: headers_to_it };
        Ok(Some(Traces { to, sampling, forms: headers.unwrap_or_default().into_iter().collect() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_go_nowhere_unless_asked_for_and_a_flag_that_would_do_nothing_is_refused() {
        let given = |endpoint: Option<&str>, sampling, headers| {
            GivenTraces { endpoint: endpoint.map(str::to_owned), sampling, headers, ..GivenTraces::default() }
                .complete()
        };
        assert!(given(None, None, None).unwrap().is_none());
        let traces = given(Some("http://127.0.0.1:4318"), None, Some(vec![B3Form::B3])).unwrap().unwrap();
        assert!(traces.sampling >= 1.0 && traces.forms.single && !traces.forms.multi);
        for (wrong, word) in [
            (given(None, Some(0.5), None), "--trace-sampling without"),
            (given(None, None, Some(vec![B3Form::B3])), "--trace-headers without"),
            (given(Some("http://a"), Some(1.5), None), "0 to 1"),
            (given(Some("http://a"), Some(f64::NAN), None), "0 to 1"),
            (given(Some("grpc://a"), None, None), "--otlp-endpoint"),
        ] {
            assert!(wrong.as_ref().is_err_and(|said| said.to_string().contains(word)), "{wrong:?}");
        }
    }

    fn told(
        endpoint: Option<&str>,
        ca: Option<&str>,
        told: Option<HeadersFrom>,
    ) -> Result<Option<Traces>, BadSettings> {
        let (endpoint, ca) = (endpoint.map(str::to_owned), ca.map(PathBuf::from));
        GivenTraces { endpoint, ca, told, ..GivenTraces::default() }.complete()
    }

    #[test]
    fn what_belongs_to_a_collector_is_refused_without_one_and_a_root_where_no_certificate_is_asked_for() {
        let pairs = |pair: &str| Some(HeadersFrom::Pairs(vec![pair.to_owned()]));
        for (wrong, word) in [
            (told(None, Some("/ca.pem"), None), "--otlp-ca without"),
            (told(None, None, pairs("a=b")), "--otlp-headers without"),
            (told(None, None, Some(HeadersFrom::File("/keys".into()))), "--otlp-headers-file without"),
            (told(Some("http://a"), Some("/ca.pem"), None), "write https://"),
            (told(Some("https://a"), None, pairs("SECRET")), "--otlp-headers: expected NAME=VALUE"),
            (told(Some("https://a"), None, pairs("x-key=%SECRET")), "%25"),
            (told(Some("https://a"), None, pairs("x key=SECRET")), "\"x key\" is no name"),
            (told(Some("https://a"), None, pairs("x-key=%0ASECRET")), "x-key: its value"),
            (told(Some("https://a"), None, pairs("content-type=SECRET")), "content-type says how"),
        ] {
            let said = wrong.as_ref().err().map(ToString::to_string).unwrap_or_default();
            assert!(said.contains(word) && !said.contains("SECRET"), "{wrong:?}");
        }
        assert!(told(Some("https://a"), Some("/ca.pem"), pairs("x-key=a%2Cb")).is_ok());
    }

    #[test]
    fn files_are_looked_at_before_anything_is_sent_and_no_secret_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("given");
        let at = |path: &PathBuf| Some(HeadersFrom::File(path.clone()));
        let check = |traces: Result<Option<Traces>, BadSettings>| traces.unwrap().unwrap().check();
        for (text, word) in [
            ("", "there is no header in it"),
            ("# x-key: SECRET\n", "there is no header in it"),
            ("x-key: a\nSECRET\n", "line 2: expected NAME: VALUE"),
            ("x-key: SECRET\nX-Key: SECRET\n", "line 2: x-key is given twice"),
            ("x-key:\n", "line 1: x-key: its value"),
        ] {
            std::fs::write(&file, text).unwrap();
            let said = check(told(Some("http://127.0.0.1"), None, at(&file))).unwrap_err().to_string();
            assert!(said.contains(word) && said.starts_with("--otlp-headers-file"), "{said}");
            assert!(!said.contains("SECRET"), "{said}");
        }
        std::fs::write(&file, "# the key\n\nx-key: Bearer a=b,c\n").unwrap();
        check(told(Some("http://127.0.0.1"), None, at(&file))).unwrap();
        let said = check(told(Some("https://a"), Some(file.to_str().unwrap()), None)).unwrap_err().to_string();
        assert!(said.starts_with("--otlp-ca ") && said.contains("-----BEGIN CERTIFICATE-----"), "{said}");
        let missing = told(Some("https://a"), Some("/nowhere/ca.pem"), None);
        assert!(check(missing).unwrap_err().to_string().contains("/nowhere/ca.pem"));
    }
}
