# Environment files as those read them whom they are for, read by tests/peers/run: the docker command line, compose-go and docker's parser
# as Go modules, and python-dotenv. The values are leased by a small server that speaks as OpenBao does, so that they can be as nasty as
# a test wants; the files are written by the real `keybearer env-file`. The shells are in src/deliver/dialect/tests.rs, systemd in
# tests/systemd.rs.

if [ "$python" != yes ]; then
  skip "environment files among their readers" "python3 is not here"
  return 0
fi
dialects=$stage/dialects
mkdir -m 700 "$dialects"
"$tools/python/bin/python" "$here/dialects.py" lease "$dialects/url" > "$dialects/lessor.log" 2>&1 &
lessor_pid=$!
other_pids="$other_pids $lessor_pid"
for _ in $(seq 100); do [ -s "$dialects/url" ] && break; sleep 0.05; done
cat > "$dialects/agent.toml" <<TOML
environment = "test"
state_directory = "$stage/dialects-state"
runtime_directory = "$stage/run-dialects"
[issuers.lessor]
kind = "openbao"
url = "$(cat "$dialects/url")"
dev = true
[identities.payments]
owner = "tests@example.com"
assurance = "interim"
match = { uid = $(id -u) }
[identities.payments.credentials.nasty]
issuer = "lessor"
client_id = "payments"
lease = { at = "database/creds/nasty" }
max_ttl = "5m"
TOML
chmod 600 "$dialects/agent.toml"
start_agent "$dialects/agent.toml" dialects

go_reader=
if command -v go >/dev/null; then
  mkdir -p "$tools/readers"
  cp "$here"/readers/* "$tools/readers/"
  (
    cd "$tools/readers"
    export GOFLAGS=-mod=mod CGO_ENABLED=0
    go build -o reader . > go.log 2>&1 || tail -n 3 go.log
  )
  [ ! -x "$tools/readers/reader" ] || go_reader=$tools/readers/reader
fi
while IFS=$'\t' read -r verdict name why; do
  case $verdict in
    ok) ok "$name" ;;
    skip) skip "$name" "$why" ;;
    *) no "${name:-environment files}" "$why" ;;
  esac
done < <(
  KEYBEARER_SOCKET=$stage/run-dialects/agent.sock "$tools/python/bin/python" "$here/dialects.py" \
    read "$dialects" "$keybearer" "$(command -v docker || true)" "$go_reader" 2> "$dialects/read.log" ||
    printf 'no\tenvironment files among their readers\tsee %s\n' "$dialects/read.log"
)
stop_agent
kill "$lessor_pid" 2>/dev/null || true
