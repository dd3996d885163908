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
reg_new() { # CONFIG NAME: registers a client with what CONFIG exports; its id, and beside it the place and the right
  "$keybearer" keys export --registration --config "$1" > "$reg/$2.metadata"
  node -e '
    const [issuer, name] = process.argv.slice(1);
    const { readFileSync, writeFileSync } = require("fs");
    const { client_id, ...asked } = JSON.parse(readFileSync(`${name}.metadata`));
    fetch(`${issuer}/reg`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(asked) })
      .then((answer) => answer.json())
      .then((client) => {
        writeFileSync(`${name}.uri`, client.registration_client_uri);
        writeFileSync(`${name}.token`, client.registration_access_token, { mode: 0o600 });
        console.log(client.client_id);
      });' "$reg_issuer" "$reg/$2"
}
reg_give() { # STATE NAME
  (umask 077; mkdir -p "$stage/$1/registrations"; cp "$reg/$2.token" "$stage/$1/registrations/payments.op.token")
}
reg_table() { # CLIENT_ID NAME
  printf '[identities.payments.registrations.op]\nissuer = "op"\nclient_id = "%s"\nuri = "%s"\n' "$1" "$(cat "$reg/$2.uri")"
}
reg_client=$(reg_new "$stage/registered.toml" by-key)
reg_config "$reg_client"
reg_give registered by-key
printf '[identities.payments.key]\npropagation = "0s"\n' >> "$stage/registered.toml"
reg_table "$reg_client" by-key >> "$stage/registered.toml"
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
if grep -rqF "$(cat "$reg/by-key.token")" "$stage/agent-registered.log" "$stage/registered/audit"; then no "the right to the registration is nowhere" "see $stage"; else ok "the right to the registration is nowhere in log and ledger"; fi

# A certificate that nobody registered: the agent does, at its start. What was registered is that of another state.
reg_self() { # STATE CLIENT_ID
  write_config "$stage/$1.toml" "$reg_issuer" "$1"
  sed -i '/^\[identities.payments.credentials.api\]/,$d' "$stage/$1.toml"
  cat >> "$stage/$1.toml" <<TOML
[identities.payments.certificate]
[identities.payments.credentials.api]
issuer = "op"
client_id = "$2"
client_auth = "self_signed_tls_client_auth"
scope = ["read"]
binding = "mtls"
key_export = "allowed"
TOML
}
reg_self shown-before not-registered-yet
reg_client=$(reg_new "$stage/shown-before.toml" by-itself)
reg_self shown "$reg_client"
reg_give shown by-itself
reg_table "$reg_client" by-itself >> "$stage/shown.toml"
start_agent "$stage/shown.toml" shown
for _ in $(seq 100); do "$keybearer" audit tail --dir "$stage/shown/audit" --json -n 100 | grep -q 'taken out there' && break; sleep 0.1; done
shown=$("$keybearer" get api --json --socket "$stage/run-shown/agent.sock" 2>&1 || true)
case $shown in *'"binding":"mtls"'*) ok "a certificate registers itself there, and gets a token that is bound to it" ;; *) no "a certificate registers itself there, and gets a token that is bound to it" "$shown" ;; esac
stop_agent
kill "$reg_pid"; wait "$reg_pid" 2>/dev/null || true
