// oidc-provider with client certificates (RFC 8705): two listeners, of which only the one that metadata name as
// mtls_endpoint_aliases asks for certificates. Usage: node mtls-issuer.mjs CERTDIR ca|any CLIENT_FILE...
// "ca" names its CA in the handshake and takes certificates of it; "any" names none, for certificates registered themselves.
// Each CLIENT_FILE holds client metadata as `keybearer keys export --registration` writes them.
import { readFileSync } from 'node:fs';
import https from 'node:https';
import * as jose from 'jose';
import Provider, { errors } from 'oidc-provider';

const [certs, takes, ...clientFiles] = process.argv.slice(2);
const file = (name) => readFileSync(`${certs}/${name}`);
const tls = { key: file('server.key'), cert: file('server.pem'), minVersion: 'TLSv1.2' };
const open = async (options) => {
  const server = https.createServer({ ...tls, ...options });
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  return [server, `https://localhost:${server.address().port}`];
};
const [plain, issuer] = await open({});
const asks = { requestCert: true, rejectUnauthorized: false, ...(takes === 'ca' && { ca: file('ca.pem') }) };
const [asking, alias] = await open(asks);

const { privateKey } = await jose.generateKeyPair('ES256', { extractable: true });
const signingKey = { ...(await jose.exportJWK(privateKey)), alg: 'ES256', use: 'sig', kid: 'op-1' };
const shown = (ctx) => ctx.socket.getPeerX509Certificate();
const provider = new Provider(issuer, {
  clients: clientFiles.map((name) => JSON.parse(readFileSync(name))),
  scopes: ['read'],
  jwks: { keys: [signingKey] },
  clientDefaults: { id_token_signed_response_alg: 'ES256' },
  clientAuthMethods: ['private_key_jwt', 'tls_client_auth', 'self_signed_tls_client_auth'],
  enabledJWA: { clientAuthSigningAlgValues: ['ES256'] },
  ttl: { ClientCredentials: 300 },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    mTLS: {
      enabled: true,
      certificateBoundAccessTokens: true,
      selfSignedTlsClientAuth: true,
      tlsClientAuth: true,
      getCertificate: (ctx) => shown(ctx)?.toString(),
      certificateAuthorized: (ctx) => ctx.socket.authorized,
      certificateSubjectMatches: (ctx, property, expected) => {
        const names = (shown(ctx)?.subjectAltName ?? '').split(', ');
        return property === 'tls_client_auth_san_uri' && names.includes(`URI:${expected}`);
      },
    },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => undefined,
      useGrantedResource: () => true,
      getResourceServerInfo(ctx, resource) {
        if (resource !== 'https://api.example.test/jwt') throw new errors.InvalidTarget();
        return { scope: 'read', audience: resource, accessTokenFormat: 'jwt', accessTokenTTL: 300, jwt: { sign: { alg: 'ES256' } } };
      },
    },
  },
  discovery: { mtls_endpoint_aliases: { token_endpoint: `${alias}/token` } },
});
provider.on('grant.error', (ctx, error) => console.error(error.message, error.error_detail ?? error.cause?.message));
provider.on('server_error', (ctx, error) => console.error(error));
for (const server of [plain, asking]) server.on('request', provider.callback());
console.log(issuer);
for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => process.exit(0));
