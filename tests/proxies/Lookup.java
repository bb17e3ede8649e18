import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.HexFormat;

/** Looks up rows 5 and 6 of items, in octets and in JSON, as HttpClient does by default. */
class Lookup {
    public static void main(String[] arguments) throws Exception {
        URI uri = URI.create(arguments[0] + "/v1/tables/items:lookup");
        byte[] ids = ByteBuffer.allocate(16).order(ByteOrder.LITTLE_ENDIAN)
            .putLong(5).putLong(6).array();
        HttpClient client = HttpClient.newHttpClient();
        for (int i = 0; i < 5; i++) {
            HttpResponse<byte[]> rows = client.send(
                request(uri, arguments[1], "application/octet-stream")
                    .POST(BodyPublishers.ofByteArray(ids)).build(),
                BodyHandlers.ofByteArray());
            System.out.println(rows.statusCode() + " " + HexFormat.of().formatHex(rows.body()));
            HttpResponse<String> json = client.send(
                request(uri, arguments[1], "application/json")
                    .POST(BodyPublishers.ofString("{\"ids\": [5, 6]}")).build(),
                BodyHandlers.ofString());
            System.out.println(json.statusCode() + " " + json.body());
        }
    }

    static HttpRequest.Builder request(URI uri, String token, String type) {
        return HttpRequest.newBuilder(uri).header("Authorization", "Bearer " + token)
            .header("Content-Type", type).header("Accept", type);
    }
}
