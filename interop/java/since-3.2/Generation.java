import java.nio.ByteBuffer;
import java.util.concurrent.CompletableFuture;

import org.apache.spark.network.buffer.ManagedBuffer;
import org.apache.spark.network.buffer.NioManagedBuffer;
import org.apache.spark.network.client.MergedBlockMetaResponseCallback;
import org.apache.spark.network.client.TransportClient;
import org.apache.spark.network.server.RpcHandler;

/** The calls that differ between releases, for 3.2 and later. before-3.2 has the other ones. */
final class Generation {
  /** Whether this release has merged block meta and can respond to an upload with bytes. */
  static final boolean SINCE_3_2 = true;

  private Generation() {}

  abstract static class Handler extends RpcHandler {
    /** Returns the body of a merged block meta response. An exception fails the request. */
    abstract byte[] mergedBlockMeta(String appId, int shuffleId, int shuffleMergeId, int reduceId);

    @Override
    public MergedBlockMetaReqHandler getMergedBlockMetaReqHandler() {
      return (client, request, callback) -> {
        byte[] body;
        try {
          body =
              mergedBlockMeta(
                  request.appId, request.shuffleId, request.shuffleMergeId, request.reduceId);
        } catch (RuntimeException e) {
          callback.onFailure(e);
          return;
        }
        callback.onSuccess(PeerServer.MERGED_CHUNKS, new NioManagedBuffer(ByteBuffer.wrap(body)));
      };
    }
  }

  /** Requests merged block meta. The future completes with "CHUNKS BODY". */
  static CompletableFuture<String> mergedBlockMeta(
      TransportClient client, String appId, int shuffleId, int shuffleMergeId, int reduceId) {
    CompletableFuture<String> response = new CompletableFuture<>();
    client.sendMergedBlockMetaReq(
        appId,
        shuffleId,
        shuffleMergeId,
        reduceId,
        new MergedBlockMetaResponseCallback() {
          @Override
          public void onSuccess(int chunks, ManagedBuffer body) {
            try {
              response.complete(chunks + " " + Bytes.text(Bytes.copy(body.nioByteBuffer())));
            } catch (Exception e) {
              response.completeExceptionally(e);
            }
          }

          @Override
          public void onFailure(Throwable e) {
            response.completeExceptionally(e);
          }
        });
    return response;
  }
}
