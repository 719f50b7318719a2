import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.Serializable;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.BooleanSupplier;

import org.apache.spark.HashPartitioner;
import org.apache.spark.SparkConf;
import org.apache.spark.SparkEnv;
import org.apache.spark.TaskContext;
import org.apache.spark.api.java.JavaPairRDD;
import org.apache.spark.api.java.JavaSparkContext;
import org.apache.spark.executor.ShuffleReadMetrics;
import org.apache.spark.scheduler.SparkListener;
import org.apache.spark.scheduler.SparkListenerTaskEnd;

import scala.Tuple2;

/**
 * A job that shuffles its data once and reads the shuffle in every step "action".
 *
 * <p>{@code ShuffleJob STEP,STEP,... [--conf KEY=VALUE] [--secrets DIRECTORY]}. The steps are:
 *
 * <ul>
 *   <li>action: reads the whole shuffle, and checks each record
 *   <li>kill: kills all executors, and waits for new ones
 *   <li>idle: waits until all executors have ended, which needs dynamic allocation
 *   <li>dump: reads all blocks with Spark's client, and prints them
 *   <li>pause: prints PAUSED, and waits for a line
 * </ul>
 *
 * <p>It prints "APP id", and a line with sums of task metrics for each action. With --secrets, it
 * writes the secret of the application into a file of that directory.
 */
public final class ShuffleJob {
  private static final int MAPS = 8;
  private static final int REDUCES = 8;
  private static final int RECORDS_PER_MAP = 20_000;
  private static final int EXECUTORS = 2;
  private static final long EXECUTORS_TIMEOUT_MS = 120_000;

  private final JavaSparkContext context;
  private final Sums sums = new Sums();
  private final JavaPairRDD<Integer, byte[]> shuffled;

  private ShuffleJob(SparkConf conf) {
    context = new JavaSparkContext(conf);
    context.sc().addSparkListener(sums);
    List<Integer> maps = new ArrayList<>();
    for (int map = 0; map < MAPS; map++) {
      maps.add(map);
    }
    shuffled =
        context
            .parallelize(maps, MAPS)
            .flatMapToPair(map -> new Records(map))
            .partitionBy(new HashPartitioner(REDUCES));
  }

  public static void main(String[] arguments) throws Exception {
    SparkConf conf = new SparkConf().setMaster("local-cluster[2,1,1024]").setAppName("ShuffleJob");
    Path secrets = null;
    for (int i = 1; i + 1 < arguments.length; i += 2) {
      if (arguments[i].equals("--secrets")) {
        secrets = Path.of(arguments[i + 1]);
      } else {
        String[] setting = arguments[i + 1].split("=", 2);
        conf.set(setting[0], setting[1]);
      }
    }
    ShuffleJob job = new ShuffleJob(conf);
    try {
      job.run(arguments[0].split(","), secrets);
    } finally {
      job.context.stop();
    }
    System.out.println("DONE");
    // Threads of Spark can keep the JVM alive.
    System.exit(0);
  }

  private void run(String[] steps, Path secrets) throws Exception {
    String app = context.sc().applicationId();
    if (secrets != null) {
      String secret = SparkEnv.get().securityManager().getSecretKey();
      Path written = secrets.resolve("." + app);
      Files.write(written, secret.getBytes(StandardCharsets.UTF_8));
      Files.move(written, secrets.resolve(app));
    }
    System.out.println("APP " + app);
    BufferedReader input =
        new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String step : steps) {
      switch (step) {
        case "action":
          action();
          break;
        case "kill":
          kill();
          break;
        case "idle":
          await(() -> executors().isEmpty());
          break;
        case "dump":
          int port = context.getConf().getInt("spark.shuffle.service.port", 7337);
          ShuffleDump.run(app, shuffleId(), REDUCES, port);
          break;
        case "pause":
          System.out.println("PAUSED");
          check(input.readLine() != null, "the input has ended");
          break;
        default:
          throw new IllegalArgumentException("unknown step " + step);
      }
    }
  }

  private int shuffleId() {
    return ((org.apache.spark.ShuffleDependency<?, ?, ?>) shuffled.rdd().dependencies().head())
        .shuffleId();
  }

  /** Reads the whole shuffle, checks every record, and prints the sums of the task metrics. */
  private void action() throws TimeoutException {
    sums.reset();
    List<Tuple2<Long, Long>> results = shuffled.mapPartitions(new CheckRecords()).collect();
    long records = 0;
    long sum = 0;
    for (Tuple2<Long, Long> result : results) {
      records += result._1;
      sum += result._2;
    }
    long expected = 0;
    for (int map = 0; map < MAPS; map++) {
      for (int index = 0; index < RECORDS_PER_MAP; index++) {
        expected += Records.key(map, index);
      }
    }
    check(records == (long) MAPS * RECORDS_PER_MAP, "wrong number of records: " + records);
    check(sum == expected, "wrong sum of keys: " + sum + " instead of " + expected);
    context.sc().listenerBus().waitUntilEmpty();
    System.out.println("ACTION " + sums);
  }

  /** Kills all executors, and waits until new ones have registered. */
  private void kill() throws Exception {
    Set<Long> pids = new HashSet<>();
    while (pids.size() < EXECUTORS) {
      pids.addAll(
          context
              .parallelize(Arrays.asList(0, 1, 2, 3), 2 * EXECUTORS)
              .map(
                  index -> {
                    Thread.sleep(200);
                    return ProcessHandle.current().pid();
                  })
              .collect());
    }
    Set<String> killed = executors();
    for (long pid : pids) {
      ProcessHandle.of(pid).ifPresent(ProcessHandle::destroyForcibly);
    }
    await(
        () -> {
          Set<String> executors = executors();
          return executors.size() >= EXECUTORS && executors.stream().noneMatch(killed::contains);
        });
  }

  private Set<String> executors() {
    Set<String> executors = new HashSet<>();
    scala.collection.Iterator<String> ids = context.sc().getExecutorIds().iterator();
    while (ids.hasNext()) {
      executors.add(ids.next());
    }
    return executors;
  }

  private void await(BooleanSupplier condition) throws InterruptedException {
    long deadline = System.currentTimeMillis() + EXECUTORS_TIMEOUT_MS;
    while (!condition.getAsBoolean()) {
      check(System.currentTimeMillis() < deadline, "the executors are " + executors());
      Thread.sleep(50);
    }
  }

  private static void check(boolean isRight, String message) {
    if (!isRight) {
      throw new IllegalStateException(message);
    }
  }

  /** The records of one map task. */
  private static final class Records implements java.util.Iterator<Tuple2<Integer, byte[]>> {
    private final int map;
    private int index;

    Records(int map) {
      this.map = map;
    }

    static int key(int map, int index) {
      return map * 31 + index * 7;
    }

    /** Returns a value of 20 to 200 bytes, which depends on the key only. */
    static byte[] value(int key) {
      byte[] value = new byte[20 + key % 181];
      new java.util.Random(key).nextBytes(value);
      return value;
    }

    @Override
    public boolean hasNext() {
      return index < RECORDS_PER_MAP;
    }

    @Override
    public Tuple2<Integer, byte[]> next() {
      int key = key(map, index++);
      return new Tuple2<>(key, value(key));
    }
  }

  /** Checks the records of a partition; returns their number and the sum of their keys. */
  private static final class CheckRecords
      implements org.apache.spark.api.java.function.FlatMapFunction<
          java.util.Iterator<Tuple2<Integer, byte[]>>, Tuple2<Long, Long>> {
    private static final long serialVersionUID = 1;

    @Override
    public java.util.Iterator<Tuple2<Long, Long>> call(
        java.util.Iterator<Tuple2<Integer, byte[]>> records) {
      long count = 0;
      long sum = 0;
      while (records.hasNext()) {
        Tuple2<Integer, byte[]> record = records.next();
        check(Arrays.equals(record._2, Records.value(record._1)), "wrong value");
        count++;
        sum += record._1;
      }
      check(TaskContext.get() != null, "this is no task");
      return Arrays.asList(new Tuple2<>(count, sum)).iterator();
    }
  }

  /** The sums of the shuffle metrics of all tasks since the last reset. */
  private static final class Sums extends SparkListener implements Serializable {
    private static final long serialVersionUID = 1;
    private final AtomicLong remoteBlocks = new AtomicLong();
    private final AtomicLong remoteBytes = new AtomicLong();
    private final AtomicLong remoteBytesToDisk = new AtomicLong();
    private final AtomicLong localBlocks = new AtomicLong();
    private final AtomicLong failedTasks = new AtomicLong();

    void reset() {
      for (AtomicLong sum :
          Arrays.asList(remoteBlocks, remoteBytes, remoteBytesToDisk, localBlocks, failedTasks)) {
        sum.set(0);
      }
    }

    @Override
    public void onTaskEnd(SparkListenerTaskEnd end) {
      if (!end.taskInfo().successful()) {
        failedTasks.incrementAndGet();
        System.out.println("FAILURE " + end.reason().toString().replaceAll("\\s+", " "));
      }
      if (end.taskMetrics() != null) {
        ShuffleReadMetrics read = end.taskMetrics().shuffleReadMetrics();
        remoteBlocks.addAndGet(read.remoteBlocksFetched());
        remoteBytes.addAndGet(read.remoteBytesRead());
        remoteBytesToDisk.addAndGet(read.remoteBytesReadToDisk());
        localBlocks.addAndGet(read.localBlocksFetched());
      }
    }

    @Override
    public String toString() {
      return String.format(
          "remoteBlocks=%d remoteBytes=%d remoteBytesToDisk=%d localBlocks=%d failedTasks=%d",
          remoteBlocks.get(),
          remoteBytes.get(),
          remoteBytesToDisk.get(),
          localBlocks.get(),
          failedTasks.get());
    }
  }
}
