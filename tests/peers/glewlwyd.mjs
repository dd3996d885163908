// Sets up a fresh Glewlwyd through its own API: a scope with a resource, the OpenID Connect plugin, the client `payments`, and one that a
// certificate proves, as the agent told what has to be known of it; and `others`, who have another name in theirs.
// Usage: node glewlwyd.mjs BASE_URL CLIENT_PEM_FILE NONCES(yes|no) REGISTRATION_FILE
import { readFileSync } from 'node:fs';
import * as jose from 'jose';

const [base, pem, nonces, registration] = process.argv.slice(2);
let cookie = '';
async function post(path, body) {
  const answer = await fetch(`${base}/api/${path}`, {
    method: 'POST', headers: { 'content-type': 'application/json', cookie }, body: JSON.stringify(body),
  });
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
  return answer;
}

const session = await post('auth/', { username: 'admin', password: 'password' });
cookie = session.headers.getSetCookie().map((one) => one.split(';')[0]).join('; ');
await post('scope/', { name: 'read', display_name: 'read', password_required: false });
const { privateKey } = await jose.generateKeyPair('ES256', { extractable: true });
const jwk = { ...(await jose.exportJWK(privateKey)), kid: 'glewlwyd-1', alg: 'ES256', use: 'sig' };
const off = ['code', 'token', 'id-token', 'none', 'password', 'device', 'refresh'].map((kind) => [`auth-type-${kind}-enabled`, false]);
await post('mod/plugin/', {
  module: 'oidc', name: 'oidc', display_name: 'oidc', order_rank: 0,
  parameters: {
    ...Object.fromEntries(off), 'auth-type-client-enabled': true, 'allow-non-oidc': true,
    iss: `${base}/api/oidc`, 'jwks-private': JSON.stringify({ keys: [jwk] }), 'default-kid': jwk.kid, 'jwks-show': true,
    'access-token-duration': 300, 'refresh-token-duration': 600, 'code-duration': 60, 'refresh-token-rolling': true, 'subject-type': 'public',
    'request-parameter-allow': true, 'request-uri-allow-https-non-secure': false, 'request-maximum-exp': 120,
    'client-pubkey-parameter': 'pubkey', 'client-jwks-parameter': 'jwks', 'client-jwks_uri-parameter': 'jwks_uri',
    'introspection-revocation-allowed': true, 'introspection-revocation-allow-target-client': true,
    'client-cert-source': 'TLS', 'client-cert-use-endpoint-aliases': false, 'client-cert-self-signed-allowed': false,
    'oauth-dpop-allowed': true, 'oauth-dpop-iat-duration': 60, 'oauth-dpop-iat-gap-duration': 5,
    'oauth-dpop-nonce-mandatory': nonces === 'yes', 'oauth-dpop-nonce-counter': 100,
    'resource-allowed': true, 'resource-scope': { read: ['https://api.example.test/jwt'] },
    scope: [], 'additional-parameters': [], claims: [],
  },
});
// It reads a client's key as PEM; a JWKS in its register it does not.
const client = (client_id, method, more) => post('client/?source=database', {
  client_id, name: client_id, enabled: true, confidential: true, authorization_type: ['client_credentials'], scope: ['read'],
  redirect_uri: [], token_endpoint_auth_method: [method], ...more,
});
await client('payments', 'private_key_jwt', { pubkey: readFileSync(pem, 'utf8') });
const told = JSON.parse(readFileSync(registration));
const { tls_client_auth_san_uri } = told;
await client(told.client_id, told.token_endpoint_auth_method, { tls_client_auth_san_uri });
await client('others', 'tls_client_auth', { tls_client_auth_san_uri: 'spiffe://example.test/others' });
console.log('ready');
