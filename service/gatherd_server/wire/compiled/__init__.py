"""The compiled answer: from the bytes of a lookup's request to those of its reply."""
