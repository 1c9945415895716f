"""Trajectory groups over processes: launching, exchanging, sharding."""
