"""The query encoder with its heads, the momentum encoder, the queue, the loss; Hugging Face folders."""
