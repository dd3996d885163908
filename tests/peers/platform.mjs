// A platform that gives its workloads tokens, as Kubernetes and CI systems do. Usage:
//   node platform.mjs keys CERTDIR                 a key pair there, and its public set as platform.jwks.json
//   node platform.mjs token CERTDIR AUDIENCE REF   a token of ours for whoever runs on REF
import { readFileSync, writeFileSync } from 'node:fs';
import * as jose from 'jose';

const [what, certs, audience, ref] = process.argv.slice(2);
const key = `${certs}/platform.key.json`;
if (what === 'keys') {
  const { publicKey, privateKey } = await jose.generateKeyPair('ES256', { extractable: true });
  writeFileSync(key, JSON.stringify(await jose.exportJWK(privateKey)), { mode: 0o600 });
  writeFileSync(`${certs}/platform.jwks.json`, JSON.stringify({ keys: [{ ...(await jose.exportJWK(publicKey)), alg: 'ES256', use: 'sig', kid: 'p' }] }));
} else {
  const signing = await jose.importJWK(JSON.parse(readFileSync(key)), 'ES256');
  console.log(await new jose.SignJWT({ ref, repository: 'org/shop' }).setProtectedHeader({ alg: 'ES256', kid: 'p' })
    .setIssuer('https://platform.example').setSubject('repo:org/shop').setAudience(audience).setIssuedAt().setExpirationTime('5m').sign(signing));
}
