"""The run folder: its files, atomic writes, and metrics."""
