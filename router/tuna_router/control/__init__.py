"""The control plane: FastAPI under `/router/*` and `/metrics`, imported when first asked for."""
