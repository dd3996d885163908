# A Pebble that advises when to renew (RFC 9773), read by tests/peers/run: the CA revokes a certificate, which moves its window to the
# past, and the agent has another long before its time, in an order that says what it replaces. Debian's Pebble is older than that;
# tests/peers/run --all builds one from its source below tests/.tools, which takes a minute. Later ones certify servers only: what they
# send says no clientAuth, and is refused (X5-02).

pebble_version=v2.6.0
if [ ! -x "$tools/pebble/pebble" ] && [ "$all" = yes ] && command -v go >/dev/null; then
  mkdir -p "$tools/pebble"
  (
    cd "$tools/pebble"
    export GOPATH=$PWD/go GOCACHE=$PWD/go/cache GOFLAGS='-modcacherw -mod=mod' GOBIN=$PWD CGO_ENABLED=0
    go install "github.com/letsencrypt/pebble/v2/cmd/pebble@$pebble_version" > go.log 2>&1 || tail -n 3 go.log
    rm -rf go
  )
fi
if [ ! -x "$tools/pebble/pebble" ] || ! command -v curl >/dev/null; then
  skip "ACME that advises (ARI)" "a Pebble of $pebble_version is not here; tests/peers/run --all builds it where there are go and curl"
  return 0
fi

ari=$stage/ari
mkdir -m 700 "$ari"
ari_port=$(node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close(); })')
ari_watch=$(node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close(); })')
ari_secret=zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W
cat > "$ari/pebble.json" <<JSON
{"pebble": {
  "listenAddress": "127.0.0.1:$ari_port", "managementListenAddress": "127.0.0.1:$ari_watch",
  "certificate": "$certs/server.pem", "privateKey": "$certs/server.key", "httpPort": 5002, "tlsPort": 5001, "ocspResponderURL": "",
  "certificateValidityPeriod": 200,
  "externalAccountBindingRequired": true, "externalAccountMACKeys": {"kid-1": "$ari_secret"}
}}
JSON
PEBBLE_VA_ALWAYS_VALID=1 PEBBLE_VA_NOSLEEP=1 PEBBLE_AUTHZREUSE=100 PEBBLE_WFE_NONCEREJECT=20 \
  "$tools/pebble/pebble" -config "$ari/pebble.json" > "$ari/log" 2>&1 &
other_pids="$other_pids $!"
for _ in $(seq 100); do curl -sf --cacert "$certs/ca.pem" "https://localhost:$ari_watch/roots/0" > "$ari/root.pem" && break; sleep 0.05; done

(umask 077; openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$ari/account.pem"; printf %s "$ari_secret" > "$ari/once")
write_config "$stage/ari.toml" https://localhost:1 ari-state
sed -i '/^\[identities.payments.credentials.api\]/,$d; /^\[issuers.op\]/,/^timeout/d' "$stage/ari.toml"
cat >> "$stage/ari.toml" <<TOML
[identities.payments.key]
path = "$ari/account.pem"
[identities.payments.credentials.edge]
issuer = "edge"
client_id = "kid-1"
client_auth = "bootstrap"
bootstrap = "$ari/once"
certificate = { dns = ["payments.example.test"] }
max_ttl = "1h"
[issuers.edge]
kind = "acme"
directory = "https://localhost:$ari_port/dir"
ca_file = "$certs/ca.pem"
roots = "$ari/root.pem"
agree_to_terms = true
timeout = "5s"
TOML
ari_pair() { "$keybearer" get edge --json --socket "$stage/run-ari-state/agent.sock" > "$ari/got" 2>&1 && node -e 'console.log(JSON.parse(require("fs").readFileSync(process.argv[1])).client_certificate.chain_pem)' "$ari/got" > "$ari/chain.pem" 2>/dev/null; }
ari_serial() { openssl x509 -in "$ari/chain.pem" -noout -serial 2>/dev/null; }
ari_replaced() { grep -c 'is a replacement of' "$ari/log" || true; }
ari_asked() { grep -c 'GET /draft-ietf-acme-ari[^ ]*/renewalInfo/' "$ari/log" || true; }

# The first attempt begins the account and is told of the challenge; then the name is authorized.
start_agent "$stage/ari.toml" ari-state
ari_pair || true
for _ in $(seq 100); do [ -e "$ari/once" ] || break; sleep 0.1; done
same "ARI: the name is authorized for the account" "valid" "$(cd "$tools/node" && node authorize.mjs "https://localhost:$ari_port/dir" "$ari/account.pem" payments.example.test 2>&1 | tail -n 1)"
for _ in $(seq 100); do ari_pair && break; sleep 0.2; done
first=$(ari_serial || true)
for _ in $(seq 100); do [ "$(ari_asked)" = 0 ] || break; sleep 0.1; done
same "a certificate is had, and the CA is asked once when to renew it" "1" "$(ari_asked)"
stop_agent
same "the CA revokes it, which moves its window to the past" "revoked" "$(cd "$tools/node" && node authorize.mjs "https://localhost:$ari_port/dir" "$ari/account.pem" revoke "$ari/chain.pem" 2>&1 | tail -n 1)"
start_agent "$stage/ari.toml" ari-state
# A tenth of its life has to pass first, whatever the CA says; it would be renewed unasked at more than half.
for _ in $(seq 150); do ari_pair && [ "$(ari_serial)" != "$first" ] && break; sleep 0.2; done
if [ -n "$first" ] && [ "$(ari_serial || true)" != "$first" ]; then ok "and it is renewed soon, not when it would be"; else no "and it is renewed soon, not when it would be" "$(cat "$ari/got")"; fi
same "with a chain that openssl takes" "$ari/chain.pem: OK" "$(openssl verify -CAfile "$ari/root.pem" -untrusted "$ari/chain.pem" "$ari/chain.pem" 2>&1 | tail -n 1)"
same "in an order that says what it replaces" "1" "$(grep -c 'is a replacement of' "$ari/log" || true)"
for _ in $(seq 100); do [ "$(ari_asked)" -ge 3 ] && break; sleep 0.1; done
same "and of each certificate the CA was asked once more" "3" "$(ari_asked)"
stop_agent
