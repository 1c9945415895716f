"""A run: setting it up, training trajectories, scoring, checkpoints."""
