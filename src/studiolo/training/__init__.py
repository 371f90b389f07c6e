"""What every training on Lightning shares: steps, averages, whole checkpoints, clean interruptions."""
