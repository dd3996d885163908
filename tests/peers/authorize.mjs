// What whoever runs an ACME server would have it do for an account: authorize a name beforehand, or revoke a certificate of it.
//   node authorize.mjs DIRECTORY KEY.pem NAME
//   node authorize.mjs DIRECTORY KEY.pem revoke CHAIN.pem
import { X509Certificate, createPrivateKey, createPublicKey } from "node:crypto";
import { FlattenedSign, exportJWK } from "jose";

const [directory, file, name, chain] = process.argv.slice(2);
const { readFileSync } = await import("node:fs");
const key = createPrivateKey(readFileSync(file));
const { kty, crv, x, y } = await exportJWK(createPublicKey(key));
const at = await (await fetch(directory)).json();
let nonce = (await fetch(at.newNonce, { method: "HEAD" })).headers.get("replay-nonce");
let account;

async function post(url, payload) {
  for (let tries = 0; tries < 20; tries += 1) {
    const header = { alg: "ES256", nonce, url, ...(account ? { kid: account } : { jwk: { kty, crv, x, y } }) };
    const body = payload === null ? "" : JSON.stringify(payload);
    const jws = await new FlattenedSign(new TextEncoder().encode(body)).setProtectedHeader(header).sign(key);
    const answer = await fetch(url, { method: "POST", headers: { "content-type": "application/jose+json" }, body: JSON.stringify(jws) });
    nonce = answer.headers.get("replay-nonce");
    const json = await answer.json().catch(() => ({}));
    if (json.type !== "urn:ietf:params:acme:error:badNonce") return { answer, json };
  }
  throw new Error("none of its own nonces is taken");
}

const found = await post(at.newAccount, { onlyReturnExisting: true });
account = found.answer.headers.get("location");
if (!account) throw new Error(`no account: ${JSON.stringify(found.json)}`);
if (name === "revoke") {
  const certificate = new X509Certificate(readFileSync(chain)).raw.toString("base64url");
  const { answer, json } = await post(at.revokeCert, { certificate });
  console.log(answer.status === 200 ? "revoked" : JSON.stringify(json));
  process.exit(0);
}
const order = await post(at.newOrder, { identifiers: [{ type: "dns", value: name }] });
const where = order.json.authorizations[0];
const authorization = await post(where, null);
await post(authorization.json.challenges[0].url, {});
for (let tries = 0; tries < 100; tries += 1) {
  const { json } = await post(where, null);
  if (json.status === "valid") {
    console.log("valid");
    process.exit(0);
  }
  await new Promise((resolve) => setTimeout(resolve, 100));
}
console.log("still not valid");
