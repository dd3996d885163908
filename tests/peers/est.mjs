// An EST server (RFC 7030) of a few lines, for want of one by somebody else: TLS is node's, requests, certificates and PKCS#7 are
// openssl's. node est.mjs DIRECTORY PORT, where DIRECTORY has root.{crt,key}, server.{pem,key} and the user and password in `once`.
import { execFileSync } from "node:child_process";
import { appendFileSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:https";

const [at, port] = process.argv.slice(2);
const file = (name) => `${at}/${name}`;
const openssl = (args, input) => execFileSync("openssl", args, { input, stdio: ["pipe", "pipe", "ignore"] });
let waits = 1;

function certsOnly(pem) {
  writeFileSync(file("issued.pem"), pem);
  const der = openssl(["crl2pkcs7", "-nocrl", "-certfile", file("issued.pem"), "-outform", "DER"]);
  return der.toString("base64").replace(/(.{64})/g, "$1\r\n");
}

const options = {
  cert: readFileSync(file("server.pem")), key: readFileSync(file("server.key")),
  ca: readFileSync(file("root.crt")), requestCert: true, rejectUnauthorized: false,
};
createServer(options, (request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk)).on("end", () => {
    const say = (status, body = "", headers = {}) => {
      appendFileSync(file("diary"), `${request.method} ${request.url} ${request.socket.authorized ? "certificate" : "none"} ${status}\n`);
      response.writeHead(status, headers).end(body);
    };
    const pkcs7 = (pem) => say(200, certsOnly(pem), { "content-type": "application/pkcs7-mime; smime-type=certs-only" });
    const operation = request.url.replace("/.well-known/est/", "");
    if (operation === "cacerts") return pkcs7(readFileSync(file("root.crt")));
    if (operation === "csrattrs") return say(204);
    const once = Buffer.from(readFileSync(file("once"), "utf8").trim()).toString("base64");
    if (operation === "simpleenroll" && request.headers.authorization !== `Basic ${once}`) return say(401);
    if (operation === "simplereenroll" && !request.socket.authorized) return say(403);
    if (!["simpleenroll", "simplereenroll"].includes(operation)) return say(404);
    if (operation === "simpleenroll" && waits-- > 0) return say(202, "", { "retry-after": "1" });
    writeFileSync(file("request.der"), Buffer.from(Buffer.concat(chunks).toString(), "base64"));
    openssl(["req", "-inform", "DER", "-in", file("request.der"), "-out", file("request.pem"), "-verify"]);
    const end = new Date(Date.now() + 30_000).toISOString().replace(/[-:T]/g, "").replace(/\..*/, "Z");
    openssl(["ca", "-batch", "-config", file("ca.cnf"), "-in", file("request.pem"), "-out", file("leaf.pem"), "-notext", "-enddate", end]);
    return pkcs7(readFileSync(file("leaf.pem")));
  });
}).listen(Number(port), "127.0.0.1", () => appendFileSync(file("diary"), "ready\n"));
