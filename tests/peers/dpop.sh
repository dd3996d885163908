# Tokens bound by DPoP among third parties, read by tests/peers/run: oidc-provider that wants a nonce in each proof, an API on
# oauth4webapi, jose and requests-oauth2client as judges, curl as the thief.

# --- the stage --------------------------------------------------------------------------------------------------------
kill "$issuer_pid"; wait "$issuer_pid" 2>/dev/null || true
rm -f "$stage"/issuer.log*
start_issuer

(
  cd "$certs"
  openssl ecparam -genkey -name prime256v1 -noout -out api.key
  openssl req -new -key api.key -subj "/CN=an API" -out api.csr
  printf 'extendedKeyUsage=serverAuth\nsubjectAltName=DNS:localhost,DNS:api.example,IP:127.0.0.1,IP:2001:db8::1\n' > api.ext
  openssl x509 -req -in api.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile api.ext -out api.pem 2>/dev/null
)
: > "$stage/api.log"
: > "$stage/api.out"
(cd "$tools/node" && exec node api.mjs "$certs" "$issuer" "$stage/api.log") > "$stage/api.out" 2> "$stage/api.err" &
api_pid=$!
other_pids="$other_pids $api_pid"
api=$(timeout 30 tail -n +1 -f --pid="$api_pid" "$stage/api.out" | head -n 1) || true
if [ -z "$api" ]; then cat "$stage/api.err"; exit 1; fi

cat > "$stage/dpop.toml" <<TOML
environment = "test"
state_directory = "$stage/dpop"
runtime_directory = "$stage/run-dpop"
[listen]
workload_mode = "0666"
http_mode = "0666"
[issuers.op]
kind = "oauth"
issuer = "$issuer"
ca_file = "$certs/ca.pem"
timeout = "5s"
[identities.payments]
owner = "tests@example.com"
assurance = "interim"
match = { uid = $(id -u) }
[identities.payments.credentials.api]
issuer = "op"
client_id = "payments"
resource = "https://api.example.test/jwt"
scope = ["read"]
origins = ["$api", "https://api.example", "https://api.example:8443", "https://[2001:db8::1]", "$issuer"]
# For a client that the issuer gives nothing without a proof.
[identities.payments.credentials.must]
issuer = "op"
client_id = "bound"
resource = "https://api.example.test/jwt"
scope = ["read"]
[identities.payments.credentials.bare]
issuer = "op"
client_id = "bound"
resource = "https://api.example.test/jwt"
scope = ["read"]
binding = "bearer"
exception = { owner = "tests@example.com", reason = "a test", until = "$until" }
[identities.payments.credentials.opaque]
issuer = "op"
client_id = "payments"
scope = ["read"]
origins = ["$api"]
[identities.payments.credentials.elsewhere]
issuer = "op"
client_id = "payments"
resource = "https://nobody.example.test"
scope = ["read"]
TOML
chmod 600 "$stage/dpop.toml"
export_keys "$stage/dpop.toml" > "$stage/jwks.json"
start_agent "$stage/dpop.toml" dpop
sock=$stage/run-dpop/agent.sock http=$stage/run-dpop/http.sock pem=$stage/dpop/keys/payments.client-auth.pem

prover() { (cd "$tools/node" && node prover.mjs "$@" 2>&1 | tail -n 1); }
member() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"; }
answers() { sed 's/{"status":\([0-9]*\),"error":"\([^"]*\)".*/\1 \2/' "$stage/issuer.log.answers" | paste -sd' '; }
distinct() { member "$1" < "$stage/issuer.log.answers" | sort -u | wc -l; }
refusal() { "$keybearer" get "$1" --socket "$sock" 2>&1 || true; }
recorded() { "$keybearer" audit tail --dir "$stage/dpop/audit" --json -n 100 | grep -c "$@" || true; }
has() { case $2 in *"$3"*) ok "$1" ;; *) no "$1" "$2" ;; esac; }

# --- a bound token ----------------------------------------------------------------------------------------------------
token=$("$keybearer" get api --socket "$sock") || { no "a bound token from oidc-provider" "see $stage"; return 0; }
same "oidc-provider wants a nonce once, and then gives a bound token" "400 use_dpop_nonce 200 none" "$(answers)"
same "which it sends with the first answer" "true,false" "$(sed 's/.*"new_nonce":\([a-z]*\).*/\1/' "$stage/issuer.log.answers" | paste -sd,)"
same "with an assertion of its own for each attempt" 2 "$(distinct assertion_jti)"
same "and a proof of its own" 2 "$(distinct proof_jti)"
same "of which only the second has a nonce, and neither a token" "false,false true,false" \
  "$(sed 's/.*"nonce":\([a-z]*\),"ath":\([a-z]*\).*/\1,\2/' "$stage/issuer.log.answers" | paste -sd' ')"
jkt=$(prover says "$token")
same "it names the key of the proof, as jose counts its thumbprint" "$jkt" "$(prover jkt "$(tail -n 1 "$stage/issuer.log.answers" | member proof)")"
"$keybearer" prove api GET "$api/orders" --socket "$sock" > "$stage/headers"
same "and of the proofs that the workload gets" "$jkt" "$(prover jkt "$(sed -n 's/^DPoP: //p' "$stage/headers")")"
same "jose verifies the token" "ok ES256" "$(cd "$tools/node" && node judge.mjs token "$issuer" "$token" 2>&1 | tail -n 1)"
must=$("$keybearer" get must --socket "$sock" 2>&1) || true
same "a client that must use DPoP does, with the nonce that is known by now" "400 use_dpop_nonce 200 none 200 none" "$(answers)"
same "and its token is bound to the same key" "$jkt" "$(prover says "$must")"
# This provider says the same of a proof that is missing as of any grant that it does not like.
has "without a proof that client is refused" "$(refusal bare)" GRANT_REJECTED
same "and the ledger says what to look at" 1 "$(recorded '"reason":"GRANT_REJECTED".*if binding is ..bearer')"
has "a resource that the issuer does not know is told as such" "$(refusal elsewhere)" AUDIENCE_DENIED

# --- an API that is not ours ------------------------------------------------------------------------------------------
: > "$stage/nonce"
send() { # METHOD URL [MORE OF CURL] -> status and why, with the headers in $stage/headers
  local method=$1 url=$2
  shift 2
  curl -gsS -o "$stage/why" -D "$stage/answered" -w '%{http_code}' --cacert "$certs/ca.pem" --connect-to "::127.0.0.1:${api##*:}" \
    -X "$method" -H @"$stage/headers" "$@" "$url"
  tr -d '\r' < "$stage/answered" | sed -n 's/^dpop-nonce: //Ip' > "$stage/nonce"
  printf ' %s\n' "$(cat "$stage/why")"
}
prove() { # METHOD URL, with the nonce of the API's last answer
  local nonce
  nonce=$(cat "$stage/nonce")
  "$keybearer" prove api "$1" "$2" --socket "$sock" ${nonce:+--nonce "$nonce"} > "$stage/headers"
}
headers() { printf '%s\n' "$@" > "$stage/headers"; }
cd "$stage"
prove GET "$api/orders"
same "an API on oauth4webapi wants its nonce" "401 use_dpop_nonce" "$(send GET "$api/orders")"
prove GET "$api/orders"
same "and takes the token with a proof that has it" "200 ok" "$(send GET "$api/orders")"
same "the same proof again is refused" "401 replayed" "$(send GET "$api/orders")"
prove GET "$api/orders"
same "and one for another path" "401 refused: DPoP Proof htu mismatch" "$(send GET "$api/others")"
same "for another method" "401 refused: DPoP Proof htm mismatch" "$(send POST "$api/orders")"
same "but where it is for, it is good" "200 ok" "$(send GET "$api/orders")"
headers "Authorization: Bearer $token"
has "the token as Bearer is refused" "$(send GET "$api/orders")" "401 refused: operation indicated DPoP use but the request has no DPoP HTTP Header"
prove GET "$api/orders"
sed -i 's/^Authorization: DPoP/Authorization: Bearer/' "$stage/headers"
has "also with a proof beside it" "$(send GET "$api/orders")" "401 refused: operation indicated DPoP use but the request's Authorization HTTP Header scheme is not DPoP"
headers "Authorization: DPoP $token"
has "and without a proof" "$(send GET "$api/orders")" "401 refused: operation indicated DPoP use but the request has no DPoP HTTP Header"
headers "Authorization: DPoP $token" "DPoP: $(prover fresh GET "$api/orders" "$token" "$(cat "$stage/nonce")")"
has "and with a proof by another key, made by jose" "$(send GET "$api/orders")" "401 refused: JWT Access Token confirmation mismatch"
wanted=$(curl -gsS --unix-socket "$http" -H 'keybearer: v1' -G --data-urlencode "url=$api/orders" -d method=PUT -d "nonce=$(cat "$stage/nonce")" \
  -d "fingerprint=$("$keybearer" get api --json --socket "$sock" | member fingerprint)" http://localhost/v1/credentials/api/proof)
headers "Authorization: DPoP $token" "DPoP: $(printf %s "$wanted" | member proof)"
same "a proof from the HTTP socket is as good" "200 ok" "$(send PUT "$api/orders")"

# DPOP-02: what is in the proof has to be what a library makes of what came over the wire, whichever way the URL was written.
urls=(
  'https://api.example' 'https://api.example?a=1' 'https://api.example/orders' 'https://api.example/orders/' 'HTTPS://API.Example/Orders'
  'https://api.example/orders?a=1&b=2' 'https://api.example/orders#top' 'https://api.example/orders?a#b?c' 'https://api.example:443/orders'
  'https://api.example:/orders' 'https://api.example:8443/orders' 'https://[2001:DB8::1]:443/x' 'https://api.example/a/./b/../c'
  'https://api.example/../../a' 'https://api.example//a//b' 'https://api.example/a%20b' 'https://api.example/caf%C3%A9'
  'https://api.example/%7euser/%2f' 'https://api.example/%6Frders' "https://api.example/o;v=1,2/(x)!\$&'*+=:@~"
)
taken=0 refused=''
for url in "${urls[@]}"; do
  why=$({ prove GET "$url" && send GET "$url"; } 2>&1) || true
  if [ "$why" = "200 ok" ]; then taken=$((taken + 1)); else refused="$refused; $url: $why"; fi
done
if [ "$taken" = 20 ]; then ok "oauth4webapi takes proofs for 20 URLs, however they are written"; else no "oauth4webapi takes proofs for 20 URLs, however they are written" "$taken$refused"; fi
accepted=$(wc -l < "$stage/api.log")
if [ "$python" = yes ]; then
  same "requests-oauth2client takes all $accepted that the API took, to the byte" "takes $accepted" "$("$tools/python/bin/python" "$here/proofs.py" "$stage/api.log" 2>&1 | paste -sd'|')"
else
  skip "requests-oauth2client as a second judge of proofs" "python3 is not here"
fi

# --- no proofs for the issuer itself ----------------------------------------------------------------------------------
endpoints=$(curl -sS --cacert "$certs/ca.pem" "$issuer/.well-known/openid-configuration" | tr ',' '\n' | sed -n 's/.*"[a-z_]*_endpoint":"\([^"]*\)".*/\1/p' | grep -v '/me$' | sort -u)
got=''
for endpoint in $endpoints "$issuer/%74oken" "$issuer/x/../token?a"; do
  why=$("$keybearer" prove api POST "$endpoint" --socket "$sock" 2>&1 || true)
  case $why in *HTU_NOT_ALLOWED*) ;; *) got="$got $endpoint: $why" ;; esac
done
if [ -n "$endpoints" ] && [ -z "$got" ]; then ok "no proof for any of the $(echo "$endpoints" | wc -l) endpoints of oidc-provider"; else no "no proof for any endpoint of oidc-provider" "$got"; fi

# --- what the provider saw, thrown back at it -------------------------------------------------------------------------
request() { # ASSERTION PROOF [ENDPOINT] [MORE OF CURL] -> status and error
  curl -sS -o "$stage/why" -D "$stage/answered" -w '%{http_code}' --cacert "$certs/ca.pem" ${2:+-H "DPoP: $2"} -d grant_type=client_credentials -d scope=read \
    -d resource=https://api.example.test/jwt -d client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer \
    --data-urlencode "client_assertion=$1" "${@:4}" "${3:-$issuer/token}"
  member error < "$stage/why" | sed 's/^/ /'
}
# The first that was granted, which was to this client.
seen=$(grep '^{"status":200' "$stage/issuer.log.answers" | head -n 1)
old_assertion=$(printf %s "$seen" | member assertion) old_proof=$(printf %s "$seen" | member proof)
assertion() { prover assertion "$issuer" "$pem" "$stage/jwks.json" payments; }
same "the provider takes neither its assertion and its proof again" "401 invalid_client" "$(request "$old_assertion" "$old_proof")"
same "nor the assertion with no proof" "401 invalid_client" "$(request "$old_assertion" "")"
same "nor the proof with a fresh assertion" "400 invalid_grant" "$(request "$(assertion)" "$old_proof")"
same "nor a proof without its nonce" "400 use_dpop_nonce" "$(request "$(assertion)" "$(prover fresh POST "$issuer/token")")"
nonce=$(tr -d '\r' < "$stage/answered" | sed -n 's/^dpop-nonce: //Ip')
same "but with all of it fresh, a request like ours is granted" "200" "$(request "$(assertion)" "$(prover fresh POST "$issuer/token" '' "$nonce")")"

# --- an opaque token, given back --------------------------------------------------------------------------------------
introspect() { # TOKEN -> active, or the key it is bound to
  curl -sS --cacert "$certs/ca.pem" -d token="$1" -d client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer \
    --data-urlencode "client_assertion=$(assertion)" "$issuer/token/introspection" | sed 's/.*"active":\([a-z]*\).*"jkt":"\([^"]*\)".*/\1 \2/'
}
opaque=$("$keybearer" get opaque --socket "$sock" 2>&1) || true
same "an opaque token is bound too, says the provider" "true $jkt" "$(introspect "$opaque")"
release() { (cd "$tools/node" && node client.mjs "$root/proto" "unix://$sock" "$1" release 2>&1 | tail -n 1); }
same "it is given back" "revoked true" "$(release opaque)"
same "and the provider says that it is void" '{"active":false}' "$(introspect "$opaque")"
same "a JWT, which this provider cannot revoke, is not said to be revoked" "revoked false" "$(release api)"

cd "$root"
verified=$("$keybearer" audit verify --dir "$stage/dpop/audit" 2>&1) && ok "the ledger verifies: ${verified##*: }" || no "the ledger verifies" "$verified"
stop_agent
