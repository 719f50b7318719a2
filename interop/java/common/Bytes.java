import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;

/** The byte formats of the application protocol that client and server share. */
final class Bytes {
  private Bytes() {}

  static byte[] utf8(String text) {
    return text.getBytes(StandardCharsets.UTF_8);
  }

  static String text(byte[] bytes) {
    return new String(bytes, StandardCharsets.UTF_8);
  }

  /** Copies a buffer, because Spark's buffers are valid only during the callback. */
  static byte[] copy(ByteBuffer buffer) {
    byte[] bytes = new byte[buffer.remaining()];
    buffer.get(bytes);
    return bytes;
  }

  /** Returns the length of a request's verb with its colon; all of the request if it has none. */
  static int verbLength(byte[] request) {
    for (int i = 0; i < request.length; i++) {
      if (request[i] == ':') {
        return i + 1;
      }
    }
    return request.length;
  }

  /** Returns memory chunk {@code chunk} of {@code size} bytes. */
  static byte[] pattern(int chunk, int size) {
    byte[] bytes = new byte[size];
    for (int j = 0; j < size; j++) {
      bytes[j] = (byte) ((chunk * 131L + j * 7L + 13) % 251);
    }
    return bytes;
  }

  static MessageDigest sha256() {
    try {
      return MessageDigest.getInstance("SHA-256");
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException("every JVM has SHA-256", e);
    }
  }

  /** Returns the response to an upload with meta {@code digest}. */
  static String digestResponse(byte[] hash, long length) {
    StringBuilder text = new StringBuilder();
    for (byte b : hash) {
      text.append(String.format("%02x", b));
    }
    return text.append(' ').append(length).toString();
  }
}
