// oidc-provider with dynamic registration (RFC 7591) and its management (RFC 7592): every update gives another registration
// access token and ends the one before. It takes assertions, and certificates that are registered themselves (RFC 8705). Usage: node registration.mjs CERTDIR LOG_FILE
// LOG_FILE gets a line for each update, with the keys there are, and for each assertion, with the key that signed it.
import { appendFileSync, readFileSync } from 'node:fs';
import https from 'node:https';
import * as jose from 'jose';
import Provider from 'oidc-provider';

const [certs, logFile] = process.argv.slice(2);
const log = (entry) => appendFileSync(logFile, `${JSON.stringify(entry)}\n`);
const file = (name) => readFileSync(`${certs}/${name}`);
const server = https.createServer({
  key: file('server.key'), cert: file('server.pem'), minVersion: 'TLSv1.2', requestCert: true, rejectUnauthorized: false,
});
await new Promise((done) => server.listen(0, '127.0.0.1', done));
const issuer = `https://localhost:${server.address().port}`;
const { privateKey } = await jose.generateKeyPair('ES256', { extractable: true });

const provider = new Provider(issuer, {
  jwks: { keys: [{ ...(await jose.exportJWK(privateKey)), alg: 'ES256', use: 'sig', kid: 'op-1' }] },
  clientDefaults: { id_token_signed_response_alg: 'ES256' },
  clientAuthMethods: ['private_key_jwt', 'self_signed_tls_client_auth'],
  enabledJWA: { clientAuthSigningAlgValues: ['ES256'] },
  scopes: ['read'],
  ttl: { ClientCredentials: 300 },
  assertJwtClientAuthClaimsAndHeader: async (ctx, claims, header) => log({ signed: header.kid }),
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    mTLS: {
      enabled: true,
      certificateBoundAccessTokens: true,
      selfSignedTlsClientAuth: true,
      getCertificate: (ctx) => ctx.socket.getPeerX509Certificate()?.toString(),
    },
    registration: { enabled: true },
    registrationManagement: { enabled: true, rotateRegistrationAccessToken: true },
  },
});
provider.on('registration_update.success', async (ctx) => {
  log({ updated: ctx.body.jwks.keys.map((key) => key.kid), name: ctx.body.client_name });
});
for (const error of ['registration_update', 'registration_read', 'grant']) {
  provider.on(`${error}.error`, (ctx, why) => log({ refused: error, why: why.error_description ?? why.message }));
}
provider.on('server_error', (ctx, error) => console.error(error));
server.on('request', provider.callback());
console.log(issuer);
for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => process.exit(0));
