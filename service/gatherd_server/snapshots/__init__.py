"""Copies of a data dir at one LSN, and backups of them."""
