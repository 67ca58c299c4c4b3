"""Moving the clocks of a running guest from outside.

What a policy does on another day, after a month of uptime, or an hour after it was loaded is proved by letting the
guest's kernel believe that so much time has gone by. `place` says, inside the guest, where its clocks are; `move` moves
them through QEMU's debugger port, which is what `debugger` speaks.

May import: schedagent.core.
"""
