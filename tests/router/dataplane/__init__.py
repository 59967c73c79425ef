"""Tests of one request's life."""
