"""What a router tells while it runs: events, snapshots, the access log."""
