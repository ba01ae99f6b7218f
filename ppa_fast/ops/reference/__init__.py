"""The operations in plain PyTorch: the specification of all other backends, and the fallback."""
