// Judges with a library that is not ours (jose).
//   node judge.mjs token ISSUER TOKEN [CLIENT]     -> ok if the issuer signed it, for our API and scope, and for this client
//   node judge.mjs assertion ISSUER PKCS8_FILE JWKS_FILE AUDIENCE TIMES
//       sends one assertion, made of our exported key id, TIMES times; prints each HTTP status
import { readFileSync } from 'node:fs';
import * as jose from 'jose';

const [what, issuer, ...rest] = process.argv.slice(2);
const metadata = await (await fetch(`${issuer}/.well-known/openid-configuration`)).json();

if (what === 'token') {
  const keys = jose.createRemoteJWKSet(new URL(metadata.jwks_uri));
  const { payload, protectedHeader } = await jose.jwtVerify(rest[0], keys, {
    issuer, audience: 'https://api.example.test/jwt', typ: 'at+jwt', requiredClaims: ['exp', 'iat', 'jti', 'client_id'],
  });
  if (payload.scope !== 'read' || payload.client_id !== (rest[1] ?? 'payments')) throw new Error(JSON.stringify(payload));
  console.log('ok', protectedHeader.alg);
}

if (what === 'assertion') {
  const [pkcs8, jwks, audience, times] = rest;
  const jwk = JSON.parse(readFileSync(jwks)).keys[0];
  const key = await jose.importPKCS8(readFileSync(pkcs8, 'utf8'), jwk.alg);
  const assertion = await new jose.SignJWT({})
    .setProtectedHeader({ alg: jwk.alg, kid: jwk.kid, typ: 'client-authentication+jwt' })
    .setIssuer('payments').setSubject('payments').setAudience(audience)
    .setJti(crypto.randomUUID()).setIssuedAt().setExpirationTime('50s').sign(key);
  for (let time = 0; time < Number(times); time += 1) {
    const answer = await fetch(metadata.token_endpoint, {
      method: 'POST',
      body: new URLSearchParams({
        grant_type: 'client_credentials', scope: 'read', resource: 'https://api.example.test/jwt',
        client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer', client_assertion: assertion,
      }),
    });
    console.log(answer.status);
  }
}
