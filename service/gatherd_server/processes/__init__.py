"""The server's processes: the supervisor, its workers and its writer."""
