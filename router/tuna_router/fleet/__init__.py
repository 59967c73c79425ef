"""The backends as they are now: what was configured, what is learned, who watches them."""
