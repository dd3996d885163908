// An API whose checks we did not write: oauth4webapi reads the token and the proof. Added to that, what RFC 9449 leaves to the
// server: a nonce that is good once, and no proof twice. Usage: node api.mjs CERTDIR ISSUER LOG_FILE -> its URL
// The answer's body says why; LOG_FILE gets a line for each proof that was taken, for another library to judge.
import { randomUUID } from 'node:crypto';
import { appendFileSync, readFileSync } from 'node:fs';
import https from 'node:https';
import * as oauth from 'oauth4webapi';

const [certs, issuer, logFile] = process.argv.slice(2);
const as = await oauth.processDiscoveryResponse(new URL(issuer), await oauth.discoveryRequest(new URL(issuer)));
const seen = new Set();
let nonce = randomUUID();

async function judge(incoming) {
  // The URL as it came over the wire: the path is what the client sent, byte for byte.
  const url = `https://${incoming.headers.host.toLowerCase()}${incoming.url}`;
  const { authorization = '', dpop = '' } = incoming.headers;
  const headers = { ...(authorization && { authorization }), ...(dpop && { dpop }) };
  try {
    await oauth.validateJwtAccessToken(as, new Request(url, { method: incoming.method, headers }), 'https://api.example.test/jwt', {
      requireDPoP: true, signingAlgorithms: ['ES256', 'Ed25519'],
    });
  } catch (error) {
    return `refused: ${error.message}`;
  }
  const claims = JSON.parse(Buffer.from(dpop.split('.')[1], 'base64url'));
  if (seen.has(claims.jti)) return 'replayed';
  if (claims.nonce !== nonce) return 'use_dpop_nonce';
  seen.add(claims.jti);
  appendFileSync(logFile, `${JSON.stringify({ method: incoming.method, url, nonce, proof: dpop, token: authorization.split(' ')[1] })}\n`);
  nonce = randomUUID();
  return 'ok';
}

const server = https.createServer({ key: readFileSync(`${certs}/api.key`), cert: readFileSync(`${certs}/api.pem`) }, async (incoming, answer) => {
  const verdict = await judge(incoming);
  answer.setHeader('DPoP-Nonce', nonce);
  if (verdict !== 'ok') {
    answer.statusCode = 401;
    const error = verdict === 'use_dpop_nonce' ? verdict : 'invalid_token';
    answer.setHeader('WWW-Authenticate', `DPoP error="${error}", algs="ES256 Ed25519"`);
  }
  answer.end(verdict);
});
server.listen(0, '127.0.0.1', () => console.log(`https://localhost:${server.address().port}`));
for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => process.exit(0));
