import java.util.LinkedHashMap;
import java.util.Map;

import org.apache.spark.network.util.MapConfigProvider;
import org.apache.spark.network.util.TransportConf;

/**
 * A peer made of Spark's own transport classes, to prove another implementation against.
 *
 * <pre>
 * SparkPeer server PORT [options]        prints LISTENING (port); serves until its stdin ends
 * SparkPeer client HOST PORT [options]   runs its cases; last line: N passed, M failed
 * options: --auth none   --conf key=value (repeatable)
 * </pre>
 */
final class SparkPeer {
  static final String USAGE =
      "usage: SparkPeer server PORT [options] | SparkPeer client HOST PORT [options]\n"
          + "options: --auth none   --conf key=value (repeatable)";

  /** Spark's module name of these connections: the {@code shuffle} in spark.shuffle.io.serverThreads. */
  private static final String MODULE = "shuffle";

  private SparkPeer() {}

  public static void main(String[] args) throws Exception {
    boolean server = args.length >= 2 && args[0].equals("server");
    boolean client = args.length >= 3 && args[0].equals("client");
    if (!server && !client) {
      throw usage("a role and an address are needed");
    }
    TransportConf conf = options(args, server ? 2 : 3);
    if (server) {
      PeerServer.serve(conf, port(args[1]));
    } else {
      System.exit(new PeerClient(conf, args[1], port(args[2])).run() ? 0 : 1);
    }
  }

  private static int port(String text) {
    try {
      return Integer.parseInt(text);
    } catch (NumberFormatException e) {
      throw usage("not a port: " + text);
    }
  }

  /**
   * The one place that turns options into Spark's settings. An authentication mode belongs here for
   * its settings; its bootstraps go where PeerServer and PeerClient make their server and factory.
   */
  private static TransportConf options(String[] args, int from) {
    Map<String, String> settings = new LinkedHashMap<>();
    for (int i = from; i < args.length; i += 2) {
      if (i + 1 == args.length) {
        throw usage(args[i] + " needs a value");
      }
      String value = args[i + 1];
      switch (args[i]) {
        case "--conf":
          int equals = value.indexOf('=');
          if (equals <= 0) {
            throw usage("--conf wants key=value, not " + value);
          }
          settings.put(value.substring(0, equals), value.substring(equals + 1));
          break;
        case "--auth":
          if (!value.equals("none")) {
            throw usage("--auth " + value + " is not supported yet");
          }
          break;
        default:
          throw usage("unknown option " + args[i]);
      }
    }
    return new TransportConf(MODULE, new MapConfigProvider(settings));
  }

  /** Ends the process; typed as an exception so that callers can throw it and the compiler sees the end. */
  private static IllegalArgumentException usage(String problem) {
    System.err.println(problem);
    System.err.println(USAGE);
    System.exit(2);
    return new IllegalArgumentException(problem);
  }
}
