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

/** Answers the application protocol. */
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
      // Only the end of the input means something: whoever started us is gone or done.
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
        callback.onSuccess(answer(Long.toString(oneWays.get())));
        break;
      case "lastdigest":
        if (lastDigest == null) {
          throw new IllegalStateException("nothing has been uploaded");
        }
        callback.onSuccess(answer(lastDigest));
        break;
      case "callback:":
        callBack(client, Integer.parseInt(Bytes.text(argument)), callback);
        break;
      case "hang":
        break;
      case "close":
        // Not client.close(): it waits for the event loop, which is the thread that runs this.
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
    // From the right: a path may hold colons.
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

  /** All reverse requests are out before the first answer: this runs on the thread that reads the answers. */
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
                          "wanted " + expected + ", got " + Bytes.text(ack));
                    }
                  }));
    }
    CompletableFuture.allOf(acks.toArray(new CompletableFuture<?>[0]))
        .whenComplete(
            (done, failure) -> {
              if (failure == null) {
                callback.onSuccess(answer("done:" + count));
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

  private static ByteBuffer answer(String text) {
    return ByteBuffer.wrap(Bytes.utf8(text));
  }

  /**
   * Chunks by Spark's own manager, streams by name. Not a subclass of it: its stream methods expect ids
   * of the form stream_chunk and would refuse ours.
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
    private String answer;

    @Override
    public void onData(String streamId, ByteBuffer data) {
      length += data.remaining();
      digest.update(data);
    }

    @Override
    public void onComplete(String streamId) {
      answer = Bytes.digestAnswer(digest.digest(), length);
      lastDigest = answer;
    }

    @Override
    public void onFailure(String streamId, Throwable cause) {
      System.err.println("upload failed: " + cause);
    }

    @Override
    public String getID() {
      return "digest";
    }

    // Without @Override: Spark calls it since 3.2 and answers with nothing before.
    public ByteBuffer getCompletionResponse() {
      return PeerServer.answer(answer);
    }
  }
}
