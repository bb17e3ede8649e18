"""The REST surface: JSON, or arrays in and out by media type."""

import base64
import io
import json
from typing import Any
from urllib.parse import urlencode

import httpx
import numpy as np
from numpy.typing import NDArray

from contract.surfaces import (
    Answer,
    Bags,
    Form,
    Near,
    Page,
    Rows,
    Scan,
    Search,
    Surface,
    Update,
    Updated,
    as_bytes,
    decode_vectors,
    raise_wire_error,
)
from gatherd.store.dtypes import DType

JSON, NPY, OCTETS = "application/json", "application/x-npy", "application/octet-stream"


def json_keys(keys: Any) -> tuple[Any, str]:
    """Keys as JSON has them, and their encoding."""
    array = np.asarray(keys) if not isinstance(keys, list) else np.asarray(keys, object)
    if array.dtype.kind in "iu":
        return array.tolist(), "utf-8"
    try:
        for key in array.reshape(-1):
            as_bytes(key).decode()
    except UnicodeDecodeError:
        flat = [base64.b64encode(as_bytes(key)).decode() for key in array.reshape(-1)]
        return np.array(flat, object).reshape(array.shape).tolist(), "base64"
    return array.tolist(), "utf-8"


def json_bags(bags: Bags) -> dict[str, Any]:
    rows, encoding = (
        json_keys(bags.rows) if bags.by_keys else (np.asarray(bags.rows).tolist(), "utf-8")
    )
    weights = None if bags.weights is None else np.asarray(bags.weights).tolist()
    return {
        "keys" if bags.by_keys else "ids": rows,
        "encoding": encoding,
        "offsets": np.asarray(bags.offsets).tolist(),
        "mode": bags.mode,
        "weights": weights,
        "padding_id": bags.padding_id,
        "missing": bags.missing,
    }


_VERBS = {
    "scatter_add": "scatterAdd",
    "apply_gradients": "applyGradients",
    "assign": "assign",
    "delete_rows": "deleteRows",
}


_COUNTS = ("created", "removed", "not_admitted")


def json_update(update: Update) -> dict[str, Any]:
    rows, encoding = (
        json_keys(update.rows) if update.by_keys else (np.asarray(update.rows).tolist(), "utf-8")
    )
    body = {
        "keys" if update.by_keys else "ids": rows,
        "encoding": encoding,
        "if_version": update.if_version,
    }
    if update.values is None:
        return body
    body["values"] = np.asarray(update.values).astype(np.float64).tolist()
    if update.create:
        body["create"] = True
    return body if update.lr is None else {**body, "lr": update.lr}


def _json_rows(document: Any) -> Rows:
    slots = {
        name: np.array(values, np.float32 if np.ndim(values) == 2 else np.int64)
        for name, values in document.get("slots", {}).items()
    }
    return Rows(
        document["ids"],
        _keys(document) if "keys" in document else None,
        np.array(document["vectors"], np.float32),
        slots,
        document["version"],
        base64.urlsafe_b64decode(document["cursor"] or ""),
    )


def _arrays_of(content: bytes, parts: str, media: str) -> dict[str, NDArray[Any]]:
    """The arrays of a page in octets, or in .npy files, as Gatherd-Parts lists them."""
    found: dict[str, NDArray[Any]] = {}
    stream = io.BytesIO(content)
    for part in parts.split("; "):
        name, dtype, lengths = part.split(" ")
        shape = tuple(int(length) for length in lengths.split(","))
        if media == "npy":
            found[name] = np.load(stream)
            assert found[name].shape == shape
        else:
            stored = np.dtype(np.uint16 if dtype == "bfloat16" else dtype).newbyteorder("<")
            data = stream.read(stored.itemsize * int(np.prod(shape)))
            found[name] = np.frombuffer(data, stored).reshape(shape)
    assert stream.read() == b""
    return found


class Rest(Surface):
    """REST: JSON, or arrays in and out by media type."""

    def __init__(self, base: str, media: str) -> None:
        self.name = f"rest-{media}"
        self._http = httpx.Client(base_url=base)
        self._media = media

    def can_tell(self, shape: tuple[int, ...]) -> bool:
        """Nested lists can't show the length of the lists in an empty list."""
        return self._media != "json" or 0 not in shape[:-1]

    def lookup(
        self, table: str, ids: Any, *, dtype: str = "float32", missing: str = "error"
    ) -> Answer:
        path = f"/v1/tables/{table}:lookup"
        if self._media == "json":
            listed = ids.tolist() if isinstance(ids, np.ndarray) else ids
            body = {"ids": listed, "dtype": dtype, "missing": missing}
            reply = self._http.post(path, json=body)
            raise_problem(reply)
            return self._json_answer(reply.json(), dtype)
        return self._array_lookup(table, ids, {"dtype": dtype, "missing": missing}, missing)

    def _array_lookup(self, table: str, ids: Any, query: dict[str, Any], missing: str) -> Answer:
        array = np.asarray(ids)
        array = array.astype(array.dtype.newbyteorder("<"))
        if self._media == "npy":
            content, media = io.BytesIO(), NPY
            np.save(content, array)
            body_bytes = content.getvalue()
        else:
            body_bytes, media = array.tobytes(), OCTETS
            query |= {"ids_dtype": array.dtype.name, "shape": ",".join(map(str, array.shape))}
        headers = {"Content-Type": media, "Accept": media}
        path = f"/v1/tables/{table}:lookup"
        reply = self._http.post(path, params=query, content=body_bytes, headers=headers)
        raise_problem(reply)
        return self._array_answer(reply, missing, array.shape)

    def lookup_many(self, requests: dict[str, Any], *, missing: str = "error") -> dict[str, Any]:
        tables = {
            table: {"ids": np.asarray(ids).tolist(), "missing": missing}
            for table, ids in requests.items()
        }
        reply = self._http.post("/v1/lookup", json={"tables": tables})
        raise_problem(reply)
        return {
            table: self._json_answer(answer, "float32")[0]
            for table, answer in reply.json()["tables"].items()
        }

    def lookup_keys(self, table: str, keys: Any, *, missing: str = "error") -> Answer:
        if self._media != "json":
            query = {"missing": missing, "by": "keys"}
            return self._array_lookup(table, np.asarray(keys), query, missing)
        given, encoding = json_keys(keys)
        body = {"keys": given, "encoding": encoding, "missing": missing}
        reply = self._http.post(f"/v1/tables/{table}:lookup", json=body)
        raise_problem(reply)
        return self._json_answer(reply.json(), "float32")

    def keys_of(self, table: str, ids: Any) -> Any:
        reply = self._http.post(
            f"/v1/tables/{table}:keysOf", json={"ids": np.asarray(ids).tolist()}
        )
        raise_problem(reply)
        return np.array(_keys(reply.json()), object).reshape(np.shape(ids)).tolist()

    def ids_of(self, table: str, keys: Any, *, allow_missing: bool = False) -> Any:
        body = {"keys": np.asarray(keys).tolist(), "allow_missing": allow_missing}
        reply = self._http.post(f"/v1/tables/{table}:idsOf", json=body)
        raise_problem(reply)
        return reply.json()["ids"]

    def keys(self, table: str, prefix: str = "", limit: int = 1000, start: int = 0) -> Page:
        raw = prefix.encode("utf-8", "surrogateescape")
        query = urlencode({"prefix": raw, "limit": limit, "start": start})
        reply = self._http.get(f"/v1/tables/{table}/keys?{query}")
        raise_problem(reply)
        document = reply.json()
        return _keys(document), document["ids"], document["next"]

    def scan_page(self, table: str, scan: Scan) -> Rows:
        query = {
            "limit": scan.limit,
            "prefix": scan.prefix.encode("utf-8", "surrogateescape"),
            "dtype": scan.dtype,
            "slots": str(scan.slots).lower(),
            "version": scan.version,
            "cursor": base64.urlsafe_b64encode(scan.cursor).decode(),
        }
        media = {"json": JSON, "npy": NPY, "octets": OCTETS}[self._media]
        path = f"/v1/tables/{table}/rows?{urlencode(query)}"
        reply = self._http.get(path, headers={"Accept": media})
        raise_problem(reply)
        if self._media == "json":
            return _json_rows(reply.json())
        arrays = _arrays_of(reply.content, reply.headers["gatherd-parts"], self._media)
        cursor = base64.urlsafe_b64decode(reply.headers.get("gatherd-cursor", ""))
        version = int(reply.headers["gatherd-version"])
        shape = tuple(int(n) for n in reply.headers["gatherd-shape"].split(","))
        vectors = decode_vectors(arrays.pop("vectors").tobytes(), shape, DType(scan.dtype))
        ids, keys = arrays.pop("ids").tolist(), arrays.pop("keys", None)
        listed = None if keys is None else keys.tolist()
        if "key_lengths" in arrays:
            ends = np.cumsum(arrays.pop("key_lengths"))
            data = arrays.pop("key_bytes").tobytes()
            raw = [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
            listed = [key.decode("utf-8", "surrogateescape") for key in raw]
        slots = {name.removeprefix("slot_"): values for name, values in arrays.items()}
        return Rows(ids, listed, vectors, slots, version, cursor)

    def lookup_bags(self, table: str, bags: Bags) -> Answer:
        headers = {"Accept": {"json": JSON, "npy": NPY, "octets": OCTETS}[self._media]}
        path = f"/v1/tables/{table}:lookupBags"
        reply = self._http.post(path, json=json_bags(bags), headers=headers)
        raise_problem(reply)
        if self._media != "json":
            return self._array_answer(reply, bags.missing, (len(bags.rows),))
        document = reply.json()
        vectors = np.array(document["vectors"], np.float32).reshape(document["shape"])
        return vectors, np.array(document.get("status", [0] * len(bags.rows)), np.uint8)

    def lookup_bags_many(self, bags: dict[str, Bags]) -> dict[str, Any]:
        tables = {table: json_bags(one) for table, one in bags.items()}
        reply = self._http.post("/v1/lookupBags", json={"tables": tables})
        raise_problem(reply)
        return {
            table: np.array(answer["vectors"], np.float32).reshape(answer["shape"])
            for table, answer in reply.json()["tables"].items()
        }

    def formed(self, table: str, ids: Any, form: Form) -> Answer:
        if self._media == "json":
            listed = ids.tolist() if isinstance(ids, np.ndarray) else ids
            document = self._json(
                f"/v1/tables/{table}:lookup", {"ids": listed, **form.options()}, {}
            )
            return self._json_answer(document, form.dtype)
        query = {name: value for name, value in form.options().items() if value is not None}
        query["normalize"] = str(form.normalize).lower()
        return self._array_lookup(table, ids, query, form.missing)

    def formed_bags(self, table: str, bags: Bags, form: Form) -> Answer:
        body = form.options() | json_bags(bags)
        document = self._json(f"/v1/tables/{table}:lookupBags", body, {})
        status = document.pop("status", None)
        vectors, _ = self._json_answer(document, form.dtype)
        return vectors, np.array(status or [0] * len(bags.rows), np.uint8)

    def informed(self, table: str, ids: Any) -> tuple[NDArray[Any], int, int]:
        path = f"/v1/tables/{table}:lookup"
        if self._media == "json":
            document = self._json(path, {"ids": np.asarray(ids).tolist(), "with_lsn": True}, {})
            return self._json_answer(document, "float32")[0], document["version"], document["lsn"]
        array = np.asarray(ids, "<i8")
        reply = self._http.post(
            path,
            params={"with_lsn": "true"},
            content=array.tobytes(),
            headers={"Content-Type": OCTETS, "Accept": NPY if self._media == "npy" else OCTETS},
        )
        raise_problem(reply)
        vectors, _ = self._array_answer(reply, "error", array.shape)
        headers = reply.headers
        return vectors, int(headers["gatherd-version"]), int(headers["gatherd-lsn"])

    def has(self, method: str) -> bool:
        """A search is JSON whatever lookups are."""
        return super().has(method) and (method != "neighbors" or self._media == "json")

    def neighbors(self, table: str, search: Search) -> Near:
        body: dict[str, Any] = {
            "k": search.k, "metric": search.metric, "include_self": search.include_self
        }  # fmt: skip
        if search.kind == "keys":
            body["keys"], body["encoding"] = json_keys(search.query)
        else:
            body[search.kind] = np.asarray(search.query).tolist()
        document = self._json(f"/v1/tables/{table}:neighbors", body, {})
        keys = document.get("keys")
        if document.get("encoding") == "base64":
            array = np.array(keys, object)
            flat = [
                base64.b64decode(key).decode("utf-8", "surrogateescape")
                for key in array.reshape(-1)
            ]
            keys = np.array(flat, object).reshape(array.shape).tolist()
        scores = np.array(document["scores"], np.float32)
        return Near(np.array(document["ids"], np.int64).reshape(scores.shape), scores, keys)

    @property
    def updates_many(self) -> bool:
        """Raw bytes are of one table."""
        return self._media == "json"

    def update(self, op: str, updates: dict[str, Update], request_id: str | None = None) -> Updated:
        headers = {} if request_id is None else {"Idempotency-Key": request_id}
        if len(updates) == 1:
            ((table, one),) = updates.items()
            raw = self._media == "octets" and one.values is not None
            done = (self._raw_update if raw else self._json_update)(op, table, one, headers)
            counts = ({table: done[name]} if name in done else {} for name in _COUNTS)
            return Updated(done["lsn"], {table: done["version"]}, *counts)
        tables = {table: json_update(one) for table, one in updates.items()}
        done = self._json(f"/v1/{_VERBS[op]}", {"tables": tables}, headers)
        return Updated(done["lsn"], done["versions"], *(done.get(name, {}) for name in _COUNTS))

    def _json_update(self, op: str, table: str, update: Update, headers: dict[str, str]) -> Any:
        return self._json(f"/v1/tables/{table}:{_VERBS[op]}", json_update(update), headers)

    def _json(self, path: str, body: Any, headers: dict[str, str]) -> Any:
        # Not by httpx, which refuses values that JSON lacks, such as NaN.
        content = json.dumps(body).encode()
        reply = self._http.post(path, content=content, headers={"Content-Type": JSON, **headers})
        raise_problem(reply)
        return reply.json()

    def _raw_update(self, op: str, table: str, update: Update, headers: dict[str, str]) -> Any:
        rows = np.asarray(update.rows)
        values = np.asarray(update.values)
        if values.dtype.kind in "iu":
            values = values.astype(np.float32)
        query: dict[str, Any] = {
            "ids_dtype": rows.dtype.name,
            "shape": ",".join(map(str, rows.shape)),
            "values_dtype": values.dtype.name,
            "by": "keys" if update.by_keys else "ids",
            "if_version": update.if_version,
            "create": str(update.create).lower(),
        }
        if update.lr is not None:
            query["lr"] = update.lr
        reply = self._http.post(
            f"/v1/tables/{table}:{_VERBS[op]}",
            params=query,
            content=rows.astype(rows.dtype.newbyteorder("<")).tobytes() + values.tobytes(),
            headers={"Content-Type": OCTETS, **headers},
        )
        raise_problem(reply)
        return reply.json()

    @staticmethod
    def _json_answer(document: dict[str, Any], dtype: str) -> Answer:
        shape = tuple(document["shape"])
        assert document["dtype"] == dtype
        wanted = np.float16 if dtype == "float16" else np.float32
        vectors = np.array(document["vectors"], wanted).reshape(shape)
        if "status" not in document:
            return vectors, np.zeros(shape[:-1], np.uint8)
        return vectors, np.array(document["status"], np.uint8).reshape(shape[:-1])

    def _array_answer(self, reply: httpx.Response, missing: str, asked: tuple[int, ...]) -> Answer:
        shape = tuple(int(n) for n in reply.headers["gatherd-shape"].split(","))
        dtype = DType(reply.headers["gatherd-dtype"])
        status_bytes = int(reply.headers["gatherd-status-bytes"])
        status = np.zeros(asked, np.uint8)
        if self._media == "npy":
            stream = io.BytesIO(reply.content)
            stored = np.load(stream)
            if missing != "error":
                status = np.load(stream)
            vectors = decode_vectors(stored.tobytes(), stored.shape, dtype)
            assert stored.shape == shape
            return vectors, status
        data = reply.content[: len(reply.content) - status_bytes]
        if missing != "error":
            status = np.frombuffer(reply.content, np.uint8)[len(data) :].reshape(asked)
        return decode_vectors(data, shape, dtype), status

    def close(self) -> None:
        self._http.close()


def _keys(document: dict[str, Any]) -> list[Any]:
    flat = np.array(document["keys"], object).reshape(-1).tolist()
    if document["encoding"] != "base64":
        return flat
    return [base64.b64decode(key).decode("utf-8", "surrogateescape") for key in flat]


def raise_problem(reply: httpx.Response) -> None:
    """Raise the error that a reply is, if it is one."""
    if reply.status_code != 200:
        assert reply.headers["content-type"] == "application/problem+json"
        problem = json.loads(reply.content)
        assert problem["status"] == reply.status_code
        assert problem["error"] == problem["detail"]
        raise_wire_error(problem["reason"], problem["detail"], problem["metadata"])
