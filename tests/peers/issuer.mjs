// A real authorization server that we did not write: oidc-provider over TLS, as strict about client assertions as
// FAPI 2.0 and the successor of RFC 7523 ask. Usage: node issuer.mjs CERTDIR JWKS_FILE LOG_FILE [PORT]
// LOG_FILE.assertion gets the last assertion, for another verifier to judge; LOG_FILE.answers a line for each answer of the token
// endpoint, with what came in, so that it can be looked at and thrown back.
// The client's keys are read from JWKS_FILE whenever the provider fetches them, so a rotation is a new file.
import { randomBytes } from 'node:crypto';
import { appendFileSync, readFileSync, writeFileSync } from 'node:fs';
import https from 'node:https';
import * as jose from 'jose';
import Provider, { errors } from 'oidc-provider';

const [certs, jwksFile, logFile, port = '0'] = process.argv.slice(2);
const log = (entry) => appendFileSync(logFile, `${JSON.stringify(entry)}\n`);
const file = (name) => readFileSync(`${certs}/${name}`);

const server = https.createServer({ key: file('server.key'), cert: file('server.pem'), minVersion: 'TLSv1.2' });
await new Promise((done) => server.listen(Number(port), '127.0.0.1', done));
const issuer = `https://localhost:${server.address().port}`;

const { privateKey } = await jose.generateKeyPair('ES256', { extractable: true });
const signingKey = { ...(await jose.exportJWK(privateKey)), alg: 'ES256', use: 'sig', kid: 'op-1' };
const EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
const ttl = () => Number(process.env.TTL ?? 300);

const client = (client_id, more = {}) => ({
  client_id,
  token_endpoint_auth_method: 'private_key_jwt',
  jwks_uri: 'https://localhost/payments.jwks.json',
  redirect_uris: [],
  response_types: [],
  grant_types: ['client_credentials'],
  ...more,
});

const provider = new Provider(issuer, {
  clients: [
    client('payments'),
    client('bound', { dpop_bound_access_tokens: true }),
    client('exchanger', { grant_types: [EXCHANGE] }),
  ],
  jwks: { keys: [signingKey] },
  clientDefaults: { id_token_signed_response_alg: 'ES256' },
  clientAuthMethods: ['private_key_jwt'],
  enabledJWA: {
    clientAuthSigningAlgValues: ['ES256', 'PS256', 'EdDSA', 'Ed25519'],
    dPoPSigningAlgValues: ['ES256', 'EdDSA', 'Ed25519'],
  },
  scopes: ['read'],
  clockTolerance: 5,
  ttl: { ClientCredentials: ttl, AccessToken: ttl },
  // The one URL it fetches is the client's JWKS: answered from the file, never from a network.
  fetch: async () => new Response(readFileSync(jwksFile), {
    headers: { 'content-type': 'application/json', 'cache-control': 'max-age=1' },
  }),
  // Stricter than it is by itself: one audience, a string, the issuer; a minute at most; the new typ.
  assertJwtClientAuthClaimsAndHeader: async (ctx, claims, header) => {
    log({ jti: claims.jti, kid: header.kid, typ: header.typ, aud: claims.aud, life: claims.exp - claims.iat });
    writeFileSync(`${logFile}.assertion`, ctx.oidc.params.client_assertion);
    const wrong = (what) => { throw new errors.InvalidClientAuth(what); };
    if (claims.aud !== issuer) wrong('aud is not the issuer alone');
    if (claims.exp - claims.iat > 60) wrong('it lives too long');
    if (header.typ !== 'client-authentication+jwt') wrong('typ');
  },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    revocation: { enabled: true, allowedPolicy: () => true },
    introspection: { enabled: true, allowedPolicy: () => true },
    dPoP: { enabled: true, nonceSecret: randomBytes(32), requireNonce: () => true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => undefined,
      useGrantedResource: () => true,
      getResourceServerInfo(ctx, resource) {
        if (resource !== 'https://api.example.test/jwt') throw new errors.InvalidTarget();
        return { scope: 'read write', audience: resource, accessTokenFormat: 'jwt', accessTokenTTL: ttl(), jwt: { sign: { alg: 'ES256' } } };
      },
    },
  },
});
// RFC 8693, which the provider leaves to whoever runs it: for tokens of a platform whose keys lie in CERTDIR/platform.jwks.json.
provider.registerGrantType(EXCHANGE, async (ctx) => {
  const { client: asking, params } = ctx.oidc;
  if (params.subject_token_type !== 'urn:ietf:params:oauth:token-type:jwt') throw new errors.InvalidRequest('subject_token_type');
  const keys = jose.createLocalJWKSet(JSON.parse(file('platform.jwks.json')));
  const subject = await jose.jwtVerify(params.subject_token, keys, { issuer: 'https://platform.example', audience: issuer })
    .catch((error) => { throw new errors.InvalidGrant(error.message); });
  const token = new provider.ClientCredentials({ client: asking, scope: params.scope });
  ctx.oidc.entity('ClientCredentials', token);
  log({ exchanged: subject.payload.sub });
  ctx.body = {
    access_token: await token.save(), issued_token_type: 'urn:ietf:params:oauth:token-type:access_token',
    token_type: token.tokenType, expires_in: token.expiration, scope: params.scope,
  };
}, ['subject_token', 'subject_token_type', 'requested_token_type', 'resource', 'scope'], []);
provider.on('grant.success', () => log({ granted: true }));
provider.on('grant.error', (ctx, error) => log({ refused: error.message, why: error.error_detail ?? error.cause?.message }));
provider.use(async (ctx, next) => {
  await next();
  if (ctx.path !== '/token') return;
  const { client_assertion: assertion } = ctx.oidc?.params ?? {};
  const proof = ctx.get('dpop');
  const claims = (jwt) => (jwt ? jose.decodeJwt(jwt) : {});
  appendFileSync(`${logFile}.answers`, `${JSON.stringify({
    status: ctx.status, error: ctx.body.error ?? 'none', new_nonce: Boolean(ctx.response.get('dpop-nonce')),
    assertion_jti: claims(assertion).jti, proof_jti: claims(proof).jti, nonce: claims(proof).nonce !== undefined,
    ath: claims(proof).ath !== undefined, assertion, proof,
  })}\n`);
});
server.on('request', provider.callback());
console.log(issuer);
for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => process.exit(0));
