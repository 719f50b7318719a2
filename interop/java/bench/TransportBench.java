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

/** Echoes and chunks over Spark's transport with its defaults. A stream id is the chunk size. */
final class TransportBench implements SparkBench.Client {
  private static final TransportConf CONF =
      new TransportConf("shuffle", new MapConfigProvider(Collections.emptyMap()));

  private final TransportClientFactory factory =
      new TransportContext(CONF, new Handler(null)).createClientFactory();
  private final int port;
  private final Map<Integer, TransportClient> clients = new HashMap<>();
  private final AtomicInteger nextChunk = new AtomicInteger();

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
  public void call(SparkBench.Job job, int connection, Consumer<Throwable> onEnd) {
    int bytes = job.number("bytes");
    if (job.kind().equals("echo")) {
      client(connection).sendRpc(ByteBuffer.allocate(bytes), new RpcCallback(onEnd));
    } else if (job.kind().equals("fetch_file")) {
      int index = nextChunk.getAndIncrement() & Integer.MAX_VALUE;
      client(connection).fetchChunk(bytes, index, new ChunkCallback(onEnd));
    } else {
      throw new IllegalArgumentException(job.kind());
    }
  }

  private static final class RpcCallback implements RpcResponseCallback {
    private final Consumer<Throwable> onEnd;

    RpcCallback(Consumer<Throwable> onEnd) {
      this.onEnd = onEnd;
    }

    @Override
    public void onSuccess(ByteBuffer response) {
      onEnd.accept(null);
    }

    @Override
    public void onFailure(Throwable e) {
      onEnd.accept(e);
    }
  }

  private static final class ChunkCallback implements ChunkReceivedCallback {
    private final Consumer<Throwable> onEnd;

    ChunkCallback(Consumer<Throwable> onEnd) {
      this.onEnd = onEnd;
    }

    @Override
    public void onSuccess(int index, ManagedBuffer buffer) {
      onEnd.accept(null);
    }

    @Override
    public void onFailure(int index, Throwable e) {
      onEnd.accept(e);
    }
  }

  private static final class Handler extends RpcHandler {
    private final StreamManager chunks;

    Handler(File file) {
      chunks = file == null ? new OneForOneStreamManager() : new FileChunks(file);
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

  private static final class FileChunks extends StreamManager {
    private final File file;
    private final long length;

    FileChunks(File file) {
      this.file = file;
      length = file.length();
    }

    @Override
    public ManagedBuffer getChunk(long size, int index) {
      return new FileSegmentManagedBuffer(CONF, file, index % (length / size) * size, size);
    }
  }
}
