"""Spot GPUs at AWS, Google Cloud and Azure through SkyPilot's SkyServe.

SkyServe keeps the wanted number of spot replicas, in whichever zone has room, and puts a load balancer before them.
Everything goes through SkyPilot's public SDK, which talks to an API server: one on this machine, which it starts by
itself, or the one that SKYPILOT_API_SERVER_ENDPOINT names. Written against SkyPilot 0.14.1.
"""
