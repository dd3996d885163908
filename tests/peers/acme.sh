# Pebble, the ACME server that Let's Encrypt tests clients with, as the CA, read by tests/peers/run: the agent begins an account with
# a key that it destroys, is refused while the CA wants challenges, and enrols once the name is authorized. Pebble takes every
# fifth nonce for a bad one. openssl judges.

if ! command -v pebble >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get install -y --no-install-recommends pebble >/dev/null 2>&1 || true # said below
fi
if ! command -v pebble >/dev/null || ! command -v curl >/dev/null; then
  skip "ACME" "pebble is not here; install it (Debian has it) and curl to run these tests"
  return 0
fi

acme=$stage/acme
mkdir -m 700 "$acme"
free_port() { node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close(); })'; }
acme_port=$(free_port) acme_watch=$(free_port)
acme_url=https://localhost:$acme_port
acme_secret=zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W
cat > "$acme/pebble.json" <<JSON
{"pebble": {
  "listenAddress": "127.0.0.1:$acme_port", "managementListenAddress": "127.0.0.1:$acme_watch",
  "certificate": "$certs/server.pem", "privateKey": "$certs/server.key", "httpPort": 5002, "tlsPort": 5001, "ocspResponderURL": "",
  "certificateValidityPeriod": 30,
  "externalAccountBindingRequired": true, "externalAccountMACKeys": {"kid-1": "$acme_secret"}
}}
JSON
PEBBLE_VA_ALWAYS_VALID=1 PEBBLE_VA_NOSLEEP=1 PEBBLE_AUTHZREUSE=100 PEBBLE_WFE_NONCEREJECT=20 \
  pebble -config "$acme/pebble.json" > "$acme/log" 2>&1 &
other_pids="$other_pids $!"
for _ in $(seq 100); do curl -sf --cacert "$certs/ca.pem" "https://localhost:$acme_watch/roots/0" > "$acme/root.pem" && break; sleep 0.05; done

(umask 077; openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$acme/account.pem"; printf %s "$acme_secret" > "$acme/once")
write_config "$stage/acme.toml" https://localhost:1 acme
sed -i '/^\[identities.payments.credentials.api\]/,$d; /^\[issuers.op\]/,/^timeout/d' "$stage/acme.toml"
sed -i '/^\[identities.payments.key\]/,/^$/d' "$stage/acme.toml"
cat >> "$stage/acme.toml" <<TOML
[identities.payments.key]
path = "$acme/account.pem"
[identities.payments.credentials.edge]
issuer = "edge"
client_id = "kid-1"
client_auth = "bootstrap"
bootstrap = "$acme/once"
certificate = { dns = ["payments.example.test"] }
max_ttl = "1h"
[issuers.edge]
kind = "acme"
directory = "$acme_url/dir"
ca_file = "$certs/ca.pem"
roots = "$acme/root.pem"
agree_to_terms = true
timeout = "5s"
TOML
acme_get() { "$keybearer" get edge --json --socket "$stage/run-acme/agent.sock" 2>&1; }
acme_pair() { acme_get > "$acme/got"; node -e 'const got = JSON.parse(require("fs").readFileSync(process.argv[1])); console.log(got.client_certificate.chain_pem)' "$acme/got" > "$acme/chain.pem" 2>/dev/null; }
acme_serial() { openssl x509 -in "$acme/chain.pem" -noout -serial 2>/dev/null; }

start_agent "$stage/acme.toml" acme
refused=$(acme_get || true)
case $refused in *ISSUER_CONFIG*) ok "ACME: while a challenge is wanted, there is no certificate" ;; *) no "ACME: while a challenge is wanted, there is no certificate" "$refused" ;; esac
told=$("$keybearer" status --socket "$stage/run-acme/operator.sock" 2>&1)
case $told in *"this agent answers none"*) ok "and the operator is told that this agent answers none" ;; *) no "and the operator is told that this agent answers none" "$told" ;; esac
same "the key to begin with has begun the account, and is gone" "gone" "$([ -e "$acme/once" ] || echo gone)"
same "the CA authorizes the name for the account" "valid" "$(cd "$tools/node" && node authorize.mjs "$acme_url/dir" "$acme/account.pem" payments.example.test 2>&1 | tail -n 1)"
for _ in $(seq 100); do acme_pair && break; sleep 0.2; done
same "then the agent enrols, and openssl takes the chain" "$acme/chain.pem: OK" "$(openssl verify -CAfile "$acme/root.pem" -untrusted "$acme/chain.pem" "$acme/chain.pem" 2>&1 | tail -n 1)"
same "for the one name of the policy" "DNS:payments.example.test" "$(openssl x509 -in "$acme/chain.pem" -noout -ext subjectAltName | sed -n 's/^ *\(DNS.*\)/\1/p')"
first=$(acme_serial) key=$(openssl x509 -in "$acme/chain.pem" -noout -pubkey)
for _ in $(seq 250); do acme_pair; [ "$(acme_serial)" != "$first" ] && break; sleep 0.2; done
if [ "$(acme_serial)" != "$first" ] && [ "$key" != "$(openssl x509 -in "$acme/chain.pem" -noout -pubkey)" ]; then ok "it is renewed before it ends, with another key"; else no "it is renewed before it ends, with another key" "$(cat "$acme/got")"; fi
serial=$(acme_serial | cut -d= -f2 | tr A-F a-f | sed 's/^0*//')
"$keybearer" revoke payments edge --socket "$stage/run-acme/operator.sock" > /dev/null
state=''
for _ in $(seq 100); do
  state=$(curl -s --cacert "$certs/ca.pem" "https://localhost:$acme_watch/cert-status-by-serial/$serial" | node -e 'let s = ""; process.stdin.on("data", (d) => { s += d; }).on("end", () => { try { console.log(JSON.parse(s).Status); } catch { console.log(s); } })')
  [ "$state" = Revoked ] && break
  sleep 0.1
done
same "and Pebble knows what an operator revoked" "Revoked" "$state"
stop_agent
