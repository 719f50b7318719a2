import java.io.File;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.atomic.AtomicLong;

import org.apache.spark.network.TransportContext;
import org.apache.spark.network.buffer.FileSegmentManagedBuffer;
import org.apache.spark.network.buffer.ManagedBuffer;
import org.apache.spark.network.buffer.NioManagedBuffer;
import org.apache.spark.network.client.RpcResponseCallback;
import org.apache.spark.network.client.StreamCallbackWithID;
import org.apache.spark.network.client.TransportClient;
import org.apache.spark.network.server.OneForOneStreamManager;
import org.apache.spark.network.server.StreamManager;
import org.apache.spark.network.server.TransportServer;
import org.apache.spark.network.server.TransportServerBootstrap;
import org.apache.spark.network.util.TransportConf;

/** The server of the application protocol. */
final class PeerServer extends Generation.Handler {
  static final int MERGED_CHUNKS = 3;

  private final TransportConf conf;
  private final OneForOneStreamManager chunks = new OneForOneStreamManager();
  private final StreamManager streams = new Streams();
  private final AtomicLong oneWays = new AtomicLong();
  private volatile String lastDigest;

  private PeerServer(TransportConf conf) {
    this.conf = conf;
  }

  static void serve(TransportConf conf, List<TransportServerBootstrap> bootstraps, int port)
      throws Exception {
    TransportContext context = new TransportContext(conf, new PeerServer(conf));
    TransportServer server = context.createServer("127.0.0.1", port, bootstraps);
    System.out.println("LISTENING " + server.getPort());
    System.out.flush();
    while (System.in.read() >= 0) {
      // Input has no meaning. Stdin ends when the parent process closes it or exits.
    }
    server.close();
    System.exit(0);
  }

  @Override
  public void receive(TransportClient client, ByteBuffer message, RpcResponseCallback callback) {
    byte[] body = Bytes.copy(message);
    int verbLength = Bytes.verbLength(body);
    String verb = new String(body, 0, verbLength, StandardCharsets.UTF_8);
    byte[] argument = Arrays.copyOfRange(body, verbLength, body.length);
    switch (verb) {
      case "echo:":
        callback.onSuccess(ByteBuffer.wrap(argument));
        break;
      case "fail:":
        callback.onFailure(new RuntimeException(Bytes.text(argument)));
        break;
      case "open:":
        callback.onSuccess(id(openMemory(client, Bytes.text(argument).split(":"))));
        break;
      case "openfile:":
        callback.onSuccess(id(openFile(client, Bytes.text(argument))));
        break;
      case "count":
        callback.onSuccess(response(Long.toString(oneWays.get())));
        break;
      case "lastdigest":
        if (lastDigest == null) {
          throw new IllegalStateException("the server has received no upload");
        }
        callback.onSuccess(response(lastDigest));
        break;
      case "callback:":
        callBack(client, Integer.parseInt(Bytes.text(argument)), callback);
        break;
      case "hang":
        break;
      case "close":
        // client.close() would block this thread, which is the event loop that it waits for.
        client.getChannel().close();
        break;
      default:
        throw new UnsupportedOperationException("unknown request " + verb);
    }
  }

  @Override
  public void receive(TransportClient client, ByteBuffer message) {
    oneWays.incrementAndGet();
  }

  @Override
  public StreamCallbackWithID receiveStream(
      TransportClient client, ByteBuffer meta, RpcResponseCallback callback) {
    String kind = Bytes.text(Bytes.copy(meta));
    if (!kind.equals("digest")) {
      throw new UnsupportedOperationException("unknown upload " + kind);
    }
    return new DigestUpload();
  }

  @Override
  public StreamManager getStreamManager() {
    return streams;
  }

  @Override
  byte[] mergedBlockMeta(String appId, int shuffleId, int shuffleMergeId, int reduceId) {
    if (reduceId < 0) {
      throw new IllegalArgumentException("no merged block");
    }
    return Bytes.utf8("merged:" + appId + ":" + shuffleId + ":" + shuffleMergeId + ":" + reduceId);
  }

  private long openMemory(TransportClient client, String[] arguments) {
    int count = Integer.parseInt(arguments[0]);
    int size = Integer.parseInt(arguments[1]);
    List<ManagedBuffer> buffers = new ArrayList<>();
    for (int i = 0; i < count; i++) {
      buffers.add(new NioManagedBuffer(ByteBuffer.wrap(Bytes.pattern(i, size))));
    }
    return chunks.registerStream(client.getClientId(), buffers.iterator(), client.getChannel());
  }

  private long openFile(TransportClient client, String argument) {
    // The path may contain colons, so the search begins at the end.
    int second = argument.lastIndexOf(':');
    int first = argument.lastIndexOf(':', second - 1);
    File file = new File(argument.substring(0, first));
    int count = Integer.parseInt(argument.substring(first + 1, second));
    long size = Long.parseLong(argument.substring(second + 1));
    List<ManagedBuffer> buffers = new ArrayList<>();
    for (int i = 0; i < count; i++) {
      buffers.add(new FileSegmentManagedBuffer(conf, file, i * size, size));
    }
    return chunks.registerStream(client.getClientId(), buffers.iterator(), client.getChannel());
  }

  /**
   * Sends RPCs to the client, and responds when all of them have responses. All requests are sent
   * before the first response is read, because this runs on the thread that reads responses.
   */
  private static void callBack(TransportClient client, int count, RpcResponseCallback callback) {
    List<CompletableFuture<Void>> acks = new ArrayList<>();
    for (int i = 0; i < count; i++) {
      String expected = "cb-ack:" + i;
      acks.add(
          Calls.rpc(client, Bytes.utf8("cb:" + i))
              .thenAccept(
                  ack -> {
                    if (!Bytes.text(ack).equals(expected)) {
                      throw new IllegalStateException(
                          "expected " + expected + ", received " + Bytes.text(ack));
                    }
                  }));
    }
    CompletableFuture.allOf(acks.toArray(new CompletableFuture<?>[0]))
        .whenComplete(
            (done, failure) -> {
              if (failure == null) {
                callback.onSuccess(response("done:" + count));
              } else {
                callback.onFailure(failure);
              }
            });
  }

  private static ByteBuffer id(long streamId) {
    ByteBuffer buffer = ByteBuffer.allocate(Long.BYTES);
    buffer.putLong(0, streamId);
    return buffer;
  }

  private static ByteBuffer response(String text) {
    return ByteBuffer.wrap(Bytes.utf8(text));
  }

  /**
   * Serves chunks with Spark's OneForOneStreamManager, and streams by name. It is not a subclass,
   * because that manager rejects stream names that are not of the form STREAM_CHUNK.
   */
  private final class Streams extends StreamManager {
    @Override
    public ManagedBuffer getChunk(long streamId, int chunkIndex) {
      return chunks.getChunk(streamId, chunkIndex);
    }

    @Override
    public ManagedBuffer openStream(String streamId) {
      if (streamId.startsWith("pattern:")) {
        int size = Integer.parseInt(streamId.substring("pattern:".length()));
        return new NioManagedBuffer(ByteBuffer.wrap(Bytes.pattern(0, size)));
      }
      if (streamId.startsWith("file:")) {
        File file = new File(streamId.substring("file:".length()));
        if (file.isFile()) {
          return new FileSegmentManagedBuffer(conf, file, 0, file.length());
        }
      }
      return null;
    }

    @Override
    public void connectionTerminated(io.netty.channel.Channel channel) {
      chunks.connectionTerminated(channel);
    }

    @Override
    public void checkAuthorization(TransportClient client, long streamId) {
      chunks.checkAuthorization(client, streamId);
    }

    @Override
    public long chunksBeingTransferred() {
      return chunks.chunksBeingTransferred();
    }

    @Override
    public void chunkBeingSent(long streamId) {
      chunks.chunkBeingSent(streamId);
    }

    @Override
    public void chunkSent(long streamId) {
      chunks.chunkSent(streamId);
    }
  }

  private final class DigestUpload implements StreamCallbackWithID {
    private final MessageDigest digest = Bytes.sha256();
    private long length;
    private String response;

    @Override
    public void onData(String streamId, ByteBuffer data) {
      length += data.remaining();
      digest.update(data);
    }

    @Override
    public void onComplete(String streamId) {
      response = Bytes.digestResponse(digest.digest(), length);
      lastDigest = response;
    }

    @Override
    public void onFailure(String streamId, Throwable cause) {
      System.err.println("upload failed: " + cause);
    }

    @Override
    public String getID() {
      return "digest";
    }

    // There is no @Override, because Spark has this method since 3.2. Before, it responds with no
    // bytes.
    public ByteBuffer getCompletionResponse() {
      return PeerServer.response(response);
    }
  }
}
