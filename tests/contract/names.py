"""Every wire that changes names, behind one method each, for cases that judge them all."""

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import httpx
from google.protobuf import json_format

from contract.messages import raise_connect_error, raise_grpc_error
from contract.rest import raise_problem
from gatherd import AsyncClient, Client
from gatherd_proto.v1 import table_pb2, table_pb2_grpc


@dataclass(frozen=True)
class Changed:
    """The answer to a change."""

    version: int
    state: str


class Names(Protocol):
    """The changes of names on one wire; they raise the gatherd error that came over it."""

    def rename(self, table: str, to: str, *, keep_alias: bool = False) -> Changed: ...

    def alias(self, alias: str, table: str) -> Changed: ...

    def unalias(self, alias: str) -> Changed: ...

    def clone(self, table: str, to: str) -> Changed: ...

    def replace(self, table: str, source: str, *, allow_dim_change: bool = False) -> Changed: ...

    def delete(self, table: str, *, force: bool = False) -> Changed: ...

    def publish(self, table: str) -> Changed: ...

    def described(self, name: str) -> tuple[str, list[str]]:
        """The table that `name` is an alias of, and the aliases of `name`."""
        ...

    def close(self) -> None: ...


class SdkNames:
    """The SDK over a URL, awaited or not."""

    def __init__(self, url: str, *, awaits: bool = False) -> None:
        self._runner = asyncio.Runner() if awaits else None
        self._client: Any = self._made(url) if awaits else Client(url)

    def _made(self, url: str) -> AsyncClient:
        async def make() -> AsyncClient:
            return AsyncClient(url)

        assert self._runner is not None
        return self._runner.run(make())

    def _run(self, result: Any) -> Any:
        return result if self._runner is None else self._runner.run(result)

    def _changed(self, result: Any) -> Changed:
        done = self._run(result)
        return Changed(done.version, done.state)

    def rename(self, table: str, to: str, *, keep_alias: bool = False) -> Changed:
        return self._changed(self._client.rename(table, to, keep_alias=keep_alias))

    def alias(self, alias: str, table: str) -> Changed:
        return self._changed(self._client.alias(alias, table))

    def unalias(self, alias: str) -> Changed:
        return self._changed(self._client.unalias(alias))

    def clone(self, table: str, to: str) -> Changed:
        return self._changed(self._client.clone(table, to))

    def replace(self, table: str, source: str, *, allow_dim_change: bool = False) -> Changed:
        return self._changed(self._client.replace(table, source, allow_dim_change=allow_dim_change))

    def delete(self, table: str, *, force: bool = False) -> Changed:
        return self._changed(self._client.delete_table(table, force=force))

    def publish(self, table: str) -> Changed:
        return self._changed(self._client.publish(table))

    def described(self, name: str) -> tuple[str, list[str]]:
        info = self._run(self._client.table(name))
        return info.alias_of, list(info.aliases)

    def close(self) -> None:
        if self._runner is None:
            self._client.close()
        else:
            self._runner.run(self._client.aclose())
            self._runner.close()


class RestNames:
    """REST."""

    def __init__(self, base: str) -> None:
        self._http = httpx.Client(base_url=base, timeout=60)

    def _ask(self, method: str, path: str, body: Any = None) -> Changed:
        reply = self._http.request(method, path, **({} if body is None else {"json": body}))
        raise_problem(reply)
        found = reply.json()
        return Changed(found["version"], found.get("state", ""))

    def rename(self, table: str, to: str, *, keep_alias: bool = False) -> Changed:
        body = {"to": to, "keep_alias": keep_alias}
        return self._ask("POST", f"/v1/tables/{table}:rename", body)

    def alias(self, alias: str, table: str) -> Changed:
        return self._ask("PUT", f"/v1/aliases/{alias}", {"table": table})

    def unalias(self, alias: str) -> Changed:
        return self._ask("DELETE", f"/v1/aliases/{alias}")

    def clone(self, table: str, to: str) -> Changed:
        return self._ask("POST", f"/v1/tables/{table}:clone", {"to": to})

    def replace(self, table: str, source: str, *, allow_dim_change: bool = False) -> Changed:
        body = {"source": source, "allow_dim_change": allow_dim_change}
        return self._ask("POST", f"/v1/tables/{table}:replace", body)

    def delete(self, table: str, *, force: bool = False) -> Changed:
        return self._ask("DELETE", f"/v1/tables/{table}" + ("?force=true" if force else ""))

    def publish(self, table: str) -> Changed:
        return self._ask("POST", f"/v1/tables/{table}:publish")

    def described(self, name: str) -> tuple[str, list[str]]:
        reply = self._http.get(f"/v1/tables/{name}")
        raise_problem(reply)
        return reply.json()["alias_of"], reply.json()["aliases"]

    def close(self) -> None:
        self._http.close()


class MessageNames:
    """The generated messages, over gRPC or Connect."""

    def __init__(self, server_grpc: str, server_http: str, way: str) -> None:
        self._way = way
        self._channel = grpc.insecure_channel(server_grpc.removeprefix("grpc://"))
        self._stub = table_pb2_grpc.TableServiceStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self._http = httpx.Client(base_url=server_http, timeout=60)

    def _call(self, method: str, request: Any, reply: Any) -> Any:
        if self._way == "grpc":
            try:
                return getattr(self._stub, method)(request)
            except grpc.RpcError as error:
                raise_grpc_error(error)
        is_json = self._way == "json"
        body = json_format.MessageToJson(request).encode() if is_json else None
        answer = self._http.post(
            f"/gatherd.v1.TableService/{method}",
            content=request.SerializeToString() if body is None else body,
            headers={"Content-Type": f"application/{self._way}"},
        )
        if answer.status_code != 200:
            raise_connect_error(answer.json())
        if is_json:
            return json_format.Parse(answer.content, reply)
        reply.ParseFromString(answer.content)
        return reply

    def _change(self, method: str, **fields: Any) -> Changed:
        request = getattr(table_pb2, f"{method}Request")(**fields)
        done = self._call(method, request, table_pb2.ChangeResponse())
        return Changed(done.version, done.state)

    def rename(self, table: str, to: str, *, keep_alias: bool = False) -> Changed:
        return self._change("RenameTable", table=table, to=to, keep_alias=keep_alias)

    def alias(self, alias: str, table: str) -> Changed:
        return self._change("SetAlias", alias=alias, table=table)

    def unalias(self, alias: str) -> Changed:
        return self._change("DeleteAlias", alias=alias)

    def clone(self, table: str, to: str) -> Changed:
        return self._change("CloneTable", table=to, source=table)

    def replace(self, table: str, source: str, *, allow_dim_change: bool = False) -> Changed:
        return self._change(
            "ReplaceTable", table=table, source=source, allow_dim_change=allow_dim_change
        )

    def delete(self, table: str, *, force: bool = False) -> Changed:
        return self._change("DeleteTable", table=table, force=force)

    def publish(self, table: str) -> Changed:
        return self._change("Publish", table=table)

    def described(self, name: str) -> tuple[str, list[str]]:
        request = table_pb2.GetTableRequest(table=name)
        found = self._call("GetTable", request, table_pb2.GetTableResponse()).table
        return found.alias_of, list(found.aliases)

    def close(self) -> None:
        self._channel.close()
        self._http.close()
