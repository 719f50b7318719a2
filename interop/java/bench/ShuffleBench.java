import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.LinkedBlockingQueue;

import org.apache.spark.network.buffer.ManagedBuffer;
import org.apache.spark.network.shuffle.BlockFetchingListener;
import org.apache.spark.network.shuffle.ExternalBlockStoreClient;
import org.apache.spark.network.util.MapConfigProvider;
import org.apache.spark.network.util.TransportConf;

/**
 * Spark's block client as a contender of {@code cargo xtask compare --only shuffle}.
 *
 * <p>{@code ShuffleBench HOST:PORT} receives jobs with the step "read", which the type ShuffleJob of
 * benches/protocol documents. Each reducer has a client, and sends requests as Spark's {@code
 * ShuffleBlockFetcherIterator} does with its defaults.
 */
final class ShuffleBench {
  private static final String APP = "app-1";
  private static final String EXECUTOR = "1";

  /** The default of spark.reducer.maxSizeInFlight; a request has a fifth of it. */
  private static final long MAX_BYTES_IN_FLIGHT = 48L << 20;

  /** The content of one in this number of blocks is checked. */
  private static final int CHECK_INTERVAL = 64;

  /** Blocks contain the numbers below this in order, again and again. */
  private static final int PERIOD = 251;

  private ShuffleBench() {}

  public static void main(String[] args) throws Exception {
    int port = Integer.parseInt(args[0].substring(args[0].lastIndexOf(':') + 1));
    List<ExternalBlockStoreClient> clients = new ArrayList<>();
    System.out.println("READY");
    BufferedReader lines =
        new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      SparkBench.Job job = new SparkBench.Job(line);
      if (!job.text("step").equals("read")) {
        throw new IllegalArgumentException(job.text("step"));
      }
      while (clients.size() < job.number("reducers")) {
        clients.add(client());
      }
      System.out.println(read(clients, port, job));
    }
    System.exit(0);
  }

  private static ExternalBlockStoreClient client() {
    TransportConf conf =
        new TransportConf("shuffle", new MapConfigProvider(Collections.emptyMap()));
    ExternalBlockStoreClient client = new ExternalBlockStoreClient(conf, null, false, 5000);
    client.init(APP);
    return client;
  }

  private static String read(List<ExternalBlockStoreClient> clients, int port, SparkBench.Job job)
      throws Exception {
    long start = System.nanoTime();
    long end = start + job.number("millis") * 1_000_000L;
    List<Reducer> reducers = new ArrayList<>();
    for (int i = 0; i < job.number("reducers"); i++) {
      Reducer reducer = new Reducer(clients.get(i), port, job, i, end);
      reducers.add(reducer);
      reducer.start();
    }
    long blocks = 0;
    for (Reducer reducer : reducers) {
      reducer.join();
      if (reducer.failure != null) {
        throw new IllegalStateException("a reducer failed", reducer.failure);
      }
      blocks += reducer.blocks;
    }
    double seconds = (System.nanoTime() - start) / 1e9;
    return String.format(Locale.ROOT, "{\"operations\":%d,\"seconds\":%.6f}", blocks, seconds);
  }

  /** A block, or the error of its fetch. */
  private static final class Result {
    final String id;
    final ManagedBuffer block;
    final Throwable error;

    Result(String id, ManagedBuffer block, Throwable error) {
      this.id = id;
      this.block = block;
      this.error = error;
    }
  }

  /** One reducer, which reads its partition until the time has passed. */
  private static final class Reducer extends Thread {
    private final ExternalBlockStoreClient client;
    private final int port;
    private final int bytes;
    private final int maps;
    private final int reduce;
    private final long end;
    private final LinkedBlockingQueue<Result> results = new LinkedBlockingQueue<>();
    long blocks;
    Throwable failure;

    Reducer(ExternalBlockStoreClient client, int port, SparkBench.Job job, int reduce, long end) {
      this.client = client;
      this.port = port;
      this.bytes = job.number("bytes");
      this.maps = job.number("maps");
      this.reduce = reduce;
      this.end = end;
    }

    @Override
    public void run() {
      try {
        do {
          readPartition();
        } while (System.nanoTime() < end);
      } catch (Exception e) {
        failure = e;
      }
    }

    private void readPartition() throws Exception {
      long perRequest = Math.max((MAX_BYTES_IN_FLIGHT / 5 + bytes - 1) / bytes, 1);
      long inFlight = 0;
      int sent = 0;
      for (int received = 0; received < maps; received++) {
        while (sent < maps) {
          int count = (int) Math.min(perRequest, maps - sent);
          if (inFlight > 0 && inFlight + (long) count * bytes > MAX_BYTES_IN_FLIGHT) {
            break;
          }
          send(sent, count);
          sent += count;
          inFlight += (long) count * bytes;
        }
        Result result = results.take();
        if (result.error != null) {
          throw new IllegalStateException(result.id + " failed", result.error);
        }
        check(result);
        result.block.release();
        inFlight -= bytes;
        blocks++;
      }
    }

    private void send(int first, int count) {
      String[] ids = new String[count];
      for (int i = 0; i < count; i++) {
        ids[i] = "shuffle_" + bytes + "_" + (first + i) + "_" + reduce;
      }
      BlockFetchingListener listener =
          new BlockFetchingListener() {
            @Override
            public void onBlockFetchSuccess(String id, ManagedBuffer block) {
              // Spark's client releases the block after this call.
              block.retain();
              results.add(new Result(id, block, null));
            }

            @Override
            public void onBlockFetchFailure(String id, Throwable error) {
              results.add(new Result(id, null, error));
            }
          };
      client.fetchBlocks("127.0.0.1", port, EXECUTOR, ids, listener, null);
    }

    private void check(Result result) throws Exception {
      if (result.block.size() != bytes) {
        throw new IllegalStateException(result.id + " has " + result.block.size() + " bytes");
      }
      if (blocks % CHECK_INTERVAL != 0) {
        return;
      }
      int map = Integer.parseInt(result.id.split("_")[2]);
      int expected = (map * 31 + reduce) % PERIOD;
      ByteBuffer content = result.block.nioByteBuffer();
      while (content.hasRemaining()) {
        if ((content.get() & 0xff) != expected) {
          throw new IllegalStateException(result.id + " has another content");
        }
        expected = (expected + 1) % PERIOD;
      }
    }
  }
}
