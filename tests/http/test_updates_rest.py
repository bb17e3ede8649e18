"""Updates and changes over REST, on an engine that has its tables in NumPy."""

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gatherd.errors import (
    AlreadyExists,
    DiskFull,
    GatherdError,
    InvalidArgument,
    Overloaded,
    Unavailable,
    UpdatesStopped,
)
from gatherd.store.dtypes import DType
from gatherd.store.initializer import Initializer
from gatherd_server.http.rest.values import values_from_json
from gatherd_server.types import (
    AddStaged,
    CloneTable,
    CreateTable,
    DeleteAlias,
    DeleteTable,
    OptimizerSpec,
    Publish,
    RenameTable,
    ReplaceTable,
    Rollback,
    SetAlias,
    SetOptimizer,
    UpdateOp,
)
from support.training_engine import LR, VERSION, Training, training

JSON = "application/json"
OCTETS = "application/octet-stream"
VERBS = {
    "scatterAdd": UpdateOp.SCATTER_ADD,
    "applyGradients": UpdateOp.APPLY_GRADIENTS,
    "assign": UpdateOp.ASSIGN,
}


def problem(response: Any, status: int, reason: str) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["reason"] == reason
    message: str = body["detail"]
    return message


def update(ask: Any, verb: str, body: Any, table: str = "items", **headers: str) -> Any:
    path = f"/v1/tables/{table}:{verb}"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask("POST", path, json=body, headers=named)


def raw(ask: Any, verb: str, query: str, content: bytes, table: str = "items") -> Any:
    path = f"/v1/tables/{table}:{verb}?{query}"
    return ask("POST", path, content=content, headers={"Content-Type": OCTETS})


# What is done


@pytest.mark.parametrize(("verb", "op"), VERBS.items())
@pytest.mark.parametrize("ids", [7, [3], [3, 3, 0], [[4], [20]], [[[1, 2]], [[3, 4]]]])
def test_json_values_are_of_the_ids_shape_and_the_dim(
    train: Any, trained: Training, verb: str, op: UpdateOp, ids: Any
) -> None:
    values = np.arange(np.asarray(ids).size * 4).reshape((*np.shape(ids), 4)) / 8
    reply = update(train, verb, {"ids": ids, "values": values.tolist()})
    assert reply.json() == {"lsn": 1, "version": VERSION}
    (push,) = trained.engine.asked.pushes
    assert push.op is op
    assert push.request_id is None
    (made,) = push.updates
    np.testing.assert_array_equal(made.asked, np.asarray(ids))
    np.testing.assert_array_equal(made.values, values.astype(np.float32))


def test_an_added_delta_counts_as_often_as_its_row_is_named(train: Any, trained: Training) -> None:
    body = {"ids": [5, 5, 6], "values": [[1, 2, 3, 4]] * 3}
    assert update(train, "scatterAdd", body).status_code == 200
    np.testing.assert_array_equal(
        trained.engine.rows["items"][[5, 6]], [[2, 4, 6, 8], [1, 2, 3, 4]]
    )


def test_a_learning_rate_reaches_the_step(train: Any, trained: Training) -> None:
    body = {"ids": [1], "values": [[8, 8, 8, 8]]}
    update(train, "applyGradients", body)
    np.testing.assert_array_equal(trained.engine.rows["items"][1], [-8 * LR] * 4)
    update(train, "applyGradients", {**body, "lr": 0.25})
    np.testing.assert_array_equal(trained.engine.rows["items"][1], [-8 * LR - 2] * 4)
    content = np.array([1], "<i8").tobytes() + np.full(4, 8, "<f4").tobytes()
    raw(train, "applyGradients", "shape=1&lr=2.5e-1", content)
    np.testing.assert_array_equal(trained.engine.rows["items"][1], [-8 * LR - 4] * 4)


@pytest.mark.parametrize("ids_dtype", ["int8", "uint8", "int16", "int32", "uint64"])
@pytest.mark.parametrize(
    ("values_dtype", "kind"),
    [("float32", np.dtype("<f4")), ("float16", np.dtype("<f2")), ("bfloat16", ml_dtypes.bfloat16)],
)
def test_raw_values_follow_the_raw_ids(
    train: Any, trained: Training, ids_dtype: str, values_dtype: str, kind: Any
) -> None:
    ids = np.array([[4], [20], [5]], ids_dtype)
    values = np.linspace(-3, 3, 12).astype(kind).reshape(3, 1, 4)
    query = f"ids_dtype={ids_dtype}&shape=3,1&values_dtype={values_dtype}&if_version={VERSION}"
    reply = raw(train, "assign", query, ids.tobytes() + values.tobytes())
    assert reply.json() == {"lsn": 1, "version": VERSION}
    expected = values.astype(np.float32).reshape(3, 4)
    np.testing.assert_array_equal(trained.engine.rows["items"][[4, 20, 5]], expected)


@pytest.mark.parametrize("verb", VERBS)
def test_many_tables_in_one_request(train: Any, trained: Training, verb: str) -> None:
    tables = {
        "users": {"ids": [[1]], "values": [[[2, 4]]]},
        "items": {"ids": 3, "values": [1, 2, 3, 4], "if_version": VERSION},
    }
    reply = train("POST", f"/v1/{verb}", json={"tables": tables})
    assert reply.json() == {"lsn": 1, "versions": {"users": VERSION, "items": VERSION}}
    (push,) = trained.engine.asked.pushes
    assert [one.table for one in push.updates] == ["users", "items"]
    assert trained.engine.rows["items"][3].any()


def test_one_wrong_table_leaves_all_of_many_as_they_were(train: Any, trained: Training) -> None:
    tables = {"users": {"ids": [1], "values": [[2, 4]]}, "items": {"ids": 3, "values": [1, 2]}}
    response = train("POST", "/v1/scatterAdd", json={"tables": tables})
    assert "dim" in problem(response, 422, "INVALID_ARGUMENT")
    assert not trained.engine.rows["users"].any()


@pytest.mark.parametrize("ids", [[], [[], []], [[[]]]])
def test_an_update_without_rows_is_one(train: Any, trained: Training, ids: Any) -> None:
    assert update(train, "scatterAdd", {"ids": ids, "values": ids}).json()["lsn"] == 1
    shape = ",".join(map(str, np.shape(ids)))
    assert raw(train, "scatterAdd", f"shape={shape}", b"").json()["lsn"] == 2
    for push in trained.engine.asked.pushes:
        assert push.updates[0].values.shape == (*np.shape(ids), 4)


def test_keys_are_taken_instead_of_ids(train: Any, trained: Training) -> None:
    seen: list[Any] = []

    def push(push: Any) -> Any:
        seen.append(push.updates[0].asked)
        raise InvalidArgument("seen")

    trained.engine.push = push  # type: ignore[method-assign]
    for body in (
        {"keys": ["king", "Zürich"], "values": [[1] * 4] * 2},
        {"keys": ["a2luZw=="], "encoding": "base64", "values": [[1] * 4]},
    ):
        problem(update(train, "assign", body), 422, "INVALID_ARGUMENT")
    content = np.array([2**40], "<i8").tobytes() + bytes(16)
    problem(raw(train, "assign", "shape=1&by=keys", content), 422, "INVALID_ARGUMENT")
    assert seen[0].keys.texts() == ["king", "Zürich"]
    assert seen[1].keys.texts() == ["king"]
    np.testing.assert_array_equal(seen[2].keys, [2**40])


def test_a_long_update_is_read_off_the_event_loop_and_done_as_a_short_one(
    make_client: Any,
) -> None:
    trained = training(request_bytes_max=4 << 20)
    ask = make_client(trained)
    ids = np.arange(20_000) % 100
    values = np.ones((20_000, 4), "<f4")
    reply = raw(ask, "scatterAdd", "shape=20000", ids.astype("<i8").tobytes() + values.tobytes())
    assert reply.status_code == 200
    raw(ask, "scatterAdd", "shape=1", ids[:1].astype("<i8").tobytes() + values[:1].tobytes())
    first, second = trained.engine.asked.threads
    assert first != second
    np.testing.assert_array_equal(trained.engine.rows["items"][1:], np.full((99, 4), 200))


# Request ids


@pytest.mark.parametrize("key", ["a", "!", "~" * 255, '"8e03978e-40d5-43dd-bc93-6894a57f9324"'])
@pytest.mark.parametrize("path", ["/v1/tables/items:assign", "/v1/assign"])
def test_an_idempotency_key_reaches_the_engine(
    train: Any, trained: Training, path: str, key: str
) -> None:
    one = {"ids": [1], "values": [[1] * 4]}
    body = one if ":" in path else {"tables": {"items": one}}
    assert train("POST", path, json=body, headers={"Idempotency-Key": key}).status_code == 200
    assert trained.engine.asked.pushes[0].request_id == key


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("", "is empty"),
        ("x" * 256, "256 characters; it can have 1 to 255"),
        ("a b", "' ' at character 1"),
        ("caf\xe9", "'é' at character 3"),
    ],
)
def test_a_key_that_is_none_is_refused(train: Any, trained: Training, key: str, says: str) -> None:
    headers = [("Idempotency-Key", key.encode("latin-1"))]
    body = {"ids": [1], "values": [[1] * 4]}
    response = train("POST", "/v1/tables/items:assign", json=body, headers=headers)
    assert says in problem(response, 422, "INVALID_ARGUMENT")
    assert not trained.engine.asked.pushes


def test_two_keys_are_refused(train: Any) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    body = {"ids": [1], "values": [[1] * 4]}
    response = train("POST", "/v1/tables/items:assign", json=body, headers=headers)
    assert "twice" in problem(response, 422, "INVALID_ARGUMENT")


# What is refused


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([[1, 2, True, 4], [1] * 4], "values[0][2] is the bool true"),
        ([[1] * 4, [1, None, 3, 4]], "values[1][1] is null"),
        ([[1] * 4, [1, "2", 3, 4]], "values[1][1] is a string"),
        ([[1] * 4, [1, {}, 3, 4]], "values[1][1] is an object"),
        ([[1] * 4, [1] * 3], "values are ragged: values[1] has 3 elements, others there have 4"),
        ([[1] * 4, 1], "values are ragged: values[1] is a number, others there are lists"),
        ([1, [1] * 4], "values are ragged: values[1] is a list, others there are numbers"),
        ([[1] * 4, []], "values are ragged: values[1] has 0 elements, others there have 4"),
        ([[1] * 4, [1, 2, 1e39, 4]], "values[1][2] is too large for float32"),
        ([[1] * 4, [1, 2, 3, -(2**130)]], "values[1][3] is too large for float32"),
        ([[1] * 4], "values have shape (1, 4); the ids have (2,), so it must be (2, dim)"),
        ([1, 2], "values have shape (2,)"),
        (1.5, "values have shape ()"),
        ([[[1] * 4], [[1] * 4]], "values have shape (2, 1, 4)"),
        ("abc", "values is a string"),
        (None, "values is null"),
        ([[1] * 3] * 2, "has dim 4"),
    ],
)
def test_values_that_are_none_are_named(
    train: Any, trained: Training, values: Any, says: str
) -> None:
    response = update(train, "scatterAdd", {"ids": [1, 2], "values": values})
    assert says in problem(response, 422, "INVALID_ARGUMENT")
    assert not trained.engine.asked.pushes


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e400", "nan"])
def test_literals_that_json_lacks_are_malformed_and_located(train: Any, literal: str) -> None:
    content = f'{{"ids": [1], "values": [[1, {literal}, 3, 4]]}}'.encode()
    path = "/v1/tables/items:scatterAdd"
    response = train("POST", path, content=content, headers={"Content-Type": JSON})
    assert "column" in problem(response, 400, "MALFORMED_REQUEST")


def test_nesting_has_an_end(train: Any) -> None:
    values: Any = 1
    for _ in range(40):
        values = [values]
    response = update(train, "assign", {"ids": [1], "values": values})
    assert "deeper than" in problem(response, 422, "INVALID_ARGUMENT")


@pytest.mark.parametrize(
    ("verb", "body", "says"),
    [
        ("assign", {"values": [1]}, "either ids or keys"),
        ("assign", {"ids": [1], "keys": ["a"], "values": [[1]]}, "either ids or keys"),
        ("assign", {"ids": [1]}, "values is required"),
        ("assign", {"ids": [1.5], "values": [[1] * 4]}, "ids[0]"),
        ("assign", {"ids": [1], "values": [[1] * 4], "lr": 1}, "lr isn't known here"),
        ("scatterAdd", {"ids": [1], "values": [[1] * 4], "dtype": "float32"}, "dtype isn't known"),
        ("applyGradients", {"ids": [1], "values": [[1] * 4], "lr": -1}, "lr can't be -1"),
        ("applyGradients", {"ids": [1], "values": [[1] * 4], "lr": "1"}, "member lr"),
        ("assign", {"ids": [1], "values": [[1] * 4], "if_version": -1}, "if_version"),
        ("assign", {"ids": [1], "values": [[1] * 4], "if_version": 2**64}, "if_version"),
    ],
)
def test_wrong_members_are_named(train: Any, verb: str, body: Any, says: str) -> None:
    assert says in problem(update(train, verb, body), 422, "INVALID_ARGUMENT")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "tables is required"),
        ({"tables": {}}, "no updates"),
        ({"tables": {"items": {"ids": [1], "values": [1]}}}, "table 'items': values have shape"),
        ({"tables": {"items": {"ids": [True], "values": [[1]]}}}, "table 'items': ids[0]"),
    ],
)
def test_wrong_updates_of_many_name_their_table(train: Any, body: Any, says: str) -> None:
    response = train("POST", "/v1/scatterAdd", json=body)
    assert says in problem(response, 422, "INVALID_ARGUMENT")


def test_too_many_tables_are_over_a_limit(train: Any) -> None:
    tables: Any = {f"t{i}": {"ids": [], "values": []} for i in range(4)}
    response = train("POST", "/v1/assign", json={"tables": tables})
    assert "4 tables" in problem(response, 413, "LIMIT_EXCEEDED")


def test_json_of_too_many_numbers_is_refused_before_it_is_parsed(make_client: Any) -> None:
    ask = make_client(training(request_bytes_max=10_000))
    content = b'{"ids": [1], "values": [[' + b"0," * 3000 + b"oh]]}"
    response = ask(
        "POST", "/v1/tables/items:assign", content=content, headers={"Content-Type": JSON}
    )
    message = problem(response, 413, "LIMIT_EXCEEDED")
    assert "24008 bytes; this server takes at most 10000 (request_bytes_max)" in message


ONE = np.array([1], "<i8").tobytes()


@pytest.mark.parametrize(
    ("query", "content", "says"),
    [
        ("", ONE + bytes(16), "shape is required"),
        ("shape=x", ONE + bytes(16), "shape is 'x'"),
        ("shape=1&ids_dtype=float32", ONE + bytes(16), "'float32'; ids_dtype is one of"),
        ("shape=1&values_dtype=float64", ONE + bytes(16), "'float64'; values_dtype is one of"),
        ("shape=1&values_dtype=int8", ONE + bytes(16), "'int8'"),
        ("shape=3", ONE + bytes(8), "24 bytes; 16 were sent"),
        ("shape=1", ONE + bytes(15), "15 bytes follow the ids"),
        ("shape=2", ONE * 2 + bytes(20), "20 bytes follow the ids"),
        ("shape=0", bytes(16), "16 bytes follow the ids"),
        ("shape=999999999999999999,999999999999999999", ONE, "8 were sent"),
        ("shape=1", ONE, "dim"),
        ("shape=1&lr=1", ONE + bytes(16), "unknown query parameter 'lr'"),
        ("shape=1&if_version=-1", ONE + bytes(16), "if_version is '-1'"),
        ("shape=1&by=name", ONE + bytes(16), "by is 'name'"),
        ("shape=1&shape=1", ONE + bytes(16), "given twice"),
    ],
)
def test_wrong_raw_updates_are_named(
    train: Any, trained: Training, query: str, content: bytes, says: str
) -> None:
    assert says in problem(raw(train, "assign", query, content), 422, "INVALID_ARGUMENT")
    assert not trained.engine.asked.pushes


@pytest.mark.parametrize(
    "lr", ["", ".", "e5", "nan", "inf", "1_0", "-0", "-1", "+1", "0x1", "1e999"]
)
def test_a_raw_learning_rate_is_a_number_and_not_negative(train: Any, lr: str) -> None:
    response = raw(train, "applyGradients", f"shape=1&lr={lr}", ONE + bytes(16))
    problem(response, 422, "INVALID_ARGUMENT")


def test_other_media_types_are_refused(train: Any) -> None:
    for path in ("/v1/tables/items:assign", "/v1/assign", "/v1/tables"):
        response = train("POST", path, content=b"x", headers={"Content-Type": "text/plain"})
        problem(response, 415, "MALFORMED_REQUEST")
    body = {"ids": [1], "values": [[1] * 4]}
    problem(update(train, "assign", body, Accept="text/html"), 406, "INVALID_ARGUMENT")


shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=1)
numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(hnp.arrays(np.float32, shapes, elements=numbers))
def test_json_numbers_are_read_as_numpy_reads_them(values: Any) -> None:
    read = values_from_json(values.tolist())
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@given(json_values)
def test_json_is_finite_numbers_or_a_clear_error(value: Any) -> None:
    try:
        read = values_from_json(value)
    except InvalidArgument as refused:
        message = refused.message
    else:
        message = "values are numbers"
        assert np.isfinite(read).all()
        np.testing.assert_array_equal(read, np.array(value, np.float64).astype(np.float32))
    assert message.startswith("values")


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (Unavailable("the writer is starting", {}, 0.2), 503, "1"),
        (Overloaded("the queue is full"), 429, "1"),
        (DiskFull("no room"), 507, None),
        (UpdatesStopped("the disk failed"), 503, None),
    ],
)
def test_what_the_writer_says_is_told(
    train: Any, trained: Training, error: GatherdError, status: int, retry_after: str | None
) -> None:
    trained.engine.fails_with = error
    response = update(train, "scatterAdd", {"ids": [1], "values": [[1] * 4]})
    assert error.message in problem(response, status, error.reason)
    assert response.headers.get("retry-after") == retry_after
    assert not trained.engine.rows["items"].any()
    assert trained.admission.in_flight == 0


def test_a_full_server_takes_no_update(make_client: Any) -> None:
    trained = training(updates_in_flight_max=1)
    ask = make_client(trained)
    with trained.admission.update():
        body = {"ids": [1], "values": [[1] * 4]}
        problem(update(ask, "scatterAdd", body), 429, "OVERLOADED")
        problem(ask("DELETE", "/v1/tables/items"), 429, "OVERLOADED")
    assert not trained.engine.asked.pushes
    assert not trained.engine.asked.changes


# Changes


STAGED = "ab12" * 8
SGD = {"name": "sgd", "lr": 0.1, "padding_id": 3}


@pytest.mark.parametrize(
    ("method", "path", "body", "change"),
    [
        (
            "POST", "/v1/tables", {"name": "new", "rows": 5, "dim": 3},
            CreateTable("new", 5, 3, DType.FLOAT32, Initializer.parse("uniform"), None, None),
        ),
        (
            "POST",
            "/v1/tables",
            {
                "name": "new", "rows": 0, "dim": 1, "dtype": "bfloat16", "init": "glorot",
                "seed": 2**64 - 1, "optimizer": SGD,
            },
            CreateTable(
                "new", 0, 1, DType.BFLOAT16, Initializer.parse("glorot"), 2**64 - 1,
                OptimizerSpec("sgd", {"lr": 0.1, "padding_id": 3.0}),
            ),
        ),
        (
            "POST", "/v1/tables",
            {"name": "new", "rows": 5, "dim": 3, "init": {"name": "variance_scaling", "scale": 2,
                                                          "mode": "fan_out"}},
            CreateTable(
                "new", 5, 3, DType.FLOAT32,
                Initializer.parse("variance_scaling", {"scale": 2, "mode": "fan_out"}), None, None,
            ),
        ),
        ("POST", "/v1/tables", {"name": "new", "staged": STAGED}, AddStaged("new", STAGED)),
        ("DELETE", "/v1/tables/items", None, DeleteTable("items")),
        ("DELETE", "/v1/tables/items?force=true", None, DeleteTable("items", force=True)),
        ("DELETE", "/v1/tables/items?force=false", None, DeleteTable("items")),
        ("POST", "/v1/tables/items:rename", {"to": "b"}, RenameTable("items", "b")),
        (
            "POST", "/v1/tables/items:rename", {"to": "b", "keep_alias": True},
            RenameTable("items", "b", keep_alias=True),
        ),
        ("PUT", "/v1/aliases/a", {"table": "items"}, SetAlias("a", "items")),
        ("DELETE", "/v1/aliases/a", None, DeleteAlias("a")),
        ("POST", "/v1/tables/items:clone", {"to": "b"}, CloneTable("b", "items")),
        (
            "POST", "/v1/tables/items:replace", {"source": "b", "if_version": 2},
            ReplaceTable("items", "b", 2),
        ),
        (
            "POST", "/v1/tables/items:publish", {"staged": STAGED, "if_lsn": 0, "keep_rows": True},
            Publish("items", STAGED, if_lsn=0, keep_rows=True),
        ),
        (
            "POST", "/v1/tables/items:publish",
            {"staged": STAGED, "reset_state": True, "allow_dim_change": True},
            Publish("items", STAGED, reset_state=True, allow_dim_change=True),
        ),
        ("POST", "/v1/tables/items:publish", None, Publish("items")),
        ("POST", "/v1/tables/items:publish", {}, Publish("items")),
        (
            "POST", "/v1/tables/items:publish", {"staged": STAGED, "if_version": 3},
            Publish("items", STAGED, 3),
        ),
        ("POST", "/v1/tables/items:rollback", None, Rollback("items")),
        (
            "POST", "/v1/tables/items:rollback", {"version": 2, "if_version": 3},
            Rollback("items", 2, 3),
        ),
        (
            "POST", "/v1/tables/items:setOptimizer", {"optimizer": SGD, "if_version": 3},
            SetOptimizer("items", OptimizerSpec("sgd", {"lr": 0.1, "padding_id": 3.0}), 3),
        ),
    ],
)  # fmt: skip
def test_changes_reach_the_engine(
    train: Any, trained: Training, method: str, path: str, body: Any, change: Any
) -> None:
    reply = train(method, path, **({} if body is None else {"json": body}))
    assert reply.status_code == 200, reply.text
    assert reply.json() == {"version": VERSION + 1, "lsn": 77}
    assert trained.engine.asked.changes == [change]


@pytest.mark.parametrize("name", ["", "monday"])
def test_a_snapshot_is_of_the_whole_data_dir(train: Any, trained: Training, name: str) -> None:
    reply = train("POST", "/v1/snapshots", **({"json": {"name": name}} if name else {}))
    assert reply.json() == {"path": f"/snapshots/{name or 'unnamed'}", "lsn": 78}
    assert trained.engine.asked.snapshots == [name]
    problem(train("POST", "/v1/tables/items:snapshot"), 404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/v1/tables", {"rows": 1, "dim": 1}, "name is required"),
        ("/v1/tables", {"name": "a", "dim": 1}, "rows is required"),
        ("/v1/tables", {"name": "a", "rows": 1}, "dim is required"),
        ("/v1/tables", {"name": "a", "rows": -1, "dim": 1}, "rows"),
        ("/v1/tables", {"name": "a", "rows": True, "dim": 1}, "rows"),
        ("/v1/tables", {"name": "a", "rows": 2**49, "dim": 1}, "rows"),
        ("/v1/tables", {"name": "a", "rows": 2**48, "dim": 2**20}, "no file can have so many"),
        ("/v1/tables", {"name": "a", "rows": 1, "dim": 0}, "dim"),
        ("/v1/tables", {"name": "a", "rows": 1, "dim": 1, "dtype": "int8"}, "dtype"),
        ("/v1/tables", {"name": "a", "rows": 1, "dim": 1, "init": "one"}, "no initializer 'one'"),
        ("/v1/tables", {"name": "a", "rows": 1, "dim": 1, "init": 3}, "init"),
        ("/v1/tables", {"name": "a", "rows": 1, "dim": 1, "init": {"stddev": 1}}, "init"),
        (
            "/v1/tables",
            {"name": "a", "rows": 1, "dim": 1, "init": {"name": "normal", "mode": "x"}},
            "normal has no parameter 'mode'; it has mean, stddev",
        ),
        (
            "/v1/tables",
            {"name": "a", "rows": 1, "dim": 1, "init": {"name": "normal", "mean": [1]}},
            "init",
        ),
        ("/v1/tables", {"name": "a", "rows": 1, "dim": 1, "seed": 2**64}, "seed"),
        ("/v1/tables", {"name": "a", "staged": "b", "rows": 1}, "rows can't be given with staged"),
        ("/v1/tables", {"name": "a", "staged": "../b"}, "'../b'"),
        ("/v1/tables", {"name": "a", "staged": ".."}, "'..'"),
        ("/v1/tables", {"name": "a", "staged": ""}, "'' isn't the name of a staged folder"),
        ("/v1/tables", {"name": "a", "rows": 1, "dim": 1, "optimizer": "sgd"}, "optimizer"),
        ("/v1/tables", {"name": "a", "rows": 1, "dim": 1, "optimizer": {}}, "optimizer.name"),
        (
            "/v1/tables/items:setOptimizer",
            {"optimizer": {"name": "sgd", "lr": "x"}},
            "optimizer.lr",
        ),
        ("/v1/tables/items:setOptimizer", {"optimizer": {"name": ""}}, "has no optimizer"),
        ("/v1/tables/items:setOptimizer", {}, "optimizer is required"),
        ("/v1/tables/items:publish", {"staged": "/etc"}, "'/etc'"),
        ("/v1/tables/items:rollback", {"version": "2"}, "version"),
        ("/v1/tables/items:rollback?version=2", {}, "in the body"),
        ("/v1/snapshots", {"name": "../up"}, "can't name a snapshot"),
        ("/v1/snapshots", {"name": ".hidden"}, "can't name a snapshot"),
    ],
)
def test_wrong_changes_are_named(
    train: Any, trained: Training, path: str, body: Any, says: str
) -> None:
    assert says in problem(train("POST", path, json=body), 422, "INVALID_ARGUMENT")
    assert not trained.engine.asked.changes
    assert not trained.engine.asked.snapshots


def test_a_name_that_is_taken_is_a_conflict(train: Any, trained: Training) -> None:
    trained.engine.fails_with = AlreadyExists("there is a table 'items'")
    response = train("POST", "/v1/tables", json={"name": "items", "rows": 1, "dim": 1})
    problem(response, 409, "ALREADY_EXISTS")


def test_a_trained_table_tells_how_and_which_versions_it_has(train: Any) -> None:
    table = train("GET", "/v1/tables/items").json()
    assert table["optimizer"] == {"name": "sgd", "lr": LR, "clip": None}
    assert table["versions"] == [1, VERSION]
    versions = train("GET", "/v1/tables/items/versions").json()
    assert versions == {"name": "items", "version": VERSION, "versions": [1, VERSION]}
    problem(train("GET", "/v1/tables/nope/versions"), 404, "TABLE_NOT_FOUND")


# The description


def test_openapi_examples_of_updates_are_taken(train: Any) -> None:
    document = train("GET", "/openapi.json").json()
    for verb in VERBS:
        described = document["paths"][f"/v1/tables/{{table}}:{verb}"]["post"]
        example = described["requestBody"]["content"][JSON]["example"]
        (table,) = (p["example"] for p in described["parameters"] if p["name"] == "table")
        reply = update(train, verb, example, table=table)
        assert set(reply.json()) == set(described["responses"]["200"]["content"][JSON]["example"])
        query = {p["name"] for p in described["parameters"] if p["in"] == "query"}
        known = raw(train, verb, "nope=1", b"").json()["detail"].partition("these: ")[2]
        assert query == set(known.split(", "))
        assert {"507", "503", "429", "409"} <= set(described["responses"])


def test_openapi_examples_of_changes_are_taken(train: Any, trained: Training) -> None:
    document = train("GET", "/openapi.json").json()
    for path in (
        "/v1/tables",
        "/v1/tables/{table}:publish",
        "/v1/tables/{table}:rollback",
        "/v1/tables/{table}:setOptimizer",
        "/v1/tables/{table}:rename",
        "/v1/tables/{table}:clone",
        "/v1/tables/{table}:replace",
        "/v1/snapshots",
    ):
        described = document["paths"][path]["post"]
        example = described["requestBody"]["content"][JSON]["example"]
        reply = train("POST", path.replace("{table}", "items"), json=example)
        assert reply.status_code == 200, reply.text
        assert set(reply.json()) == set(described["responses"]["200"]["content"][JSON]["example"])
    assert json.dumps(document)
