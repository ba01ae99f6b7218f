"""The query encoder with its heads, the momentum encoder, the queue, the loss; Hugging Face folders."""

POOLINGS = ("cls", "mean")
"""How tokens become a sentence's vector; here, so that the settings are parsed without loading torch."""
