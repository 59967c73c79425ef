"""Tests of the router, over real sockets; the backends are small servers that misbehave on order."""
