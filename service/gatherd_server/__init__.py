"""The gatherd server; docs/architecture.md describes its rooms from the bottom up."""
