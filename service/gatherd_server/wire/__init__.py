"""Messages to and from what the engine takes; HTTP and gRPC share it."""
