"""Spot GPUs through SkyPilot's SkyServe."""
