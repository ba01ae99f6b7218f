"""The built-in corpus and the demo that runs on it."""
