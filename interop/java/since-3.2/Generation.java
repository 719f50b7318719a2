import java.nio.ByteBuffer;
import java.util.concurrent.CompletableFuture;

import org.apache.spark.network.buffer.ManagedBuffer;
import org.apache.spark.network.buffer.NioManagedBuffer;
import org.apache.spark.network.client.MergedBlockMetaResponseCallback;
import org.apache.spark.network.client.TransportClient;
import org.apache.spark.network.server.RpcHandler;

/** What differs between releases, for 3.2 and later; before-3.2 holds its twin. */
final class Generation {
  /** Whether this release knows merged block meta and can answer an upload with bytes. */
  static final boolean SINCE_3_2 = true;

  private Generation() {}

  abstract static class Handler extends RpcHandler {
    /** The body that answers a merged block meta request; an exception fails the request. */
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

  /** Asks for merged block meta; the future gives "(chunks) (body)". */
  static CompletableFuture<String> mergedBlockMeta(
      TransportClient client, String appId, int shuffleId, int shuffleMergeId, int reduceId) {
    CompletableFuture<String> answer = new CompletableFuture<>();
    client.sendMergedBlockMetaReq(
        appId,
        shuffleId,
        shuffleMergeId,
        reduceId,
        new MergedBlockMetaResponseCallback() {
          @Override
          public void onSuccess(int chunks, ManagedBuffer body) {
            try {
              answer.complete(chunks + " " + Bytes.text(Bytes.copy(body.nioByteBuffer())));
            } catch (Exception e) {
              answer.completeExceptionally(e);
            }
          }

          @Override
          public void onFailure(Throwable e) {
            answer.completeExceptionally(e);
          }
        });
    return answer;
  }
}
