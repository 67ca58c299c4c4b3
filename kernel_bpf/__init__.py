"""The kernel side: loading and compiling BPF, the policy library, and what can be observed of tasks.

No other package may use ctypes for BPF.

May import: schedagent.core.
"""

from pathlib import Path

BPF = Path(__file__).resolve().parent / "bpf"
"""The BPF C: `include` (the shared headers) and `policies`."""
