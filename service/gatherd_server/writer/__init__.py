"""How pushes change a data dir: they are queued, computed, logged, stored, and recovered."""
