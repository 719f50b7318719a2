import java.util.function.Consumer;

import org.apache.spark.SecurityManager;
import org.apache.spark.SparkConf;
import org.apache.spark.internal.config.package$;
import org.apache.spark.rpc.RpcAddress;
import org.apache.spark.rpc.RpcCallContext;
import org.apache.spark.rpc.RpcEndpointRef;
import org.apache.spark.rpc.RpcEnv;
import org.apache.spark.rpc.ThreadSafeRpcEndpoint;
import scala.Option;
import scala.PartialFunction;
import scala.concurrent.ExecutionContext;
import scala.reflect.ClassTag$;
import scala.runtime.AbstractPartialFunction;
import scala.runtime.BoxedUnit;

/** Asks over Spark's RpcEnv with its defaults. RpcEnv supports only Java serialization. */
final class CoreBench implements SparkBench.Client {
  private static final String ENDPOINT = "bench";

  private final RpcEndpointRef endpoint;
  private final ExecutionContext sameThread = ExecutionContext.fromExecutor(Runnable::run);

  private CoreBench(RpcEndpointRef endpoint) {
    this.endpoint = endpoint;
  }

  private static RpcEnv env(String name, boolean clientMode) {
    SparkConf conf = new SparkConf(false);
    SecurityManager security =
        new SecurityManager(conf, Option.empty(), package$.MODULE$.AUTH_SECRET_FILE());
    return RpcEnv.create(name, "127.0.0.1", "127.0.0.1", 0, conf, security, 0, clientMode);
  }

  static int serveCore() {
    RpcEnv env = env("bench-server", false);
    env.setupEndpoint(ENDPOINT, new Echo(env));
    return env.address().port();
  }

  static SparkBench.Client driveCore(int port) {
    RpcEnv env = env("bench-client", true);
    return new CoreBench(env.setupEndpointRef(new RpcAddress("127.0.0.1", port), ENDPOINT));
  }

  @Override
  public void call(SparkBench.Job job, int connection, Consumer<Throwable> onEnd) {
    byte[] message = new byte[job.number("bytes")];
    endpoint
        .<byte[]>ask(message, ClassTag$.MODULE$.apply(byte[].class))
        .onComplete(
            reply -> {
              onEnd.accept(reply.isSuccess() ? null : reply.failed().get());
              return BoxedUnit.UNIT;
            },
            sameThread);
  }

  /** Replies with the message. */
  private static final class Echo implements ThreadSafeRpcEndpoint {
    private final RpcEnv env;

    Echo(RpcEnv env) {
      this.env = env;
    }

    @Override
    public RpcEnv rpcEnv() {
      return env;
    }

    @Override
    public PartialFunction<Object, BoxedUnit> receiveAndReply(RpcCallContext context) {
      return new AbstractPartialFunction<Object, BoxedUnit>() {
        @Override
        public boolean isDefinedAt(Object message) {
          return true;
        }

        @Override
        public BoxedUnit apply(Object message) {
          context.reply(message);
          return BoxedUnit.UNIT;
        }
      };
    }
  }
}
