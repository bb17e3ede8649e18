// Lookups and an update over Connect: node connect.mjs http://HOST:8000 TOKEN REQUEST_ID
import { durationMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { setTimeout as sleep } from "node:timers/promises";
import { EmbeddingService } from "./gen/gatherd_proto/v1/embedding_pb.js";
import { DType } from "./gen/gatherd_proto/v1/tensor_pb.js";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";

const [baseUrl, token, requestId] = process.argv.slice(2);

const transport = createConnectTransport({
  baseUrl,
  httpVersion: "1.1",
  defaultTimeoutMs: 10_000,
  interceptors: [
    (next) => (request) => {
      request.header.set("Authorization", `Bearer ${token}`);
      return next(request);
    },
  ],
});
const client = createClient(EmbeddingService, transport);

// Typed arrays have the machine's byte order, little-endian wherever Node is common.
const bytesOf = (array) => new Uint8Array(array.buffer);
const floatsOf = (tensor) => new Float32Array(tensor.data.slice().buffer);

function int64s(ids) {
  const data = bytesOf(BigInt64Array.from(ids, BigInt));
  return { dtype: DType.DTYPE_INT64, shape: [BigInt(ids.length)], data };
}

function float32s(values, shape) {
  return { dtype: DType.DTYPE_FLOAT32, shape: shape.map(BigInt), data: bytesOf(Float32Array.from(values)) };
}

function strings(keys) {
  const encoded = keys.map((key) => new TextEncoder().encode(key));
  const lengths = bytesOf(Uint32Array.from(encoded, (key) => key.length));
  const value = { shape: [BigInt(keys.length)], lengths, data: Buffer.concat(encoded) };
  return { kind: { case: "strings", value } };
}

// A lookup may be sent again at will; an update under the same request id.
async function retried(send) {
  for (let pauseMs = 50, tries = 1; ; pauseMs *= 2, tries++) {
    try {
      return await send();
    } catch (thrown) {
      const error = ConnectError.from(thrown);
      const [retry] = error.findDetails(RetryInfoSchema);
      const lost = [Code.Unavailable, Code.Aborted, Code.DeadlineExceeded].includes(error.code);
      if (tries === 5 || !(retry || lost)) throw error;
      const serverMs = retry ? durationMs(retry.retryDelay) : 0;
      await sleep(serverMs + pauseMs * Math.random());
    }
  }
}

const byId = await retried(() =>
  client.lookup({ table: "words", rows: { case: "ids", value: int64s([4, 20]) } }),
);
console.log("ids", ...floatsOf(byId.vectors)); // shape byId.vectors.shape is [2n, 4n]

const byKey = await retried(() =>
  client.lookup({ table: "words", rows: { case: "keys", value: strings(["king", "queen"]) } }),
);
console.log("keys", ...floatsOf(byKey.vectors));

try {
  await client.lookup({ table: "words", rows: { case: "keys", value: strings(["kng"]) } });
} catch (error) {
  const [info] = ConnectError.from(error).findDetails(ErrorInfoSchema);
  const [wrong] = ConnectError.from(error).findDetails(BadRequestSchema);
  console.log("error", info.reason, info.metadata.table, wrong.fieldViolations[0].field);
}

const update = {
  updates: [
    {
      table: "words",
      rows: { case: "ids", value: int64s([4]) },
      values: float32s([0.5, 0.5, 0.5, 0.5], [1, 4]),
    },
  ],
  requestId: { case: "idempotencyKey", value: requestId },
};
const added = await retried(() => client.scatterAdd(update));
console.log("added", String(added.lsn));
const again = await client.scatterAdd(update); // done once: the first answer comes again
console.log("again", String(again.lsn));
