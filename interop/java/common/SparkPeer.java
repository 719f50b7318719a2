import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

import org.apache.spark.network.client.TransportClientBootstrap;
import org.apache.spark.network.crypto.AuthClientBootstrap;
import org.apache.spark.network.crypto.AuthServerBootstrap;
import org.apache.spark.network.sasl.SecretKeyHolder;
import org.apache.spark.network.server.TransportServerBootstrap;
import org.apache.spark.network.util.MapConfigProvider;
import org.apache.spark.network.util.TransportConf;

/**
 * A client and a server on Spark's own transport classes, to test another implementation.
 *
 * <pre>
 * SparkPeer server PORT [options]        prints LISTENING PORT, serves until the end of stdin
 * SparkPeer client HOST PORT [options]   runs all cases; the last line is N passed, M failed
 * options: --secret TEXT (authenticates with it)   --conf key=value (repeatable)
 * </pre>
 */
final class SparkPeer {
  static final String USAGE =
      "usage: SparkPeer server PORT [options] | SparkPeer client HOST PORT [options]\n"
          + "options: --secret TEXT   --conf key=value (repeatable)";

  /** Spark's module name: the {@code shuffle} in spark.shuffle.io.serverThreads. */
  private static final String MODULE = "shuffle";

  private static final String APP_ID = "app-1";

  private SparkPeer() {}

  public static void main(String[] args) throws Exception {
    boolean server = args.length >= 2 && args[0].equals("server");
    boolean client = args.length >= 3 && args[0].equals("client");
    if (!server && !client) {
      throw usage("the role or the address is missing");
    }
    Options options = options(args, server ? 2 : 3);
    if (server) {
      PeerServer.serve(options.conf, options.serverBootstraps(), port(args[1]));
    } else {
      PeerClient peer =
          new PeerClient(options.conf, options.clientBootstraps(), args[1], port(args[2]));
      System.exit(peer.run() ? 0 : 1);
    }
  }

  private static int port(String text) {
    try {
      return Integer.parseInt(text);
    } catch (NumberFormatException e) {
      throw usage("not a port: " + text);
    }
  }

  /** The options of the command line. The settings select the kind of authentication. */
  private static final class Options {
    final TransportConf conf;
    private final SecretKeyHolder secrets;

    Options(TransportConf conf, String secret) {
      this.conf = conf;
      this.secrets = secret == null ? null : holder(secret);
    }

    List<TransportServerBootstrap> serverBootstraps() {
      return secrets == null
          ? Collections.emptyList()
          : Collections.singletonList(new AuthServerBootstrap(conf, secrets));
    }

    List<TransportClientBootstrap> clientBootstraps() {
      return secrets == null
          ? Collections.emptyList()
          : Collections.singletonList(new AuthClientBootstrap(conf, APP_ID, secrets));
    }

    private static SecretKeyHolder holder(String secret) {
      return new SecretKeyHolder() {
        @Override
        public String getSaslUser(String appId) {
          return "sparkSaslUser";
        }

        @Override
        public String getSecretKey(String appId) {
          return appId.equals(APP_ID) ? secret : null;
        }
      };
    }
  }

  private static Options options(String[] args, int from) {
    Map<String, String> settings = new LinkedHashMap<>();
    String secret = null;
    for (int i = from; i < args.length; i += 2) {
      if (i + 1 == args.length) {
        throw usage(args[i] + " needs a value");
      }
      String value = args[i + 1];
      switch (args[i]) {
        case "--conf":
          int equals = value.indexOf('=');
          if (equals <= 0) {
            throw usage("--conf expects key=value, not " + value);
          }
          settings.put(value.substring(0, equals), value.substring(equals + 1));
          break;
        case "--secret":
          secret = value;
          break;
        default:
          throw usage("unknown option " + args[i]);
      }
    }
    return new Options(new TransportConf(MODULE, new MapConfigProvider(settings)), secret);
  }

  /** Prints the usage and exits. It returns an exception, so that callers can write `throw`. */
  private static IllegalArgumentException usage(String problem) {
    System.err.println(problem);
    System.err.println(USAGE);
    System.exit(2);
    return new IllegalArgumentException(problem);
  }
}
