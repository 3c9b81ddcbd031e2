// Tokens as npm's jose makes them, good ones and forged ones: JSON on standard output.
import { CompactEncrypt, CompactSign, FlattenedSign, SignJWT, UnsecuredJWT, exportJWK, exportSPKI, generateKeyPair } from 'jose';

const now = Math.floor(Date.now() / 1000);
const issuer = 'https://forged.test';
const kinds = { rsa: ['RS256', 'PS256'], p256: ['ES256'], p384: ['ES384'], ed: ['EdDSA'] };
const first = { rsa: 'RS256', p256: 'ES256', p384: 'ES384', ed: 'EdDSA' };

async function make() {
  const made = {};
  for (const [kid, alg] of Object.entries(first)) made[kid] = await generateKeyPair(alg, { extractable: true });
  return made;
}

const keys = await make();
const others = await make();
const jwks = [];
for (const [kid, pair] of Object.entries(keys)) jwks.push({ ...(await exportJWK(pair.publicKey)), kid });

const claims = (change = {}) => {
  const made = { iss: issuer, aud: ['orders'], sub: 'alice', iat: now, exp: now + 3600, ...change };
  return Object.fromEntries(Object.entries(made).filter(([, value]) => value !== null));
};
const b64 = (data) => Buffer.from(data).toString('base64url');

// jose keeps each key to one algorithm (PS256 asks for a key of its own), so the RSA key is taken over.
async function keyFor(alg, key) {
  if (!alg.startsWith('PS')) return key;
  const jwk = await exportJWK(key);
  return crypto.subtle.importKey('jwk', jwk, { name: 'RSA-PSS', hash: `SHA-${alg.slice(2)}` }, true, ['sign']);
}

async function sign(payload, alg, kid, key = keys[kid].privateKey, header = {}) {
  const head = { alg, kid, ...header };
  const used = key instanceof Uint8Array ? key : await keyFor(alg, key);
  if (typeof payload === 'string') return new CompactSign(Buffer.from(payload)).setProtectedHeader(head).sign(used);
  return new SignJWT(payload).setProtectedHeader(head).sign(used);
}

const tokens = [];
const add = (name, token, expected) => tokens.push({ name, token, expected });
for (const [kid, algs] of Object.entries(kinds)) {
  for (const alg of algs) add(`good ${alg}`, await sign(claims(), alg, kid), 'ok');
}

const good = await sign(claims(), 'ES256', 'p256');
const [head, body, signature] = good.split('.');
const evil = others.p256.privateKey;
const text = JSON.stringify(claims());
const secret = async (kid) => new Uint8Array(Buffer.from(await exportSPKI(keys[kid].publicKey)));
add('no algorithm', new UnsecuredJWT(claims()).encode(), 'token_algorithm');
add('no algorithm in the header', `${b64('{}')}.${body}.${signature}`, 'token_algorithm');
add('a public RSA key taken for a secret', await sign(claims(), 'HS256', 'rsa', await secret('rsa')), 'token_algorithm');
add('a public EC key taken for a secret', await sign(claims(), 'HS256', 'p256', await secret('p256')), 'token_algorithm');
add('another key under the same id', await sign(claims(), 'ES256', 'p256', evil), 'token_invalid');
add('another key under an unknown id', await sign(claims(), 'ES256', 'nobody', evil), 'token_unknown_key');
add('a key brought along', await sign(claims(), 'ES256', 'p256', evil, { jwk: await exportJWK(others.p256.publicKey) }), 'token_invalid');
add('a key to be fetched', await sign(claims(), 'ES256', 'p256', evil, { jku: 'https://evil.test/jwks.json' }), 'token_invalid');
add('certificates to be fetched', await sign(claims(), 'ES256', 'p256', evil, { x5u: 'https://evil.test/x' }), 'token_invalid');
add('a path as key id', await sign(claims(), 'ES256', '../../dev/null', evil), 'token_unknown_key');
add("another algorithm of another key", await sign(claims(), 'RS256', 'p256', keys.rsa.privateKey), 'token_algorithm');
add('expired', await sign(claims({ exp: now - 120 }), 'ES256', 'p256'), 'token_expired');
add('without an end', await sign(claims({ exp: null }), 'ES256', 'p256'), 'token_invalid');
add('not yet good', await sign(claims({ nbf: now + 600 }), 'ES256', 'p256'), 'token_invalid');
add('for somebody else', await sign(claims({ aud: ['billing'] }), 'ES256', 'p256'), 'token_audience');
add('of another issuer', await sign(claims({ iss: 'https://evil.test' }), 'ES256', 'p256'), 'token_invalid');
add('other claims under a good signature', `${head}.${b64(JSON.stringify(claims({ sub: 'root' })))}.${signature}`, 'token_invalid');
add('a signature of zeros', `${head}.${body}.${b64(new Uint8Array(64))}`, 'token_invalid');
add('no signature', `${head}.${body}.`, 'token_invalid');
add('a claim twice', await sign(`${text.slice(0, -1)},"sub":"root"}`, 'ES256', 'p256'), 'token_invalid');
add('claims without end', await sign(`${text.slice(0, -1)},"x":${'['.repeat(500)}${']'.repeat(500)}}`, 'ES256', 'p256'), 'token_invalid');
add('20 KiB', await sign(claims({ pad: 'x'.repeat(20000) }), 'ES256', 'p256'), 'token_invalid');
const clear = new FlattenedSign(Buffer.from(text)).setProtectedHeader({ alg: 'ES256', kid: 'p256', b64: false, crit: ['b64'] });
const flat = await clear.sign(keys.p256.privateKey);
add('a payload in the clear (b64: false)', `${flat.protected}.${b64(text)}.${flat.signature}`, 'token_invalid');
const oaep = await generateKeyPair('RSA-OAEP-256', { extractable: true });
const sealed = new CompactEncrypt(Buffer.from(text)).setProtectedHeader({ alg: 'RSA-OAEP-256', enc: 'A256GCM', kid: 'rsa' });
add('an encrypted token', await sealed.encrypt(oaep.publicKey), 'token_invalid');

process.stdout.write(JSON.stringify({ issuer, jwks: { keys: jwks }, tokens }));
