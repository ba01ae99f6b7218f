"""Fine-tuning of encoders on tasks, with sentences switched between languages."""
