"""The standalone data plane: one OpenAI-compatible endpoint over serverless and spot backends."""

__version__ = "0.1.0"
