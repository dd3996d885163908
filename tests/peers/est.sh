# EST (RFC 7030), read by tests/peers/run. There is no server of somebody else's to be had, so this is no third party: a few lines of
# node answer, with TLS by node and requests, certificates and PKCS#7 by openssl.

est=$stage/est
mkdir -m 700 "$est"
cp "$certs/server.pem" "$certs/server.key" "$est/"
openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$est/root.key"
openssl req -x509 -new -key "$est/root.key" -subj "/CN=EST root" -days 2 -out "$est/root.crt" \
  -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign 2>/dev/null
cat > "$est/ca.cnf" <<CNF
[ca]
default_ca = ca_default
[ca_default]
dir = $est
database = $est/index
new_certs_dir = $est
serial = $est/serial
certificate = $est/root.crt
private_key = $est/root.key
default_md = sha256
default_days = 1
policy = anything
copy_extensions = copy
unique_subject = no
x509_extensions = leaf
[anything]
commonName = optional
[leaf]
basicConstraints = critical,CA:FALSE
CNF
: > "$est/index"; echo 01 > "$est/serial"
(umask 077; printf 'payments:once-only' > "$est/once"; cp "$est/once" "$est/agent-once")
est_port=$(node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close(); })')
node "$here/est.mjs" "$est" "$est_port" > "$est/log" 2>&1 &
other_pids="$other_pids $!"
for _ in $(seq 100); do grep -q ready "$est/diary" 2>/dev/null && break; sleep 0.05; done
write_config "$stage/est.toml" https://localhost:1 est-state
sed -i '/^\[identities.payments.credentials.api\]/,$d; /^\[issuers.op\]/,/^timeout/d' "$stage/est.toml"
cat >> "$stage/est.toml" <<TOML
[identities.payments.credentials.device]
issuer = "devices"
client_id = "payments"
client_auth = "bootstrap"
bootstrap = "$est/agent-once"
certificate = { uri = ["spiffe://example.test/device"] }
max_ttl = "1h"
[issuers.devices]
kind = "est"
url = "https://localhost:$est_port"
ca_file = "$certs/ca.pem"
root_sha256 = "$(openssl x509 -in "$est/root.crt" -outform DER | sha256sum | cut -d' ' -f1)"
timeout = "5s"
TOML
est_pair() { "$keybearer" get device --json --socket "$stage/run-est-state/agent.sock" > "$est/got" 2>&1 && node -e 'console.log(JSON.parse(require("fs").readFileSync(process.argv[1])).client_certificate.chain_pem)' "$est/got" > "$est/chain.pem" 2>/dev/null; }
est_serial() { openssl x509 -in "$est/chain.pem" -noout -serial 2>/dev/null; }

start_agent "$stage/est.toml" est-state
for _ in $(seq 100); do est_pair && break; sleep 0.2; done
same "EST (our own server, openssl's PKCS#7): after a 202 the agent enrols, and openssl takes the chain" "$est/chain.pem: OK" "$(openssl verify -CAfile "$est/root.crt" "$est/chain.pem" 2>&1 | tail -n 1)"
same "for the one name of the policy" "URI:spiffe://example.test/device" "$(openssl x509 -in "$est/chain.pem" -noout -ext subjectAltName | sed -n 's/^ *\(URI.*\)/\1/p')"
same "and what it began with is gone" "gone" "$([ -e "$est/agent-once" ] || echo gone)"
first=$(est_serial) key=$(openssl x509 -in "$est/chain.pem" -noout -pubkey)
for _ in $(seq 250); do est_pair; [ "$(est_serial)" != "$first" ] && break; sleep 0.2; done
if [ "$(est_serial)" != "$first" ] && [ "$key" != "$(openssl x509 -in "$est/chain.pem" -noout -pubkey)" ]; then ok "it is renewed by the one before, with another key"; else no "it is renewed by the one before, with another key" "$(cat "$est/got")"; fi
if grep -q 'simplereenroll certificate 200' "$est/diary"; then ok "over TLS that shows it"; else no "over TLS that shows it" "$(cat "$est/diary")"; fi
stop_agent
