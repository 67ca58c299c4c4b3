/* SPDX-License-Identifier: GPL-2.0-only */
/* Which functions of libc are stubs: for BPF there is no libc. */
