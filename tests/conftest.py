"""What `make test` leaves out, and hypothesis without deadlines: no test is a timed one.

tests/peers runs where torch, keras and gensim are, by `make test-peers`; tests/proxies, which
starts nginx, HAProxy and Java, by `make test-proxies`; tests/clients, which builds programs in
other languages, by `make test-clients`; tests/browser, where playwright is, by `make test-browser`.
"""

import gc
import importlib.util
import os

import pytest

# What is collected stays to the end, and the garbage collector would look at all of it again and
# again: a third of the time that collecting takes.
gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what was collected out of what the collector looks at."""
    del session
    gc.freeze()
    gc.enable()


if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")

collect_ignore = [] if importlib.util.find_spec("torch") else ["peers"]
if "TEST_PROXIES" not in os.environ:
    collect_ignore.append("proxies")
if "TEST_CLIENTS" not in os.environ:
    collect_ignore.append("clients")
if not importlib.util.find_spec("playwright"):
    collect_ignore.append("browser")
