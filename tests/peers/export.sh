# What gatherers of logs and metrics make of the agent, read by tests/peers/run: the schema of OCSF as JSON Schema, pycef, the field
# list of @elastic/ecs, and the parser of prometheus_client.

export=$stage/export
mkdir "$export"
start_agent "$stage/agent.toml" state
# Programs that were named by somebody who knows the formats. One file with many names: the link is what the kernel shows.
names=(
  'a|b\|c' 'x=1 suid=root outcome=success' 'back\slash\' $'end\nCEF:0|Evil|evil|1|x|x|10|suid=root' $'cr\rlf\r\n{"seq":1}'
  '"},"status_id":1,"x":{"y":"' $'sep\u2028\u2029\u0085\v\farated' $'right\u202eleft' $'esc\e[31mred' 'trailing = \= \' '\n is no line feed' $'caf\u00e9'
)
# Beside the ledger, so that both are on one file system; a copy of its own, because links to others' files may be forbidden.
cp "$keybearer" "$export/program"
for round in $(seq 9); do
  for name in "${names[@]}"; do
    ln "$export/program" "$export/$round $name"
    "$export/$round $name" get api --socket "$sock" >/dev/null 2>&1 || true
  done
done
"$keybearer" get nothing --socket "$sock" >/dev/null 2>&1 || true
"$keybearer" whoami --socket "$sock" >/dev/null 2>&1 || true
if command -v curl >/dev/null && [ "$python" = yes ]; then
  curl -sS --unix-socket "$http" -o "$export/metrics" http://localhost/metrics
  judged=$("$tools/python/bin/python" "$here/metrics.py" "$export/metrics" 2>&1 | tail -n 1) || true
  case $judged in "metrics ok"*) ok "prometheus_client reads the metrics, as OpenMetrics and as the older text" ;; *) no "metrics by prometheus_client" "$judged" ;; esac
else
  skip "metrics by prometheus_client" "curl or python3 is not here"
fi
stop_agent
for format in ocsf ecs cef; do
  "$keybearer" audit export --dir "$stage/state/audit" --format "$format" > "$export/$format" 2> "$export/$format.err" || no "export as $format" "$(cat "$export/$format.err")"
done
if [ "$python" = yes ]; then
  judged=$("$tools/python/bin/python" "$here/export.py" "$stage/state/audit/ledger.jsonl" "$export" 2>&1 | tail -n 2) || true
  case $judged in
    *"ocsf ok"*"cef ok"*) ok "the OCSF schema takes every record, hostile names and all, and pycef reads twelve fields of each back" ;;
    *) no "OCSF and CEF by parsers that are not ours" "$judged" ;;
  esac
else
  skip "OCSF and CEF by parsers that are not ours" "python3 is not here"
fi
same "every field of ECS is one that @elastic/ecs knows, and says what the ledger says" "ecs ok" "$(cd "$tools/node" && { node export.mjs "$stage/state/audit/ledger.jsonl" "$export/ecs" 2>&1 || true; } | tail -n 1)"
# What does not happen here by itself: one record of each kind and outcome. No ledger vouches for these, which has to be asked for.
mkdir "$export/every"
cp "$stage/state/audit/checkpoint.pub" "$export/every/"
if [ "$python" = yes ]; then
  "$tools/python/bin/python" "$here/export.py" every "$stage/state/audit/ledger.jsonl" > "$export/every/ledger.jsonl"
  for format in ocsf ecs cef; do "$keybearer" audit export --dir "$export/every" --format "$format" --anyway > "$export/every/$format" 2>/dev/null || true; done
  judged=$("$tools/python/bin/python" "$here/export.py" "$export/every/ledger.jsonl" "$export/every" 2>&1 | tail -n 2) || true
  case $judged in *"ocsf ok"*"cef ok"*) ok "so do records of each kind and outcome" ;; *) no "records of each kind and outcome" "$judged" ;; esac
  same "and in ECS" "ecs ok" "$(cd "$tools/node" && { node export.mjs "$export/every/ledger.jsonl" "$export/every/ecs" 2>&1 || true; } | tail -n 1)"
fi
cp -r "$stage/state/audit" "$export/audit"
lines=$(wc -l < "$export/audit/ledger.jsonl")
sed -i '3s/"outcome":"[a-z]*"/"outcome":"failed"/' "$export/audit/ledger.jsonl"
broken=$("$keybearer" audit export --dir "$export/audit" --format ecs 2> "$export/err" | wc -l || true)
same "of a ledger that was changed, what comes before is exported" "2" "$broken"
if grep -q 'record 2' "$export/err"; then ok "and it is said where it breaks"; else no "and it is said where it breaks" "$(cat "$export/err")"; fi
same "the rest only if it is asked for" "$lines" "$("$keybearer" audit export --dir "$export/audit" --format ecs --anyway 2>/dev/null | wc -l)"
