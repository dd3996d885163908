// An API that takes a token only from whoever has the certificate that it is bound to (RFC 8705 3). TLS ends before it, at nginx,
// which hands on the certificate that it saw. Usage: node mtls-api.mjs SOCKET ISSUER...
import { X509Certificate, createHash } from 'node:crypto';
import http from 'node:http';
import * as jose from 'jose';

const [socket, ...issuers] = process.argv.slice(2);
const keys = new Map(issuers.map((issuer) => [issuer, jose.createRemoteJWKSet(new URL(`${issuer}/jwks`))]));

async function judged(request) {
  const token = (request.headers.authorization ?? '').replace(/^Bearer /, '');
  const { iss } = jose.decodeJwt(token);
  const { payload } = await jose.jwtVerify(token, keys.get(iss), { issuer: iss, audience: 'https://api.example.test/jwt' });
  const pem = decodeURIComponent(request.headers['x-client-certificate'] ?? '');
  if (!pem) throw new Error('no certificate');
  const thumbprint = createHash('sha256').update(new X509Certificate(pem).raw).digest('base64url');
  if (payload.cnf?.['x5t#S256'] !== thumbprint) throw new Error('another certificate');
  return thumbprint;
}

http.createServer(async (request, response) => {
  try {
    const thumbprint = await judged(request);
    response.writeHead(200).end(`yours ${thumbprint}\n`);
  } catch (error) {
    // What RFC 6750 3.1 wants to be told, and why for the test.
    response.writeHead(401, { 'www-authenticate': 'Bearer error="invalid_token"' }).end(`${error.message}\n`);
  }
}).listen(socket, () => console.log('ready'));
for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => process.exit(0));
