"""Observers of a run: progress on the terminal, metrics, dashboards, report, Hub."""
