import java.util.concurrent.CompletableFuture;

import org.apache.spark.network.client.TransportClient;
import org.apache.spark.network.server.RpcHandler;

/** What differs between releases, for those before 3.2; since-3.2 holds its twin. */
final class Generation {
  /** Whether this release knows merged block meta and can answer an upload with bytes. */
  static final boolean SINCE_3_2 = false;

  private Generation() {}

  abstract static class Handler extends RpcHandler {
    /** Never called: the message type does not exist yet. */
    abstract byte[] mergedBlockMeta(String appId, int shuffleId, int shuffleMergeId, int reduceId);
  }

  static CompletableFuture<String> mergedBlockMeta(
      TransportClient client, String appId, int shuffleId, int shuffleMergeId, int reduceId) {
    throw new UnsupportedOperationException("merged block meta came with Spark 3.2");
  }
}
