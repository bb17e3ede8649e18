"""gatherd's messages and their generated stubs."""
