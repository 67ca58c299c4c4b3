"""sample_kernel.py FILE: until FILE is there, look at sched_ext every 5 ms; then write to it what was seen, each once."""

import json
import sys
import time
from pathlib import Path

SYSFS = Path("/sys/kernel/sched_ext")
stop, seen = Path(sys.argv[1]), []
while not stop.exists():
    looked = [(SYSFS / "state").read_text().strip(), int((SYSFS / "enable_seq").read_text())]
    if looked not in seen:
        seen.append(looked)
    time.sleep(0.005)
stop.with_suffix(".seen").write_text(json.dumps(seen))
