"""Reads parallel text of any supported format into sentence pairs."""
