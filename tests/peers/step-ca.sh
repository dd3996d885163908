# A real step-ca as the CA, read by tests/peers/run: it makes, renews and revokes the agent's certificates, and openssl and curl judge
# them. It is built from its source below tests/.tools, which takes some minutes and 1.7 GB on the way, so only when tests/peers/run --all
# asks for it. Certificates live for 20 seconds here, so that what takes days elsewhere is seen.

step_version=v0.28.4
step_ca=$(command -v step-ca || true)
if [ -z "$step_ca" ] && [ ! -x "$tools/step/step-ca" ] && [ "$all" = yes ] && command -v go >/dev/null; then
  mkdir -p "$tools/step"
  (
    cd "$tools/step"
    export GOPATH=$PWD/go GOCACHE=$PWD/go/cache GOFLAGS=-modcacherw GOBIN=$PWD CGO_ENABLED=0
    go install "github.com/smallstep/certificates/cmd/step-ca@$step_version" > go.log 2>&1 || tail -n 3 go.log
    rm -rf go
  )
fi
[ -n "$step_ca" ] || step_ca=$tools/step/step-ca
if [ ! -x "$step_ca" ] || ! command -v curl >/dev/null; then
  skip "step-ca" "it is not here; tests/peers/run --all builds it where there are go and curl"
  return 0
fi

step=$stage/step
mkdir -m 700 "$step"
step_pid=''
trap 'kill $step_pid 2>/dev/null || true; strike' EXIT
step_port=$(node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close(); })')
step_url=https://localhost:$step_port

new_root() { # DIRECTORY
  mkdir -p "$1"
  openssl ecparam -genkey -name prime256v1 -noout -out "$1/root.key"
  openssl req -x509 -new -key "$1/root.key" -subj "/CN=root" -days 2 -out "$1/root.crt" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
}
new_intermediate() { # DIRECTORY NAME
  openssl ecparam -genkey -name prime256v1 -noout -out "$1/int.key"
  openssl req -new -key "$1/int.key" -subj "/CN=$2" -out "$1/int.csr"
  printf 'basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid' > "$1/int.ext"
  openssl x509 -req -in "$1/int.csr" -CA "$1/root.crt" -CAkey "$1/root.key" -CAcreateserial -days 2 -extfile "$1/int.ext" -out "$1/int.crt" 2>/dev/null
}
new_root "$step/ca"; new_intermediate "$step/ca" first
new_root "$step/other"; new_intermediate "$step/other" foreign
# What the identity has from elsewhere, for the X5C provisioner.
(
  cd "$step"
  openssl ecparam -genkey -name prime256v1 -noout -out client.key
  (umask 077; openssl pkcs8 -topk8 -nocrypt -in client.key -out client.pem)
  openssl req -new -key client.key -subj "/CN=payments" -out client.csr
  printf 'basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=clientAuth\n' > client.ext
  openssl x509 -req -in client.csr -CA "$certs/ca.pem" -CAkey "$certs/ca.key" -CAcreateserial -days 2 -extfile client.ext -out client.crt 2>/dev/null
)
step_sum=$(openssl x509 -in "$step/ca/root.crt" -outform DER | sha256sum | cut -d' ' -f1)

step_credential() { # NAME PROVISIONER CERTIFICATE_KEYS MORE_LINES...
  local name=$1 provisioner=$2 keys=$3
  shift 3
  printf '[identities.payments.credentials.%s]\nissuer = "mesh"\nclient_id = "%s"\ncertificate = { uri = ["spiffe://example.test/%s"]%s }\n' \
    "$name" "$provisioner" "$name" "$keys"
  printf '%s\n' "$@"
}
step_config() { # FILE STATE SUM
  write_config "$1" https://localhost:1 "$2"
  sed -i '/^\[identities.payments.credentials.api\]/,$d; /^\[issuers.op\]/,/^timeout/d' "$1"
  {
    printf '[identities.payments.certificate]\ncertificate = "%s"\nkey = "%s"\n' "$step/client.crt" "$step/client.pem"
    step_credential tls agent ', dns = ["payments.example.test"]' 'max_ttl = "20s"' 'key_export = "allowed"'
    step_credential x5c vouched '' 'max_ttl = "20s"' 'client_auth = "tls_client_auth"'
    step_credential same agent ', renewal = "same_key"' 'max_ttl = "20s"'
    step_credential fixed fixed '' 'max_ttl = "20s"'
    step_credential long agent '' 'max_ttl = "12h"'
    printf '[issuers.mesh]\nkind = "step-ca"\nurl = "%s"\nroot_sha256 = "%s"\ntimeout = "5s"\n' "$step_url" "$3"
  } >> "$1"
}
step_config "$stage/step.toml" step "$step_sum"
export_keys "$stage/step.toml" > "$step/keys.json"

start_ca() { # DIRECTORY
  node -e '
    const [at, keys, port, db, x5c] = process.argv.slice(1), fs = require("fs");
    const key = JSON.parse(fs.readFileSync(keys)).keys.find((key) => !key.x5c);
    console.log(JSON.stringify({
      root: `${at}/root.crt`, crt: `${at}/int.crt`, key: `${at}/int.key`, address: `127.0.0.1:${port}`, dnsNames: ["localhost"],
      logger: { format: "json" }, db: { type: "badgerv2", dataSource: db },
      authority: {
        claims: { minTLSCertDuration: "5s", maxTLSCertDuration: "24h", defaultTLSCertDuration: "24h" },
        provisioners: [
          { type: "JWK", name: "agent", key }, { type: "JWK", name: "fixed", key, claims: { disableRenewal: true } },
          { type: "X5C", name: "vouched", roots: fs.readFileSync(x5c).toString("base64") },
        ],
      },
      tls: { minVersion: 1.2, maxVersion: 1.3 },
    }));' "$1" "$step/keys.json" "$step_port" "$step/db" "$certs/ca.pem" > "$step/ca.json"
  "$step_ca" "$step/ca.json" >> "$step/ca.log" 2>&1 &
  step_pid=$!
  for _ in $(seq 200); do
    if curl -fs -o /dev/null --cacert "$1/root.crt" "$step_url/health"; then return; fi
    if ! kill -0 "$step_pid" 2>/dev/null; then tail -n 5 "$step/ca.log"; return; fi
    sleep 0.05
  done
}
stop_ca() { kill "$step_pid"; wait "$step_pid" 2>/dev/null || true; step_pid=''; }
seen_by_ca() { grep -c "\"path\":\"$1\".*\"status\":$2" "$step/ca.log" || true; } # PATH STATUS

step_sock=$stage/run-step/agent.sock
# Gets one and takes it apart; prints its serial number, or what was said instead.
had() { # NAME
  local at=$step/$1
  if ! "$keybearer" get "$1" --json --socket "${2:-$step_sock}" > "$at.got" 2> "$at.err"; then cat "$at.err"; return; fi
  member client_certificate.chain_pem < "$at.got" > "$at.chain"
  member bundle_pem < "$at.got" > "$at.bundle"
  openssl x509 -in "$at.chain" -noout -serial
}
another() { # NAME SERIAL SECONDS: waits for one that is not that, and prints its serial number
  local now=''
  for _ in $(seq $((${3:-25} * 5))); do
    now=$(had "$1")
    case $now in serial=*) if [ "$now" != "$2" ]; then echo "$now"; return; fi ;; esac
    sleep 0.2
  done
  echo "none after a while: $now"
}
judged() { # NAME: what openssl says of it
  local at=$step/$1
  openssl verify -purpose sslclient -CAfile "$step/ca/root.crt" -untrusted "$at.chain" "$at.chain" 2>&1 | sed "s#.*: ##"
  openssl x509 -in "$at.chain" -noout -ext subjectAltName 2>/dev/null | sed -n '2s/^ *//p'
}
public_of() { openssl x509 -in "$step/$1.chain" -noout -pubkey; }

# --- CA-03 ------------------------------------------------------------------------------------------------------------
start_ca "$step/ca"
step_config "$stage/pinned.toml" pinned "$(printf 0%.0s $(seq 64))"
start_agent "$stage/pinned.toml" pinned
case $(had long "$stage/run-pinned/agent.sock") in
  *ISSUER_MISMATCH*) ok "step-ca: a root with another sum than the settings say is not trusted" ;;
  *) no "step-ca: a root with another sum than the settings say is not trusted" "$(cat "$step/long.err")" ;;
esac
same "and nothing was sent that tells of us" 0 "$(seen_by_ca /1.0/sign '[0-9]*')"
stop_agent

# --- CA-01 ------------------------------------------------------------------------------------------------------------
start_agent "$stage/step.toml" step
tls=$(had tls) x5c=$(had x5c) fixed=$(had fixed) renewed=$(had same)
same "step-ca: a certificate by the identity's key, as openssl reads it" "OK URI:spiffe://example.test/tls, DNS:payments.example.test" "$(judged tls | sed 's/DNS:\(.*\), URI:\(.*\)/URI:\2, DNS:\1/' | paste -sd' ')"
same "and by the certificate of another CA" "OK URI:spiffe://example.test/x5c" "$(judged x5c | paste -sd' ')"
same "the bundle is the root" "$(openssl x509 -in "$step/ca/root.crt" -noout -fingerprint)" "$(openssl x509 -in "$step/tls.bundle" -noout -fingerprint)"
member client_certificate.key_pem < "$step/x5c.got" > "$step/x5c.key"
same "its key does not go out where that is not allowed" "" "$(cat "$step/x5c.key")"
long=$(had long)

# --- CA-02 ------------------------------------------------------------------------------------------------------------
key=$(public_of tls) same_key=$(public_of same)
next=$(another tls "$tls")
case $next in serial=*) ok "step-ca: it is renewed before it ends" ;; *) no "step-ca: it is renewed before it ends" "$next" ;; esac
if [ "$(seen_by_ca /1.0/rekey 201)" -ge 1 ] && [ "$key" != "$(public_of tls)" ]; then ok "with another key"; else no "with another key" "$(seen_by_ca /1.0/rekey 201) times"; fi
same "and openssl takes it" "OK" "$(judged tls | head -n 1)"
another same "$renewed" > "$step/same.next"
if [ "$(seen_by_ca /1.0/renew 201)" -ge 1 ] && [ "$same_key" = "$(public_of same)" ]; then ok "and with the same key where the settings say so"; else no "and with the same key where the settings say so" "$(cat "$step/same.next")"; fi
case $(another fixed "$fixed") in
  serial=*) if [ "$(seen_by_ca /1.0/rekey 401)" -ge 1 ]; then ok "what a provisioner does not renew is asked for anew"; else no "what a provisioner does not renew is asked for anew" "nothing was refused"; fi ;;
  *) no "what a provisioner does not renew is asked for anew" "$(cat "$step/fixed.err")" ;;
esac
case $(another x5c "$x5c") in serial=*) ok "and so on for the other CA's" ;; *) no "and so on for the other CA's" "$(cat "$step/x5c.err")" ;; esac

# --- X5-07 ------------------------------------------------------------------------------------------------------------
tls=$(had tls)
cp "$step/tls.chain" "$step/ended.chain"
(umask 077; member client_certificate.key_pem < "$step/tls.got" > "$step/ended.key")
"$keybearer" revoke payments tls --socket "$stage/run-step/operator.sock" > /dev/null
case $(another tls "$tls" 5) in serial=*) ok "step-ca: what an operator revokes is replaced at once" ;; *) no "step-ca: what an operator revokes is replaced at once" "$(cat "$step/tls.err")" ;; esac
for _ in $(seq 50); do [ "$(seen_by_ca /1.0/revoke 200)" -ge 1 ] && break; sleep 0.1; done
same "and is good for nothing any more there" 401 "$(curl -s -o /dev/null -w '%{http_code}' --cacert "$step/ca/root.crt" --cert "$step/ended.chain" --key "$step/ended.key" -X POST "$step_url/1.0/renew")"

# --- the CA is gone, and the agent starts again ------------------------------------------------------------------------
tls=$(had tls)
stop_ca
same "step-ca: while it is gone, what is live is served" "$tls" "$(had tls)"
stop_agent
start_agent "$stage/step.toml" step
same "and what is kept, over a restart" "$long" "$(another long '' 5)"
gone=''
for _ in $(seq 125); do gone=$(had tls); case $gone in serial=*) sleep 0.2 ;; *) break ;; esac; done
case $gone in *ISSUER_UNAVAILABLE*) ok "until it ends" ;; *) no "until it ends" "$gone" ;; esac
sleep 2 # Its certificate has ended by the wall too: what is handed out ends a little earlier.
# Another intermediate under the same root.
new_intermediate "$step/ca" second
signed=$(seen_by_ca /1.0/sign 201)
start_ca "$step/ca"
# The agent stays away from whoever did not answer for a minute at most (CLK-05).
back=$(another tls "$tls" 75)
case $back in serial=*) ok "when it is back, another is had" ;; *) no "when it is back, another is had" "$back" ;; esac
if [ "$(seen_by_ca /1.0/sign 201)" -gt "$signed" ]; then ok "as if for the first time"; else no "as if for the first time" "no request to sign"; fi
same "from another intermediate, since the root is the same" "OK CN=second" "$(judged tls | head -n 1) $(openssl x509 -in "$step/tls.chain" -noout -issuer -nameopt RFC2253 | sed 's/issuer=//')"

# --- another root -----------------------------------------------------------------------------------------------------
tls=$(had tls)
stop_ca
start_ca "$step/other"
signed=$(seen_by_ca '/1.0/[a-z]*' '[0-9]*')
refused=''
for _ in $(seq 125); do
  refused=$("$keybearer" status --json --socket "$stage/run-step/operator.sock" 2>/dev/null | grep -o 'ISSUER_TLS' | head -n 1 || true)
  [ -n "$refused" ] && break
  sleep 0.2
done
same "step-ca: under another root it is a stranger" ISSUER_TLS "$refused"
same "to whom nothing is said" "$signed" "$(seen_by_ca '/1.0/[a-z]*' '[0-9]*')"
same "and what lives long is served" "$long" "$(had long)"
stop_ca
start_ca "$step/ca"

# --- what the settings no longer name ---------------------------------------------------------------------------------
kept=$stage/step/keys/payments.long.certificate.pem
revoked=$(seen_by_ca /1.0/revoke 200)
if [ -f "$kept" ]; then ok "step-ca: a certificate is kept for the next start"; else no "step-ca: a certificate is kept for the next start" "no $kept"; fi
sed -i '/^\[identities.payments.credentials.long\]/,/^max_ttl/d' "$stage/step.toml"
"$keybearer" reload --socket "$stage/run-step/operator.sock" > /dev/null
for _ in $(seq 300); do [ "$(seen_by_ca /1.0/revoke 200)" -gt "$revoked" ] && break; sleep 0.1; done
same "taken out of the settings, it is revoked once" $((revoked + 1)) "$(seen_by_ca /1.0/revoke 200)"
if [ ! -f "$kept" ]; then ok "and kept no more"; else no "and kept no more" "$kept is there"; fi
stop_agent
verified=$("$keybearer" audit verify --dir "$stage/step/audit" 2>&1) && ok "the ledger verifies: ${verified##*: }" || no "the ledger verifies" "$verified"
stop_ca
trap strike EXIT
