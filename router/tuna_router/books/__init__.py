"""The books: what happened, exactly, and what it cost. No I/O."""
