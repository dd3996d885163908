// What jose says of bound tokens, and what somebody else would make of them.
//   node prover.mjs jkt PROOF                                 -> the thumbprint of the proof's key (RFC 7638)
//   node prover.mjs says TOKEN                                -> the thumbprint that the token names
//   node prover.mjs certified TOKEN                           -> the thumbprint of the certificate that the token names (RFC 8705)
//   node prover.mjs fresh METHOD URL [TOKEN] [NONCE]          -> a proof by a key made now
//   node prover.mjs assertion ISSUER PKCS8_FILE JWKS_FILE CLIENT -> a fresh assertion by the agent's own key for the audience ISSUER
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import * as jose from 'jose';

const [what, ...rest] = process.argv.slice(2);
const verbs = {
  async jkt(proof) {
    const { protectedHeader } = await jose.jwtVerify(proof, jose.EmbeddedJWK, { typ: 'dpop+jwt' });
    return jose.calculateJwkThumbprint(protectedHeader.jwk, 'sha256');
  },
  says: (token) => jose.decodeJwt(token).cnf?.jkt ?? 'no key',
  certified: (token) => jose.decodeJwt(token).cnf?.['x5t#S256'] ?? 'no certificate',
  async fresh(htm, htu, token, nonce) {
    const { privateKey, publicKey } = await jose.generateKeyPair('ES256', { extractable: true });
    const { kty, crv, x, y } = await jose.exportJWK(publicKey);
    const ath = token && createHash('sha256').update(token).digest('base64url');
    return new jose.SignJWT({ htm, htu, ...(ath && { ath }), ...(nonce && { nonce }) })
      .setProtectedHeader({ alg: 'ES256', typ: 'dpop+jwt', jwk: { kty, crv, x, y } })
      .setJti(crypto.randomUUID()).setIssuedAt().sign(privateKey);
  },
  async assertion(issuer, pkcs8, jwks, client) {
    const pem = readFileSync(pkcs8, 'utf8');
    const jwk = JSON.parse(readFileSync(jwks)).keys[0];
    return new jose.SignJWT({})
      .setProtectedHeader({ alg: jwk.alg, kid: jwk.kid, typ: 'client-authentication+jwt' })
      .setIssuer(client).setSubject(client).setAudience(issuer)
      .setJti(crypto.randomUUID()).setIssuedAt().setExpirationTime('50s').sign(await jose.importPKCS8(pem, jwk.alg));
  },
};
// A failure has a line that is like no other's, so that two of them are never taken for the same answer.
console.log(await Promise.resolve().then(() => verbs[what](...rest)).catch((error) => `${what} failed: ${error.message}`));
