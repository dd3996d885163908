"""Nasty values, leased as OpenBao leases them, and read back by those whom environment files are for.

dialects.py lease FILE                          leases; FILE gets the URL
dialects.py read DIRECTORY KEYBEARER DOCKER GO  writes files by KEYBEARER and prints who reads what was meant
"""

import http.server
import itertools
import json
import os
import socketserver
import subprocess
import sys
import threading

import dotenv

PIECES = [
    "'", '"', "\\", "$", "${", "}", "`", "#", " #", "=", " ", "\t", "\n", "\r", "%", ";", "!", "$(id)", "${HOME}", "$HOME",
    "$$", "\\n", "\\'", '\\"', "\\\\", "\\$", "export ", "A=b", "\x01", "\x1b[0m", "\x7f", "\ufeff", "\x85", "\xa0", "\u2028",
    "é", "𝄞", "$2a$10$abc.def", "it's", 'say "so"', "",
]


def values():
    """Each piece alone, and between others."""
    out = {f"v{at}": piece for at, piece in enumerate(PIECES)}
    for at, piece in enumerate(PIECES):
        for step in (1, 7, 16):
            other = PIECES[(at + step) % len(PIECES)]
            out[f"v{len(out)}"] = f"{piece}{other}a{other}{piece}b"
    return out


class Lessor(http.server.BaseHTTPRequestHandler):
    def answer(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        if "/login" in self.path:
            auth = {
                "client_token": "s.of-a-test", "accessor": "a", "policies": ["default"], "lease_duration": 300, "renewable": True,
                "token_type": "service", "orphan": True, "mfa_requirement": None, "num_uses": 0,
            }
            body = {"request_id": "r", "lease_id": "", "lease_duration": 0, "data": None, "auth": auth}
        elif self.command == "GET":
            body = {"lease_id": "database/creds/nasty/1", "lease_duration": 300, "renewable": False, "data": values()}
        else:
            body = None
        bytes_ = b"" if body is None else json.dumps(body).encode()
        self.send_response(204 if body is None else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(bytes_)))
        self.end_headers()
        self.wfile.write(bytes_)

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *_):
        pass


class Daemon(http.server.BaseHTTPRequestHandler):
    """As much of docker's daemon as `docker create` asks for."""

    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        status, said = 200, b"OK"
        if self.path.split("?")[0].endswith("/containers/create"):
            self.server.created = json.loads(body)
            status, said = 201, json.dumps({"Id": "0123456789ab", "Warnings": []}).encode()
        self.send_response(status)
        self.send_header("api-version", "1.47")
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(said)

    do_GET = do_POST = do_HEAD = answer

    def log_message(self, *_):
        pass


class UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def get_request(self):
        connection, _ = super().get_request()
        return connection, ("docker", 0)


def by_docker(docker, directory, file):
    path = os.path.join(directory, "docker.sock")
    if os.path.exists(path):
        os.unlink(path)
    with UnixServer(path, Daemon) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {"PATH": os.environ["PATH"], "HOME": directory, "DOCKER_HOST": f"unix://{path}"}
        subprocess.run([docker, "create", "--env-file", file, "an-image"], check=True, env=environment, stdout=subprocess.DEVNULL)
        server.shutdown()
        return dict(line.split("=", 1) for line in server.created["Env"])


def by_go(reader, parser, file):
    done = subprocess.run([reader, parser, file], check=True, capture_output=True, env={"PATH": os.environ["PATH"]})
    return json.loads(done.stdout)


def by_python(file):
    return dotenv.dotenv_values(file)


def main():
    if sys.argv[1] == "lease":
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Lessor) as server:
            with open(sys.argv[2], "w") as file:
                file.write(f"http://127.0.0.1:{server.server_port}")
            server.serve_forever()
    directory, keybearer, docker, reader = sys.argv[2:]

    def write(dialect, names, file):
        pairs = itertools.chain.from_iterable(("--env", f"{name.upper()}=nasty.{name}") for name in names)
        line = [keybearer, "env-file", "--format", dialect, "--allow-disk", "--out", file, *pairs]
        return subprocess.run(line, capture_output=True)

    for dialect, readers in {
        "docker": [
            ("the docker command line", docker, lambda file: by_docker(docker, directory, file)),
            ("docker's parser", reader, lambda file: by_go(reader, "docker", file)),
        ],
        "dotenv": [
            ("compose-go", reader, lambda file: by_go(reader, "compose", file)),
            ("python-dotenv", True, by_python),
        ],
    }.items():
        file = os.path.join(directory, dialect)
        carried, refused = {}, 0
        for name, value in values().items():
            done = write(dialect, [name], os.path.join(directory, "one"))
            if done.returncode == 0:
                carried[name.upper()] = value
            elif done.returncode == 65:
                refused += 1
            else:
                print("no", f"a {dialect} file is written or refused", f"{done.returncode} {done.stderr}", sep="\t")
        assert write(dialect, [name.lower() for name in carried], file).returncode == 0
        for who, there, read in readers:
            title = f"{who} reads {len(carried)} values of a {dialect} file as they are ({refused} were refused)"
            if not there:
                print("skip", title, "docker or go is not here", sep="\t")
                continue
            found = read(file)
            wrong = [(name, value, found.get(name)) for name, value in carried.items() if found.get(name) != value]
            if wrong or len(found) != len(carried) or not refused or len(carried) < 40:
                print("no", title, repr(wrong[:3]), sep="\t")
            else:
                print("ok", title, "", sep="\t")


main()
