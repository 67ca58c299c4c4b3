"""A sched_ext kernel in a QEMU virtual machine, booted once, snapshotted, and restored for each use.

`kernels` finds kernel images (`apt` downloads them), `image` builds the initramfs and the snapshot, `machine` drives
one QEMU process, and verifier.guest runs inside.

May import: verifier.proving, kernel_bpf, schedagent.core.
"""
