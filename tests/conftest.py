"""tests/peers runs where torch, keras and gensim are: by `make test-peers`."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("torch") else ["peers"]
