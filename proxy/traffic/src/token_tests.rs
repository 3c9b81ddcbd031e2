//! Tokens made by every kind of key and forged in every known way.

use std::sync::LazyLock;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use equerry_policies::compile;
use equerry_policies::policy::{CLOCK_SKEW, JwtRule, Mesh, MtlsMode, Origin};
use equerry_policies::view::{NamedJwtRule, Scoped, WorkloadView};
use http::header::AUTHORIZATION;
use serde_json::json;

use super::*;

const NOW: u64 = 1_800_000_000;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

struct Keys {
    ec: EcdsaKeyPair,
    other_ec: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    ed: Ed25519KeyPair,
    rsa: RsaKeyPair,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    ec: EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
    other_ec: EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
    p384: EcdsaKeyPair::generate(&signature::ECDSA_P384_SHA384_FIXED_SIGNING).unwrap(),
    ed: Ed25519KeyPair::generate().unwrap(),
    rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
});

fn ec_jwk(kid: &str, curve: &str, pair: &EcdsaKeyPair) -> Value {
    let point = &pair.public_key().as_ref()[1..];
    let (x, y) = point.split_at(point.len() / 2);
    json!({"kty": "EC", "crv": curve, "kid": kid, "x": b64(x), "y": b64(y)})
}

fn jwks() -> String {
    let keys = &*KEYS;
    let rsa = keys.rsa.public_key();
    json!({"keys": [
        ec_jwk("ec", "P-256", &keys.ec),
        ec_jwk("p384", "P-384", &keys.p384),
        {"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": b64(keys.ed.public_key())},
        {"kty": "RSA", "kid": "rsa", "n": b64(rsa.modulus().big_endian_without_leading_zero()), "e": b64(rsa.exponent().big_endian_without_leading_zero())},
    ]})
    .to_string()
}

fn sign(alg: &str, message: &[u8]) -> Vec<u8> {
    let (keys, rng) = (&*KEYS, SystemRandom::new());
    let rsa = |padding: &'static dyn signature::RsaEncoding| {
        let mut signature = vec![0; keys.rsa.public_modulus_len()];
        keys.rsa.sign(padding, &rng, message, &mut signature).unwrap();
        signature
    };
    match alg {
        "ES256" => keys.ec.sign(&rng, message).unwrap().as_ref().to_vec(),
        "ES384" => keys.p384.sign(&rng, message).unwrap().as_ref().to_vec(),
        "EdDSA" => keys.ed.sign(message).as_ref().to_vec(),
        "RS256" => rsa(&signature::RSA_PKCS1_SHA256),
        "RS384" => rsa(&signature::RSA_PKCS1_SHA384),
        "RS512" => rsa(&signature::RSA_PKCS1_SHA512),
        "PS256" => rsa(&signature::RSA_PSS_SHA256),
        "PS384" => rsa(&signature::RSA_PSS_SHA384),
        "PS512" => rsa(&signature::RSA_PSS_SHA512),
        _ => Vec::new(),
    }
}

fn claims() -> Value {
    json!({"iss": "https://issuer", "sub": "alice", "aud": ["orders", "x"], "exp": NOW + 300, "iat": NOW - 5, "tenant": "acme", "realm": {"roles": ["a", "b"]}, "level": 3})
}

fn with(change: Value) -> Value {
    let Value::Object(change) = change else { panic!("changes are an object") };
    let mut all = claims();
    for (name, value) in change {
        if value.is_null() {
            all.as_object_mut().unwrap().remove(&name);
        } else {
            all[name] = value;
        }
    }
    all
}

fn mint(header: &Value, claims: &Value) -> String {
    let signed = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
    let signature = sign(header["alg"].as_str().unwrap_or_default(), signed.as_bytes());
    format!("{signed}.{}", b64(signature))
}

fn es256(claims: &Value) -> String {
    mint(&json!({"alg": "ES256", "kid": "ec"}), claims)
}

fn rule(required: bool) -> JwtRule {
    let told = |claim: &[&str], header: &str| policy_header(claim, header);
    JwtRule {
        issuer: "https://issuer".to_owned(),
        audiences: vec!["orders".to_owned()],
        jwks: jwks(),
        fetched: None,
        places: vec![],
        forward: false,
        required_claims: vec![],
        clock_skew: CLOCK_SKEW,
        end_streams_with_token: false,
        required,
        claims_to_headers: vec![
            told(&["sub"], "x-user"),
            told(&["level"], "x-level"),
            told(&["realm", "roles"], "x-roles"),
        ],
        origin: Origin::default(),
    }
}

fn policy_header(claim: &[&str], header: &str) -> equerry_policies::policy::ClaimHeader {
    equerry_policies::policy::ClaimHeader {
        claim: claim.iter().map(|part| (*part).to_owned()).collect(),
        header: header.to_owned(),
    }
}

fn workload(rules: Vec<(Option<Vec<u16>>, JwtRule)>) -> CompiledWorkload {
    let tokens = rules
        .into_iter()
        .map(|(ports, rule)| Scoped { ports, policy: NamedJwtRule { policy: "shop/tokens".to_owned(), rule } });
    compile::workload(&WorkloadView {
        mesh: Mesh::default(),
        services: vec![],
        peer: MtlsMode::Strict,
        peer_ports: vec![],
        plain_only: false,
        plain_only_ports: Vec::new(),
        tokens: tokens.collect(),
        authorization: vec![],
        csrf: vec![],
        trusted_hops: vec![],
        tenants: vec![],
    })
    .unwrap()
}

fn verdict(
    rules: Vec<(Option<Vec<u16>>, JwtRule)>,
    authorization: Option<&str>,
) -> Result<(Caller, HeaderMap), Reason> {
    let mut headers = HeaderMap::new();
    headers.insert("x-user", HeaderValue::from_static("forged"));
    headers.append("x-user", HeaderValue::from_static("forged twice"));
    headers.insert("x-roles", HeaderValue::from_static("forged"));
    if let Some(value) = authorization {
        headers.insert(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
    }
    let outcome = verify(&workload(rules), 8080, Shown::headers(&mut headers), None, now());
    assert!(
        headers.get_all("x-user").iter().all(|value| !value.to_str().unwrap().contains("forged")),
        "stripped, whatever comes of it"
    );
    assert!(!headers.contains_key("x-roles"));
    outcome.map(|caller| (caller, headers)).map_err(|refusal| {
        assert_eq!(refusal.status().as_u16(), 401);
        refusal.reason()
    })
}

fn refused(token: &str) -> Reason {
    match verdict(vec![(None, rule(true))], Some(&format!("Bearer {token}"))) {
        Err(reason) => reason,
        Ok(_) => Reason::Ok,
    }
}

#[test]
fn a_good_token_names_the_caller_and_its_claims_are_told() {
    let (caller, headers) = verdict(vec![(None, rule(true))], Some(&format!("bearer {}", es256(&claims())))).unwrap();
    assert_eq!(caller.request_principal(), Some("https://issuer/alice"));
    assert_eq!(caller.claim(&["tenant".into()]), Some(&json!("acme")));
    assert_eq!(caller.claim(&["realm".into(), "roles".into()]), Some(&json!(["a", "b"])));
    assert_eq!(caller.claim(&["realm".into(), "nothing".into()]), None);
    assert!(headers["x-user"] == "alice" && headers["x-level"] == "3");
}

#[test]
fn every_algorithm_of_the_list_is_verified_by_its_key_and_by_no_other() {
    for (alg, kid) in [
        ("ES256", "ec"),
        ("ES384", "p384"),
        ("EdDSA", "ed"),
        ("RS256", "rsa"),
        ("RS384", "rsa"),
        ("RS512", "rsa"),
        ("PS256", "rsa"),
        ("PS384", "rsa"),
        ("PS512", "rsa"),
    ] {
        assert_eq!(refused(&mint(&json!({"alg": alg, "kid": kid}), &claims())), Reason::Ok, "{alg}");
        assert_eq!(refused(&mint(&json!({"alg": alg}), &claims())), Reason::Ok, "{alg} without a key id");
        let other = if kid == "ed" { "rsa" } else { "ed" };
        assert_eq!(
            refused(&mint(&json!({"alg": alg, "kid": other}), &claims())),
            Reason::TokenAlgorithm,
            "{alg} with another's key"
        );
    }
}

#[test]
fn algorithms_that_are_never_accepted_are_refused_as_such() {
    for alg in ["none", "None", "nOnE", "HS256", "HS512", "ES256K", "RSA1_5", ""] {
        assert_eq!(refused(&mint(&json!({"alg": alg, "kid": "ec"}), &claims())), Reason::TokenAlgorithm, "{alg}");
    }
    assert_eq!(refused(&mint(&json!({"kid": "ec"}), &claims())), Reason::TokenAlgorithm);
    let unsigned = format!("{}.{}.", b64(r#"{"alg":"none"}"#), b64(claims().to_string()));
    assert_eq!(refused(&unsigned), Reason::TokenAlgorithm);
}

#[test]
fn a_symmetric_signature_made_with_the_public_key_is_refused() {
    let signed = format!("{}.{}", b64(r#"{"alg":"HS256","kid":"ec"}"#), b64(claims().to_string()));
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, KEYS.ec.public_key().as_ref());
    let forged = format!("{signed}.{}", b64(aws_lc_rs::hmac::sign(&key, signed.as_bytes())));
    assert_eq!(refused(&forged), Reason::TokenAlgorithm);
}

#[test]
fn a_key_that_the_token_brings_along_is_never_believed() {
    let jwk = ec_jwk("ec", "P-256", &KEYS.other_ec);
    let header =
        json!({"alg": "ES256", "kid": "ec", "jwk": jwk, "jku": "https://evil/jwks.json", "x5u": "https://evil"});
    let signed = format!("{}.{}", b64(header.to_string()), b64(claims().to_string()));
    let signature = KEYS.other_ec.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    assert_eq!(refused(&format!("{signed}.{}", b64(signature))), Reason::TokenInvalid);
    let nameless = format!("{}.{}", b64(r#"{"alg":"ES256"}"#), b64(claims().to_string()));
    let signature = KEYS.other_ec.sign(&SystemRandom::new(), nameless.as_bytes()).unwrap();
    assert_eq!(refused(&format!("{nameless}.{}", b64(signature))), Reason::TokenUnknownKey);
}

#[test]
fn a_key_id_is_only_ever_looked_up() {
    for kid in ["unknown", "../../dev/null", "' OR 1=1 --", ""] {
        assert_eq!(refused(&mint(&json!({"alg": "ES256", "kid": kid}), &claims())), Reason::TokenUnknownKey, "{kid}");
    }
    assert_eq!(refused(&mint(&json!({"alg": "ES256", "kid": 1}), &claims())), Reason::TokenInvalid);
}

#[test]
fn a_changed_or_cut_token_is_refused() {
    let token = es256(&claims());
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let (header, _) = signed.split_once('.').unwrap();
    let changed = format!("{header}.{}.{signature}", b64(with(json!({"sub": "admin"})).to_string()));
    for bad in [
        changed.as_str(),
        signed,
        header,
        "",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        &format!("{signed}."),
        &format!("{token}x"),
        &format!("{signed}=.{signature}"),
        &format!(".{token}"),
    ] {
        assert_eq!(refused(bad), Reason::TokenInvalid, "{bad}");
    }
    assert_eq!(refused(&format!("{signed}.{}", b64([0_u8; 64]))), Reason::TokenInvalid, "CVE-2022-21449");
}

#[test]
fn times_are_judged_with_a_minute_of_skew() {
    for (change, reason) in [
        (json!({"exp": NOW - 59}), Reason::Ok),
        (json!({"exp": NOW - 60}), Reason::TokenExpired),
        (json!({"exp": (NOW - 30) as f64 + 0.5}), Reason::Ok),
        (json!({"exp": -1}), Reason::TokenExpired),
        (json!({"exp": 0}), Reason::TokenExpired),
        (json!({"exp": null}), Reason::TokenInvalid),
        (json!({"exp": "tomorrow"}), Reason::TokenInvalid),
        (json!({"exp": 1e300}), Reason::Ok),
        (json!({"nbf": NOW + 60}), Reason::Ok),
        (json!({"nbf": NOW + 61}), Reason::TokenInvalid),
        (json!({"nbf": "x"}), Reason::TokenInvalid),
        (json!({"iat": NOW + 61}), Reason::TokenInvalid),
    ] {
        assert_eq!(refused(&es256(&with(change.clone()))), reason, "{change}");
    }
}

#[test]
fn issuer_and_audience_must_be_exact() {
    for (change, reason) in [
        (json!({"aud": "orders"}), Reason::Ok),
        (json!({"aud": "Orders"}), Reason::TokenAudience),
        (json!({"aud": ["x"]}), Reason::TokenAudience),
        (json!({"aud": null}), Reason::TokenAudience),
        (json!({"aud": {"orders": 1}}), Reason::TokenAudience),
        (json!({"iss": "https://issuer/"}), Reason::TokenInvalid),
        (json!({"iss": null}), Reason::TokenInvalid),
        (json!({"iss": ["https://issuer"]}), Reason::TokenInvalid),
    ] {
        assert_eq!(refused(&es256(&with(change.clone()))), reason, "{change}");
    }
}

#[test]
fn unknown_critical_extensions_and_repeated_claims_are_refused() {
    assert_eq!(
        refused(&mint(&json!({"alg": "ES256", "kid": "ec", "crit": ["b64"], "b64": false}), &claims())),
        Reason::TokenInvalid
    );
    let twice = claims().to_string().replacen("{\"iss\"", "{\"sub\":\"admin\",\"iss\"", 1);
    let signed = format!("{}.{}", b64(r#"{"alg":"ES256","kid":"ec"}"#), b64(&twice));
    assert_eq!(refused(&format!("{signed}.{}", b64(sign("ES256", signed.as_bytes())))), Reason::TokenInvalid);
}

#[test]
fn a_huge_token_is_refused_before_it_is_read() {
    assert_eq!(refused(&es256(&with(json!({"pad": "x".repeat(MAX_TOKEN)})))), Reason::TokenInvalid);
}

#[test]
fn a_missing_token_is_refused_only_where_one_is_required() {
    assert_eq!(verdict(vec![(None, rule(true))], None).unwrap_err(), Reason::TokenMissing);
    assert_eq!(verdict(vec![(None, rule(true))], Some("Basic eDp5")).unwrap_err(), Reason::TokenMissing);
    let (caller, _) = verdict(vec![(None, rule(false))], None).unwrap();
    assert!(caller.claims().is_none());
    assert_eq!(
        verdict(vec![(None, rule(false))], Some("Bearer x")).unwrap_err(),
        Reason::TokenInvalid,
        "a bad one is refused anyway"
    );
}

#[test]
fn a_rule_holds_on_its_ports_alone_but_its_headers_are_stripped_on_all() {
    let (caller, headers) = verdict(vec![(Some(vec![9090]), rule(true))], None).unwrap();
    assert!(caller.claims().is_none() && !headers.contains_key("x-user"));
    assert_eq!(verdict(vec![(Some(vec![8080]), rule(true))], None).unwrap_err(), Reason::TokenMissing);
}

#[test]
fn one_of_several_rules_of_an_issuer_is_enough() {
    let elsewhere = JwtRule { audiences: vec!["elsewhere".to_owned()], ..rule(true) };
    let token = format!("Bearer {}", es256(&claims()));
    assert!(verdict(vec![(None, elsewhere.clone()), (None, rule(true))], Some(&token)).is_ok());
    assert_eq!(verdict(vec![(None, elsewhere)], Some(&token)).unwrap_err(), Reason::TokenAudience);
}

#[test]
fn a_claim_that_a_header_cannot_carry_exactly_is_not_told() {
    for sub in ["a\r\nx-admin: 1", " alice", "alice ", "a\u{0}b"] {
        let (_, headers) =
            verdict(vec![(None, rule(true))], Some(&format!("Bearer {}", es256(&with(json!({"sub": sub})))))).unwrap();
        assert!(!headers.contains_key("x-user"), "{sub:?}");
    }
}

#[test]
fn two_authorization_headers_are_refused() {
    let mut headers = HeaderMap::new();
    headers.append(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {}", es256(&claims()))).unwrap());
    headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer x"));
    let refusal =
        verify(&workload(vec![(None, rule(true))]), 8080, Shown::headers(&mut headers), None, now()).unwrap_err();
    assert_eq!(refusal.reason(), Reason::TokenInvalid);
}

#[test]
fn a_refusal_never_repeats_the_token() {
    let token = es256(&with(json!({"exp": 0})));
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}")).unwrap());
    let refusal =
        verify(&workload(vec![(None, rule(true))]), 8080, Shown::headers(&mut headers), None, now()).unwrap_err();
    assert!(!refusal.to_string().contains(&token[..20]) && refusal.cause() == Some("shop/tokens"));
}

proptest::proptest! {
    #[test]
    fn nothing_a_stranger_sends_as_a_token_is_believed_or_makes_it_panic(
        header in "[ -~]{0,40}", claims in "[ -~]{0,40}", signature in "[ -~]{0,20}", dots in "[.]{0,4}", encoded: bool,
    ) {
        let part = |text: &str| if encoded { b64(text) } else { text.to_owned() };
        let token = format!("{}.{}.{}{dots}", part(&header), part(&claims), part(&signature));
        proptest::prop_assert_ne!(refused(&token), Reason::Ok);
    }

    #[test]
    fn a_token_changed_in_any_place_is_refused(place in 0_usize..300, to in 0_u8..64) {
        let token = es256(&claims());
        let place = place % token.len();
        let letter = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[usize::from(to)];
        let mut changed = token.clone().into_bytes();
        changed[place] = letter;
        let changed = String::from_utf8(changed).unwrap();
        if changed != token {
            proptest::prop_assert_ne!(refused(&changed), Reason::Ok);
        }
    }
}

fn believing(
    believed: &mut Believed,
    workload: &Arc<CompiledWorkload>,
    token: &str,
    at: SystemTime,
) -> Result<Caller, Refusal> {
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}")).unwrap());
    headers.insert("x-user", HeaderValue::from_static("forged"));
    let caller = verify_remembering(believed, workload, 8080, Shown::headers(&mut headers), None, || at)?;
    let told = workload.tokens.claim_headers().iter().map(|header| headers.get(header).cloned()).collect::<Vec<_>>();
    assert!(!told.contains(&Some(HeaderValue::from_static("forged"))));
    Ok(caller)
}

#[test]
fn a_token_believed_before_is_believed_again_until_it_ends() {
    let (workload, mut believed) = (Arc::new(workload(vec![(None, rule(true))])), Believed::default());
    let token = es256(&claims());
    let first = believing(&mut believed, &workload, &token, now()).unwrap();
    let second = believing(&mut believed, &workload, &token, now()).unwrap();
    assert!(Arc::ptr_eq(first.token.as_ref().unwrap(), second.token.as_ref().unwrap()), "it was taken apart again");
    let late = now() + Duration::from_secs(30 * 24 * 3600);
    let refusal = believing(&mut believed, &workload, &token, late).unwrap_err();
    assert_eq!(refusal.reason(), Reason::TokenExpired);
}

#[test]
fn a_token_is_verified_anew_under_another_configuration() {
    let mut believed = Believed::default();
    let token = es256(&claims());
    believing(&mut believed, &Arc::new(workload(vec![(None, rule(true))])), &token, now()).unwrap();
    let mut without_keys = rule(true);
    without_keys.jwks = json!({"keys": [ec_jwk("ec", "P-256", &KEYS.other_ec)]}).to_string();
    let other = Arc::new(workload(vec![(None, without_keys)]));
    let refusal = believing(&mut believed, &other, &token, now()).unwrap_err();
    assert_eq!(refusal.reason(), Reason::TokenInvalid);
    assert_eq!(believed.len(), 0);
}

#[test]
fn one_changed_letter_of_a_believed_token_is_another_token() {
    let (workload, mut believed) = (Arc::new(workload(vec![(None, rule(true))])), Believed::default());
    let token = es256(&claims());
    believing(&mut believed, &workload, &token, now()).unwrap();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let forged = format!("{signed}.{}", signature.chars().rev().collect::<String>());
    assert!(believing(&mut believed, &workload, &forged, now()).is_err());
    assert_eq!(believed.len(), 1);
}

fn known() -> Known {
    let verified = Arc::new(Verified {
        issuer: String::new(),
        principal: None,
        claims: Map::new(),
        times: Times::default(),
        policy: "shop/tokens".into(),
        told: vec![],
        ends_with: None,
    });
    Known { rule: 0, verified }
}

#[test]
fn tokens_remembered_never_grow_beyond_their_bounds() {
    let (workload, mut believed) = (Arc::new(workload(vec![(None, rule(true))])), Believed::default());
    for number in 0..20_000 {
        let token = format!("token-{number:05}");
        assert!(believed.recall(&workload, 8080, &token).is_none());
        believed.remember(8080, &token, known());
        assert!(believed.recall(&workload, 8080, "token-00000").is_some(), "what is asked for stays ({number})");
        assert!(believed.recall(&workload, 8081, "token-00000").is_none(), "another port has other rules");
    }
    assert!(believed.len() <= 4096, "{}", believed.len());
}

#[test]
fn of_tokens_that_end_alike_the_last_is_remembered_and_none_is_taken_for_another() {
    let (workload, mut believed) = (Arc::new(workload(vec![(None, rule(true))])), Believed::default());
    for token in ["one.signature", "other.signature", "", "short"] {
        assert!(believed.recall(&workload, 8080, token).is_none(), "{token}");
        believed.remember(8080, token, known());
        assert!(believed.recall(&workload, 8080, token).is_some(), "{token}");
    }
    assert!(believed.recall(&workload, 8080, "one.signature").is_none());
    assert!(believed.recall(&workload, 8080, "other.signature").is_some());

    believed.remember(8081, "other.signature", known());
    for port in [8080, 8081, 8080] {
        assert!(believed.recall(&workload, port, "other.signature").is_some(), "sent to both ports by turns ({port})");
    }
}

#[path = "token_more_tests.rs"]
mod more;
