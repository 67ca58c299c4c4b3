"""prometheus.py EXPRESSION SECONDS: ask Prometheus until an expression has a result; print that, a line each."""

import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

expression, limit_s = sys.argv[1], float(sys.argv[2])
address = "http://127.0.0.1:9090/api/v1/query?" + urllib.parse.urlencode({"query": expression})
begun, last = time.monotonic(), "nothing"
while time.monotonic() - begun < limit_s:
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            results = json.load(answer)["data"]["result"]
        last = "an empty result"
    except (urllib.error.URLError, TimeoutError) as error:
        results, last = [], str(error)
    if results:
        for series in results:
            labels = ", ".join(f'{name}="{value}"' for name, value in series["metric"].items() if name != "__name__")
            sys.stdout.write(f"{series['metric'].get('__name__', '')}{{{labels}}} {series['value'][1]}\n")
        raise SystemExit(0)
    time.sleep(1)
raise SystemExit(f"not within {limit_s:g} s: {expression}; the last answer was {last}")
