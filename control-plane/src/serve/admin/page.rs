//! Pages of a list. A page ends at a key, and the next begins after it: whatever comes and goes between two pages, what stays is
//! told once.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::params::Listing;
use super::shapes::{FieldError, Problem, Rest};

/// Part of a list.
#[derive(Debug)]
pub(super) struct Page<T> {
    /// The items, sorted by key.
    pub(super) items: Vec<T>,
    /// What comes after them, as far as is known now.
    pub(super) rest: Rest,
}

/// What a `continue` token says: the last key told, and of which list.
#[derive(Serialize, Deserialize)]
struct Token<K> {
    of: String,
    after: K,
}

/// The page that is asked for of `all`, which is sorted by key. `of` tells this list from others: what else was asked for.
///
/// # Errors
/// When the token is none of this list.
pub(super) fn page<K, T>(all: Vec<(K, T)>, listing: &Listing, of: &str) -> Result<Page<T>, Problem>
where
    K: Ord + Serialize + DeserializeOwned,
{
    let of = format!("{of} {:?} {:?}", listing.namespace, listing.labels);
    let of = equerry_wire::version_of(of.as_bytes());
    let after = listing.after.as_deref().map(|token| read(token, &of)).transpose()?;
    let begin = after.map_or(0, |after: K| all.partition_point(|(key, _)| *key <= after));
    let left = all.len() - begin;
    let count = listing.limit.unwrap_or(left).min(left);
    let remaining = left - count;
    let mut last = None;
    let mut items = Vec::with_capacity(count);
    for (key, item) in all.into_iter().skip(begin).take(count) {
        items.push(item);
        last = Some(key);
    }
    let next = last.filter(|_| remaining > 0).map(|after| written(&Token { of, after }));
    Ok(Page { items, rest: Rest { next, remaining: (remaining > 0).then_some(remaining) } })
}

fn written<K: Serialize>(token: &Token<K>) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(token).unwrap_or_default())
}

fn read<K: DeserializeOwned>(text: &str, of: &str) -> Result<K, Problem> {
    let token = URL_SAFE_NO_PAD.decode(text).ok().and_then(|json| serde_json::from_slice::<Token<K>>(&json).ok());
    token.filter(|token| token.of == of).map(|token| token.after).ok_or_else(|| {
        let expected =
            "found something else, expected the `continue` of this very list: the same path, filters and selector";
        Problem::bad_field(FieldError::in_parameter("continue", expected))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(limit: usize, after: Option<String>) -> Listing {
        Listing { limit: Some(limit), after, ..Listing::default() }
    }

    fn list(keys: &[u32]) -> Vec<(u32, u32)> {
        keys.iter().map(|key| (*key, *key)).collect()
    }

    #[test]
    fn what_stays_is_told_once_whatever_comes_and_goes_between_two_pages() {
        let first = page(list(&[1, 3, 5, 7]), &asked(2, None), "x").unwrap();
        assert_eq!((first.items, first.rest.remaining), (vec![1, 3], Some(2)));
        // The last one told goes, one comes before it and one after it.
        let second = page(list(&[0, 1, 4, 5, 7]), &asked(2, first.rest.next.clone()), "x").unwrap();
        assert_eq!((second.items, second.rest.remaining), (vec![4, 5], Some(1)));
        let third = page(list(&[0, 7]), &asked(2, second.rest.next), "x").unwrap();
        assert_eq!((third.items, third.rest), (vec![7], Rest::default()));
        let nothing = page(list(&[]), &asked(2, first.rest.next), "x").unwrap();
        assert_eq!((nothing.items.len(), nothing.rest), (0, Rest::default()));
    }

    #[test]
    fn a_token_of_another_list_is_refused_with_its_parameter() {
        let first = page(list(&[1, 2]), &asked(1, None), "services").unwrap();
        for (token, of) in [
            (first.rest.next.clone(), "proxies"),
            (Some("nonsense".into()), "services"),
            (Some("e30".into()), "services"),
        ] {
            let problem = page(list(&[1, 2]), &asked(1, token), of).unwrap_err();
            assert_eq!(problem.errors[0].parameter.as_deref(), Some("continue"), "{problem:?}");
        }
        let narrowed =
            Listing { labels: super::super::selector::Selector::parse("a=b").unwrap(), ..asked(1, first.rest.next) };
        assert!(page(list(&[1, 2]), &narrowed, "services").is_err());
    }

    #[test]
    fn without_a_limit_everything_is_one_page() {
        let all = page(list(&[1, 2, 3]), &Listing::default(), "x").unwrap();
        assert_eq!((all.items, all.rest), (vec![1, 2, 3], Rest::default()));
    }
}
