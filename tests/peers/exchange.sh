# Tokens of a platform, exchanged at oidc-provider (RFC 8693), read by tests/peers/run. jose is the platform.

platform() { (cd "$tools/node" && node platform.mjs "$@"); }
platform keys "$certs"
kill "$issuer_pid"; wait "$issuer_pid" 2>/dev/null || true
rm -f "$stage"/issuer.log*
start_issuer
cat > "$stage/exchange.toml" <<TOML
environment = "test"
state_directory = "$stage/exchange"
runtime_directory = "$stage/run-exchange"
[issuers.op]
kind = "oauth"
issuer = "$issuer"
ca_file = "$certs/ca.pem"
timeout = "5s"
[identities.shop]
owner = "tests@example.com"
assurance = "interim"
match = { uid = $(id -u) }
[identities.shop.credentials.api]
issuer = "op"
client_id = "exchanger"
scope = ["read"]
grant = "token_exchange"
subject = { file = "$stage/platform.token", type = "jwt", issuer = "https://platform.example", audience = "$issuer", claims = { repository = "org/shop", ref = "refs/heads/main" } }
binding = "bearer"
exception = { owner = "tests@example.com", reason = "a test", until = "$until" }
[identities.shop.credentials.bound]
issuer = "op"
client_id = "exchanger"
scope = ["read"]
grant = "token_exchange"
subject = { file = "$stage/platform.token", type = "jwt", issuer = "https://platform.example", audience = "$issuer", claims = { repository = "org/shop", ref = "refs/heads/main" } }
origins = ["https://api.example"]
TOML
chmod 600 "$stage/exchange.toml"
export_keys "$stage/exchange.toml" > "$stage/jwks.json"
given() { (umask 077 && printf %s "$1" > "$stage/platform.token"); }
given "$(platform token "$certs" "$issuer" refs/heads/main)"
start_agent "$stage/exchange.toml" exchange
sock=$stage/run-exchange/agent.sock
why() { "$keybearer" audit tail --dir "$stage/exchange/audit" --json -n 100 | sed -n 's/.*"type":"issue_failure","outcome":"failed","reason":"\([A-Z_]*\)".*/\1/p' | tail -n 1; }
asked() { wc -l < "$stage/issuer.log.answers"; }
afresh() { # what is live is ended, so that the next is fetched
  "$keybearer" revoke shop --socket "$stage/run-exchange/operator.sock" >/dev/null
  "$keybearer" get api --socket "$sock" >/dev/null 2>&1 || true
}
exchanged=$("$keybearer" get api --socket "$sock" --json 2>&1) || true
case $exchanged in *'"binding":"bearer"'*) ok "a platform's token is exchanged" ;; *) no "a platform's token is exchanged" "$exchanged" ;; esac
same "and oidc-provider saw whose it was" "repo:org/shop" "$(sed -n 's/.*"exchanged":"\([^"]*\)".*/\1/p' "$stage/issuer.log" | tail -n 1)"
# This grant, unlike the provider's own, overlooks the proof that came with the request.
"$keybearer" get bound --socket "$sock" >/dev/null 2>&1 || true
same "a token that came back unbound for a proof is thrown away" "TOKEN_NOT_BOUND" "$(why)"
before=$(asked)
given "$(platform token "$certs" "$issuer" refs/heads/feature)"
afresh
same "a token of another branch leaves the host for nobody" "$before SOURCE_TOKEN_UNFIT" "$(asked) $(why)"
platform keys "$stage"
given "$(platform token "$stage" "$issuer" refs/heads/main)"
sleep 6 # a refusal is remembered for five seconds
afresh
same "one that the platform did not sign is refused there" "GRANT_REJECTED" "$(why)"
stop_agent
