"""A second opinion, by requests-oauth2client, on the proofs that an API took. It compares htu byte for byte with the URL that
came over the wire: no library is stricter. Usage: proofs.py LOG_FILE -> what it refuses, then how many it takes"""

import base64
import hashlib
import json
import sys

from requests_oauth2client.dpop import InvalidDPoPProof, validate_dpop_proof

taken = 0
for line in open(sys.argv[1]):
    seen = json.loads(line)
    ath = base64.urlsafe_b64encode(hashlib.sha256(seen["token"].encode()).digest()).rstrip(b"=").decode()
    try:
        validate_dpop_proof(
            seen["proof"],
            htm=seen["method"],
            htu=seen["url"].split("?")[0],
            ath=ath,
            nonce=seen["nonce"],
            # The whole log is judged at its end.
            leeway=300,
            algs=["ES256", "EdDSA"],
        )
        taken += 1
    except InvalidDPoPProof as error:
        print(seen["url"], error)
print("takes", taken)
