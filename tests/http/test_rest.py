import io
import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gatherd.errors import InvalidArgument
from gatherd_server.http.rest.arrays import ids_from_npy
from support.small_engine import REFUSED, SmallEngine

NPY = "application/x-npy"
OCTETS = "application/octet-stream"
JSON = "application/json"


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def lookup(ask: Any, table: str, body: Any) -> Any:
    return ask("POST", f"/v1/tables/{table}:lookup", json=body)


def problem(response: Any, status: int, reason: str) -> str:
    """The message of a problem body, once it is known to be a whole one."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["reason"] == reason
    assert body["error"] == body["detail"]
    assert body["type"] in ("about:blank", "urn:gatherd:error:" + reason.lower().replace("_", "-"))
    assert isinstance(body["title"], str)
    assert isinstance(body["metadata"], dict)
    message: str = body["detail"]
    return message


# What is answered


@pytest.mark.parametrize("ids", [7, [], [3, 3, 0], [[4], [20]], [[[1, 2]], [[3, 4]]], [[], []]])
def test_json_ids_of_any_shape_give_rows_of_that_shape(
    ask: Any, small: SmallEngine, ids: Any
) -> None:
    reply = lookup(ask, "words", {"ids": ids}).json()
    expected = small.rows["words"][np.asarray(ids, np.int64)]
    assert reply["shape"] == list(expected.shape)
    assert reply["dtype"] == "float32"
    assert reply["version"] == 1
    assert "status" not in reply
    np.testing.assert_array_equal(
        np.array(reply["vectors"], np.float32).reshape(expected.shape), expected
    )


@pytest.mark.parametrize("ids", [1, [1, 9999], [[0], [-1]]])
def test_json_status_is_nested_as_the_ids_are(ask: Any, small: SmallEngine, ids: Any) -> None:
    reply = lookup(ask, "words", {"ids": ids, "missing": "zero"}).json()
    found = np.asarray(ids)
    inside = (found >= 0) & (found < 5000)
    assert reply["status"] == np.where(inside, 0, 1).tolist()
    vectors = np.array(reply["vectors"], np.float32)
    assert not vectors[~inside].any()


@pytest.mark.parametrize(
    ("dtype", "kind"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)]
)
def test_sixteen_bit_replies_are_rounded_as_numpy_rounds(
    ask: Any, small: SmallEngine, dtype: str, kind: Any
) -> None:
    expected = small.rows["words"][[1, 2]].astype(kind)
    reply = lookup(ask, "words", {"ids": [1, 2], "dtype": dtype}).json()
    assert reply["dtype"] == dtype
    np.testing.assert_array_equal(
        np.array(reply["vectors"], np.float32), expected.astype(np.float32)
    )
    for accept in (OCTETS, NPY):
        response = ask(
            "POST",
            "/v1/tables/words:lookup",
            json={"ids": [1, 2], "dtype": dtype},
            headers={"Accept": accept},
        )
        raw = (
            np.load(io.BytesIO(response.content)) if accept == NPY
            else np.frombuffer(response.content, "V2").reshape(2, 64)
        )  # fmt: skip
        np.testing.assert_array_equal(raw.view(kind), expected)


def test_values_that_json_lacks_come_as_null(ask: Any) -> None:
    reply = lookup(ask, "odd", {"ids": [0, 1]}).json()
    assert reply["vectors"] == [[None, None], [None, 1.5]]


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64"])
@pytest.mark.parametrize("sign", ["", "u"])
def test_raw_ids_of_every_integer_dtype(
    ask: Any, small: SmallEngine, sign: str, dtype: str
) -> None:
    ids = np.array([[3], [5]], sign + dtype)
    response = ask(
        "POST",
        "/v1/tables/words:lookup",
        params={"ids_dtype": sign + dtype, "shape": "2,1"},
        content=ids.tobytes(),
        headers={"Content-Type": OCTETS, "Accept": OCTETS},
    )
    assert response.headers["gatherd-shape"] == "2,1,64"
    assert response.headers["gatherd-dtype"] == "float32"
    assert response.headers["gatherd-version"] == "1"
    assert response.headers["gatherd-status-bytes"] == "0"
    vectors = np.frombuffer(response.content, "<f4").reshape(2, 1, 64)
    np.testing.assert_array_equal(vectors, small.rows["words"][ids])


def test_raw_status_follows_the_vectors(ask: Any, small: SmallEngine) -> None:
    response = ask(
        "POST",
        "/v1/tables/words:lookup?missing=default",
        content=np.array([0, 5000], "<i8").tobytes(),
        headers={"Content-Type": OCTETS, "Accept": OCTETS},
    )
    status_bytes = int(response.headers["gatherd-status-bytes"])
    assert response.content[-status_bytes:] == b"\0\1"
    vectors = np.frombuffer(response.content[:-status_bytes], "<f4").reshape(2, 64)
    np.testing.assert_allclose(vectors[1], small.rows["words"].mean(axis=0), atol=1e-6)


@given(
    hnp.arrays(
        st.sampled_from(["i1", "i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8"]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
        elements=st.integers(0, 127),
    )
)
def test_npy_ids_are_read_as_numpy_saved_them(ids: Any) -> None:
    read = ids_from_npy(npy(ids))
    assert read.dtype == ids.dtype
    np.testing.assert_array_equal(read, ids)


def test_npy_in_gives_npy_out_with_the_status_in_a_second_one(ask: Any, small: SmallEngine) -> None:
    ids = np.array([[1], [6000]], np.int32)
    response = ask(
        "POST",
        "/v1/tables/words:lookup",
        params={"missing": "zero"},
        content=npy(ids),
        headers={"Content-Type": NPY, "Accept": NPY},
    )
    stream = io.BytesIO(response.content)
    vectors, status = np.load(stream), np.load(stream)
    np.testing.assert_array_equal(vectors[0, 0], small.rows["words"][1])
    assert not vectors[1].any()
    np.testing.assert_array_equal(status, [[0], [1]])
    assert not stream.read()
    assert response.headers["gatherd-status-bytes"] == str(status.nbytes)


def test_a_long_lookup_is_answered_as_a_short_one_is(ask: Any, small: SmallEngine) -> None:
    ids = np.random.default_rng(0).integers(0, 5000, 20_000)
    for accept in (OCTETS, NPY, JSON):
        response = ask(
            "POST",
            "/v1/tables/words:lookup",
            content=ids.astype("<i8").tobytes(),
            headers={"Content-Type": OCTETS, "Accept": accept},
        )
        if accept == OCTETS:
            vectors = np.frombuffer(response.content, "<f4").reshape(-1, 64)
        elif accept == NPY:
            vectors = np.load(io.BytesIO(response.content))
        else:
            vectors = np.array(response.json()["vectors"], np.float32)
        np.testing.assert_array_equal(vectors, small.rows["words"][ids])


def test_many_tables_in_one_request(ask: Any, small: SmallEngine) -> None:
    body = {"tables": {"words": {"ids": [[1], [2]]}, "half": {"ids": 3, "missing": "zero"}}}
    reply = ask("POST", "/v1/lookup", json=body).json()["tables"]
    assert list(reply) == ["words", "half"]
    np.testing.assert_array_equal(
        np.array(reply["words"]["vectors"], np.float32), small.rows["words"][[[1], [2]]]
    )
    np.testing.assert_array_equal(
        np.array(reply["half"]["vectors"], np.float32), small.rows["half"][3]
    )
    assert reply["half"]["status"] == 0


def test_many_tables_are_all_or_nothing(ask: Any) -> None:
    body = {"tables": {"words": {"ids": [1]}, "half": {"ids": [300]}}}
    message = problem(ask("POST", "/v1/lookup", json=body), 422, "ID_OUT_OF_RANGE")
    assert "table 'half' has 300 rows" in message


def test_tables_tell_what_they_are(ask: Any, small: SmallEngine) -> None:
    listed = ask("GET", "/v1/tables").json()
    assert [table["name"] for table in listed["tables"]] == [
        "empty", "half", "odd", REFUSED, "words",
    ]  # fmt: skip
    assert listed["limits"] == {
        "request_bytes_max": 1 << 20,
        "reply_bytes_max": 16 << 20,
        "ids_max": 100_000,
        "tables_max": 3,
    }
    half = ask("GET", "/v1/tables/half").json()
    assert half.pop("versions") in ([], [1])  # a file has no other
    assert half == {
        "name": "half",
        "rows": 300,
        "dim": 5,
        "dtype": "float16",
        "version": 1,
        "trainable": False,
        "refused": "",
        "key_kind": "",
        "rows_bytes": 3000,
        "keys_bytes": 0,
        "resident_bytes": 3000,
        "optimizer": None,
        "lsn": 0,
        "open": None,
        "aliases": [],
        "alias_of": "",
    }
    assert ask("GET", f"/v1/tables/{REFUSED}").json()["refused"] == "its file is truncated"
    problem(ask("GET", "/v1/tables/nope"), 404, "TABLE_NOT_FOUND")


def test_readiness_follows_admission_and_names_refused_tables(ask: Any, small: SmallEngine) -> None:
    assert ask("GET", "/healthz").status_code == 200
    response = ask("GET", "/readyz")
    problem(response, 503, "UNAVAILABLE")
    assert response.json()["refused"] == [REFUSED]
    small.admission.is_ready = True
    try:
        ready = ask("GET", "/readyz")
    finally:
        small.admission.is_ready = False
    assert ready.status_code == 200
    assert ready.json() == {
        "status": "ready",
        "updates": "none",
        "tables": 4,
        "refused": [REFUSED],
    }


@pytest.mark.parametrize("path", ["/v1/tables", "/v1/tables/words", "/healthz", "/docs"])
def test_head_is_get_without_a_body(ask: Any, path: str) -> None:
    head, get = ask("HEAD", path), ask("GET", path)
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers == get.headers


# What is refused


@pytest.mark.parametrize(
    ("ids", "reason", "says"),
    [
        (1.0, "INVALID_ARGUMENT", "ids must be integers"),
        ([1, 2.5], "INVALID_ARGUMENT", "ids[1] is the float 2.5"),
        ([True], "INVALID_ARGUMENT", "ids[0] is the bool True"),
        (["1"], "INVALID_ARGUMENT", "ids[0] is a str"),
        ([None], "INVALID_ARGUMENT", "ids[0] is null"),
        ({"a": 1}, "INVALID_ARGUMENT", "ids must be integers"),
        ([[1], [2, 3]], "INVALID_ARGUMENT", "ragged"),
        ([-1], "ID_OUT_OF_RANGE", "ids[0]=-1 is out of range: valid ids are 0 to 4999"),
        ([0, 5000], "ID_OUT_OF_RANGE", "ids[1]=5000"),
        ([2**63], "ID_OUT_OF_RANGE", "ids[0]=9223372036854775808"),
        ([0, 2**64], "ID_OUT_OF_RANGE", "ids[1]=18446744073709551616"),
        ([-(2**63) - 1], "ID_OUT_OF_RANGE", "ids[0]=-9223372036854775809"),
        ([-1, 2**63], "ID_OUT_OF_RANGE", "ids[0]=-1"),
    ],
)
def test_ids_that_are_none_name_themselves(ask: Any, ids: Any, reason: str, says: str) -> None:
    assert says in problem(lookup(ask, "words", {"ids": ids}), 422, reason)
    many = ask("POST", "/v1/lookup", json={"tables": {"words": {"ids": ids}}})
    message = problem(many, 422, reason)
    assert says in message
    assert "words" in message


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "either ids or keys"),
        ({"ids": [1], "keys": ["a"]}, "either ids or keys"),
        ([], "the body must be a JSON object"),
        ({"ids": [1], "id": 2}, "the member id isn't known here"),
        ({"ids": [1], "dtype": "float64"}, "'float32', 'float16' or 'bfloat16'"),
        ({"ids": [1], "dtype": None}, "dtype"),
        ({"ids": [1], "missing": "skip"}, "'error', 'zero', 'default' or 'init'"),
        ({"ids": [1], "version": True}, "version"),
        ({"ids": [1], "version": -1}, "version"),
        ({"ids": [1], "version": 2**64}, "version"),
    ],
)
def test_wrong_members_are_named(ask: Any, body: Any, says: str) -> None:
    assert says in problem(lookup(ask, "words", body), 422, "INVALID_ARGUMENT")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"ids": [1',
        b'{"ids": [1]} x',
        b'{"ids": [NaN]}',
        b'{"ids": ["\xff"]}',
        b"\xef\xbb\xbf{}",
        b"[" * 200_000,
        b'{"ids": ' + b"[" * 1000 + b"]" * 1000,
        json.dumps({"ids": [1]}).encode("utf-16"),
    ],
)
def test_bodies_that_are_not_json_are_malformed(ask: Any, body: bytes) -> None:
    response = ask("POST", "/v1/tables/words:lookup", content=body, headers={"Content-Type": JSON})
    problem(response, 400, "MALFORMED_REQUEST")


def test_nesting_has_an_end(ask: Any) -> None:
    body = b'{"ids": ' + b"[" * 500 + b"]" * 500 + b"}"
    response = ask("POST", "/v1/tables/words:lookup", content=body, headers={"Content-Type": JSON})
    assert "nested deeper" in problem(response, 422, "INVALID_ARGUMENT")


MEMBERS = st.sampled_from(["ids", "tables", "words", "dtype", "missing", "version"])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(MEMBERS, inner),
    )
)
def test_no_json_makes_the_server_stumble(ask: Any, body: Any) -> None:
    content = json.dumps(body).encode()
    for path in ("/v1/tables/words:lookup", "/v1/lookup"):
        response = ask("POST", path, content=content, headers={"Content-Type": JSON})
        assert response.status_code in (200, 400, 413, 422)


@pytest.mark.parametrize(
    ("query", "content", "says"),
    [
        ("ids_dtype=float32", bytes(8), "'float32'"),
        ("ids_dtype=bool", bytes(8), "'bool'"),
        ("", bytes(7), "7 bytes"),
        ("shape=2", bytes(8), "16 bytes; 8 were sent"),
        ("shape=-1", bytes(8), "shape is '-1'"),
        ("shape=1,,2", bytes(16), "shape is"),
        ("shape=" + ",".join(["1"] * 40), bytes(8), "40 dimensions"),
        ("shape=999999999999999999,999999999999999999", bytes(8), "8 were sent"),
        ("dtype=float64", bytes(8), "'float64'"),
        ("missing=skip", bytes(8), "'skip'"),
        ("version=-1", bytes(8), "version is '-1'"),
        ("version=1_0", bytes(8), "version is '1_0'"),
        ("version=18446744073709551616", bytes(8), "version is"),
        ("verison=1", bytes(8), "unknown query parameter 'verison'"),
        ("version=1&version=1", bytes(8), "given twice"),
    ],
)
def test_wrong_raw_requests_are_named(ask: Any, query: str, content: bytes, says: str) -> None:
    response = ask(
        "POST",
        f"/v1/tables/words:lookup?{query}",
        content=content,
        headers={"Content-Type": OCTETS},
    )
    assert says in problem(response, 422, "INVALID_ARGUMENT")


def test_json_takes_its_options_in_the_body(ask: Any) -> None:
    response = ask("POST", "/v1/tables/words:lookup?dtype=float16", json={"ids": [1]})
    assert "in the body" in problem(response, 422, "INVALID_ARGUMENT")


WHOLE = npy(np.arange(6, dtype=np.int64).reshape(2, 3))


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (npy(np.array([1, None])), 422, "Python objects"),
        (npy(np.array([1.5])), 422, "integers"),
        (npy(np.array([True])), 422, "integers"),
        (npy(np.array(["a"])), 422, "integers"),
        (npy(np.array([1], ">i8")), 422, "big-endian"),
        (npy(np.array([(1,)], [("a", "<i8")])), 422, "structured"),
        (npy(np.asfortranarray(np.arange(6).reshape(2, 3))), 422, "Fortran"),
        (WHOLE[:-1], 400, "truncated"),
        (WHOLE + b"\0", 400, "after its end"),
        (WHOLE[:40], 400, "truncated in its header"),
        (b"", 400, "isn't a .npy"),
        (b"PK\3\4zip", 400, "isn't a .npy"),
        (WHOLE.replace(b"(2, 3)", b"(2,-3)"), 400, "shape"),
        (WHOLE.replace(b"(2, 3)", b"(2, x)"), 400, "damaged"),
        (WHOLE.replace(b"'shape'", b"'shaqe'"), 400, "lacks"),
        (WHOLE[:8] + b"\xff\xff" + bytes(70_000), 400, "damaged"),
        (b"\x93NUMPY\2\0\xff\xff\xff\xff", 400, "at most"),
    ],
)
def test_wrong_npy_files_are_named(ask: Any, content: bytes, status: int, says: str) -> None:
    response = ask(
        "POST", "/v1/tables/words:lookup", content=content, headers={"Content-Type": NPY}
    )
    reason = "MALFORMED_REQUEST" if status == 400 else "INVALID_ARGUMENT"
    assert says in problem(response, status, reason)


@pytest.mark.filterwarnings("default")  # Python warns of odd literals before it refuses them
@given(st.data())
def test_a_damaged_npy_is_ids_or_a_clear_error(data: st.DataObject) -> None:
    damaged = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    try:
        ids = ids_from_npy(bytes(damaged))
    except InvalidArgument:
        return
    assert ids.dtype.kind in "iu"


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"},
    {"Content-Type": "application/json; charset=utf-16"},
    {"Content-Type": JSON, "Content-Encoding": "br"}])  # fmt: skip
def test_other_media_types_are_refused_with_those_that_are_taken(ask: Any, headers: Any) -> None:
    for path in ("/v1/tables/words:lookup", "/v1/lookup"):
        response = ask("POST", path, content=b'{"ids": [1]}', headers=headers)
        problem(response, 415, "MALFORMED_REQUEST")
        if "Content-Encoding" in headers:
            assert response.headers["accept-encoding"] == "identity, gzip"
        else:
            assert JSON in response.headers["accept-post"]


@pytest.mark.parametrize(
    ("accept", "given"),
    [
        ("*/*", JSON),
        ("application/*", JSON),
        (OCTETS, OCTETS),
        (f"{JSON};q=0.5, {NPY};q=0.9", NPY),
        (f"*/*;q=0.1, {OCTETS}", OCTETS),
        (f"{JSON};q=0, */*;q=0.1", OCTETS),
        (f"text/html, {NPY.upper()} ; q=0.3", NPY),
    ],
)
def test_the_answer_is_what_accept_likes_best(ask: Any, accept: str, given: str) -> None:
    response = ask("POST", "/v1/tables/words:lookup", json={"ids": [1]}, headers={"Accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"] == given


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "image/*"])
def test_nothing_acceptable_is_406(ask: Any, accept: str) -> None:
    for path, body in (
        ("/v1/tables/words:lookup", {"ids": [1]}),
        ("/v1/lookup", {"tables": {}}),
    ):
        response = ask("POST", path, json=body, headers={"Accept": accept})
        assert JSON in problem(response, 406, "INVALID_ARGUMENT")


def test_weights_that_are_none_are_malformed(ask: Any) -> None:
    response = ask(
        "POST", "/v1/tables/words:lookup", json={"ids": [1]}, headers={"Accept": "*/*;q=high"}
    )
    problem(response, 400, "MALFORMED_REQUEST")


def test_unknown_tables_versions_and_refused_ones(ask: Any) -> None:
    assert "words" in problem(lookup(ask, "word", {"ids": [1]}), 404, "TABLE_NOT_FOUND")
    problem(lookup(ask, "x" * 5000, {"ids": [1]}), 404, "TABLE_NOT_FOUND")
    problem(lookup(ask, "words", {"ids": [1], "version": 9}), 404, "VERSION_NOT_FOUND")
    message = problem(lookup(ask, REFUSED, {"ids": [1]}), 409, "TABLE_REFUSED")
    assert "its file is truncated" in message


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/tables/words:lookup", "POST"),
        ("PUT", "/v1/lookup", "POST"),
        ("PUT", "/v1/tables", "GET, HEAD, POST"),
        ("POST", "/v1/tables/words", "DELETE, GET, HEAD"),
        ("GET", "/v1/tables/words:scatterAdd", "POST"),
        ("POST", "/v1/tables/words/versions", "GET, HEAD"),
        ("PUT", "/v1/snapshots", "GET, HEAD, POST"),
        ("GET", "/v1/snapshots/monday", "DELETE"),
        ("GET", "/v1/tables/words/versions/1", "DELETE"),
        ("POST", "/v1/tables/words/keys", "GET, HEAD"),
        ("POST", "/healthz", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_405_with_allow(ask: Any, method: str, path: str, allow: str) -> None:
    response = ask(method, path)
    problem(response, 405, "UNIMPLEMENTED")
    assert response.headers["allow"] == allow


@pytest.mark.parametrize(
    "path", ["/nope", "/v1", "/v1/tables/", "/v1/tables/a:nope", "/v1/tables/a/b"]
)
def test_an_unknown_path_is_404(ask: Any, path: str) -> None:
    problem(ask("POST", path), 404, "NOT_FOUND")


# The description


def test_openapi_describes_every_route_and_resolves(ask: Any) -> None:
    document = ask("GET", "/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/tables/{table}:lookup",
        "/v1/tables/{table}:lookupBags",
        "/v1/tables/{table}:keysOf",
        "/v1/tables/{table}:idsOf",
        "/v1/tables/{table}:neighbors",
        "/v1/lookup",
        "/v1/lookupBags",
        "/v1/tables",
        "/v1/tables/{table}",
        "/v1/tables/{table}/versions",
        *(
            path
            for verb in ("scatterAdd", "applyGradients", "assign", "deleteRows")
            for path in (f"/v1/tables/{{table}}:{verb}", f"/v1/{verb}")
        ),
        "/v1/tables/{table}:publish",
        "/v1/tables/{table}:rollback",
        "/v1/tables/{table}:setOptimizer",
        *(f"/v1/tables/{{table}}:{verb}" for verb in ("rename", "clone", "replace")),
        "/v1/aliases/{alias}",
        "/v1/tables/{table}/versions/{version}",
        "/v1/tables/{table}/keys",
        "/v1/tables/{table}/rows",
        "/v1/uploads",
        "/v1/uploads/{upload}",
        "/v1/uploads/{upload}/rows",
        "/v1/uploads/{upload}:commit",
        "/v1/server",
        "/v1/snapshots",
        "/v1/snapshots/{name}",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    text = json.dumps(document)
    for name in document["components"]["schemas"]:
        assert f"#/components/schemas/{name}" in text
    for part in text.split('"#/components/schemas/')[1:]:
        assert part.split('"')[0] in document["components"]["schemas"]
    operation = document["paths"]["/v1/tables/{table}:lookup"]["post"]
    assert set(operation["requestBody"]["content"]) == {JSON, OCTETS, NPY}
    assert set(operation["responses"]["200"]["content"]) == {JSON, OCTETS, NPY}
    assert {parameter["name"] for parameter in operation["parameters"]} == {
        "table", "by", "dtype", "missing", "version", "ids_dtype", "shape",
        "dims", "normalize", "with_lsn",
    }  # fmt: skip
    for path in document["paths"].values():
        for described in path.values():
            for status, response in described["responses"].items():
                if status != "200":
                    example = response["content"]["application/problem+json"]["example"]
                    assert example["status"] == int(status)


def test_openapi_examples_are_answered_as_they_say(ask: Any, small: SmallEngine) -> None:
    document = ask("GET", "/openapi.json").json()
    content = document["paths"]["/v1/tables/{table}:lookup"]["post"]["requestBody"]["content"]
    reply = lookup(ask, "words", content[JSON]["example"]).json()
    example = document["paths"]["/v1/tables/{table}:lookup"]["post"]["responses"]["200"]
    assert set(reply) == set(example["content"][JSON]["example"])
