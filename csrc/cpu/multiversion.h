// PPA_MULTIVERSION before a function: compiled for AVX-512, AVX2 and the baseline, chosen when the library is loaded,
// so that a build runs on every x86-64 and fast on new ones. Contraction is off in this folder (-ffp-contract=off): the
// versions agree bit for bit.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define PPA_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PPA_MULTIVERSION
#endif
