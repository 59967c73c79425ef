"""Tuna: deploy an open model from a notebook behind one endpoint, at spot prices, answering like serverless."""

__version__ = "0.1.0"
