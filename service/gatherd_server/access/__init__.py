"""Who may ask for what, and whether there is room: the same for every wire."""
