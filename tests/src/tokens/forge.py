"""Tokens as PyJWT and jwcrypto make them, good ones and forged ones: JSON on standard output.

Usage: forge.py pyjwt|jwcrypto
"""

import base64
import hashlib
import hmac
import json
import sys
import time

NOW = int(time.time())
ISSUER = "https://forged.test"
KINDS = {"rsa": ("RS256", "PS256"), "p256": ("ES256",), "p384": ("ES384",), "ed": ("EdDSA",)}


def claims(**change):
    made = {"iss": ISSUER, "aud": ["orders"], "sub": "alice", "iat": NOW, "exp": NOW + 3600, **change}
    return {name: value for name, value in made.items() if value is not None}


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def pyjwt():
    import jwt
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from jwt import algorithms, api_jws

    def make():
        return {
            "rsa": rsa.generate_private_key(public_exponent=65537, key_size=2048),
            "p256": ec.generate_private_key(ec.SECP256R1()),
            "p384": ec.generate_private_key(ec.SECP384R1()),
            "ed": ed25519.Ed25519PrivateKey.generate(),
        }

    makers = {"rsa": algorithms.RSAAlgorithm, "p256": algorithms.ECAlgorithm, "p384": algorithms.ECAlgorithm, "ed": algorithms.OKPAlgorithm}
    keys, others = make(), make()

    def jwk(kid, key):
        made = makers[kid].to_jwk(key.public_key())
        return {**(json.loads(made) if isinstance(made, str) else made), "kid": kid}

    def sign(payload, alg, kid, key=None, header=None):
        header = {"kid": kid, **(header or {})}
        if isinstance(payload, str):
            return api_jws.encode(payload.encode(), key or keys[kid], algorithm=alg, headers=header)
        return jwt.encode(payload, key or keys[kid], algorithm=alg, headers=header)

    class Any(algorithms.HMACAlgorithm):
        """PyJWT refuses to take a public key for a secret; a forger does not."""

        def prepare_key(self, key):
            return key

    def confused(kid):
        pem = keys[kid].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        jws = api_jws.PyJWS()
        jws.unregister_algorithm("HS256")
        jws.register_algorithm("HS256", Any(Any.SHA256))
        return jws.encode(json.dumps(claims()).encode(), pem, algorithm="HS256", headers={"kid": kid})

    unsigned = jwt.encode(claims(), None, algorithm="none", headers={"kid": "rsa"})
    return [jwk(kid, key) for kid, key in keys.items()], sign, others, jwk, confused, unsigned, []


def jwcrypto():
    from jwcrypto import jwe, jwk as jwks, jws

    def make():
        return {
            "rsa": jwks.JWK.generate(kty="RSA", size=2048),
            "p256": jwks.JWK.generate(kty="EC", crv="P-256"),
            "p384": jwks.JWK.generate(kty="EC", crv="P-384"),
            "ed": jwks.JWK.generate(kty="OKP", crv="Ed25519"),
        }

    keys, others = make(), make()
    allowed = ["RS256", "PS256", "PS512", "ES256", "ES384", "EdDSA", "HS256"]

    def jwk(kid, key):
        return {**key.export_public(as_dict=True), "kid": kid}

    def sign(payload, alg, kid, key=None, header=None):
        text = payload if isinstance(payload, str) else json.dumps(payload)
        header_registry = {"crit-made-up": jws.JWSEHeaderParameter("made up", False, True, None)}
        made = jws.JWS(text.encode(), header_registry=header_registry)
        made.allowed_algs = allowed
        made.add_signature(key or keys[kid], alg, json.dumps({"alg": alg, "kid": kid, **(header or {})}))
        return made.serialize(compact=True)

    def confused(kid):
        secret = jwks.JWK(kty="oct", k=b64(keys[kid].export_to_pem()))
        return sign(claims(), "HS256", kid, secret)

    unsigned = f"{b64(json.dumps({'alg': 'none', 'kid': 'rsa'}).encode())}.{b64(json.dumps(claims()).encode())}."
    sealed = jwe.JWE(json.dumps(claims()).encode(), json.dumps({"alg": "RSA-OAEP-256", "enc": "A256GCM", "kid": "rsa"}))
    sealed.add_recipient(keys["rsa"])
    more = [
        ("an encrypted token", sealed.serialize(compact=True), "token_invalid"),
        ("a detached payload", sign(claims(), "ES256", "p256").replace("." + b64(json.dumps(claims()).encode()) + ".", ".."), "token_invalid"),
    ]
    return [jwk(kid, key) for kid, key in keys.items()], sign, others, jwk, confused, unsigned, more


def main(library):
    jwks, sign, others, jwk, confused, unsigned, more = {"pyjwt": pyjwt, "jwcrypto": jwcrypto}[library]()
    tokens = [(f"good {alg}", sign(claims(), alg, kid), "ok") for kid, algs in KINDS.items() for alg in algs]
    good = sign(claims(), "ES256", "p256")
    head, body, signature = good.split(".")
    doubled = json.dumps(claims())[:-1] + ', "sub": "root"}'
    deep = json.dumps(claims())[:-1] + ', "x": ' + "[" * 500 + "]" * 500 + "}"
    raw_mac = hmac.new(json.dumps(jwks[1]).encode(), f"{b64(b'{}')}.{body}".encode(), hashlib.sha256).digest()
    tokens += [
        ("no algorithm", unsigned, "token_algorithm"),
        ("no algorithm in the header", f"{b64(b'{}')}.{body}.{b64(raw_mac)}", "token_algorithm"),
        ("a public RSA key taken for a secret", confused("rsa"), "token_algorithm"),
        ("a public EC key taken for a secret", confused("p256"), "token_algorithm"),
        ("another key under the same id", sign(claims(), "ES256", "p256", others["p256"]), "token_invalid"),
        ("another key under an unknown id", sign(claims(), "EdDSA", "ed", others["ed"], {"kid": "nobody"}), "token_unknown_key"),
        ("a key brought along", sign(claims(), "ES256", "p256", others["p256"], {"jwk": jwk("p256", others["p256"])}), "token_invalid"),
        ("a key to be fetched", sign(claims(), "ES256", "p256", others["p256"], {"jku": "https://evil.test/jwks.json"}), "token_invalid"),
        ("certificates to be fetched", sign(claims(), "RS256", "rsa", others["rsa"], {"x5u": "https://evil.test/x"}), "token_invalid"),
        ("a path as key id", sign(claims(), "ES256", "p256", others["p256"], {"kid": "../../dev/null"}), "token_unknown_key"),
        ("another algorithm of the key's kind", sign(claims(), "RS256", "rsa", header={"kid": "p256"}), "token_algorithm"),
        ("expired", sign(claims(exp=NOW - 120), "ES256", "p256"), "token_expired"),
        ("without an end", sign(claims(exp=None), "ES256", "p256"), "token_invalid"),
        ("not yet good", sign(claims(nbf=NOW + 600), "ES256", "p256"), "token_invalid"),
        ("for somebody else", sign(claims(aud=["billing"]), "ES256", "p256"), "token_audience"),
        ("of another issuer", sign(claims(iss="https://evil.test"), "ES256", "p256"), "token_invalid"),
        ("other claims under a good signature", f"{head}.{b64(json.dumps(claims(sub='root')).encode())}.{signature}", "token_invalid"),
        ("a signature of zeros", f"{head}.{body}.{b64(bytes(64))}", "token_invalid"),
        ("no signature", f"{head}.{body}.", "token_invalid"),
        ("a claim twice", sign(doubled, "ES256", "p256"), "token_invalid"),
        ("claims without end", sign(deep, "ES256", "p256"), "token_invalid"),
        ("20 KiB", sign(claims(pad="x" * 20_000), "ES256", "p256"), "token_invalid"),
        ("padding", f"{head}.{body}=.{signature}", "token_invalid"),
    ]
    critical = {"crit": ["crit-made-up"], "crit-made-up": 1}
    tokens.append(("an unknown critical extension", sign(claims(), "ES256", "p256", header=critical), "token_invalid"))
    made = [{"name": name, "token": token, "expected": expected} for name, token, expected in tokens + more]
    json.dump({"issuer": ISSUER, "jwks": {"keys": jwks}, "tokens": made}, sys.stdout)


main(sys.argv[1])
