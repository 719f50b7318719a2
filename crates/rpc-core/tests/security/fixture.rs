//! Security modes, environments that use them, and a proxy that records the bytes between two
//! environments.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use network_common::{RpcHandler, RpcResponseCallback, TransportClient};
use parking_lot::Mutex;
use rpc_core::{
    EndpointContext, MemoryNetwork, RpcAddress, RpcConf, RpcEndpointRef, RpcEnv, RpcEnvBuilder,
    RpcError, ThreadSafeRpcEndpoint,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::common::{Greeting, HelloMessage, address, soon};

/// Settings with which environments authenticate and encrypt.
#[derive(Clone, Debug)]
pub struct Mode {
    pub name: &'static str,
    pub encrypts: bool,
    pub settings: Vec<(String, String)>,
}

pub const AUTHENTICATE: [(&str, &str); 2] = [
    ("spark.authenticate", "true"),
    ("spark.authenticate.secret", "5e883f8988a0b0e1c5d3d6ab1b0d0c1d"),
];

fn mode(name: &'static str, encrypts: bool, settings: &[(&str, &str)]) -> Mode {
    let settings =
        settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Mode { name, encrypts, settings }
}

fn authenticated(name: &'static str, encrypts: bool, settings: &[(&str, &str)]) -> Mode {
    mode(name, encrypts, &[&AUTHENTICATE, settings].concat())
}

pub fn sasl() -> Mode {
    authenticated("sasl", false, &[])
}

#[cfg(feature = "legacy-auth")]
pub fn sasl_encrypted() -> Mode {
    let settings = [
        ("spark.authenticate.enableSaslEncryption", "true"),
        ("spark.network.sasl.serverAlwaysEncrypt", "true"),
    ];
    authenticated("sasl, encrypted", true, &settings)
}

/// The settings of rows `rpc_env_28` and `rpc_env_31`: encryption on, SASL fallback off.
const CRYPTO: [(&str, &str); 2] =
    [("spark.network.crypto.enabled", "true"), ("spark.network.crypto.saslFallback", "false")];

pub fn ctr() -> Mode {
    authenticated("ctr", true, &CRYPTO)
}

pub fn gcm() -> Mode {
    let better = [
        ("spark.network.crypto.authEngineVersion", "2"),
        ("spark.network.crypto.cipher", "AES/GCM/NoPadding"),
    ];
    authenticated("gcm, engine 2", true, &[CRYPTO, better].concat())
}

#[cfg(feature = "tls")]
pub mod tls {
    use std::sync::LazyLock;

    use tempfile::TempDir;

    use super::{Mode, authenticated, mode};

    /// The directory with one certificate for all hosts of these tests.
    ///
    /// A static is never dropped, so the directory lies in cargo's target directory.
    static FILES: LazyLock<TempDir> = LazyLock::new(|| {
        let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let names = ["127.0.0.1", "10.0.0.1"].map(str::to_owned);
        let identity = rcgen::generate_simple_self_signed(names).unwrap();
        std::fs::write(directory.path().join("cert.pem"), identity.cert.pem()).unwrap();
        std::fs::write(directory.path().join("key.pem"), identity.signing_key.serialize_pem())
            .unwrap();
        directory
    });

    fn settings() -> [(&'static str, &'static str); 3] {
        let path = |name: &str| &*FILES.path().join(name).to_str().unwrap().to_owned().leak();
        [
            ("spark.ssl.rpc.enabled", "true"),
            ("spark.ssl.rpc.certChain", path("cert.pem")),
            ("spark.ssl.rpc.privateKey", path("key.pem")),
        ]
    }

    /// TLS alone: the server has the certificate, clients have none.
    pub fn alone() -> Mode {
        mode("tls", true, &settings())
    }

    /// The recommended mode: TLS encrypts, the secret authenticates.
    pub fn with_secret() -> Mode {
        authenticated("tls and sasl", true, &settings())
    }
}

pub fn modes() -> Vec<Mode> {
    vec![
        sasl(),
        ctr(),
        gcm(),
        #[cfg(feature = "legacy-auth")]
        sasl_encrypted(),
        #[cfg(feature = "tls")]
        tls::alone(),
        #[cfg(feature = "tls")]
        tls::with_secret(),
    ]
}

impl Mode {
    pub fn conf(&self) -> RpcConf {
        RpcConf::from_settings(self.settings.iter().map(|(key, value)| (key, value))).unwrap()
    }

    /// Returns the settings of this mode with another secret.
    pub fn with_secret(&self, secret: &str) -> RpcConf {
        self.conf().with("spark.authenticate.secret", secret).unwrap()
    }

    /// Returns true if the mode requires a secret.
    pub fn authenticates(&self) -> bool {
        self.conf().get("spark.authenticate").is_some()
    }

    pub async fn server(&self) -> RpcEnv {
        start(RpcEnv::builder("server").conf(self.conf()).bind("127.0.0.1:0")).await
    }

    pub async fn client(&self) -> RpcEnv {
        client_with(self.conf()).await
    }

    /// Returns a server with a client over sockets, and another pair over the memory network.
    pub async fn pairs(&self) -> [(RpcEnv, RpcEnv); 2] {
        let network = MemoryNetwork::new();
        let server = RpcEnv::builder("server")
            .conf(self.conf())
            .bind("10.0.0.1:7077")
            .memory_network(&network);
        let client =
            RpcEnv::builder("client").conf(self.conf()).client_mode().memory_network(&network);
        [
            (self.server().await, self.client().await),
            (start(server).await, client.start().await.unwrap()),
        ]
    }
}

async fn start(builder: RpcEnvBuilder) -> RpcEnv {
    builder.start().await.unwrap()
}

pub async fn client_with(conf: RpcConf) -> RpcEnv {
    RpcEnv::builder("client").conf(conf).client_mode().start().await.unwrap()
}

/// An endpoint that replies, and sends the text of each message to the test.
pub struct Greeter(mpsc::UnboundedSender<String>);

impl ThreadSafeRpcEndpoint for Greeter {
    type Message = HelloMessage;

    async fn receive(
        &mut self,
        message: HelloMessage,
        _cx: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let (text, context) = match message {
            HelloMessage::SayHi(hi, context) => (hi.msg, context),
            HelloMessage::SayBye(bye, context) => (bye.msg, context),
        };
        let _ = self.0.send(text.clone());
        context.reply(Greeting { text: format!("hi, {text}") })
    }
}

/// Sets up a `Greeter` named `hello`, and returns the texts that it receives.
pub fn greeter(env: &RpcEnv) -> mpsc::UnboundedReceiver<String> {
    let (tx, messages) = mpsc::unbounded_channel();
    env.setup_endpoint("hello", Greeter(tx)).unwrap();
    messages
}

pub async fn hello(client: &RpcEnv, server: &RpcEnv) -> RpcEndpointRef<HelloMessage> {
    hello_at(client, address(server)).await.unwrap()
}

pub async fn hello_at(
    client: &RpcEnv,
    address: RpcAddress,
) -> Result<RpcEndpointRef<HelloMessage>, RpcError> {
    soon(client.setup_endpoint_ref(address, "hello")).await
}

/// A TCP proxy in front of a server that records the bytes of both directions.
pub struct RecordingProxy {
    pub address: RpcAddress,
    recorded: [Arc<Mutex<Vec<u8>>>; 2],
}

impl RecordingProxy {
    pub async fn in_front_of(env: &RpcEnv) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().into();
        let server: SocketAddr = env.address().unwrap().host_port().parse().unwrap();
        let recorded = [Arc::default(), Arc::default()];
        let [to_server, to_client] = recorded.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (from_client, client) = client.into_split();
                let (from_server, server) = TcpStream::connect(server).await.unwrap().into_split();
                tokio::spawn(forward(from_client, server, Arc::clone(&to_server)));
                tokio::spawn(forward(from_server, client, Arc::clone(&to_client)));
            }
        });
        Self { address, recorded }
    }

    pub fn to_server(&self) -> Vec<u8> {
        self.recorded[0].lock().clone()
    }

    pub fn to_client(&self) -> Vec<u8> {
        self.recorded[1].lock().clone()
    }
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, recorded: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        recorded.lock().extend_from_slice(&buffer[..count]);
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

pub fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Replies to every RPC with its body.
pub struct Echo;

impl RpcHandler for Echo {
    fn receive(&self, _: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        callback.reply(message);
    }
}
