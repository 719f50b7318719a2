import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.Semaphore;
import java.util.concurrent.atomic.AtomicReference;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Real Spark as a contender of {@code cargo xtask compare}. benches/protocol documents the
 * arguments and the jobs.
 *
 * <pre>
 * SparkBench serve transport|core [--file PATH]
 * SparkBench drive transport|core HOST:PORT
 * </pre>
 */
final class SparkBench {
  private static final Pattern FIELD = Pattern.compile("\"(\\w+)\":\"?(\\w+)\"?");

  private SparkBench() {}

  /** Makes the operations of a job. */
  interface Client {
    /** Begins an operation. {@code onEnd} receives null if it succeeds, otherwise the error. */
    void call(Job job, int connection, java.util.function.Consumer<Throwable> onEnd);
  }

  /** A job, which is one line of stdin. */
  static final class Job {
    private final Map<String, String> fields = new HashMap<>();

    Job(String line) {
      Matcher field = FIELD.matcher(line);
      while (field.find()) {
        fields.put(field.group(1), field.group(2));
      }
    }

    String kind() {
      return fields.get("case");
    }

    int number(String name) {
      return Integer.parseInt(fields.get(name));
    }

    String text(String name) {
      return fields.get(name);
    }
  }

  public static void main(String[] args) throws Exception {
    boolean core = args[1].equals("core");
    if (args[0].equals("serve")) {
      String file = args.length == 4 ? args[3] : null;
      int port = core ? CoreBench.serveCore() : TransportBench.serve(file);
      System.out.println("READY 127.0.0.1:" + port);
      while (System.in.read() >= 0) {
        // A server has no jobs.
      }
      System.exit(0);
    }
    int port = Integer.parseInt(args[2].substring(args[2].lastIndexOf(':') + 1));
    Client client = core ? CoreBench.driveCore(port) : new TransportBench(port);
    System.out.println("READY");
    BufferedReader lines =
        new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      System.out.println(run(client, new Job(line)));
    }
    System.exit(0);
  }

  /** Runs a job with a thread per connection and task, each with a window of operations. */
  private static String run(Client client, Job job) throws Exception {
    int connections = job.number("connections");
    int tasks = connections * job.number("tasks");
    Task[] running = new Task[tasks];
    long start = System.nanoTime();
    long end = start + job.number("millis") * 1_000_000L;
    for (int i = 0; i < tasks; i++) {
      running[i] = new Task(client, job, i % connections, end, tasks == 1);
      running[i].start();
    }
    long operations = 0;
    for (Task task : running) {
      task.join();
      if (task.failure.get() != null) {
        throw new IllegalStateException("an operation failed", task.failure.get());
      }
      operations += task.operations;
    }
    double seconds = (System.nanoTime() - start) / 1e9;
    return String.format(
        Locale.ROOT,
        "{\"operations\":%d,\"seconds\":%.6f%s}",
        operations,
        seconds,
        tasks == 1 ? running[0].latency() : "");
  }

  private static final class Task extends Thread {
    private final Client client;
    private final Job job;
    private final int connection;
    private final long end;
    private final boolean timed;
    private final Semaphore capacity;
    private final int window;
    final AtomicReference<Throwable> failure = new AtomicReference<>();
    long operations;
    private long[] nanos = new long[1 << 16];

    Task(Client client, Job job, int connection, long end, boolean isOnly) {
      this.client = client;
      this.job = job;
      this.connection = connection;
      this.end = end;
      window = job.number("window");
      timed = isOnly && window == 1;
      capacity = new Semaphore(window);
    }

    @Override
    public void run() {
      while (System.nanoTime() < end && failure.get() == null) {
        long start = System.nanoTime();
        capacity.acquireUninterruptibly();
        client.call(
            job,
            connection,
            error -> {
              if (error != null) {
                failure.set(error);
              }
              capacity.release();
            });
        if (timed) {
          // The window is 1, so this waits until the operation has ended.
          capacity.acquireUninterruptibly();
          record(System.nanoTime() - start);
          capacity.release();
        }
        operations++;
      }
      capacity.acquireUninterruptibly(window);
    }

    private void record(long latency) {
      if (operations == nanos.length) {
        nanos = Arrays.copyOf(nanos, 2 * nanos.length);
      }
      nanos[(int) operations] = latency;
    }

    String latency() {
      if (!timed || operations == 0) {
        return "";
      }
      long[] sorted = Arrays.copyOf(nanos, (int) operations);
      Arrays.sort(sorted);
      return String.format(
          Locale.ROOT,
          ",\"latency\":{\"p50\":%.3f,\"p90\":%.3f,\"p99\":%.3f,\"p999\":%.3f,\"max\":%.3f}",
          at(sorted, 0.5),
          at(sorted, 0.9),
          at(sorted, 0.99),
          at(sorted, 0.999),
          at(sorted, 1.0));
    }

    private static double at(long[] sorted, double quantile) {
      return sorted[(int) Math.min(sorted.length - 1, (long) (sorted.length * quantile))] / 1e3;
    }
  }
}
