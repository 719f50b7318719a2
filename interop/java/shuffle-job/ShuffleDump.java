import java.io.File;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

import org.apache.spark.MapOutputTracker;
import org.apache.spark.SparkEnv;
import org.apache.spark.network.TransportContext;
import org.apache.spark.network.buffer.ManagedBuffer;
import org.apache.spark.network.server.OneForOneStreamManager;
import org.apache.spark.network.server.TransportServer;
import org.apache.spark.network.shuffle.BlockFetchingListener;
import org.apache.spark.network.shuffle.ExternalBlockHandler;
import org.apache.spark.network.shuffle.ExternalBlockStoreClient;
import org.apache.spark.network.shuffle.ExternalShuffleBlockResolver;
import org.apache.spark.network.util.MapConfigProvider;
import org.apache.spark.network.util.TransportConf;
import org.apache.spark.storage.BlockId;
import org.apache.spark.storage.BlockManagerId;

import scala.Tuple2;
import scala.Tuple3;
import scala.collection.Iterator;
import scala.collection.Seq;

/**
 * Reads all blocks of a shuffle with Spark's own client, and prints where else they can be read.
 *
 * <p>It prints "SPARK_SERVICE port" for a shuffle service of Spark that it starts, "EXECUTOR id
 * port" for each live executor, and "BLOCK executor id length digest" for each block that is not
 * empty. The digest is SHA-256.
 */
final class ShuffleDump {
  private static final int TIMEOUT_S = 120;

  /** Kept open until the process exits. */
  private static TransportServer service;

  private ShuffleDump() {}

  static void run(String app, int shuffleId, int reduces, int servicePort) throws Exception {
    SparkEnv env = SparkEnv.get();
    Map<String, String> settings = new TreeMap<>();
    for (Tuple2<String, String> setting : env.conf().getAll()) {
      settings.put(setting._1(), setting._2());
    }
    TransportConf conf = new TransportConf("shuffle", new MapConfigProvider(settings));
    File noStore = null;
    ExternalBlockHandler handler =
        new ExternalBlockHandler(
            new OneForOneStreamManager(), new ExternalShuffleBlockResolver(conf, noStore));
    service = new TransportContext(conf, handler).createServer("127.0.0.1", 0, new ArrayList<>());
    System.out.println("SPARK_SERVICE " + service.getPort());

    Iterator<BlockManagerId> peers =
        env.blockManager().master().getPeers(env.blockManager().blockManagerId()).iterator();
    while (peers.hasNext()) {
      BlockManagerId peer = peers.next();
      System.out.println("EXECUTOR " + peer.executorId() + " " + peer.port());
    }

    try (ExternalBlockStoreClient client = new ExternalBlockStoreClient(conf, null, false, 5000)) {
      client.init(app);
      for (Map.Entry<String, List<String>> entry : blocks(env, shuffleId, reduces).entrySet()) {
        dump(client, servicePort, entry.getKey(), entry.getValue());
      }
    }
  }

  /** Returns the names of the blocks that are not empty, by executor. */
  private static Map<String, List<String>> blocks(SparkEnv env, int shuffleId, int reduces) {
    Map<String, List<String>> blocks = new TreeMap<>();
    MapOutputTracker tracker = env.mapOutputTracker();
    for (int reduce = 0; reduce < reduces; reduce++) {
      Iterator<Tuple2<BlockManagerId, Seq<Tuple3<BlockId, Object, Object>>>> executors =
          tracker.getMapSizesByExecutorId(shuffleId, 0, Integer.MAX_VALUE, reduce, reduce + 1);
      while (executors.hasNext()) {
        Tuple2<BlockManagerId, Seq<Tuple3<BlockId, Object, Object>>> executor = executors.next();
        List<String> names =
            blocks.computeIfAbsent(executor._1().executorId(), id -> new ArrayList<>());
        Iterator<Tuple3<BlockId, Object, Object>> ids = executor._2().iterator();
        while (ids.hasNext()) {
          names.add(ids.next()._1().name());
        }
      }
    }
    blocks.values().forEach(Collections::sort);
    return blocks;
  }

  private static void dump(
      ExternalBlockStoreClient client, int port, String executor, List<String> names)
      throws Exception {
    BlockingQueue<String> results = new LinkedBlockingQueue<>();
    BlockFetchingListener listener =
        new BlockFetchingListener() {
          @Override
          public void onBlockFetchSuccess(String id, ManagedBuffer data) {
            try {
              byte[] bytes = new byte[(int) data.size()];
              data.nioByteBuffer().get(bytes);
              byte[] digest = MessageDigest.getInstance("SHA-256").digest(bytes);
              StringBuilder hex = new StringBuilder();
              for (byte one : digest) {
                hex.append(String.format("%02x", one));
              }
              results.add("BLOCK " + executor + " " + id + " " + bytes.length + " " + hex);
            } catch (Exception error) {
              results.add("FAILED " + id + " " + error);
            }
          }

          @Override
          public void onBlockFetchFailure(String id, Throwable error) {
            results.add("FAILED " + id + " " + error);
          }
        };
    String[] ids = names.toArray(new String[0]);
    client.fetchBlocks("127.0.0.1", port, executor, ids, listener, null);
    for (int i = 0; i < ids.length; i++) {
      String result = results.poll(TIMEOUT_S, TimeUnit.SECONDS);
      if (result == null || !result.startsWith("BLOCK ")) {
        throw new IllegalStateException("a block was not fetched: " + result);
      }
      System.out.println(result);
    }
  }
}
