"""What the SDK and the server both read tables with."""
