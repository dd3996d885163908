# A client of oidc-provider whose key registers itself (RFC 7592), read by tests/peers/run. It is registered once, by RFC 7591, with
# what `keybearer keys export --registration` writes.

reg=$stage/registration
mkdir "$reg"
: > "$reg/out"
(cd "$tools/node" && exec node registration.mjs "$certs" "$reg/log") > "$reg/out" 2> "$reg/err" &
reg_pid=$!
other_pids="$other_pids $reg_pid"
reg_issuer=$(timeout 30 tail -n +1 -f --pid="$reg_pid" "$reg/out" | head -n 1) || true
reg_config() { # CLIENT_ID
  write_config "$stage/registered.toml" "$reg_issuer" registered
  sed -i "s/^client_id = .*/client_id = \"$1\"/; /^resource = /d" "$stage/registered.toml"
}
reg_config not-registered-yet
"$keybearer" keys export --registration --config "$stage/registered.toml" > "$reg/metadata.json"
node -e '
  const [issuer, metadata, uri, token] = process.argv.slice(1);
  const { readFileSync, writeFileSync } = require("fs");
  const { client_id, ...asked } = JSON.parse(readFileSync(metadata));
  fetch(`${issuer}/reg`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(asked) })
    .then((answer) => answer.json())
    .then((client) => {
      writeFileSync(uri, client.registration_client_uri);
      writeFileSync(token, client.registration_access_token, { mode: 0o600 });
      console.log(client.client_id);
    });' "$reg_issuer" "$reg/metadata.json" "$reg/uri" "$reg/token" > "$reg/client"
reg_client=$(cat "$reg/client")
reg_config "$reg_client"
(umask 077; mkdir "$stage/registered/registrations"; cp "$reg/token" "$stage/registered/registrations/payments.op.token")
cat >> "$stage/registered.toml" <<TOML
[identities.payments.key]
propagation = "0s"
[identities.payments.registrations.op]
issuer = "op"
client_id = "$reg_client"
uri = "$(cat "$reg/uri")"
TOML
start_agent "$stage/registered.toml" registered
reg_get() { "$keybearer" get api --socket "$stage/run-registered/agent.sock" 2>&1; }
reg_order() { "$keybearer" "$@" --socket "$stage/run-registered/operator.sock" > /dev/null 2>&1; }
reg_on_record() { # WORDS
  for _ in $(seq 150); do
    if "$keybearer" audit tail --dir "$stage/registered/audit" --json -n 100 | grep -q "$1"; then echo yes; return; fi
    sleep 0.1
  done
  echo "no: see $reg/log"
}
signed() { sed -n 's/.*"signed":"\([^"]*\)".*/\1/p' "$reg/log" | tail -n 1; }
updates() { grep -c '"updated"' "$reg/log" || true; }
kids() { "$keybearer" keys export --config "$stage/registered.toml" | sed -n 's/.*"kid": *"\([^"]*\)".*/\1/p' | sort | paste -sd' '; }

reg_first=$(kids)
case $(reg_get) in ''|*[[:space:]]*) no "a client that registered itself at oidc-provider gets a token" "$(reg_get)" ;; *) ok "a client that registered itself at oidc-provider gets a token" ;; esac
same "its registration is as it should be, so nothing is changed" "yes 0" "$(reg_on_record 'knows the keys of client') $(updates)"
reg_order rotate payments
same "the next key is registered by RFC 7592 and signs with nobody's help" yes "$(reg_on_record 'signs from now on')"
reg_second=$(kids | tr ' ' '\n' | grep -vx "$reg_first")
reg_order revoke payments
case $(reg_get) in ''|*[[:space:]]*) no "the next token is taken with the next key" "$(reg_get)" ;; *) same "the next token is taken with the next key" "$reg_second" "$(signed)" ;; esac
same "and oidc-provider has both keys" "$(kids)" "$(sed -n 's/.*"updated":\[\([^]]*\)\].*/\1/p' "$reg/log" | tail -n 1 | tr -d '"' | tr ',' '\n' | sort | paste -sd' ')"
# The second update is by the token that the first one gave: the one in the file is good no more.
reg_order revoke payments --keys
same "in an emergency the old keys are taken out there" yes "$(reg_on_record 'taken out there')"
for _ in $(seq 100); do case $(reg_get) in ''|*[[:space:]]*) sleep 0.1 ;; *) break ;; esac; done
same "and the next token is taken with the new one alone" "$(kids) 2" "$(signed) $(updates)"
same "oidc-provider refused no update" 0 "$(grep -c '"refused":"registration' "$reg/log" || true)"
stop_agent
if grep -rqF "$(cat "$reg/token")" "$stage/agent-registered.log" "$stage/registered/audit"; then no "the right to the registration is nowhere" "see $stage"; else ok "the right to the registration is nowhere in log and ledger"; fi
kill "$reg_pid"; wait "$reg_pid" 2>/dev/null || true
