/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The hash behind schedagent/core/policies/identity.py, byte by byte. Plain C
 * without kernel types, so that a unit test compares it with Python on any
 * machine.
 */
#ifndef SCHEDAGENT_CMDLINE_HASH_H
#define SCHEDAGENT_CMDLINE_HASH_H

/* 64-bit FNV-1a, parameters from IETF draft-eastlake-fnv, section 5. */
#define FNV_OFFSET 0xcbf29ce484222325ULL
#define FNV_PRIME  0x100000001b3ULL

#define CMDLINE_LIMIT_BYTES 512

/* Arguments that start so are drawn at random by compilers and the like. */
#define RANDOM_PREFIX	    "/tmp/"
#define RANDOM_PREFIX_BYTES 5

struct cmdline_hash {
	unsigned long long argument; /* FNV-1a of the current argument */
	unsigned long long sum;	     /* of the arguments that count */
	unsigned int position;	     /* in the current argument */
	unsigned int prefix;	     /* leading bytes equal to RANDOM_PREFIX */
};

static inline unsigned long long fnv1a_step(unsigned long long hash,
					    unsigned char byte)
{
	return (hash ^ byte) * FNV_PRIME;
}

static inline void cmdline_hash_start(struct cmdline_hash *h)
{
	h->argument = FNV_OFFSET;
	h->sum = 0;
	h->position = 0;
	h->prefix = 0;
}

static inline unsigned char random_prefix_byte(unsigned int position)
{
	switch (position) {
	case 0:
	case 4:
		return '/';
	case 1:
		return 't';
	case 2:
		return 'm';
	default:
		return 'p';
	}
}

/* Feed one byte; an argument counts when its closing NUL has been fed. */
static inline void cmdline_hash_step(struct cmdline_hash *h, unsigned char byte)
{
	if (byte) {
		if (h->position < RANDOM_PREFIX_BYTES &&
		    h->prefix == h->position &&
		    byte == random_prefix_byte(h->position))
			h->prefix++;
		h->argument = fnv1a_step(h->argument, byte);
		h->position++;
		return;
	}
	if (h->prefix < RANDOM_PREFIX_BYTES)
		h->sum += h->argument;
	h->argument = FNV_OFFSET;
	h->position = 0;
	h->prefix = 0;
}

/* The hash of "comm:" followed by the command name. */
static inline unsigned long long comm_hash(const char *comm, unsigned int size)
{
	unsigned long long hash = FNV_OFFSET;
	unsigned int i;

	hash = fnv1a_step(hash, 'c');
	hash = fnv1a_step(hash, 'o');
	hash = fnv1a_step(hash, 'm');
	hash = fnv1a_step(hash, 'm');
	hash = fnv1a_step(hash, ':');
	for (i = 0; i < size && comm[i]; i++)
		hash = fnv1a_step(hash, comm[i]);
	return hash;
}

#endif
