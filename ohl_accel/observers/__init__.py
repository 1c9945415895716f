"""What a run tells: progress on the terminal, dashboards."""
