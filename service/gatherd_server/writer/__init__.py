"""How pushes change a data dir: queued, computed, logged, stored, and recovered at a start."""
