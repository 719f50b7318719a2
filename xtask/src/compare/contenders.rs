//! The list of contenders, and the commands that start their processes.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::build;
use crate::interop::cache::Cache;
use crate::interop::java::{JavaPeer, Jdk};
use crate::interop::release::Release;
use crate::interop::spark;

/// The role of a contender in a comparison.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// A crate of this repository.
    Ours,
    /// A minimal program that shows what the machine allows.
    Limit,
    /// Another library, or Spark.
    Peer,
}

/// A program that is measured, with its arguments.
#[derive(Clone, Copy)]
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) side: Side,
    program: Program,
    /// The argument that selects the server, or `None` for a single process.
    pub(crate) server: Option<&'static str>,
    /// The argument that selects the client.
    client: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Program {
    /// `benches`
    Own,
    /// `benches/peers`
    Peers,
    /// `benches/peers/remote-actors`
    RemoteActors,
    /// `interop/java/bench`
    Spark,
}

const fn own(name: &'static str, side: Side, server: Option<&'static str>) -> Contender {
    Contender { name, side, program: Program::Own, server, client: name }
}

const fn peer(name: &'static str, server: Option<&'static str>) -> Contender {
    Contender { name, side: Side::Peer, program: Program::Peers, server, client: name }
}

const fn remote_actor(name: &'static str) -> Contender {
    Contender {
        name,
        side: Side::Peer,
        program: Program::RemoteActors,
        server: Some(name),
        client: name,
    }
}

const fn spark(name: &'static str, kind: &'static str) -> Contender {
    Contender { name, side: Side::Peer, program: Program::Spark, server: Some(kind), client: kind }
}

const CONTENDERS: [Contender; 27] = [
    own("ours", Side::Ours, Some("ours")),
    own("ours-ctr", Side::Ours, Some("ours-ctr")),
    own("ours-gcm", Side::Ours, Some("ours-gcm")),
    own("ours-tls", Side::Ours, Some("ours-tls")),
    own("ours-rpc", Side::Ours, Some("ours-rpc")),
    own("ours-local", Side::Ours, None),
    own("ping-pong", Side::Limit, Some("echo")),
    own("batched", Side::Limit, Some("echo")),
    own("smallest", Side::Limit, Some("echo")),
    own("yielding", Side::Limit, Some("echo")),
    own("chunks", Side::Limit, Some("chunks")),
    own("mixed", Side::Limit, Some("mixed")),
    own("cipher-ctr", Side::Limit, None),
    own("cipher-gcm", Side::Limit, None),
    own("cipher-tls", Side::Limit, None),
    own("channel", Side::Limit, None),
    own("timer", Side::Limit, None),
    peer("tarpc", Some("tarpc")),
    peer("tonic", Some("tonic")),
    peer("hyper", Some("hyper")),
    peer("flight", Some("flight")),
    peer("actix", None),
    peer("kameo", None),
    peer("ractor", None),
    remote_actor("kameo-remote"),
    remote_actor("ractor-cluster"),
    spark("spark", "transport"),
];
const SPARK_RPC: Contender = spark("spark-rpc", "core");

/// Returns the contender with the given name.
pub(crate) fn contender(name: &str) -> Contender {
    let found = CONTENDERS.into_iter().chain([SPARK_RPC]).find(|contender| contender.name == name);
    found.unwrap_or_else(|| unreachable!("there is no contender {name}"))
}

/// The built programs. The default has none.
#[derive(Default)]
pub(crate) struct Programs {
    own: Option<PathBuf>,
    peers: Option<PathBuf>,
    remote_actors: Option<PathBuf>,
    spark: Option<JavaPeer>,
}

impl Programs {
    /// Builds our program, the peers if `peers` is set, and the bench of a Spark release.
    pub(crate) fn build(peers: bool, release: Option<Release>) -> Result<Self> {
        let own = Some(build::bench_program("contender")?);
        let peer = |place, name| peers.then(|| build::program(place, name, &[])).transpose();
        let remote_actors = peer("benches/peers/remote-actors", "remote-actors")?;
        let peers = peer("benches/peers", "peers")?;
        let spark = release.map(Self::spark).transpose()?;
        Ok(Self { own, peers, remote_actors, spark })
    }

    fn spark(release: Release) -> Result<JavaPeer> {
        let (jdk, cache) = (Jdk::find()?, Cache::open()?);
        let jars = spark::every_jar(&cache, release)?;
        jdk.bench(&cache, release, &jars)
    }

    /// Returns whether the program of this contender was built.
    pub(crate) fn has(&self, contender: Contender) -> bool {
        match contender.program {
            Program::Own => self.own.is_some(),
            Program::Peers => self.peers.is_some(),
            Program::RemoteActors => self.remote_actors.is_some(),
            Program::Spark => self.spark.is_some(),
        }
    }

    /// Returns the command of its server, if it has one.
    pub(crate) fn server(&self, contender: Contender) -> Result<Option<Command>> {
        let Some(kind) = contender.server else { return Ok(None) };
        let mut command = self.command(contender)?;
        command.args(["serve", kind]);
        Ok(Some(command))
    }

    /// Returns the command of its client.
    pub(crate) fn client(&self, contender: Contender) -> Result<Command> {
        let mut command = self.command(contender)?;
        command.args(["drive", contender.client]);
        Ok(command)
    }

    fn command(&self, contender: Contender) -> Result<Command> {
        let built = |program: &Option<PathBuf>| {
            program.as_ref().map(Command::new).context("the program is not built")
        };
        Ok(match contender.program {
            Program::Own => built(&self.own)?,
            Program::Peers => built(&self.peers)?,
            Program::RemoteActors => built(&self.remote_actors)?,
            Program::Spark => {
                self.spark.as_ref().context("the bench of Spark is not built")?.command()
            }
        })
    }
}
