"""sample_kernel.py FILE: look at sched_ext every 20 ms until FILE is there; then write what was seen to FILE.seen."""

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
    time.sleep(0.02)
stop.with_name(f"{stop.name}.seen").write_text(json.dumps(seen))
