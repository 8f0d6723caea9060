import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Collections;

/** Asks for songs with the JDK's own client and its defaults, which offer HTTP/2 with each request. Prints one line an answer. */
public class JdkClient {
    static final HttpClient CLIENT = HttpClient.newHttpClient();

    public static void main(String[] arguments) throws Exception {
        String server = arguments[0];
        String json = "{\"prompt\": \"piano\", \"audio_duration\": 5, \"infer_step\": 2}";
        show("json", send(post(server + "/generate_music_async", "application/json", json)));
        show("again", send(post(server + "/generate_music_async", "application/json", json)));
        show("form", send(post(server + "/generate_music_form", "application/x-www-form-urlencoded", "genre=piano&audio_duration=5&infer_step=2")));
        String multipart = "";
        for (String field : new String[] {"prompt=piano", "audio_duration=5", "infer_step=2"}) {
            String[] parts = field.split("=");
            multipart += "--edge\r\nContent-Disposition: form-data; name=\"" + parts[0] + "\"\r\n\r\n" + parts[1] + "\r\n";
        }
        multipart += "--edge--\r\n";
        show("multipart", send(post(server + "/generate_music_async", "multipart/form-data; boundary=edge", multipart)));
        String large = "{\"audio_duration\": 5, \"infer_step\": 2, \"lyrics\": \"" + String.join("", Collections.nCopies(2_000, "la ")) + "\"}";
        show("large", send(post(server + "/generate_music_async", "application/json", large)));
        byte[] stream = json.getBytes(StandardCharsets.UTF_8);
        HttpRequest.BodyPublisher chunks = BodyPublishers.ofInputStream(() -> new java.io.ByteArrayInputStream(stream));
        show("chunks", send(request(server + "/generate_music_direct").header("Content-Type", "application/json").POST(chunks).build()));
        show("get", send(request(server + "/health").build()));
    }

    static HttpRequest.Builder request(String address) {
        return HttpRequest.newBuilder(URI.create(address)).timeout(Duration.ofSeconds(60));
    }

    static HttpRequest post(String address, String type, String body) {
        return request(address).header("Content-Type", type).POST(BodyPublishers.ofString(body)).build();
    }

    static HttpResponse<byte[]> send(HttpRequest request) throws Exception {
        return CLIENT.send(request, BodyHandlers.ofByteArray());
    }

    static void show(String name, HttpResponse<byte[]> answer) {
        String type = answer.headers().firstValue("Content-Type").orElse("");
        System.out.println(name + " " + answer.statusCode() + " " + type + " " + answer.body().length);
    }
}
