"""The ablation: alignment with and without its parts, then tasks, over seeds."""
