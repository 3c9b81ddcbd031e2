// A real OIDC provider (npm oidc-provider) behind TLS, whose keys turn over: each line of standard input is a command.
//
//   token          a fresh access token, signed with the newest key
//   rotate         a new key is published beside the old ones and signs from now on
//   retire         only the newest key is published any more
//   away, back     it stops listening, and listens again at the same port
//
// Each is answered with one line of JSON. A provider knows its keys from its start, so turning them over is starting
// another at the same address: what is published changes from one answer to the next, as it does behind a load balancer.
import { readFileSync } from 'node:fs';
import https from 'node:https';
import readline from 'node:readline';
import { exportJWK, generateKeyPair } from 'jose';
import Provider from 'oidc-provider';

const [certificate, key] = process.argv.slice(1, 3).map((path) => readFileSync(path));
const algorithms = ['RS256', 'ES256', 'PS256', 'EdDSA'];
const keys = [];
let provider, callback, issuer, port = 0;

async function newKey() {
  const alg = algorithms[keys.length % algorithms.length];
  const { privateKey } = await generateKeyPair(alg, { extractable: true });
  keys.unshift({ ...(await exportJWK(privateKey)), alg, use: 'sig', kid: `key-${keys.length}-${Date.now()}` });
}

function begin() {
  const alg = keys[0].alg;
  provider = new Provider(issuer, {
    jwks: { keys },
    clientDefaults: { id_token_signed_response_alg: alg },
    clients: [{ client_id: 'shop', client_secret: 'not-a-secret', grant_types: ['client_credentials'], redirect_uris: [], response_types: [] }],
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => 'urn:orders',
        useGrantedResource: () => true,
        getResourceServerInfo: () => ({ scope: 'read', audience: 'orders', accessTokenFormat: 'jwt', accessTokenTTL: 300, jwt: { sign: { alg } } }),
      },
    },
  });
  provider.proxy = true;
  callback = provider.callback();
}

const server = https.createServer({ cert: certificate, key }, (request, response) => callback(request, response));
const listen = () => new Promise((resolve) => server.listen(port, '127.0.0.1', resolve));

function ask(path, body) {
  const options = { method: body ? 'POST' : 'GET', ca: certificate, rejectUnauthorized: false, agent: false, headers: { 'content-type': 'application/x-www-form-urlencoded' } };
  return new Promise((resolve, reject) => {
    const request = https.request(`${issuer}${path}`, options, (response) => {
      let text = '';
      response.on('data', (data) => { text += data; });
      response.on('end', () => resolve(JSON.parse(text)));
    });
    request.on('error', reject);
    request.end(body);
  });
}

const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

await listen();
port = server.address().port;
issuer = `https://127.0.0.1:${port}`;
await newKey();
begin();
const discovered = await ask('/.well-known/openid-configuration');
say({ issuer: discovered.issuer, jwksUri: discovered.jwks_uri });
for await (const command of readline.createInterface({ input: process.stdin })) {
  switch (command) {
    case 'token': {
      const form = new URLSearchParams({ grant_type: 'client_credentials', client_id: 'shop', client_secret: 'not-a-secret', scope: 'read' });
      say(await ask('/token', form.toString()));
      break;
    }
    case 'rotate':
      await newKey();
      begin();
      say({ kid: keys[0].kid, alg: keys[0].alg });
      break;
    case 'retire':
      keys.length = 1;
      begin();
      say({ published: keys.map((one) => one.kid) });
      break;
    case 'away':
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
      say({});
      break;
    case 'back':
      await listen();
      say({});
      break;
    default:
      say({ error: `what is ${command}?` });
  }
}
process.exit(0);
