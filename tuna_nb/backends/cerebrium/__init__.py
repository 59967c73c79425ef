"""Cerebrium: apps with vLLM's own image, by the REST API v2.

An app has no tags: it is told by its name, `<project>-<name>`, and sending one of that name again is a new build of
the same app, never a second app. A deploy is three steps: the app is made, a zip with its Dockerfile is uploaded,
Cerebrium builds the image and tries it. A key is a JWT that names its project. Numbers come back as text.

Source: Cerebrium's command-line client (Go) of 2026-08-19, and its pages on custom Dockerfiles.
"""
