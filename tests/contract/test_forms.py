"""Parts of vectors, vectors of length 1, and what a reply says of itself; on every surface."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from contract.conftest import IDS_MAX, ServedTables
from contract.surfaces import Bags, Form, Surface
from contract.test_keys_and_bags import needs
from contract.test_lookup import as_reply
from gatherd import Client
from gatherd.errors import GatherdError, InvalidArgument

EXAMPLES = settings(max_examples=8, deadline=None)
TABLES = ["float32", "float16", "bfloat16", "float64", "stored-default"]
DTYPES = ["float32", "float16", "bfloat16"]
# Of a number rounded from one that is off by a float32's last bit or two.
ROUNDINGS = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}


def formed(rows: NDArray[Any], form: Form) -> NDArray[Any]:
    """Rows, as float64, in the form that a reply has."""
    cut = rows.astype(np.float32).astype(float)[..., : form.dims]
    if form.normalize:
        norms = np.linalg.norm(cut, axis=-1, keepdims=True)
        cut = np.divide(cut, norms, out=np.zeros_like(cut), where=norms > 0)
    return as_reply(cut, form.dtype)


def check(vectors: NDArray[Any], rows: NDArray[Any], form: Form) -> None:
    wanted = formed(rows, form)
    assert vectors.shape == wanted.shape
    assert vectors.dtype == wanted.dtype
    if not form.normalize:
        np.testing.assert_array_equal(vectors, wanted)
        return
    np.testing.assert_allclose(
        vectors.astype(float), wanted.astype(float), rtol=ROUNDINGS[form.dtype], atol=1e-7
    )


@st.composite
def forms(draw: st.DrawFn, dim: int, missing: str = "error") -> Form:
    dims = draw(st.none() | st.integers(1, dim))
    return Form(dims, draw(st.booleans()), draw(st.sampled_from(DTYPES)), missing)


@EXAMPLES
@given(data=st.data())
def test_vectors_have_the_form_that_was_asked_for(
    surface: Surface, served: ServedTables, data: st.DataObject
) -> None:
    needs(surface, "formed")
    table = data.draw(st.sampled_from(TABLES))
    rows = served.oracles[table].rows
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=1, max_side=5))
    ids = data.draw(hnp.arrays(np.int64, shape, elements=st.integers(0, len(rows) - 1)))
    form = data.draw(forms(rows.shape[1]))
    vectors, status = surface.formed(table, ids, form)
    check(vectors, rows[ids], form)
    assert not status.any()


@pytest.mark.parametrize("missing", ["zero", "default"])
def test_fillers_have_the_form_too(surface: Surface, served: ServedTables, missing: str) -> None:
    needs(surface, "formed")
    oracle = served.oracles["stored-default"]
    form = Form(5, True, missing=missing)
    vectors, status = surface.formed("stored-default", np.array([3, -1, 300]), form)
    filler = np.zeros(24) if missing == "zero" else oracle.default
    check(vectors, np.array([oracle.rows[3], filler, filler]), form)
    assert status.tolist() == [0, 1, 1]


@EXAMPLES
@given(data=st.data())
def test_pooled_vectors_are_cut_and_normalized_after_pooling(
    surface: Surface, served: ServedTables, data: st.DataObject
) -> None:
    needs(surface, "formed_bags")
    rows = served.oracles["float32"].rows
    ids = np.array(data.draw(st.lists(st.integers(0, 299), min_size=6, max_size=6)))
    form = data.draw(forms(24))
    # Of bfloat16, sums in another order may round to the neighbour.
    vectors, _ = surface.formed_bags("float32", Bags(ids, [0, 2, 2]), form)
    pooled = np.array([rows[ids[:2]].sum(axis=0), np.zeros(24), rows[ids[2:]].sum(axis=0)])
    wanted = formed(pooled, form).astype(float)
    assert vectors.shape == wanted.shape
    np.testing.assert_allclose(vectors.astype(float), wanted, rtol=ROUNDINGS[form.dtype], atol=1e-5)


@pytest.mark.parametrize("dims", [25, 2**20])
def test_more_dims_than_there_are_is_an_error(surface: Surface, dims: int) -> None:
    needs(surface, "formed")
    with pytest.raises(InvalidArgument, match=f"dim 24.*{dims}"):
        surface.formed("float32", np.array([1]), Form(dims))


def test_a_reply_says_its_version_and_lsn(surface: Surface, served: ServedTables) -> None:
    needs(surface, "informed")
    vectors, version, lsn = surface.informed("float16", np.array([1, 2]))
    np.testing.assert_array_equal(vectors, served.oracles["float16"].rows[[1, 2]])
    assert version == 1
    with Client(f"local:{served.data_dir}") as client:
        assert lsn == client.table("float16").lsn > 0


def test_a_lookup_in_pieces_has_the_form(surface: Surface, served: ServedTables) -> None:
    if not surface.name.startswith(("sdk", "async")):
        pytest.skip("only the SDK divides a lookup")
    rows = served.oracles["float64"].rows
    ids = np.arange(IDS_MAX + 5)
    form = Form(2, True)
    vectors, _ = surface.formed("float64", ids, form)
    check(vectors, rows[ids], form)


@pytest.mark.parametrize("scheme", ["http", "grpc", "local"])
def test_out_is_filled_with_the_form(served: ServedTables, scheme: str) -> None:
    url = {
        "http": served.server.http, "grpc": served.server.grpc, "local": f"local:{served.data_dir}"
    }[scheme]  # fmt: skip
    rows = served.oracles["float32"].rows
    with Client(url) as client:
        out = np.empty((2, 7), np.float16)
        got = client.lookup("float32", [3, 4], dims=7, normalize=True, dtype="float16", out=out)
        assert got is out
        check(out, rows[[3, 4]], Form(7, True, "float16"))
        with pytest.raises(InvalidArgument, match=r"asked for 8 dims; out has shape \(2, 7\)"):
            client.lookup("float32", [3, 4], dims=8, dtype="float16", out=out)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dims": 0}, "dims=0"),
        ({"dims": 2.0}, "dims is an integer"),
        ({"dims": True}, "dims is an integer"),
        ({"normalize": 1}, "normalize is True or False"),
        ({"return_info": True, "return_status": True}, "return_info has the status"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(
    served: ServedTables, options: dict[str, Any], match: str
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = [
        ("lookup", {"table": "float32", "ids": [1]}),
        ("lookup_many", {"ids": {"float32": [1]}}),
        ("lookup_bags", {"table": "float32", "ids": [[1]]}),
        ("lookup_bags_many", {"ids": {"float32": [[1]]}}),
    ]
    with Client("http://127.0.0.1:1") as client:  # nobody is there
        for call, arguments in calls:
            with pytest.raises(GatherdError, match=match):
                getattr(client, call)(**arguments, **options)
