"""Exported records, parsed back: OCSF held against the schema of its version, CEF read by pycef. Both are then compared with the
ledger. Usage: export.py LEDGER DIRECTORY, or: export.py every LEDGER -> one record of each kind and outcome"""

import json
import re
import sys
from datetime import datetime

import jsonschema
import pycef
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

KINDS = """agent_start agent_stop attestation_failure certificate_ending config_load config_refused credential_issue credential_release
credential_renew credential_return credential_revoke describe denial exception_ending explain forward_answer forward_send
human_session identity_disable identity_enable issue_failure key_open key_register key_rotate ledger_gap ledger_repaired
ledger_turned new_place operator_revoke proof_mint protocol secret_seal reuse_detected two_places""".split()

ledger, directory = sys.argv[1:]
if ledger == "every":
    record = next(one for one in map(json.loads, open(directory, "rb").read().splitlines()) if one["credential"])
    every = [(kind, outcome, bare) for kind in KINDS for outcome in ("denied", "failed", "success") for bare in (True, False)]
    for seq, (kind, outcome, bare) in enumerate(every):
        one = record | {"seq": seq, "event": {"type": kind, "outcome": outcome, "reason": None if bare else "A_REASON"}}
        if bare:
            one |= dict.fromkeys(["workload", "peer", "credential", "target", "policy", "issuer_response", "detail"])
        else:
            one["target"] = {"htm": ["GET", "POST", "PURGE"][seq % 3], "origin": "https://[2001:db8::1]:8443", "path": "/a=b|c\\", "jti_hash": None}
            one["api_response"] = {"http_status": 502, "latency_ms": 3, "attempts": 1}
        print(json.dumps(one))
    sys.exit()
records = [json.loads(line) for line in open(ledger, "rb").read().splitlines()]


def lines(name):
    # As the crudest of readers would: by everything that Unicode calls the end of a line.
    return open(f"{directory}/{name}", encoding="utf-8", newline="").read().splitlines()


def millis(text):
    return round(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)


def part(record, *names):
    for name in names:
        record = (record or {}).get(name)
    return record


def same(seq, name, wanted, got):
    if wanted is not None and wanted != got:
        raise SystemExit(f"record {seq}: {name} is {got!r}, not {wanted!r}")


def ocsf():
    schema = OcsfJsonSchemaEmbedded(get_ocsf_schema(version="1.7.0"))
    validators = {}
    events = [json.loads(line) for line in lines("ocsf")]
    assert len(events) == len(records), f"{len(events)} events of {len(records)} records"
    for record, event in zip(records, events):
        uid = event["class_uid"]
        if uid not in validators:
            name = schema.lookup_class_name_from_uid(uid)
            text = schema.get_class_schema(name, profiles=event["metadata"]["profiles"])
            validators[uid] = jsonschema.Draft202012Validator(text)
        wrong = list(validators[uid].iter_errors(event))
        assert not wrong, f"record {record['seq']} ({record['event']['type']}): {wrong[0].json_path} {wrong[0].message[:300]}"
        process = part(event, "actor", "process")
        caller = {} if uid == 6002 else record
        for name, wanted, got in [
            ("time", millis(record["time"]), event["time"]),
            ("outcome", 1 if record["event"]["outcome"] == "success" else 2, event["status_id"]),
            ("reason", record["event"]["reason"], event.get("status_detail")),
            ("pid", part(caller, "peer", "pid"), part(process, "pid")),
            ("uid", part(caller, "peer", "uid"), int(part(process, "user", "uid") or -1)),
            ("program", part(caller, "peer", "exe", "path_hint"), part(process, "file", "path")),
            ("host", part(record, "host", "name"), part(event, "device", "hostname")),
            ("exchange", record["exchange_id"], part(event, "metadata", "correlation_uid")),
            ("rule", part(record, "policy", "rule"), part(event, "policy", "name")),
            ("settings", part(record, "policy", "digest"), part(event, "policy", "version")),
            ("credential", part(record, "credential", "name"), part(event, "unmapped", "credential")),
        ]:
            same(record["seq"], name, wanted, got)
        if uid == 3002:
            same(record["seq"], "identity", part(record, "workload", "id"), part(event, "user", "uid"))
            if not record["target"]:
                same(record["seq"], "issuer", part(record, "credential", "issuer"), part(event, "dst_endpoint", "hostname"))
            end = part(record, "credential", "not_after")
            same(record["seq"], "end", end and millis(end), part(event, "authentication_token", "expiration_time"))
    print("ocsf ok", len(events))


def unescaped(text):
    return re.sub(r"\\([\\=nr])", lambda found: {"n": "\n", "r": "\r"}.get(found[1], found[1]), text)


def spelled(text):
    """What CEF has no escape for is spelled out."""
    strange = "\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    control = lambda c: c not in "\r\n" and (ord(c) < 32 or 127 <= ord(c) < 160)
    return "".join(f"\\u{ord(c):04x}" if control(c) or c in strange else c for c in text)


def cef():
    events = lines("cef")
    assert len(events) == len(records), f"{len(events)} events of {len(records)} records"
    for record, line in zip(records, events):
        event = pycef.parse(line)
        assert event, line
        text = lambda name: unescaped(event[name]) if name in event else None
        for name, wanted, got in [
            ("vendor", "Keybearer", event["DeviceVendor"]),
            ("event", record["event"]["type"], event["DeviceEventClassID"]),
            ("time", str(millis(record["time"])), text("rt")),
            ("outcome", record["event"]["outcome"], text("outcome")),
            ("reason", record["event"]["reason"], text("reason")),
            ("identity", part(record, "workload", "id"), text("suid")),
            ("pid", part(record, "peer") and str(record["peer"]["pid"]), text("spid")),
            ("program", spelled(part(record, "peer", "exe", "path_hint") or "").rstrip() or None, text("sproc")),
            ("host", part(record, "host", "name"), text("dvchost")),
            ("exchange", record["exchange_id"], text("externalId")),
            ("rule", part(record, "policy", "rule"), text("rule")),
            ("end", part(record, "credential", "not_after"), text("tokenExpires")),
            ("life", part(record, "credential", "ttl_s") and str(record["credential"]["ttl_s"]), text("tokenLifeSeconds")),
        ]:
            same(record["seq"], name, wanted, got)
    print("cef ok", len(events))


ocsf()
cef()
