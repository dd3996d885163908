// Exported records held against the field list of @elastic/ecs: each field exists, has its type and an allowed value, and says what the
// ledger says. Usage: export.mjs LEDGER ECS
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { EcsFlat } = createRequire(import.meta.url)("@elastic/ecs");
const lines = (file) => readFileSync(file, "utf8").split("\n").filter(Boolean).map((line) => JSON.parse(line));
const [records, events] = process.argv.slice(2).map(lines);
const fail = (...why) => { console.log(...why); process.exit(1); };
const types = {
  keyword: (value) => typeof value === "string",
  wildcard: (value) => typeof value === "string",
  match_only_text: (value) => typeof value === "string",
  long: Number.isInteger,
  date: (value) => !Number.isNaN(Date.parse(value)),
};

if (events.length !== records.length) fail(`${events.length} events of ${records.length} records`);
events.forEach((event, at) => {
  const record = records[at];
  for (const [name, value] of Object.entries(event)) {
    if (name === "labels") {
      if (!Object.values(value).every(types.keyword)) fail("a label is no keyword", JSON.stringify(value));
      continue;
    }
    const field = EcsFlat[name];
    if (!field) fail(`${name} is no field of ECS`);
    const all = field.normalize.includes("array") ? value : [value];
    if (!Array.isArray(all) || !all.every(types[field.type])) fail(`${name} is no ${field.type}: ${JSON.stringify(value)}`);
    const allowed = field.allowed_values?.map((one) => one.name);
    if (allowed && !all.every((one) => allowed.includes(one))) fail(`${name} may not be ${value}`);
  }
  const same = {
    "@timestamp": record.time,
    "event.action": record.event.type,
    "event.outcome": record.event.outcome === "success" ? "success" : "failure",
    "event.reason": record.event.reason,
    "event.sequence": record.seq,
    "user.id": record.workload?.id,
    "process.pid": record.peer?.pid,
    "process.executable": record.peer?.exe?.path_hint,
    "host.name": record.host.name,
    "rule.id": record.policy?.rule,
    "rule.version": record.policy?.digest,
    "transaction.id": record.exchange_id,
    "destination.domain": record.target ? undefined : record.credential?.issuer,
  };
  for (const [name, wanted] of Object.entries(same)) {
    if (wanted != null && event[name] !== wanted) fail(`record ${record.seq}: ${name} is ${event[name]}, not ${wanted}`);
  }
});
console.log("ecs ok");
