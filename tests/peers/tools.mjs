// Servers that git, docker, kubectl and Google's auth library are pointed at, each at a port of its own: they take a token of ISSUER's
// that jose verifies, and write down who came how.  node tools.mjs CERTDIR ISSUER LOG_FILE REPOSITORY CLIENT_CA_FILE REFUSED_FILE
// REPOSITORY is a bare one with server info (git-update-server-info). Tokens whose print stands in REFUSED_FILE are taken no more.
import { createHash } from 'node:crypto';
import { appendFileSync, existsSync, readFileSync, statSync } from 'node:fs';
import https from 'node:https';
import { join, normalize } from 'node:path';
import * as jose from 'jose';

const [certs, issuer, logFile, repository, clientCa, refused] = process.argv.slice(2);
const file = (name) => readFileSync(`${certs}/${name}`);
const metadata = await (await fetch(`${issuer}/.well-known/openid-configuration`)).json();
const keys = jose.createRemoteJWKSet(new URL(metadata.jwks_uri));
const print = (token) => createHash('sha256').update(token).digest('hex').slice(0, 32);
const sha256 = (bytes) => `sha256:${createHash('sha256').update(bytes).digest('hex')}`;

async function good(token) {
  if (existsSync(refused) && readFileSync(refused, 'utf8').includes(print(token))) return false;
  return jose.jwtVerify(token, keys, { issuer, audience: 'https://api.example.test/jwt' }).then(() => true, () => false);
}

// Who asks, by Authorization: a name ('' of a Bearer token) and whether the token is good.
async function caller(request) {
  const [scheme, value = ''] = (request.headers.authorization ?? '').split(' ');
  const at = scheme === 'Basic' ? Buffer.from(value, 'base64').toString() : `:${value}`;
  const [name, token] = [at.slice(0, at.indexOf(':')), at.slice(at.indexOf(':') + 1)];
  return { scheme, name, token, ok: Boolean(token) && await good(token) };
}

async function body(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

const log = (who, { scheme, name, token, ok }, more = '') =>
  appendFileSync(logFile, `${who} ${scheme || '-'} ${name || '-'} ${token ? print(token) : '-'} ${ok ? 'yes' : 'no'}${more}\n`);

const image = (() => {
  const config = Buffer.from(JSON.stringify({ architecture: 'amd64', os: 'linux', rootfs: { type: 'layers', diff_ids: [] } }));
  const mediaType = 'application/vnd.docker.distribution.manifest.v2+json';
  const manifest = Buffer.from(JSON.stringify({
    schemaVersion: 2, mediaType, layers: [],
    config: { mediaType: 'application/vnd.docker.container.image.v1+json', size: config.length, digest: sha256(config) },
  }));
  return { config, manifest, mediaType };
})();

const servers = {
  // git by its dumb protocol: files. A server of the second kind takes Bearer tokens only.
  git: (challenge) => async (request, response) => {
    const who = await caller(request);
    log('git', who);
    if (!who.ok || (challenge === 'Bearer') !== (who.scheme === 'Bearer')) {
      return response.writeHead(401, { 'www-authenticate': `${challenge} realm="git"` }).end();
    }
    const path = join(repository, normalize(new URL(request.url, 'https://x').pathname.replace(/^\/shop\.git/, '')));
    if (!existsSync(path) || !statSync(path).isFile()) return response.writeHead(404).end();
    return response.end(readFileSync(path));
  },
  registry: () => async (request, response) => {
    const who = await caller(request);
    log('registry', who);
    response.setHeader('docker-distribution-api-version', 'registry/2.0'); // docker before 23 looks for it
    if (!who.ok) return response.writeHead(401, { 'www-authenticate': 'Basic realm="registry"' }).end('{}');
    const send = (bytes, type) => response.writeHead(200, {
      'content-type': type, 'content-length': bytes.length, 'docker-content-digest': sha256(bytes),
    }).end(request.method === 'HEAD' ? undefined : bytes);
    if (request.url.includes('/manifests/')) return send(image.manifest, image.mediaType);
    if (request.url.includes('/blobs/')) return send(image.config, 'application/octet-stream');
    return send(Buffer.from('{}'), 'application/json');
  },
  kubernetes: () => async (request, response) => {
    const who = await caller(request);
    const shown = request.socket.authorized ? request.socket.getPeerCertificate().subjectaltname : '';
    log('kubernetes', who, ` ${shown || '-'}`);
    response.setHeader('content-type', 'application/json');
    if (!who.ok && !shown) return response.writeHead(401).end('{"kind":"Status","apiVersion":"v1","status":"Failure","code":401}');
    return response.end(JSON.stringify({ served: shown || 'a token' }));
  },
  sts: () => async (request, response) => {
    const form = new URLSearchParams(await body(request));
    const token = form.get('subject_token') ?? '';
    const who = { scheme: form.get('subject_token_type').split(':').at(-1), name: form.get('audience'), token, ok: await good(token) };
    log('sts', who);
    response.setHeader('content-type', 'application/json');
    if (!who.ok) return response.writeHead(400).end('{"error":"invalid_grant"}');
    const issued = 'urn:ietf:params:oauth:token-type:access_token';
    return response.end(JSON.stringify({ access_token: `for-${print(token)}`, issued_token_type: issued, token_type: 'Bearer', expires_in: 3600 }));
  },
};

async function listen(handler, more = {}) {
  const server = https.createServer({ key: file('server.key'), cert: file('server.pem'), ...more }, (request, response) => {
    handler(request, response).catch((error) => response.writeHead(500).end(String(error)));
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  return server.address().port;
}
const asks = { requestCert: true, rejectUnauthorized: false, ca: existsSync(clientCa) ? readFileSync(clientCa) : [] };
console.log([
  await listen(servers.git('Basic')), await listen(servers.git('Bearer')), await listen(servers.registry()),
  await listen(servers.kubernetes(), asks), await listen(servers.sts()),
].join(' '));
for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => process.exit(0));
