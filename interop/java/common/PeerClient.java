import java.io.File;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

import org.apache.spark.network.TransportContext;
import org.apache.spark.network.buffer.FileSegmentManagedBuffer;
import org.apache.spark.network.buffer.ManagedBuffer;
import org.apache.spark.network.buffer.NioManagedBuffer;
import org.apache.spark.network.client.RpcResponseCallback;
import org.apache.spark.network.client.TransportClient;
import org.apache.spark.network.client.TransportClientBootstrap;
import org.apache.spark.network.client.TransportClientFactory;
import org.apache.spark.network.server.OneForOneStreamManager;
import org.apache.spark.network.server.RpcHandler;
import org.apache.spark.network.server.StreamManager;
import org.apache.spark.network.util.TransportConf;

/**
 * Runs the cases against a server of the application protocol. The Rust client has the same cases
 * under the same names.
 */
final class PeerClient {
  private static final int TIMEOUT_SECONDS = 30;
  private static final int KIB = 1024;
  private static final int MIB = 1024 * 1024;

  /** Two chunks of 4 MiB and a rest, so that segments can begin and end at any offset. */
  private static final int FILE_SIZE = 9 * MIB + 17;

  private final TransportConf conf;
  private final List<TransportClientBootstrap> bootstraps;
  private final String host;
  private final int port;
  private TransportClientFactory factory;

  /** The connection that all cases share, except those that close a connection. */
  private TransportClient client;

  private File file;
  private byte[] fileBytes;
  private int passed;
  private int failed;

  PeerClient(
      TransportConf conf, List<TransportClientBootstrap> bootstraps, String host, int port) {
    this.conf = conf;
    this.bootstraps = bootstraps;
    this.host = host;
    this.port = port;
  }

  private interface Case {
    void run() throws Exception;
  }

  boolean run() throws Exception {
    factory = new TransportContext(conf, new CallbackHandler()).createClientFactory(bootstraps);
    Path path = Files.createTempFile("spark-peer", ".bin");
    try {
      file = path.toFile();
      fileBytes = fileContent();
      Files.write(path, fileBytes);
      check("connect", () -> client = factory.createClient(host, port));
      if (client != null) {
        cases();
      }
    } finally {
      Files.delete(path);
    }
    System.out.println(passed + " passed, " + failed + " failed");
    return failed == 0;
  }

  private void cases() {
    rpcs();
    chunks();
    streams();
    uploads();
    mergedBlockMeta();
    check("all kinds of requests at once on one connection", this::everythingAtOnce);
    callbacks();
    connections();
  }

  private void rpcs() {
    check("echo of no bytes", () -> echo(new byte[0]));
    check("echo of a few bytes", () -> echo(Bytes.utf8("abc")));
    check("echo of every byte value", () -> echo(everyByte()));
    check("echo of 1 MiB", () -> echo(Bytes.pattern(1, MIB)));
    // From 20 MiB on, Spark's frame decoder consolidates the received buffers.
    check("echo of 24 MiB", () -> echo(Bytes.pattern(2, 24 * MIB)));
    check(
        "fail carries its message",
        () -> fails(rpc("fail:out of cheese \u00fc \u2713"), "out of cheese \u00fc \u2713"));
    check("fail without a message", () -> fails(rpc("fail:"), ""));
    check("unknown request fails", () -> fails(rpc("nonsense:1"), "unknown request"));
    check("empty request fails", () -> fails(rpc(""), "unknown request"));
    check("100 concurrent echoes", () -> echoes(100, 997));
    check("5000 pipelined echoes", () -> echoes(5000, 3));
    check("one-way messages are counted and get no response", this::oneWays);
  }

  private void chunks() {
    check("memory chunks one by one", () -> memoryChunks(16, 10_000, false));
    check("memory chunks pipelined", () -> memoryChunks(16, 100_000, true));
    check("1000 small memory chunks pipelined", () -> memoryChunks(1000, 7, true));
    check("empty memory chunks", () -> memoryChunks(3, 0, true));
    check("memory chunks of 4 MiB", () -> memoryChunks(3, 4 * MIB, true));
    check("empty file chunks", () -> fileChunks(3, 0));
    check("file chunks of 1 byte", () -> fileChunks(5, 1));
    check("file chunks of 100000 bytes", () -> fileChunks(20, 100_000));
    check("file chunks of 4 MiB", () -> fileChunks(2, 4 * MIB));
    check("a file in one chunk", () -> fileChunks(1, FILE_SIZE));
    check("two streams read alternately", this::twoChunkStreams);
    check(
        "chunk out of order fails, the stream continues",
        () -> {
          long id = open("open:3:10");
          fails(Calls.chunk(client, id, 1), "out-of-order chunk index");
          fails(Calls.chunk(client, id, -1), "out-of-order chunk index");
          for (int i = 0; i < 3; i++) {
            equal(Bytes.pattern(i, 10), await(Calls.chunk(client, id, i)));
          }
        });
    check(
        "chunk beyond the end fails",
        () -> {
          long id = open("open:1:10");
          equal(Bytes.pattern(0, 10), await(Calls.chunk(client, id, 0)));
          fails(Calls.chunk(client, id, 1), "");
          alive();
        });
    check(
        "chunk of an unknown stream fails",
        () -> {
          fails(Calls.chunk(client, 4_611_686_018_427_387_905L, 0), "");
          alive();
        });
  }

  private void streams() {
    check("empty stream", () -> stream("pattern:0", Bytes.pattern(0, 0)));
    check("stream of 1 byte", () -> stream("pattern:1", Bytes.pattern(0, 1)));
    check("stream of 100000 bytes", () -> stream("pattern:100000", Bytes.pattern(0, 100_000)));
    check("stream of 8 MiB", () -> stream("pattern:" + 8 * MIB, Bytes.pattern(0, 8 * MIB)));
    check("stream of a file", () -> stream("file:" + file, fileBytes));
    check(
        "stream of an empty file",
        () -> {
          Path empty = Files.createTempFile("spark-peer-empty", ".bin");
          try {
            stream("file:" + empty, new byte[0]);
          } finally {
            Files.delete(empty);
          }
        });
    check(
        "unknown stream fails",
        () -> {
          fails(Calls.stream(client, "no such \u00fc"), "Stream 'no such \u00fc' was not found");
          alive();
        });
    check(
        "stream of a missing file fails",
        () -> {
          fails(Calls.stream(client, "file:" + file + ".missing"), "was not found");
          alive();
        });
    check("20 concurrent streams, some failing", this::concurrentStreams);
  }

  private void uploads() {
    check("upload of no bytes", () -> upload(memory(new byte[0]), new byte[0]));
    check("upload of a few bytes", () -> upload(memory(everyByte()), everyByte()));
    check(
        "upload of 1 MiB", () -> upload(memory(Bytes.pattern(3, MIB)), Bytes.pattern(3, MIB)));
    check("upload of a file", () -> upload(segment(0, FILE_SIZE), fileBytes));
    check(
        "upload of a part of a file",
        () -> upload(segment(1001, 3 * MIB), Arrays.copyOfRange(fileBytes, 1001, 1001 + 3 * MIB)));
    check("10 concurrent uploads", this::concurrentUploads);
    check(
        "upload of an unknown kind fails",
        () ->
            withOwnConnection(
                own ->
                    fails(Calls.upload(own, "nonsense", memory(everyByte())), "unknown upload")));
  }

  private void mergedBlockMeta() {
    if (!Generation.SINCE_3_2) {
      skip("merged block meta", "came with Spark 3.2");
      return;
    }
    check(
        "merged block meta",
        () ->
            equal(
                "3 merged:app-\u00fc:7:2:5",
                await(Generation.mergedBlockMeta(client, "app-\u00fc", 7, 2, 5))));
    check(
        "merged block meta of extreme numbers",
        () ->
            equal(
                "3 merged::-2147483648:-1:2147483647",
                await(
                    Generation.mergedBlockMeta(
                        client, "", Integer.MIN_VALUE, -1, Integer.MAX_VALUE))));
    check(
        "merged block meta fails",
        () ->
            fails(Generation.mergedBlockMeta(client, "app-1", 7, 2, -1), "no merged block"));
  }

  private void callbacks() {
    check("no callback", () -> callback(0));
    check("5 callbacks", () -> callback(5));
    check("500 callbacks", () -> callback(500));
  }

  private void connections() {
    check(
        "closing the connection fails pending requests",
        () ->
            withOwnConnection(
                own -> {
                  CompletableFuture<byte[]> first = Calls.rpc(own, Bytes.utf8("hang"));
                  CompletableFuture<byte[]> second = Calls.rpc(own, Bytes.utf8("hang"));
                  // The server handles requests in order, so it has received both now.
                  equal(new byte[0], await(Calls.rpc(own, Bytes.utf8("echo:"))));
                  if (first.isDone() || second.isDone()) {
                    throw new AssertionError("the server responded to hang");
                  }
                  own.close();
                  fails(first, "");
                  fails(second, "");
                }));
    check(
        "close by the server fails pending requests",
        () ->
            withOwnConnection(
                own -> {
                  CompletableFuture<byte[]> hanging = Calls.rpc(own, Bytes.utf8("hang"));
                  fails(Calls.rpc(own, Bytes.utf8("close")), "");
                  fails(hanging, "");
                  inactive(own);
                }));
    check(
        "8 connections at once",
        () -> {
          List<TransportClient> own = new ArrayList<>();
          try {
            List<CompletableFuture<byte[]>> responses = new ArrayList<>();
            for (int i = 0; i < 8; i++) {
              own.add(factory.createUnmanagedClient(host, port));
              responses.add(Calls.rpc(own.get(i), request("echo:", Bytes.pattern(i, 64 * KIB))));
            }
            for (int i = 0; i < responses.size(); i++) {
              equal(Bytes.pattern(i, 64 * KIB), await(responses.get(i)));
            }
          } finally {
            own.forEach(TransportClient::close);
          }
        });
    check("the shared connection is still open", this::alive);
    check(
        "the pool replaces a connection that the server closed",
        () -> {
          TransportClient before = client;
          fails(rpc("close"), "");
          inactive(before);
          client = factory.createClient(host, port);
          if (client == before) {
            throw new AssertionError("the pool returned the closed connection");
          }
          alive();
        });
  }

  private void echo(byte[] body) throws Exception {
    equal(body, await(Calls.rpc(client, request("echo:", body))));
  }

  private void echoes(int count, int step) throws Exception {
    List<CompletableFuture<byte[]>> responses = new ArrayList<>();
    for (int i = 0; i < count; i++) {
      responses.add(
          Calls.rpc(client, request("echo:", Bytes.pattern(i, i * step % 20_000))));
    }
    for (int i = 0; i < count; i++) {
      equal(Bytes.pattern(i, i * step % 20_000), await(responses.get(i)));
    }
  }

  private void oneWays() throws Exception {
    int sent = 50;
    long before = Long.parseLong(Bytes.text(await(rpc("count"))));
    for (int i = 0; i < sent; i++) {
      client.send(ByteBuffer.wrap(Bytes.pattern(i, i * 1000)));
    }
    // This is sent over the same connection, so the server handles it after the messages.
    equal(Long.toString(before + sent), Bytes.text(await(rpc("count"))));
  }

  private void memoryChunks(int count, int size, boolean pipelined) throws Exception {
    long id = open("open:" + count + ":" + size);
    List<CompletableFuture<byte[]>> responses = new ArrayList<>();
    for (int i = 0; i < count; i++) {
      responses.add(Calls.chunk(client, id, i));
      if (!pipelined) {
        await(responses.get(i));
      }
    }
    for (int i = 0; i < count; i++) {
      equal(Bytes.pattern(i, size), await(responses.get(i)));
    }
  }

  private void fileChunks(int count, int size) throws Exception {
    long id = open("openfile:" + file + ":" + count + ":" + size);
    List<CompletableFuture<byte[]>> responses = new ArrayList<>();
    for (int i = 0; i < count; i++) {
      responses.add(Calls.chunk(client, id, i));
    }
    for (int i = 0; i < count; i++) {
      equal(Arrays.copyOfRange(fileBytes, i * size, (i + 1) * size), await(responses.get(i)));
    }
  }

  private void twoChunkStreams() throws Exception {
    long memory = open("open:4:1000");
    long segments = open("openfile:" + file + ":4:2000");
    if (memory == segments) {
      throw new AssertionError("two streams have the id " + memory);
    }
    for (int i = 0; i < 4; i++) {
      CompletableFuture<byte[]> first = Calls.chunk(client, memory, i);
      CompletableFuture<byte[]> second = Calls.chunk(client, segments, i);
      equal(Bytes.pattern(i, 1000), await(first));
      equal(Arrays.copyOfRange(fileBytes, i * 2000, (i + 1) * 2000), await(second));
    }
  }

  private void stream(String id, byte[] expected) throws Exception {
    equal(expected, await(Calls.stream(client, id)));
  }

  private void concurrentStreams() throws Exception {
    List<CompletableFuture<byte[]>> responses = new ArrayList<>();
    for (int i = 0; i < 20; i++) {
      responses.add(Calls.stream(client, concurrentStream(i)));
    }
    for (int i = 0; i < responses.size(); i++) {
      if (i % 4 == 3) {
        fails(responses.get(i), "was not found");
      } else {
        equal(i % 4 == 1 ? fileBytes : Bytes.pattern(0, i * 10_000), await(responses.get(i)));
      }
    }
  }

  private String concurrentStream(int i) {
    switch (i % 4) {
      case 1:
        return "file:" + file;
      case 3:
        return "missing-" + i;
      default:
        return "pattern:" + i * 10_000;
    }
  }

  private void upload(ManagedBuffer data, byte[] bytes) throws Exception {
    String expected = Bytes.digestResponse(Bytes.sha256().digest(bytes), bytes.length);
    checkUpload(expected, await(Calls.upload(client, "digest", data)));
    equal(expected, Bytes.text(await(rpc("lastdigest"))));
  }

  private void concurrentUploads() throws Exception {
    List<CompletableFuture<byte[]>> responses = new ArrayList<>();
    for (int i = 0; i < 10; i++) {
      responses.add(Calls.upload(client, "digest", memory(Bytes.pattern(i, i * 50_000))));
    }
    String last = null;
    boolean hasResponses = true;
    for (int i = 0; i < 10; i++) {
      byte[] bytes = Bytes.pattern(i, i * 50_000);
      last = Bytes.digestResponse(Bytes.sha256().digest(bytes), bytes.length);
      byte[] response = await(responses.get(i));
      checkUpload(last, response);
      hasResponses = hasResponses && response.length > 0;
    }
    if (!hasResponses) {
      // Only Spark before 3.2 responds without bytes, and it completes uploads in order.
      equal(last, Bytes.text(await(rpc("lastdigest"))));
    }
  }

  /** Checks an upload's response. A server before 3.2 responds without bytes. */
  private void checkUpload(String expected, byte[] response) {
    if (Generation.SINCE_3_2 || response.length > 0) {
      equal(expected, Bytes.text(response));
    }
  }

  private void everythingAtOnce() throws Exception {
    long memory = open("open:8:300000");
    long segments = open("openfile:" + file + ":8:300000");
    List<CompletableFuture<byte[]>> responses = new ArrayList<>();
    List<byte[]> expected = new ArrayList<>();
    for (int i = 0; i < 8; i++) {
      byte[] bytes = Bytes.pattern(i, 300_000);
      byte[] part = Arrays.copyOfRange(fileBytes, i * 300_000, (i + 1) * 300_000);
      responses.add(Calls.chunk(client, memory, i));
      expected.add(bytes);
      responses.add(Calls.stream(client, "pattern:" + i * 300_000));
      expected.add(Bytes.pattern(0, i * 300_000));
      responses.add(Calls.chunk(client, segments, i));
      expected.add(part);
      responses.add(Calls.rpc(client, request("echo:", part)));
      expected.add(part);
      CompletableFuture<byte[]> upload = Calls.upload(client, "digest", memory(bytes));
      String digest = Bytes.digestResponse(Bytes.sha256().digest(bytes), bytes.length);
      responses.add(
          upload.thenApply(
              response -> {
                checkUpload(digest, response);
                return new byte[0];
              }));
      expected.add(new byte[0]);
      client.send(ByteBuffer.wrap(bytes));
    }
    for (int i = 0; i < responses.size(); i++) {
      equal(expected.get(i), await(responses.get(i)));
    }
  }

  private void callback(int count) throws Exception {
    equal("done:" + count, Bytes.text(await(rpc("callback:" + count))));
  }

  private void alive() throws Exception {
    echo(Bytes.utf8("alive"));
  }

  private static void inactive(TransportClient own) throws InterruptedException {
    // The close future is an event, so no polling of isActive is needed.
    boolean isClosed = own.getChannel().closeFuture().await(TIMEOUT_SECONDS, TimeUnit.SECONDS);
    if (!isClosed || own.isActive()) {
      throw new AssertionError("the connection is still active");
    }
  }

  private interface OwnConnection {
    void run(TransportClient own) throws Exception;
  }

  private void withOwnConnection(OwnConnection body) throws Exception {
    TransportClient own = factory.createUnmanagedClient(host, port);
    try {
      body.run(own);
    } finally {
      own.close();
    }
  }

  private CompletableFuture<byte[]> rpc(String request) {
    return Calls.rpc(client, Bytes.utf8(request));
  }

  private long open(String request) throws Exception {
    byte[] id = await(rpc(request));
    if (id.length != Long.BYTES) {
      throw new AssertionError("a stream id has 8 bytes, not " + id.length);
    }
    return ByteBuffer.wrap(id).getLong();
  }

  private static byte[] request(String verb, byte[] argument) {
    return ByteBuffer.allocate(verb.length() + argument.length)
        .put(Bytes.utf8(verb))
        .put(argument)
        .array();
  }

  private static ManagedBuffer memory(byte[] bytes) {
    return new NioManagedBuffer(ByteBuffer.wrap(bytes));
  }

  private ManagedBuffer segment(long offset, long length) {
    return new FileSegmentManagedBuffer(conf, file, offset, length);
  }

  private static byte[] everyByte() {
    byte[] bytes = new byte[256];
    for (int i = 0; i < bytes.length; i++) {
      bytes[i] = (byte) i;
    }
    return bytes;
  }

  /** Differs from all memory patterns and in every MiB, so that a wrong offset is detected. */
  private static byte[] fileContent() {
    byte[] bytes = new byte[FILE_SIZE];
    for (int j = 0; j < bytes.length; j++) {
      bytes[j] = (byte) (j * 31 + (j >>> 8) * 17 + (j >>> 16));
    }
    return bytes;
  }

  private static <T> T await(CompletableFuture<T> response) throws Exception {
    try {
      return response.get(TIMEOUT_SECONDS, TimeUnit.SECONDS);
    } catch (TimeoutException e) {
      throw new AssertionError("no response within " + TIMEOUT_SECONDS + " s");
    } catch (ExecutionException e) {
      throw new AssertionError("failed: " + e.getCause());
    }
  }

  private static void fails(CompletableFuture<?> response, String part) throws Exception {
    try {
      response.get(TIMEOUT_SECONDS, TimeUnit.SECONDS);
    } catch (TimeoutException e) {
      throw new AssertionError("no failure within " + TIMEOUT_SECONDS + " s");
    } catch (ExecutionException e) {
      if (!String.valueOf(e.getCause()).contains(part)) {
        throw new AssertionError("the failure does not contain \"" + part + "\": " + e.getCause());
      }
      return;
    }
    throw new AssertionError("the request succeeded, but should have failed");
  }

  private static void equal(String expected, String actual) {
    if (!expected.equals(actual)) {
      throw new AssertionError("expected \"" + expected + "\", received \"" + actual + "\"");
    }
  }

  private static void equal(byte[] expected, byte[] actual) {
    if (expected.length != actual.length) {
      throw new AssertionError(
          "expected " + expected.length + " bytes, received " + actual.length);
    }
    for (int i = 0; i < actual.length; i++) {
      if (expected[i] != actual[i]) {
        throw new AssertionError(
            "byte " + i + " of " + actual.length + " is " + actual[i] + " instead of "
                + expected[i]);
      }
    }
  }

  private void check(String name, Case body) {
    long start = System.nanoTime();
    try {
      body.run();
      passed++;
      System.out.println("ok " + name + " (" + (System.nanoTime() - start) / 1_000_000 + " ms)");
    } catch (Throwable e) {
      failed++;
      // A failure may contain a stack trace of the server, but the output is one line per case.
      String reason = String.valueOf(e).replaceAll("\\R", " | ");
      System.out.println("FAILED " + name + ": " + reason);
    }
  }

  private static void skip(String name, String reason) {
    System.out.println("skipped " + name + ": " + reason);
  }

  /** Responds to the server's callbacks. */
  private static final class CallbackHandler extends RpcHandler {
    private final StreamManager nothing = new OneForOneStreamManager();

    @Override
    public void receive(TransportClient client, ByteBuffer message, RpcResponseCallback callback) {
      String text = Bytes.text(Bytes.copy(message));
      if (!text.startsWith("cb:")) {
        throw new UnsupportedOperationException("unknown callback " + text);
      }
      callback.onSuccess(ByteBuffer.wrap(Bytes.utf8("cb-ack:" + text.substring("cb:".length()))));
    }

    @Override
    public StreamManager getStreamManager() {
      return nothing;
    }
  }
}
