import com.gatherd.v1.DType;
import com.gatherd.v1.EmbeddingServiceGrpc;
import com.gatherd.v1.Keys;
import com.gatherd.v1.LookupRequest;
import com.gatherd.v1.StringKeys;
import com.gatherd.v1.TableUpdate;
import com.gatherd.v1.Tensor;
import com.gatherd.v1.UpdateRequest;
import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;

/** Lookups and an update over gRPC: java Client HOST:8001 TOKEN REQUEST_ID. */
class Client {
    // A lookup may be sent again at will; an update under the same request id.
    static final Map<String, ?> RETRIES = Map.of("methodConfig", List.of(Map.of(
        "name", List.of(Map.of("service", "gatherd.v1.EmbeddingService")),
        "timeout", "10s",
        "retryPolicy", Map.of(
            "maxAttempts", 5.0, "initialBackoff", "0.05s", "maxBackoff", "2s",
            "backoffMultiplier", 2.0, "retryableStatusCodes", List.of("UNAVAILABLE")))));

    static Tensor int64s(long... ids) {
        ByteBuffer data = ByteBuffer.allocate(8 * ids.length).order(ByteOrder.LITTLE_ENDIAN);
        data.asLongBuffer().put(ids);
        return Tensor.newBuilder().setDtype(DType.DTYPE_INT64).addShape(ids.length)
            .setData(ByteString.copyFrom(data)).build();
    }

    static Tensor float32s(float[] values, Long... shape) {
        ByteBuffer data = ByteBuffer.allocate(4 * values.length).order(ByteOrder.LITTLE_ENDIAN);
        data.asFloatBuffer().put(values);
        return Tensor.newBuilder().setDtype(DType.DTYPE_FLOAT32).addAllShape(Arrays.asList(shape))
            .setData(ByteString.copyFrom(data)).build();
    }

    static float[] floatsOf(Tensor tensor) {
        float[] values = new float[tensor.getData().size() / 4];
        tensor.getData().asReadOnlyByteBuffer().order(ByteOrder.LITTLE_ENDIAN)
            .asFloatBuffer().get(values);
        return values;
    }

    static Keys strings(String... keys) {
        ByteBuffer lengths = ByteBuffer.allocate(4 * keys.length).order(ByteOrder.LITTLE_ENDIAN);
        ByteString data = ByteString.EMPTY;
        for (String key : keys) {
            ByteString encoded = ByteString.copyFromUtf8(key);
            lengths.putInt(encoded.size());
            data = data.concat(encoded);
        }
        return Keys.newBuilder().setStrings(StringKeys.newBuilder().addShape(keys.length)
            .setLengths(ByteString.copyFrom(lengths.flip())).setData(data)).build();
    }

    static void show(String name, Tensor vectors) {
        System.out.print(name);
        for (float value : floatsOf(vectors)) {
            System.out.print(" " + value);
        }
        System.out.println();
    }

    static void showError(StatusRuntimeException error) throws Exception {
        ErrorInfo info = null;
        BadRequest wrong = null;
        for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
            if (detail.is(ErrorInfo.class)) {
                info = detail.unpack(ErrorInfo.class);
            } else if (detail.is(BadRequest.class)) {
                wrong = detail.unpack(BadRequest.class);
            }
        }
        System.out.println("error " + info.getReason() + " " + info.getMetadataOrThrow("table")
            + " " + wrong.getFieldViolations(0).getField());
    }

    public static void main(String[] arguments) throws Exception {
        ManagedChannel channel = ManagedChannelBuilder.forTarget(arguments[0]).usePlaintext()
            .defaultServiceConfig(RETRIES).enableRetry()
            .maxInboundMessageSize(Integer.MAX_VALUE).build();
        Metadata metadata = new Metadata();
        metadata.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER),
            "Bearer " + arguments[1]);
        EmbeddingServiceGrpc.EmbeddingServiceBlockingStub client =
            EmbeddingServiceGrpc.newBlockingStub(channel)
                .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(metadata));

        LookupRequest.Builder lookup = LookupRequest.newBuilder().setTable("words");
        show("ids", client.lookup(lookup.setIds(int64s(4, 20)).build()).getVectors());
        show("keys", client.lookup(lookup.setKeys(strings("king", "queen")).build()).getVectors());
        try {
            client.lookup(lookup.setKeys(strings("kng")).build());
        } catch (StatusRuntimeException error) {
            showError(error);
        }

        UpdateRequest update = UpdateRequest.newBuilder()
            .addUpdates(TableUpdate.newBuilder().setTable("words").setIds(int64s(4))
                .setValues(float32s(new float[] {0.5f, 0.5f, 0.5f, 0.5f}, 1L, 4L)))
            .setIdempotencyKey(arguments[2]).build();
        System.out.println("added " + client.scatterAdd(update).getLsn());
        // Done once: the first answer comes again.
        System.out.println("again " + client.scatterAdd(update).getLsn());
        channel.shutdown().awaitTermination(5, TimeUnit.SECONDS);
    }
}
