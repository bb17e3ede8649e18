// Lookups and an update over gRPC: node grpc.mjs HOST:8001 TOKEN REQUEST_ID
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import { promisify } from "node:util";

const [address, token, requestId] = process.argv.slice(2);

const definition = protoLoader.loadSync(
  ["gatherd_proto/v1/embedding.proto", "google/rpc/status.proto", "google/rpc/error_details.proto"],
  { includeDirs: ["../../../proto", "node_modules/google-proto-files"], keepCase: true },
);
const { EmbeddingService } = grpc.loadPackageDefinition(definition).gatherd.v1;

// A lookup may be sent again at will; an update under the same request id.
const retries = {
  methodConfig: [
    {
      name: [{ service: "gatherd.v1.EmbeddingService" }],
      timeout: "10s",
      retryPolicy: {
        maxAttempts: 5,
        initialBackoff: "0.05s",
        maxBackoff: "2s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE"],
      },
    },
  ],
};
const client = new EmbeddingService(address, grpc.credentials.createInsecure(), {
  "grpc.service_config": JSON.stringify(retries),
  "grpc.max_receive_message_length": -1,
});
const metadata = new grpc.Metadata();
metadata.set("authorization", `Bearer ${token}`);
const call = (method, request) => promisify(client[method].bind(client))(request, metadata);

// Typed arrays have the machine's byte order, little-endian wherever Node is common.
const bytesOf = (array) => Buffer.from(array.buffer);
const floatsOf = (tensor) => new Float32Array(new Uint8Array(tensor.data).buffer);

function int64s(ids) {
  return { dtype: "DTYPE_INT64", shape: [ids.length], data: bytesOf(BigInt64Array.from(ids, BigInt)) };
}

function float32s(values, shape) {
  return { dtype: "DTYPE_FLOAT32", shape, data: bytesOf(Float32Array.from(values)) };
}

function strings(keys) {
  const encoded = keys.map((key) => Buffer.from(key));
  const lengths = bytesOf(Uint32Array.from(encoded, (key) => key.length));
  return { strings: { shape: [keys.length], lengths, data: Buffer.concat(encoded) } };
}

const byId = await call("Lookup", { table: "words", ids: int64s([4, 20]) });
console.log("ids", ...floatsOf(byId.vectors)); // shape byId.vectors.shape is [2, 4]

const byKey = await call("Lookup", { table: "words", keys: strings(["king", "queen"]) });
console.log("keys", ...floatsOf(byKey.vectors));

function decode(name, bytes) {
  return definition[name].deserialize(bytes);
}

try {
  await call("Lookup", { table: "words", keys: strings(["kng"]) });
} catch (error) {
  const [raw] = error.metadata.get("grpc-status-details-bin");
  const details = Object.fromEntries(
    decode("google.rpc.Status", raw).details.map(({ type_url, value }) => {
      const name = type_url.split("/").pop();
      return [name, decode(name, value)];
    }),
  );
  const info = details["google.rpc.ErrorInfo"];
  const wrong = details["google.rpc.BadRequest"];
  console.log("error", info.reason, info.metadata.table, wrong.field_violations[0].field);
}

const values = float32s([0.5, 0.5, 0.5, 0.5], [1, 4]);
const update = { updates: [{ table: "words", ids: int64s([4]), values }], idempotency_key: requestId };
const added = await call("ScatterAdd", update);
console.log("added", String(added.lsn));
const again = await call("ScatterAdd", update); // done once: the first answer comes again
console.log("again", String(again.lsn));
client.close();
