"""A server older than the client: what it overlooks is an error, and never another result."""

from typing import Any

import numpy as np
import pytest

from client.clients import WORDS, Awaited
from client.replies import serving
from gatherd import Client, Unimplemented


@pytest.mark.parametrize("make", [Client, Awaited])
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"normalize": True}, "normalize"),
        ({"dims": 1}, "dims"),
        ({"return_info": True}, "return_info"),
        ({"dims": 1, "normalize": True}, "dims, normalize"),
    ],
)
def test_what_an_older_server_overlooks_is_named(
    make: Any, options: dict[str, Any], named: str
) -> None:
    # The fake service answers these requests as if it had been asked for plain rows.
    with serving() as server, make(server.url) as client:
        for _ in range(2):
            with pytest.raises(Unimplemented, match=f"doesn't know {named};"):
                client.lookup("words", [1, 2], **options)
            np.testing.assert_array_equal(client.lookup("words", [1, 2]), WORDS[[1, 2]])


def test_all_dims_of_an_older_servers_table_are_its_vectors() -> None:
    with serving() as server, Client(server.url) as client:
        found = client.lookup("words", [3], dims=WORDS.shape[1])
        np.testing.assert_array_equal(found, WORDS[[3]])
