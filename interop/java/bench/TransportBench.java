import java.io.File;
import java.nio.ByteBuffer;
import java.util.Collections;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Consumer;

import org.apache.spark.network.TransportContext;
import org.apache.spark.network.buffer.FileSegmentManagedBuffer;
import org.apache.spark.network.buffer.ManagedBuffer;
import org.apache.spark.network.client.ChunkReceivedCallback;
import org.apache.spark.network.client.RpcResponseCallback;
import org.apache.spark.network.client.TransportClient;
import org.apache.spark.network.client.TransportClientFactory;
import org.apache.spark.network.server.OneForOneStreamManager;
import org.apache.spark.network.server.RpcHandler;
import org.apache.spark.network.server.StreamManager;
import org.apache.spark.network.util.MapConfigProvider;
import org.apache.spark.network.util.TransportConf;

/** Spark's transport: echoes, and chunks whose stream id is their size. With the release's defaults. */
final class TransportBench implements SparkBench.Client {
  private static final TransportConf CONF =
      new TransportConf("shuffle", new MapConfigProvider(Collections.emptyMap()));

  private final TransportClientFactory factory =
      new TransportContext(CONF, new Handler(null)).createClientFactory();
  private final int port;
  private final Map<Integer, TransportClient> clients = new HashMap<>();
  private final AtomicInteger chunk = new AtomicInteger();

  TransportBench(int port) {
    this.port = port;
  }

  static int serve(String file) {
    TransportContext context =
        new TransportContext(CONF, new Handler(file == null ? null : new File(file)));
    return context.createServer("127.0.0.1", 0, Collections.emptyList()).getPort();
  }

  private synchronized TransportClient client(int connection) {
    return clients.computeIfAbsent(
        connection,
        any -> {
          try {
            return factory.createUnmanagedClient("127.0.0.1", port);
          } catch (Exception e) {
            throw new IllegalStateException(e);
          }
        });
  }

  @Override
  public void call(SparkBench.Job job, int connection, Consumer<Throwable> ended) {
    int bytes = job.number("bytes");
    if (job.kind().equals("echo")) {
      client(connection).sendRpc(ByteBuffer.allocate(bytes), new Answer(ended));
    } else if (job.kind().equals("fetch_file")) {
      int index = chunk.getAndIncrement() & Integer.MAX_VALUE;
      client(connection).fetchChunk(bytes, index, new Chunk(ended));
    } else {
      throw new IllegalArgumentException(job.kind());
    }
  }

  private static final class Answer implements RpcResponseCallback {
    private final Consumer<Throwable> ended;

    Answer(Consumer<Throwable> ended) {
      this.ended = ended;
    }

    @Override
    public void onSuccess(ByteBuffer response) {
      ended.accept(null);
    }

    @Override
    public void onFailure(Throwable e) {
      ended.accept(e);
    }
  }

  private static final class Chunk implements ChunkReceivedCallback {
    private final Consumer<Throwable> ended;

    Chunk(Consumer<Throwable> ended) {
      this.ended = ended;
    }

    @Override
    public void onSuccess(int index, ManagedBuffer buffer) {
      ended.accept(null);
    }

    @Override
    public void onFailure(int index, Throwable e) {
      ended.accept(e);
    }
  }

  private static final class Handler extends RpcHandler {
    private final StreamManager chunks;

    Handler(File file) {
      chunks = file == null ? new OneForOneStreamManager() : new Chunks(file);
    }

    @Override
    public void receive(TransportClient client, ByteBuffer message, RpcResponseCallback callback) {
      byte[] body = new byte[message.remaining()];
      message.get(body);
      callback.onSuccess(ByteBuffer.wrap(body));
    }

    @Override
    public StreamManager getStreamManager() {
      return chunks;
    }
  }

  private static final class Chunks extends StreamManager {
    private final File file;
    private final long length;

    Chunks(File file) {
      this.file = file;
      length = file.length();
    }

    @Override
    public ManagedBuffer getChunk(long size, int index) {
      return new FileSegmentManagedBuffer(CONF, file, index % (length / size) * size, size);
    }
  }
}
