// PPA_MULTIVERSION compiles a function for AVX-512, for AVX2 and for the baseline; the version is chosen when the
// library is loaded. One build therefore runs on every x86-64 processor, and fast on new ones. This folder is compiled
// without contraction (-ffp-contract=off), so that the versions agree bit for bit.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define PPA_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PPA_MULTIVERSION
#endif
