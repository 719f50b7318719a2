//! ractor_cluster over plain TCP, without spans for each message. A body is a `Vec<u8>`, which it
//! passes on as it is. The echoing actor is found as its documentation has it: by its process
//! group, which the nodes tell each other.

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
enum Message {
    #[rpc]
    Echo(Vec<u8>, RpcReplyPort<Vec<u8>>),
}

struct Echo;

impl Actor for Echo {
    type Msg = Message;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, myself: ActorRef<Message>, (): ()) -> Result<(), ActorProcessingErr> {
        pg::join(GROUP.to_owned(), vec![myself.get_cell()]);
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<Message>,
        Message::Echo(body, port): Message,
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

/// Serves at a free port.
pub async fn listen() -> anyhow::Result<SocketAddr> {
    // A node does not tell which port it got, so one that is free now is chosen for it.
    let address = TcpListener::bind((HOST, 0))?.local_addr()?;
    Actor::spawn(None, Echo, ()).await?;
    start_node("server", address.port()).await?;
    Ok(address)
}

/// The actor of the other process.
#[derive(Clone)]
pub struct Ractor(ActorRef<Message>);

impl Target for Ractor {
    const CASES: &'static [Case] = &[Case::Ask, Case::Echo];
    const QUEUES: bool = false;

    async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let group = GROUP.to_owned();
        anyhow::ensure!(
            pg::get_members(&group).is_empty(),
            "the nodes have a connection, and only one"
        );
        let node = start_node("client", 0).await?;
        let (sender, mut ready) = unbounded_channel();
        let subscription = Box::new(Ready(sender));
        node.cast(NodeServerMessage::SubscribeToEvents { id: group.clone(), subscription })?;
        client_connect(&node, address).await?;
        ready.recv().await.context("the node stopped")?;
        let actor =
            pg::get_members(&group).into_iter().next().context("the server has no such actor")?;
        Ok(Self(actor.into()))
    }

    fn call(&self, request: &Request) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let (actor, body, size) = (self.0.clone(), request.body.to_vec(), request.size);
        async move {
            match actor.call(|port| Message::Echo(body, port), None).await {
                Ok(CallResult::Success(answer)) => {
                    anyhow::ensure!(answer.len() == size, "an answer of the wrong length");
                    Ok(())
                }
                _ => anyhow::bail!("no answer"),
            }
        }
    }
}

/// Tells when the nodes know each other's groups.
struct Ready(UnboundedSender<()>);

impl NodeEventSubscription for Ready {
    fn node_session_opened(&self, _: NodeServerSessionInformation) {}
    fn node_session_disconnected(&self, _: NodeServerSessionInformation) {}
    fn node_session_authenticated(&self, _: NodeServerSessionInformation) {}

    fn node_session_ready(&self, _: NodeServerSessionInformation) {
        // It may have stopped waiting.
        let _ = self.0.send(());
    }
}
