//! Start of an environment: bound port, advertised address, lookup by URI.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Hello, HelloMessage, address, client, hi, server, setting, soon};
use rpc_core::{ErrorKind, MemoryNetwork, RpcAddress, RpcConf, RpcEnv};

#[tokio::test]
async fn rpc_env_25_bind_uses_another_port_when_port_is_in_use() {
    let (first, client) = (server().await, client().await);
    let second = RpcEnv::builder("second").bind(address(&first).to_string()).start().await.unwrap();
    assert_ne!(address(&first).port(), address(&second).port());
    for env in [&first, &second] {
        env.setup_endpoint("hello", Hello).unwrap();
        let hello =
            soon(client.setup_endpoint_ref::<HelloMessage>(address(env), "hello")).await.unwrap();
        assert_eq!(soon(hello.ask(hi("neo"))).await.unwrap().text, "hi, neo");
    }
}

#[tokio::test]
async fn rpc_env_25_bind_tries_successive_ports() {
    let network = MemoryNetwork::new();
    let start = async |retries: &str| {
        let conf = setting("spark.port.maxRetries", retries);
        let env =
            RpcEnv::builder("many").bind("10.0.0.1:65534").memory_network(&network).conf(conf);
        env.start().await
    };
    let mut envs = Vec::new();
    for port in [65_534, 65_535, 1024, 1025] {
        let env = start("3").await.unwrap();
        assert_eq!(address(&env).port(), port);
        envs.push(env);
    }
    for retries in ["0", "3"] {
        let error = start(retries).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Bind);
        let text = error.to_string();
        for part in [
            "the environment many",
            &format!("after {retries} retries"),
            "10.0.0.1:65534",
            "spark.port.maxRetries",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    assert_eq!(address(&start("4").await.unwrap()).port(), 1026);
}

#[tokio::test]
async fn rpc_env_25_bind_retries_16_times_and_100_times_in_tests() {
    for (testing, count) in [(false, 17), (true, 101)] {
        let network = MemoryNetwork::new();
        let conf = if testing { setting("spark.testing", "true") } else { RpcConf::new() };
        let mut envs = Vec::new();
        let error = loop {
            let env = RpcEnv::builder("env")
                .bind("10.0.0.1:7077")
                .memory_network(&network)
                .conf(conf.clone());
            match env.start().await {
                Ok(env) => envs.push(env),
                Err(error) => break error,
            }
        };
        assert_eq!((error.kind(), envs.len()), (ErrorKind::Bind, count));
    }
}

#[tokio::test]
async fn rpc_env_25_bind_retries_only_when_port_is_in_use() {
    // An address of TEST-NET-1 (RFC 5737), which no machine has.
    let error = RpcEnv::builder("env").bind("192.0.2.1:7077").start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Bind);
    assert!(!error.to_string().contains("retries"), "{error}");
    for port in [1, 80, 1023] {
        let error =
            RpcEnv::builder("env").bind(format!("127.0.0.1:{port}")).start().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("1024 to 65535"), "{error}");
    }
    for value in ["-1", "many", "65536", ""] {
        let error = RpcConf::new().with("spark.port.maxRetries", value).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
    }
}

/// Dropping an environment ends its tasks, also without a shutdown, and when its start failed.
#[tokio::test]
async fn dropped_environment_leaves_no_task() {
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let server = server().await;
    client()
        .await
        .setup_endpoint_ref::<HelloMessage>(address(&server), "missing")
        .await
        .unwrap_err();
    let port_in_use = RpcEnv::builder("port_in_use").conf(setting("spark.port.maxRetries", "0"));
    port_in_use.bind(address(&server).to_string()).start().await.unwrap_err();
    drop(server);
    soon(async {
        while tasks() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn nre_02_advertised_host_is_part_of_address() {
    let env =
        RpcEnv::builder("env").bind("localhost:0").advertise("example.com").start().await.unwrap();
    assert!(address(&env).to_string().starts_with("example.com:"), "{:?}", env.address());
    // The environment is reachable at the bound host.
    env.setup_endpoint("hello", Hello).unwrap();
    let bound = RpcAddress::new("localhost", address(&env).port());
    let hello =
        soon(client().await.setup_endpoint_ref::<HelloMessage>(bound, "hello")).await.unwrap();
    assert_eq!(soon(hello.ask(hi("neo"))).await.unwrap().text, "hi, neo");
}

/// Peers could not parse such a host.
#[tokio::test]
async fn nre_02_invalid_advertised_host_fails_start() {
    for host in ["", "a host", "host:7077", "spark://host", "[host]"] {
        let error =
            RpcEnv::builder("env").bind("127.0.0.1:0").advertise(host).start().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{host}");
        assert!(
            error
                .to_string()
                .starts_with(&format!("the environment env cannot advertise `{host}`")),
            "{error}"
        );
    }
    let env = RpcEnv::builder("env").bind("127.0.0.1:0").advertise("::0:1").start().await.unwrap();
    assert_eq!(address(&env).host(), "[::1]");
}

#[tokio::test]
async fn nre_01_endpoint_is_looked_up_by_uri() {
    let (server, client) = (server().await, client().await);
    server.setup_endpoint("hello", Hello).unwrap();
    let uri = format!("spark://hello@{}", address(&server));
    let hello = soon(client.setup_endpoint_ref_by_uri::<HelloMessage>(&uri)).await.unwrap();
    assert_eq!(soon(hello.ask(hi("neo"))).await.unwrap().text, "hi, neo");
    let missing = format!("spark://missing@{}", address(&server));
    let error = soon(client.setup_endpoint_ref_by_uri::<HelloMessage>(&missing)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::EndpointNotFound);
    assert!(error.to_string().contains(&missing), "{error}");
    for uri in [
        "hello",
        "http://hello@host:1",
        "spark://host:1",
        "spark://hello@host",
        "spark://hello@host:1/path",
    ] {
        let error = soon(client.setup_endpoint_ref_by_uri::<HelloMessage>(uri)).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string()),
            (ErrorKind::InvalidAddress, format!("Invalid Spark URL: {uri}"))
        );
    }
}
