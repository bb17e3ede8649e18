"""The process that may change a data dir, and what it does."""
