"""Google Cloud Run: services with one GPU per instance, by Google's own SDK over REST.

A service carries the deployment's id as a label. Creating one starts an instance and is done when that is ready, so
a deploy waits for the weights. The Admin API does not tell how many instances run: Cloud Monitoring does, some
minutes late. What can't be known is told as costing money.

Source: google-cloud-run 0.16, and Google's pages on Cloud Run with GPUs, of 2026-08.
"""
