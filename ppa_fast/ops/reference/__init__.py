"""The operations in plain PyTorch: the specification that every other backend is held to, and the fallback."""
