import java.io.BufferedReader;
import java.io.File;
import java.io.InputStreamReader;
import java.lang.management.ManagementFactory;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicReference;

import org.apache.spark.network.TransportContext;
import org.apache.spark.network.buffer.FileSegmentManagedBuffer;
import org.apache.spark.network.buffer.ManagedBuffer;
import org.apache.spark.network.client.ChunkReceivedCallback;
import org.apache.spark.network.client.RpcResponseCallback;
import org.apache.spark.network.client.TransportClient;
import org.apache.spark.network.client.TransportClientFactory;
import org.apache.spark.network.server.RpcHandler;
import org.apache.spark.network.server.StreamManager;
import org.apache.spark.network.server.TransportServer;
import org.apache.spark.network.util.MapConfigProvider;
import org.apache.spark.network.util.TransportConf;

/**
 * Runs the rows of Spark's {@code NettyTransportBenchmark} with both ends in one process. Each line
 * of stdin is a {@code TransportJob} of benches/protocol; the process prints a line with its
 * sample.
 *
 * <pre>
 * TransportSuites DIRECTORY_OF_CHUNK_FILES
 * </pre>
 */
final class TransportSuites {
  private static final String HOST = "127.0.0.1";
  private static final byte[] RESPONSE = {0, 0, 0, 0, 0, 0, 0, 1};

  private static final com.sun.management.OperatingSystemMXBean PROCESS =
      (com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();

  private TransportSuites() {}

  public static void main(String[] args) throws Exception {
    File[] files = new File(args[0]).listFiles();
    System.out.println("READY");
    BufferedReader lines =
        new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    String latest = null;
    Transport transport = null;
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      SparkBench.Job job = new SparkBench.Job(line);
      if (!line.equals(latest)) {
        // Spark's Benchmark class also does this before each row.
        System.gc();
      }
      if (!line.equals(latest) || !job.text("keeps_transport").equals("true")) {
        if (transport != null) {
          transport.close();
        }
        transport = new Transport(job, files);
        latest = line;
      }
      System.out.println(run(transport, job));
    }
    System.exit(0);
  }

  /** A server and the client factory for it. */
  private static final class Transport {
    private final TransportContext context;
    private final TransportServer server;
    private final TransportClientFactory factory;

    Transport(SparkBench.Job job, File[] files) {
      TransportConf conf =
          new TransportConf(
              "shuffle",
              new MapConfigProvider(
                  Map.of(
                      "spark.shuffle.io.mode", job.text("io_mode"),
                      "spark.shuffle.io.serverThreads", job.text("server_threads"),
                      "spark.shuffle.io.clientThreads", "4")));
      context = new TransportContext(conf, new Handler(conf, files));
      server = context.createServer(HOST, 0, List.of());
      factory = context.createClientFactory();
    }

    TransportClient connect() throws Exception {
      return factory.createUnmanagedClient(HOST, server.getPort());
    }

    void close() {
      factory.close();
      server.close();
      context.close();
    }
  }

  /** Runs one repetition. Opens the connections and calls once on each before it measures. */
  private static String run(Transport transport, SparkBench.Job job) throws Exception {
    byte[] body = new byte[job.text("call").equals("rpc") ? job.number("bytes") : 0];
    List<TransportClient> clients = new ArrayList<>();
    for (int i = 0; i < job.number("connections"); i++) {
      TransportClient client = transport.connect();
      Calls.of(1, client, job, body, 0).await();
      clients.add(client);
    }
    int callers = job.number("callers");
    int each = job.number("calls") / callers;
    List<Caller> running = new ArrayList<>();
    long cpu = PROCESS.getProcessCpuTime();
    long started = System.nanoTime();
    for (int i = 0; i < callers; i++) {
      Caller caller = new Caller(clients.get(i % clients.size()), job, body, i * each, each);
      caller.start();
      running.add(caller);
    }
    for (Caller caller : running) {
      caller.join();
    }
    double seconds = (System.nanoTime() - started) / 1e9;
    double cpuSeconds = (PROCESS.getProcessCpuTime() - cpu) / 1e9;
    for (Caller caller : running) {
      if (caller.failure != null) {
        throw new IllegalStateException("a call failed", caller.failure);
      }
    }
    clients.forEach(TransportClient::close);
    return String.format(
        Locale.ROOT, "{\"seconds\":%.9f,\"cpu_seconds\":%.9f}", seconds, cpuSeconds);
  }

  /** A thread that sends requests and blocks for the responses. */
  private static final class Caller extends Thread {
    private final TransportClient client;
    private final SparkBench.Job job;
    private final byte[] body;
    private final int first;
    private final int count;
    volatile Throwable failure;

    Caller(TransportClient client, SparkBench.Job job, byte[] body, int first, int count) {
      this.client = client;
      this.job = job;
      this.body = body;
      this.first = first;
      this.count = count;
    }

    @Override
    public void run() {
      try {
        if (job.text("at_once").equals("true")) {
          Calls.of(count, client, job, body, first).await();
          return;
        }
        for (int i = 0; i < count; i++) {
          Calls.of(1, client, job, body, first + i).await();
        }
      } catch (Throwable e) {
        failure = e;
      }
    }
  }

  /** The pending calls of requests that were sent together. */
  private static final class Calls implements RpcResponseCallback, ChunkReceivedCallback {
    private final CountDownLatch pending;
    private final AtomicReference<Throwable> failure = new AtomicReference<>();

    private Calls(int count) {
      pending = new CountDownLatch(count);
    }

    static Calls of(
        int count, TransportClient client, SparkBench.Job job, byte[] body, int first) {
      Calls calls = new Calls(count);
      boolean rpc = job.text("call").equals("rpc");
      for (int i = 0; i < count; i++) {
        if (rpc) {
          client.sendRpc(ByteBuffer.wrap(body), calls);
        } else {
          client.fetchChunk(0, first + i, calls);
        }
      }
      return calls;
    }

    void await() throws Exception {
      pending.await();
      if (failure.get() != null) {
        throw new IllegalStateException("a request failed", failure.get());
      }
    }

    @Override
    public void onSuccess(ByteBuffer response) {
      pending.countDown();
    }

    @Override
    public void onSuccess(int index, ManagedBuffer buffer) {
      pending.countDown();
    }

    @Override
    public void onFailure(Throwable e) {
      failure.set(e);
      pending.countDown();
    }

    @Override
    public void onFailure(int index, Throwable e) {
      onFailure(e);
    }
  }

  /** Responds to RPCs with 8 bytes, and serves one whole file per chunk index. */
  private static final class Handler extends RpcHandler {
    private final StreamManager chunks;

    Handler(TransportConf conf, File[] files) {
      chunks =
          new StreamManager() {
            @Override
            public ManagedBuffer getChunk(long stream, int index) {
              return new FileSegmentManagedBuffer(conf, files[index], 0, files[index].length());
            }
          };
    }

    @Override
    public void receive(TransportClient client, ByteBuffer body, RpcResponseCallback callback) {
      callback.onSuccess(ByteBuffer.wrap(RESPONSE));
    }

    @Override
    public StreamManager getStreamManager() {
      return chunks;
    }
  }
}
