"""Training: batches, objectives, optimiser and the one loop."""
