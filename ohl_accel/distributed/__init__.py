"""Trajectory groups over processes: launch, communication, sharding."""
