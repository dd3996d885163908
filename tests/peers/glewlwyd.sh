# A second authorization server that shares no code with the first, read by tests/peers/run: Glewlwyd, in C, with its own reading
# of assertions and proofs. It is 94 MB with all that it needs, so it is fetched only when tests/peers/run --all asks for it, and
# unpacked below tests/.tools: installed as a package, it would be a service that starts with the host.

debian=$tools/debian
if [ -z "$(command -v glewlwyd)" ] && [ ! -x "$debian/usr/bin/glewlwyd" ] && [ "$all" = yes ] && command -v apt-get >/dev/null; then
  mkdir -p "$tools/debs/partial"
  fetch() {
    apt-get install -y --download-only --no-install-recommends -o Debug::NoLocking=1 -o Dir::Cache::archives="$tools/debs" glewlwyd sqlite3
  }
  if { fetch || { apt-get update && fetch; }; } >/dev/null 2>&1; then
    for deb in "$tools"/debs/*.deb; do dpkg -x "$deb" "$debian"; done
    rm -rf "$tools/debs"
  fi
fi
if [ -z "$(command -v glewlwyd)" ] && [ ! -x "$debian/usr/bin/glewlwyd" ]; then
  skip "Glewlwyd as a second issuer" "it is not here; tests/peers/run --all fetches it where there is apt-get"
  return 0
fi
[ -x "$debian/usr/bin/glewlwyd" ] || debian=''
of_debian() { # COMMAND ...
  LD_LIBRARY_PATH=${debian:+$(echo "$debian"/usr/lib/*-linux-gnu | tr ' ' ':')} PATH=${debian:+$debian/usr/bin:}$PATH exec "$@"
}

thrown_back() { # what a request like ours can be used for again
  local to=https://localhost:$port/api/oidc/token assert proof
  "$keybearer" keys export --config "$stage/$agent.toml" > "$glew/jwks"
  assertion() { prover assertion "$to" "$stage/$agent/keys/payments.client-auth.pem" "$glew/jwks" payments; }
  assert=$(assertion) proof=$(prover fresh POST "$to")
  same "a request like ours is granted" "200" "$(request "$assert" "$proof" "$to" -d client_id=payments)"
  same "its proof again is refused" "403 invalid_dpop_proof" "$(request "$(assertion)" "$proof" "$to" -d client_id=payments)"
  # It says no more than the status where a client does not prove itself.
  same "and its assertion" "403" "$(request "$assert" "$(prover fresh POST "$to")" "$to" -d client_id=payments)"
}

of_a_ca() { # makes a certificate and its key in $glew, and the settings that name them
  (
    cd "$glew"
    openssl ecparam -genkey -name prime256v1 -noout -out client.key
    openssl pkcs8 -topk8 -nocrypt -in client.key -out certified.key
    chmod 600 certified.key; chmod 700 .
    openssl req -new -key client.key -subj "/CN=certified" -out client.csr
    printf 'basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=clientAuth\nsubjectAltName=URI:spiffe://example.test/certified\n' > client.ext
    openssl x509 -req -in client.csr -CA "$certs/ca.pem" -CAkey "$certs/ca.key" -CAcreateserial -days 2 -extfile client.ext -out certified.crt 2>/dev/null
  )
  printf '[identities.payments.certificate]\ncertificate = "%s"\nkey = "%s"\n' "$glew/certified.crt" "$glew/certified.key"
  for client in certified others; do
    cat <<TOML
[identities.payments.credentials.$client]
issuer = "glewlwyd"
client_id = "$client"
client_auth = "tls_client_auth"
resource = "https://api.example.test/jwt"
scope = ["read"]
binding = "mtls"
TOML
  done
}

by_certificate() { # a token that a certificate gets and binds, and what comes of one that is another's
  local certified others status thumbprint
  certified=$("$keybearer" get certified --socket "$sock" 2>&1) || true
  thumbprint=$(openssl x509 -in "$glew/certified.crt" -outform DER | openssl dgst -sha256 -binary | base64 | tr '+/' '-_' | tr -d '=')
  same "tls_client_auth, and a token bound to the certificate" "$thumbprint" "$(prover certified "$certified")"
  same "jose verifies it too" "ok ES256" "$(cd "$tools/node" && node judge.mjs token "https://localhost:$port/api/oidc" "$certified" certified 2>&1 | tail -n 1)"
  # It says no more than 403 there: a refusal, and no outage of which others hear.
  others=$("$keybearer" get others --socket "$sock" 2>&1) || true
  case $others in
    *CLIENT_AUTH_REJECTED*) ok "who has another name in its certificate is refused, and not told to wait for an outage to end" ;;
    *) no "who has another name in its certificate is refused, and not told to wait for an outage to end" "$others" ;;
  esac
  same "which is on record with all that was said" 1 \
    "$("$keybearer" audit tail --dir "$stage/$agent/audit" --json -n 50 | grep CLIENT_AUTH_REJECTED | grep -c 'answered 403 and gave no reason')"
  status=$("$keybearer" status --json --socket "$stage/run-$agent/operator.sock" | tr -d ' \n')
  case $status in *'"failures":0'*) ok "and the issuer counts as well" ;; *) no "and the issuer counts as well" "$status" ;; esac
}

second_issuer() { # yes|no: whether it wants a nonce in proofs
  local port glew=$stage/glewlwyd-$1 agent=glew-$1
  mkdir "$glew"
  port=$(node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close(); })')
  (of_debian sqlite3 "$glew/database") < "$debian"/usr/share/dbconfig-common/data/glewlwyd/install/sqlite3
  cat > "$glew/config" <<CONFIG
port=$port
bind_address="127.0.0.1"
external_url="https://localhost:$port"
login_url="login.html"
api_prefix="api"
log_mode="file"
log_level="DEBUG"
log_file="$glew/log"
session_key="KEY"
session_expiration=3600
cookie_secure=0
admin_scope="g_admin"
profile_scope="g_profile"
hash_algorithm="SHA512"
user_module_path="$debian/usr/lib/glewlwyd/user"
client_module_path="$debian/usr/lib/glewlwyd/client"
user_auth_scheme_module_path="$debian/usr/lib/glewlwyd/scheme"
plugin_module_path="$debian/usr/lib/glewlwyd/plugin"
static_files_path="$debian/usr/share/glewlwyd/webapp/"
use_secure_connection=true
secure_connection_key_file="$certs/server.key"
secure_connection_pem_file="$certs/server.pem"
secure_connection_ca_file="$certs/ca.pem"
database = { type = "sqlite3" path = "$glew/database" };
CONFIG
  of_debian glewlwyd --config-file "$glew/config" > "$glew/out" 2>&1 &
  local glew_pid=$!
  other_pids="$other_pids $glew_pid"
  for _ in $(seq 100); do
    curl -s -o /dev/null --cacert "$certs/ca.pem" "https://localhost:$port/config" && break
    sleep 0.1
  done
  cat > "$stage/$agent.toml" <<TOML
environment = "test"
state_directory = "$stage/$agent"
runtime_directory = "$stage/run-$agent"
[issuers.glewlwyd]
kind = "oauth"
issuer = "https://localhost:$port/api/oidc"
ca_file = "$certs/ca.pem"
# It compares aud with nothing else, and wants the client's name beside the assertion.
audience = "token_endpoint"
token_endpoint = "https://localhost:$port/api/oidc/token"
send_client_id = true
[identities.payments]
owner = "tests@example.com"
assurance = "interim"
match = { uid = $(id -u) }
[identities.payments.credentials.api]
issuer = "glewlwyd"
client_id = "payments"
resource = "https://api.example.test/jwt"
scope = ["read"]
[identities.payments.credentials.bearer]
issuer = "glewlwyd"
client_id = "payments"
resource = "https://api.example.test/jwt"
scope = ["read"]
binding = "bearer"
exception = { owner = "tests@example.com", reason = "a test", until = "$until" }
TOML
  of_a_ca >> "$stage/$agent.toml"
  chmod 600 "$stage/$agent.toml"
  "$keybearer" keys export --config "$stage/$agent.toml" --format pem > "$glew/client.pem"
  "$keybearer" keys export --config "$stage/$agent.toml" --registration --client certified > "$glew/certified.json"
  same "Glewlwyd, with nonces: $1, is set up" ready "$(cd "$tools/node" && node glewlwyd.mjs "https://localhost:$port" "$glew/client.pem" "$1" "$glew/certified.json" 2>&1 | tail -n 1)"
  start_agent "$stage/$agent.toml" "$agent"
  sock=$stage/run-$agent/agent.sock
  token=$("$keybearer" get api --socket "$sock" 2>&1) || true
  "$keybearer" prove api GET https://api.example.test/orders --socket "$sock" > "$stage/headers" 2>&1 || true
  same "it binds its token to the key of our proofs, as jose counts its thumbprint" "$(prover jkt "$(sed -n 's/^DPoP: //p' "$stage/headers")")" "$(prover says "$token")"
  same "jose verifies it" "ok ES256" "$(cd "$tools/node" && node judge.mjs token "https://localhost:$port/api/oidc" "$token" 2>&1 | tail -n 1)"
  if [ "$1" = yes ]; then
    same "after it wanted a nonce once" 1 "$(grep -c 'oidc_verify_dpop_proof - Invalid nonce' "$glew/log")"
  else
    thrown_back
  fi
  bearer=$("$keybearer" get bearer --socket "$sock" 2>&1) || true
  same "and none to a bearer token" "no key" "$(prover says "$bearer")"
  by_certificate
  stop_agent
  kill "$glew_pid"; wait "$glew_pid" 2>/dev/null || true
}
second_issuer no
second_issuer yes
