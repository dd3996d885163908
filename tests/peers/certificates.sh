# Certificates among third parties (RFC 8705): oidc-provider as the issuer, nginx and jose as the API that a bound token is for.
# Part of tests/peers/run, which sources it: what it uses and does not make comes from there.

mtls=$stage/mtls
mkdir "$mtls"
mtls_pids=''
chmod 700 "$mtls"
(
  cd "$certs"
  ec() { openssl ecparam -genkey -name prime256v1 -noout -out "$1.key"; }
  ec client
  openssl pkcs8 -topk8 -nocrypt -in client.key -out "$mtls/client.pem"
  chmod 600 "$mtls/client.pem"
  openssl req -new -key client.key -subj "/CN=payments" -out client.csr
  printf 'basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=clientAuth\nsubjectAltName=URI:spiffe://example.test/payments\n' > client.ext
  openssl x509 -req -in client.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile client.ext -out "$mtls/client.crt" 2>/dev/null
  ec stranger
  openssl req -x509 -new -key stranger.key -subj "/CN=payments" -days 2 -out stranger.pem
)

bound() { # NAME CLIENT_ID METHOD
  cat <<TOML
[identities.payments.credentials.$1]
issuer = "op"
client_id = "$2"
client_auth = "$3"
resource = "https://api.example.test/jwt"
scope = ["read"]
binding = "mtls"
key_export = "allowed"
TOML
}
mtls_config() { # FILE ISSUER STATE CERTIFICATE_TABLE CREDENTIALS
  write_config "$1" "$2" "$3"
  # Without the credential that is not bound.
  sed -i '/^\[identities.payments.credentials.api\]/,$d' "$1"
  printf '[identities.payments.certificate]\n%s\n%s\n' "$4" "$5" >> "$1"
}
by_ca="certificate = \"$mtls/client.crt\"
key = \"$mtls/client.pem\""
of_ca="$(bound ca by-ca tls_client_auth)
$(bound jwt by-jwt private_key_jwt)"
of_self=$(bound self by-itself self_signed_tls_client_auth)
# What issuers have to know is exported before there are any.
mtls_config "$stage/ca.toml" https://localhost:1 ca "$by_ca" "$of_ca"
mtls_config "$stage/self.toml" https://localhost:1 self "" "$of_self"
register() { "$keybearer" keys export --registration --config "$stage/$1.toml" --client "$2" > "$mtls/$2.json"; }
register ca by-ca
register ca by-jwt
register self by-itself
same "a client that a CA vouches for is registered by one name of its certificate" '"tls_client_auth_san_uri": "spiffe://example.test/payments"' \
  "$(grep -o '"tls_client_auth_[^,]*' "$mtls/by-ca.json")"

mtls_issuer() { # NAME TAKES CLIENT...
  local name=$1 takes=$2; shift 2
  (cd "$tools/node" && exec node mtls-issuer.mjs "$certs" "$takes" "${@/#/$mtls/}") > "$mtls/$name.out" 2> "$mtls/$name.err" &
  mtls_pids="$mtls_pids $!"
  timeout 30 tail -n +1 -f --pid="$!" "$mtls/$name.out" | head -n 1 || true
}
end_mtls() { for pid in $mtls_pids; do kill "$pid" 2>/dev/null || true; done; }
trap 'end_mtls; strike' EXIT
: > "$mtls/ca.out"; : > "$mtls/self.out"
mtls_issuer ca ca by-ca.json by-jwt.json > "$mtls/ca.url"
mtls_issuer self any by-itself.json > "$mtls/self.url"
ca_issuer=$(cat "$mtls/ca.url") self_issuer=$(cat "$mtls/self.url")
mtls_config "$stage/ca.toml" "$ca_issuer" ca "$by_ca" "$of_ca"
mtls_config "$stage/self.toml" "$self_issuer" self "" "$of_self"
# The same identity with the certificate that nobody vouches for, at the issuer that wants one of its CA.
sed "s#^issuer = \"https.*#issuer = \"$ca_issuer\"#; s#run-self#run-wrong#; s#/self\"#/wrong\"#" "$stage/self.toml" > "$stage/wrong.toml"
chmod 600 "$stage/wrong.toml"

member() { node -e 'const said = JSON.parse(require("fs").readFileSync(0)); console.log(process.argv[1].split(".").reduce((at, name) => at[name], said) ?? "")' "$1"; }
take() { # STATE CREDENTIAL
  "$keybearer" get "$2" --json --socket "$stage/run-$1/agent.sock" > "$mtls/$2.got" 2> "$mtls/$2.err" || { cat "$mtls/$2.err"; return; }
  member access_token < "$mtls/$2.got" > "$mtls/$2.token"
  member client_certificate.chain_pem < "$mtls/$2.got" > "$mtls/$2.chain"
  (umask 077; member client_certificate.key_pem < "$mtls/$2.got" > "$mtls/$2.key")
  local thumbprint
  thumbprint=$(openssl x509 -in "$mtls/$2.chain" -outform DER | openssl dgst -sha256 -binary | base64 | tr '+/' '-_' | tr -d '=')
  if [ "$(cut -d. -f2 "$mtls/$2.token" | node -e 'const at = require("fs").readFileSync(0, "utf8"); console.log(JSON.parse(Buffer.from(at, "base64url")).cnf["x5t#S256"])')" = "$thumbprint" ]; then
    echo "bound to it"
  else
    echo "bound to another"
  fi
}
start_agent "$stage/ca.toml" ca
same "oidc-provider: tls_client_auth, and a token bound to the certificate" "bound to it" "$(take ca ca)"
same "oidc-provider: private_key_jwt, and a token bound to the certificate" "bound to it" "$(take ca jwt)"
exported=$("$keybearer" audit tail --dir "$stage/ca/audit" --json -n 50 | grep -c KEY_EXPORTED || true)
same "each time its key went out is on record" 2 "$exported"
stop_agent
start_agent "$stage/self.toml" self
same "oidc-provider: self_signed_tls_client_auth, and a token bound to the certificate" "bound to it" "$(take self self)"
stop_agent
start_agent "$stage/wrong.toml" wrong
refused=$(take wrong self)
case $refused in *CERT_NOT_ACCEPTED*) ok "a server that names another CA gets no certificate and no request" ;; *) no "a server that names another CA gets no certificate and no request" "$refused" ;; esac
stop_agent

# --- the API that a bound token is for --------------------------------------------------------------------------------
nginx=$(command -v nginx || true)
if [ -z "$nginx" ] && [ ! -x "$tools/nginx/usr/sbin/nginx" ] && command -v apt-get dpkg >/dev/null; then
  # Unpacked and not installed: no service is started, and nothing of the machine changes.
  mkdir -p "$tools/nginx"
  (cd "$tools/nginx" && apt-get download -qq nginx && dpkg -x nginx_*.deb .) > "$mtls/nginx.apt" 2>&1 || true
fi
if [ -z "$nginx" ] && [ -x "$tools/nginx/usr/sbin/nginx" ] && "$tools/nginx/usr/sbin/nginx" -v 2>/dev/null; then
  nginx=$tools/nginx/usr/sbin/nginx
fi
if [ -n "$nginx" ] && command -v curl >/dev/null; then
  (cd "$tools/node" && exec node mtls-api.mjs "$mtls/api.sock" "$ca_issuer" "$self_issuer") > "$mtls/api.out" 2>&1 &
  mtls_pids="$mtls_pids $!"
  timeout 30 tail -n +1 -f --pid="$!" "$mtls/api.out" | head -n 1 > /dev/null || true
  api_port=$(node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close(); })')
  cat > "$mtls/nginx.conf" <<NGINX
daemon off; master_process off; user root; pid nginx.pid; error_log stderr warn;
events { worker_connections 64; }
http {
  access_log off; client_body_temp_path .; proxy_temp_path .; fastcgi_temp_path .; uwsgi_temp_path .; scgi_temp_path .;
  server {
    listen 127.0.0.1:$api_port ssl http2;
    ssl_certificate $certs/server.pem; ssl_certificate_key $certs/server.key;
    ssl_protocols TLSv1.2 TLSv1.3; ssl_session_tickets off; ssl_verify_client optional_no_ca;
    location / {
      proxy_pass http://unix:$mtls/api.sock;
      # Whatever a client says of itself here is replaced.
      proxy_set_header x-client-certificate \$ssl_client_escaped_cert;
    }
  }
}
NGINX
  # As root it gives its directory to another user: it gets one of its own.
  mkdir "$mtls/nginx"
  "$nginx" -p "$mtls/nginx" -c "$mtls/nginx.conf" > "$mtls/nginx.log" 2>&1 &
  mtls_pids="$mtls_pids $!"
  for _ in $(seq 100); do (exec 3<> "/dev/tcp/127.0.0.1/$api_port") 2>/dev/null && break; sleep 0.05; done
  call() { # CREDENTIAL CURL_ARGUMENT...
    local token; token=$(cat "$mtls/$1.token"); shift
    printf 'header = "Authorization: Bearer %s"\n' "$token" | curl -sS -K - --max-time 10 --cacert "$certs/ca.pem" -w '%{http_code}' \
      "$@" "https://localhost:$api_port/orders" 2>&1 | sed 's/^yours .*/yours/' | paste -sd' '
  }
  for of in ca jwt self; do
    same "nginx and jose: the token of \"$of\" with its certificate" "yours 200" "$(call "$of" --cert "$mtls/$of.chain" --key "$mtls/$of.key")"
    same "and with another certificate of the same name" "another certificate 401" "$(call "$of" --cert "$certs/stranger.pem" --key "$certs/stranger.key")"
    same "and with none" "no certificate 401" "$(call "$of")"
  done
  same "and with that of another identity" "another certificate 401" "$(call ca --cert "$mtls/self.chain" --key "$mtls/self.key")"
  same "and with a header that names the right one" "another certificate 401" \
    "$(call ca --cert "$certs/stranger.pem" --key "$certs/stranger.key" -H "x-client-certificate: $(node -p 'encodeURIComponent(require("fs").readFileSync(process.argv[1], "utf8"))' "$mtls/ca.chain")")"
  # The agent calls the same API for curl, which so needs neither the token nor the key.
  forward="forward = \"only\"\\norigins = [\"https://localhost:$api_port\"]\\napi_ca_file = \"$certs/ca.pem\""
  sed "s#^key_export = .*#$forward#" "$stage/ca.toml" > "$stage/forward.toml"
  chmod 600 "$stage/forward.toml"
  start_agent "$stage/forward.toml" ca
  forwarded() { # CREDENTIAL CURL_ARGUMENT...
    local of=$1; shift
    curl -sS --max-time 10 --unix-socket "$stage/run-ca/http.sock" -H 'keybearer: v1' -w '%{http_code}' "$@" \
      "http://keybearer/v1/forward/$of/orders" 2>&1 | sed 's/^yours .*/yours/' | paste -sd' '
  }
  for of in ca jwt; do
    same "nginx and jose: a call that the agent makes for curl with the token of \"$of\"" "yours 200" "$(forwarded "$of")"
    same "and whatever curl says of itself" "yours 200" \
      "$(forwarded "$of" -H 'authorization: Bearer x' -H 'x-client-certificate: x' -d 'a=b')"
  done
  if curl --version | grep -q HTTP2; then
    same "the same over HTTP/2 on the workloads' socket" "yours 200" \
      "$(forwarded ca --http2-prior-knowledge --unix-socket "$stage/run-ca/agent.sock")"
  else
    skip "a call over HTTP/2 on the workloads' socket" "this curl does not speak it"
  fi
  case $(take ca ca) in *FORWARD_ONLY*) ok "and the token itself is handed out to nobody" ;; *) no "and the token itself is handed out to nobody" "it was" ;; esac
  stop_agent
else
  skip "nginx and jose as an API for bound tokens" "nginx or curl is not here and cannot be unpacked by apt-get"
fi
end_mtls
