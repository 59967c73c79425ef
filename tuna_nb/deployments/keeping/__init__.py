"""Who looks after a deployment while no notebook is open: the ledger, budgets, what bills without serving."""
