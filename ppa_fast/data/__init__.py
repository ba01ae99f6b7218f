"""Parallel text: corpora, tokens, the store, and the batches of a step."""
