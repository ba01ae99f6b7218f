"""Query encoder with its heads, momentum encoder, queue, loss, and Hugging Face folders."""
