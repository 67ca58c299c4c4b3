"""A sched_ext kernel in a QEMU virtual machine, booted once, snapshotted, and restored for each use.

`kernels` finds kernel images, `image` builds the initramfs and the snapshot, `machine` drives one QEMU process,
`guest` runs inside. May import: kernel_bpf, verifier.proving (inside the guest) and schedagent.core.
"""
