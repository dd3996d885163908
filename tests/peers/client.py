"""An unmodified grpcio client. Usage: client.py STUBS_DIR TARGET NAME -> the token's fingerprint"""

import hashlib
import sys

stubs, target, name = sys.argv[1:]
sys.path.insert(0, stubs)

import grpc  # noqa: E402
from keybearer.v1 import credentials_pb2, credentials_pb2_grpc  # noqa: E402

with grpc.insecure_channel(target) as channel:
    client = credentials_pb2_grpc.CredentialsStub(channel)
    try:
        answer = client.Get(
            credentials_pb2.GetRequest(name=name), metadata=[("keybearer", "v1")], timeout=20
        )
    except grpc.RpcError as error:
        print("code", error.code().name)
        sys.exit(1)
    token = answer.credential.access_token.token.encode()
    print(hashlib.sha256(token).hexdigest()[:32])
