//! kameo's remote actors over libp2p with TCP, noise and yamux, as in kameo's own swarm.
//!
//! The set-up differs in three points: the client dials an address instead of a search by mDNS,
//! more than kameo's default of 100 requests can be pending, and idle connections stay open. The
//! mailbox is unbounded, because kameo's bounded mailboxes are slower. kameo's tracing is disabled.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use benches::load::{Request, Target};
use benches::protocol::Case;
use bytes::Bytes;
use futures::StreamExt;
use kameo::actor::{ActorRef, RemoteActorRef, Spawn};
use kameo::error::Infallible;
use kameo::message::{Context, Message};
use kameo::remote::{Behaviour, messaging};
use kameo::{RemoteActor, Reply, mailbox, remote_message};
use libp2p::core::ConnectedPoint;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, Swarm, SwarmBuilder, noise, tcp, yamux};
use serde::{Deserialize, Serialize};

/// The maximum number of streams of a yamux connection.
const MAX_STREAMS: usize = 512;
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
const NAME: &str = "echo";

#[derive(RemoteActor)]
struct KameoEcho;

impl kameo::Actor for KameoEcho {
    type Args = Self;
    type Error = Infallible;

    async fn on_start(state: Self, _: ActorRef<Self>) -> Result<Self, Infallible> {
        Ok(state)
    }
}

/// The message and its reply.
///
/// It contains `Bytes`, because serde would serialize a `Vec` byte by byte.
#[derive(Reply, Serialize, Deserialize)]
struct Body(Bytes);

#[remote_message]
impl Message<Body> for KameoEcho {
    type Reply = Body;

    async fn handle(&mut self, body: Body, _: &mut Context<Self, Body>) -> Body {
        body
    }
}

/// Creates the node of this process.
fn start_node() -> anyhow::Result<Swarm<Behaviour>> {
    let messaging = messaging::Config::default().with_max_concurrent_streams(MAX_STREAMS);
    let swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)?
        .with_behaviour(|key| Behaviour::new(key.public().to_peer_id(), messaging))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE_TIMEOUT))
        .build();
    swarm.behaviour().try_init_global()?;
    Ok(swarm)
}

/// Spawns a task that drives the node.
fn run(mut swarm: Swarm<Behaviour>) {
    tokio::spawn(async move { while swarm.next().await.is_some() {} });
}

/// Starts a server on a free port and returns its address.
pub async fn listen() -> anyhow::Result<SocketAddr> {
    let mut swarm = start_node()?;
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse()?)?;
    let address = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            break address;
        }
    };
    run(swarm);
    KameoEcho::spawn_with_mailbox(KameoEcho, mailbox::unbounded()).register(NAME).await?;
    let port = address
        .iter()
        .find_map(|part| if let Protocol::Tcp(port) = part { Some(port) } else { None });
    Ok(([127, 0, 0, 1], port.context("the address has no TCP port")?).into())
}

/// A ref to the actor of the server process.
#[derive(Clone)]
pub struct Kameo(RemoteActorRef<KameoEcho>);

impl Target for Kameo {
    const CASES: &'static [Case] = &[Case::Ask, Case::Echo];
    const IS_EAGER: bool = false;

    async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let mut swarm = start_node()?;
        let address = Multiaddr::from(address.ip()).with(Protocol::Tcp(address.port()));
        swarm.dial(address)?;
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::ConnectionEstablished {
                    peer_id,
                    endpoint: ConnectedPoint::Dialer { address, .. },
                    ..
                } => {
                    // `lookup` asks only peers whose address is known.
                    swarm.add_peer_address(peer_id, address);
                    break;
                }
                SwarmEvent::OutgoingConnectionError { error, .. } => return Err(error.into()),
                _ => {}
            }
        }
        run(swarm);
        let actor = RemoteActorRef::lookup(NAME).await?.context("the server has no such actor")?;
        Ok(Self(actor))
    }

    fn call(&self, request: &Request) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let (actor, body, size) = (self.0.clone(), Body(request.body.clone()), request.size);
        async move {
            let reply = actor.ask(&body).await?;
            anyhow::ensure!(reply.0.len() == size, "the reply has a wrong length");
            Ok(())
        }
    }
}
