"""The run folder: its files, how they are written, and the metrics in it."""
