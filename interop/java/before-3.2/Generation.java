import java.util.concurrent.CompletableFuture;

import org.apache.spark.network.client.TransportClient;
import org.apache.spark.network.server.RpcHandler;

/** The calls that differ between releases, for those before 3.2. since-3.2 has the other ones. */
final class Generation {
  /** Whether this release has merged block meta and can respond to an upload with bytes. */
  static final boolean SINCE_3_2 = false;

  private Generation() {}

  abstract static class Handler extends RpcHandler {
    /** Is never called, because these releases do not have the message type. */
    abstract byte[] mergedBlockMeta(String appId, int shuffleId, int shuffleMergeId, int reduceId);
  }

  static CompletableFuture<String> mergedBlockMeta(
      TransportClient client, String appId, int shuffleId, int shuffleMergeId, int reduceId) {
    throw new UnsupportedOperationException("merged block meta came with Spark 3.2");
  }
}
