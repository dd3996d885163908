// A program of the old kind: it asks for a lease once, over HTTP, tells what it got, and works with it for as long as it lives.
// Usage: node holder.mjs SOCKET CREDENTIAL
import http from 'node:http';

const [socketPath, name] = process.argv.slice(2);
http.get({ socketPath, path: `/v1/credentials/${name}`, headers: { keybearer: 'v1', host: 'localhost' } }, async (response) => {
  let body = '';
  for await (const piece of response) body += piece;
  const { values, expires_in: left, reason } = JSON.parse(body);
  console.log(values ? `${values.username} ${values.password} ${left}` : `none ${response.statusCode} ${reason ?? body}`);
  // The connection may close; the process stays until it is told to go.
  setInterval(() => {}, 1 << 30);
});
process.on('SIGTERM', () => process.exit(0));
