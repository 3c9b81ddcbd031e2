//! How this sidecar asks its own application whether it is well: the flags, and what they mean together.

use equerry_policies::policy::{Ask, is_asked_path, statuses};

use super::{BadSettings, bad};

/// What is given of it, by flag, variable or file.
#[derive(Debug, Default)]
pub(super) struct GivenHealth {
    pub(super) path: Option<String>,
    pub(super) status: Option<Vec<String>>,
    pub(super) grpc: Option<String>,
}

impl GivenHealth {
    /// What is asked.
    ///
    /// # Errors
    /// When flags contradict each other, or one is not of its form.
    pub(super) fn complete(self) -> Result<Ask, BadSettings> {
        let Self { path, status: expected, grpc } = self;
        if path.is_some() && grpc.is_some() {
            return Err(bad("--health-path beside --health-grpc: one of the two is asked"));
        }
        if path.is_none() && expected.is_some() {
            return Err(bad("--health-status without --health-path: nothing is answered with a status"));
        }
        match (path, grpc) {
            (Some(path), _) if !is_asked_path(&path) => {
                Err(bad(format!("--health-path {path:?}: expected a path such as /healthz")))
            }
            (Some(path), _) => Ok(Ask::Http { path, host: None, statuses: ranges(&expected.unwrap_or_default())? }),
            (None, Some(service)) => Ok(Ask::Grpc { service }),
            (None, None) => Ok(Ask::Tcp {}),
        }
    }
}

fn ranges(written: &[String]) -> Result<Vec<(u16, u16)>, BadSettings> {
    let one = |text: &String| {
        statuses(text)
            .ok_or_else(|| bad(format!("--health-status {text:?}: expected a status such as 200, or 200-299")))
    };
    if written.is_empty() { Ok(vec![(200, 299)]) } else { written.iter().map(one).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(path: Option<&str>, status: Option<&[&str]>, grpc: Option<&str>) -> Result<Ask, String> {
        let given = GivenHealth {
            path: path.map(str::to_owned),
            status: status.map(|all| all.iter().map(|one| (*one).to_owned()).collect()),
            grpc: grpc.map(str::to_owned),
        };
        given.complete().map_err(|bad| bad.to_string())
    }

    #[test]
    fn one_thing_is_asked_and_a_flag_that_would_do_nothing_is_refused() {
        let path = "/healthz".to_owned();
        let ok = Ask::Http { path: path.clone(), host: None, statuses: vec![(200, 299)] };
        assert_eq!(given(Some("/healthz"), None, None), Ok(ok));
        let some = Ask::Http { path, host: None, statuses: vec![(200, 200), (301, 308)] };
        assert_eq!(given(Some("/healthz"), Some(&["200", "301-308"]), None), Ok(some));
        assert_eq!(given(None, None, Some("shop.v1.Search")).unwrap(), Ask::Grpc { service: "shop.v1.Search".into() });
        assert_eq!(given(None, None, None).unwrap(), Ask::Tcp {});
        for (wrong, word) in [
            (given(Some("healthz"), None, None), "--health-path"),
            (given(Some("/a"), None, Some("")), "beside --health-grpc"),
            (given(None, Some(&["200"]), None), "without --health-path"),
            (given(Some("/a"), Some(&["2xx"]), None), "--health-status"),
        ] {
            assert!(wrong.as_ref().is_err_and(|said| said.contains(word)), "{wrong:?}");
        }
    }
}
