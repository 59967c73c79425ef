"""`python -m tests.bench`: what starting costs. Figures for README and closing notes, not tests: they depend on
the machine and on what else it does."""
