import java.io.ByteArrayOutputStream;
import java.nio.ByteBuffer;
import java.util.concurrent.CompletableFuture;

import org.apache.spark.network.buffer.ManagedBuffer;
import org.apache.spark.network.buffer.NioManagedBuffer;
import org.apache.spark.network.client.ChunkReceivedCallback;
import org.apache.spark.network.client.RpcResponseCallback;
import org.apache.spark.network.client.StreamCallback;
import org.apache.spark.network.client.TransportClient;

/** Makes Spark's calls with callbacks, and returns futures of the received bytes. */
final class Calls {
  private Calls() {}

  static CompletableFuture<byte[]> rpc(TransportClient client, byte[] body) {
    RpcFuture response = new RpcFuture();
    client.sendRpc(ByteBuffer.wrap(body), response);
    return response.future;
  }

  static CompletableFuture<byte[]> upload(TransportClient client, String meta, ManagedBuffer data) {
    RpcFuture response = new RpcFuture();
    client.uploadStream(new NioManagedBuffer(ByteBuffer.wrap(Bytes.utf8(meta))), data, response);
    return response.future;
  }

  static CompletableFuture<byte[]> chunk(TransportClient client, long streamId, int chunkIndex) {
    CompletableFuture<byte[]> future = new CompletableFuture<>();
    client.fetchChunk(
        streamId,
        chunkIndex,
        new ChunkReceivedCallback() {
          @Override
          public void onSuccess(int index, ManagedBuffer buffer) {
            if (index != chunkIndex) {
              future.completeExceptionally(
                  new IllegalStateException(
                      "requested chunk " + chunkIndex + ", received chunk " + index));
              return;
            }
            try {
              future.complete(Bytes.copy(buffer.nioByteBuffer()));
            } catch (Exception e) {
              future.completeExceptionally(e);
            }
          }

          @Override
          public void onFailure(int index, Throwable e) {
            future.completeExceptionally(e);
          }
        });
    return future;
  }

  static CompletableFuture<byte[]> stream(TransportClient client, String streamId) {
    CompletableFuture<byte[]> future = new CompletableFuture<>();
    ByteArrayOutputStream received = new ByteArrayOutputStream();
    client.stream(
        streamId,
        new StreamCallback() {
          @Override
          public void onData(String id, ByteBuffer data) {
            byte[] piece = Bytes.copy(data);
            received.write(piece, 0, piece.length);
          }

          @Override
          public void onComplete(String id) {
            if (id.equals(streamId)) {
              future.complete(received.toByteArray());
            } else {
              future.completeExceptionally(
                  new IllegalStateException("requested stream " + streamId + ", received " + id));
            }
          }

          @Override
          public void onFailure(String id, Throwable cause) {
            future.completeExceptionally(cause);
          }
        });
    return future;
  }

  private static final class RpcFuture implements RpcResponseCallback {
    final CompletableFuture<byte[]> future = new CompletableFuture<>();

    @Override
    public void onSuccess(ByteBuffer response) {
      future.complete(Bytes.copy(response));
    }

    @Override
    public void onFailure(Throwable e) {
      future.completeExceptionally(e);
    }
  }
}
