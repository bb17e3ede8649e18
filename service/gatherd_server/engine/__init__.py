"""The part behind every wire: the live tables and the lookups on them."""
