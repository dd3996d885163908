"""The page of metrics, read by prometheus_client: strictly as OpenMetrics, and as whoever knows only the older text format reads it.
Usage: metrics.py PAGE"""

import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as text_format

page = open(sys.argv[1], encoding="utf-8", newline="").read()
families = list(openmetrics(page))
for family in families:
    assert family.name.startswith("keybearer_"), family.name
    assert family.documentation and family.type in ("gauge", "counter"), family
    if family.unit:
        assert family.name.endswith("_" + family.unit), family.name
samples = {(sample.name, frozenset(sample.labels.items())): sample.value for family in families for sample in family.samples}
older = {(sample.name, frozenset(sample.labels.items())): sample.value for family in text_format(page) for sample in family.samples}
assert samples == older, set(samples.items()) ^ set(older.items())
assert any(name == "keybearer_exchanges_total" for name, _ in samples), page
print("metrics ok", len(families))
