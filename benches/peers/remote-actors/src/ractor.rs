//! ractor_cluster over plain TCP, without spans for each message.
//!
//! A body is a `Vec<u8>`, which ractor_cluster does not convert. The client finds the echo actor by
//! its process group, which the nodes synchronize, as the documentation of ractor_cluster does.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use anyhow::Context;
use benches::load::{Request, Target};
use benches::protocol::Case;
use ractor::rpc::CallResult;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, pg};
use ractor_cluster::node::NodeServerSessionInformation;
use ractor_cluster::{
    NodeEventSubscription, NodeServer, NodeServerMessage, RactorClusterMessage, client_connect,
};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const GROUP: &str = "echo";

#[derive(RactorClusterMessage)]
enum EchoMessage {
    #[rpc]
    Echo(Vec<u8>, RpcReplyPort<Vec<u8>>),
}

struct RactorEcho;

impl Actor for RactorEcho {
    type Msg = EchoMessage;
    type State = ();
    type Arguments = ();

    async fn pre_start(
        &self,
        myself: ActorRef<EchoMessage>,
        (): (),
    ) -> Result<(), ActorProcessingErr> {
        pg::join(GROUP.to_owned(), vec![myself.get_cell()]);
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<EchoMessage>,
        EchoMessage::Echo(body, port): EchoMessage,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        Ok(port.send(body)?)
    }
}

async fn start_node(name: &str, port: u16) -> anyhow::Result<ActorRef<NodeServerMessage>> {
    let (cookie, name, host) = ("cookie".to_owned(), name.to_owned(), "localhost".to_owned());
    let node = NodeServer::new(port, cookie, name, host, None, None).with_listen_addr(HOST);
    Ok(Actor::spawn(None, node, ()).await?.0)
}

/// Starts a server on a free port and returns its address.
pub async fn listen() -> anyhow::Result<SocketAddr> {
    // A node does not report its port, so it gets a port that is free at the moment.
    let address = TcpListener::bind((HOST, 0))?.local_addr()?;
    Actor::spawn(None, RactorEcho, ()).await?;
    start_node("server", address.port()).await?;
    Ok(address)
}

/// A ref to the actor of the server process.
#[derive(Clone)]
pub struct Ractor(ActorRef<EchoMessage>);

impl Target for Ractor {
    const CASES: &'static [Case] = &[Case::Ask, Case::Echo];
    const IS_EAGER: bool = false;

    async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let group = GROUP.to_owned();
        anyhow::ensure!(
            pg::get_members(&group).is_empty(),
            "two nodes cannot have a second connection"
        );
        let node = start_node("client", 0).await?;
        let (sender, mut ready) = unbounded_channel();
        let subscription = Box::new(ReadyListener(sender));
        node.cast(NodeServerMessage::SubscribeToEvents { id: group.clone(), subscription })?;
        client_connect(&node, address).await?;
        ready.recv().await.context("the node has stopped")?;
        let actor =
            pg::get_members(&group).into_iter().next().context("the server has no such actor")?;
        Ok(Self(actor.into()))
    }

    fn call(&self, request: &Request) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let (actor, body, size) = (self.0.clone(), request.body.to_vec(), request.size);
        async move {
            match actor.call(|port| EchoMessage::Echo(body, port), None).await {
                Ok(CallResult::Success(reply)) => {
                    anyhow::ensure!(reply.len() == size, "the reply has a wrong length");
                    Ok(())
                }
                _ => anyhow::bail!("the actor did not reply"),
            }
        }
    }
}

/// Sends a message when the two nodes have synchronized their process groups.
struct ReadyListener(UnboundedSender<()>);

impl NodeEventSubscription for ReadyListener {
    fn node_session_opened(&self, _: NodeServerSessionInformation) {}
    fn node_session_disconnected(&self, _: NodeServerSessionInformation) {}
    fn node_session_authenticated(&self, _: NodeServerSessionInformation) {}

    fn node_session_ready(&self, _: NodeServerSessionInformation) {
        // This fails if `connect` was cancelled.
        let _ = self.0.send(());
    }
}
