"""policies.py CGROUP: print the scheduling policies (0 SCHED_NORMAL, 7 SCHED_EXT) of a cgroup's tasks, each once."""

import os
import sys
from contextlib import suppress
from pathlib import Path

policies = set()
for folder, _folders, _files in os.walk(f"/sys/fs/cgroup{sys.argv[1]}"):
    for thread in Path(folder, "cgroup.threads").read_text().split():
        with suppress(OSError):
            policies.add(os.sched_getscheduler(int(thread)))
sys.stdout.write(" ".join(map(str, sorted(policies))) + "\n")
