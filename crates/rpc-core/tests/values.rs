//! Addresses, timeouts and settings, without a peer: rows of the areas `adr` and `nra`, and
//! row `rpc_env_32`.

use std::time::Duration;

use rpc_core::{
    AbortHandle, AskFuture, EndpointContext, EndpointRef, EnvSnapshot, ErrorKind, RpcAddress,
    RpcCallContext, RpcConf, RpcEndpointAddress, RpcEndpointRef, RpcEnv, RpcEnvBuilder, RpcError,
    RpcTimeout, SendError, ShutdownReport,
};

/// Handles are `Send` and `Sync` for any message type, also for one that is only `Send`.
#[test]
fn public_types_are_send_and_sync() {
    fn is<T: Send + Sync + std::fmt::Debug>() {}
    /// A type that is `Send` but not `Sync`.
    type Message = std::cell::Cell<u8>;
    is::<RpcEnv>();
    is::<RpcEnvBuilder>();
    is::<RpcEndpointRef<Message>>();
    is::<EndpointContext<Message>>();
    is::<RpcCallContext<Message>>();
    is::<AbortHandle>();
    is::<EndpointRef>();
    is::<RpcError>();
    is::<SendError<u8>>();
    is::<(EnvSnapshot, ShutdownReport)>();
    fn is_send<T: Send + std::fmt::Debug>() {}
    is_send::<AskFuture<Message>>();
}

#[test]
fn secret_settings_are_redacted_in_debug_output() {
    let settings =
        [("spark.ssl.rpc.keyStorePassword", "hush"), ("spark.authenticate.secret", "hush")];
    let conf =
        RpcConf::from_settings(settings).unwrap().with("spark.network.timeout", "7s").unwrap();
    let shown = format!("{conf:?}");
    assert!(!shown.contains("hush") && shown.contains("7s"), "{shown}");
}

#[test]
fn adr_01_address_has_host_and_port() {
    let address = RpcAddress::new("1.2.3.4", 1234);
    assert_eq!((address.host(), address.port()), ("1.2.3.4", 1234));
    assert_eq!(address.host_port(), "1.2.3.4:1234");
    assert_eq!(address.to_string(), "1.2.3.4:1234");
    assert_eq!("1.2.3.4:1234".parse::<RpcAddress>().unwrap(), address);
}

#[test]
fn adr_02_spark_url_is_parsed() {
    let address = RpcAddress::from_spark_url("spark://1.2.3.4:1234").unwrap();
    assert_eq!((address.host(), address.port()), ("1.2.3.4", 1234));
}

#[test]
fn adr_03_spark_url_with_typo_is_rejected() {
    let error = RpcAddress::from_spark_url("spark://1.2. 3.4:1234").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidAddress);
    assert_eq!(error.to_string(), "Invalid master URL: spark://1.2. 3.4:1234");
}

#[test]
fn adr_04_malformed_spark_url_is_rejected() {
    for url in [
        "invalid://1.2.3.4:1234",
        "spark:1.2.3.4:1234",
        "1.2.3.4:1234",
        "spark://1.2.3.4",
        "spark://:1234",
        "spark://h:-1",
        "spark://h:+1",
        "spark://h:65536",
        "spark://h:",
        "spark://h:1/",
        "spark://h:1?q",
        "spark://h:1#f",
        "spark://user@h:1",
        "spark://::1:1234",
        "spark://[::1:1234",
        "spark://[host]:1234",
        "",
    ] {
        let error = RpcAddress::from_spark_url(url).unwrap_err();
        assert_eq!(error.to_string(), format!("Invalid master URL: {url}"));
    }
}

#[test]
fn adr_05_address_formats_as_spark_url() {
    assert_eq!(RpcAddress::new("1.2.3.4", 1234).to_spark_url(), "spark://1.2.3.4:1234");
}

#[test]
fn adr_06_ipv6_host_is_bracketed() {
    for host in ["::1", "[::1]"] {
        let address = RpcAddress::new(host, 1234);
        assert_eq!(address.host(), "[::1]");
        assert_eq!(address.to_string(), "[::1]:1234");
    }
}

#[test]
fn adr_07_ipv6_spark_url_is_parsed() {
    let address = RpcAddress::from_spark_url("spark://[::1]:1234").unwrap();
    assert_eq!((address.host(), address.port()), ("[::1]", 1234));
}

#[test]
fn adr_08_ipv6_address_formats_as_spark_url() {
    assert_eq!(RpcAddress::new("::1", 1234).to_spark_url(), "spark://[::1]:1234");
}

#[test]
fn adr_09_equal_ipv6_hosts_are_normalized() {
    assert_eq!(RpcAddress::new("::0:1", 1234).host(), "[::1]");
    assert_eq!(RpcAddress::new("::0:1", 1234), RpcAddress::new("[0:0::1]", 1234));
}

#[test]
fn adr_10_ipv6_trailing_zeros_are_normalized() {
    assert_eq!(RpcAddress::new("2600::", 1234).host(), "[2600::]");
    assert_eq!(RpcAddress::new("2600:0:0:0:0:0:0:0", 1234).host(), "[2600::]");
}

#[test]
fn nra_01_endpoint_address_formats_and_parses() {
    let address =
        RpcEndpointAddress::new(Some(RpcAddress::new("localhost", 12345)), "test").unwrap();
    assert_eq!(address.to_string(), "spark://test@localhost:12345");
    assert_eq!("spark://test@localhost:12345".parse::<RpcEndpointAddress>().unwrap(), address);
}

#[test]
fn nra_02_client_mode_address_formats_without_host() {
    let address = RpcEndpointAddress::new(None, "test").unwrap();
    assert_eq!(address.to_string(), "spark-client://test");
    let error = "spark-client://test".parse::<RpcEndpointAddress>().unwrap_err();
    assert_eq!(error.to_string(), "Invalid Spark URL: spark-client://test");
}

#[test]
fn invalid_endpoint_address_or_name_is_rejected() {
    for url in [
        "spark://h:1",
        "spark://@h:1",
        "spark://a b@h:1",
        "spark://a@h",
        "http://a@h:1",
        "spark://a@h:1/p",
    ] {
        let error = url.parse::<RpcEndpointAddress>().unwrap_err();
        assert_eq!(error.to_string(), format!("Invalid Spark URL: {url}"));
    }
    assert_eq!(
        RpcEndpointAddress::new(None, "").unwrap_err().to_string(),
        "RpcEndpoint name must be provided."
    );
    assert_eq!(RpcEndpointAddress::new(None, "a@b").unwrap_err().kind(), ErrorKind::InvalidAddress);
}

#[test]
fn rpc_env_32_timeout_is_read_from_first_setting_present() {
    let conf = RpcConf::from_settings([("second", "30s"), ("third", "1ms")]).unwrap();
    let timeout = RpcTimeout::from_conf(&conf, &["second"], None).unwrap();
    assert_eq!((timeout.duration(), timeout.setting()), (Duration::from_secs(30), Some("second")));

    let timeout = RpcTimeout::from_conf(&conf, &["first", "second", "third"], None).unwrap();
    assert_eq!((timeout.duration(), timeout.setting()), (Duration::from_secs(30), Some("second")));

    let default = Some(Duration::from_secs(7));
    let timeout = RpcTimeout::from_conf(&conf, &["fourth", "fifth"], default).unwrap();
    assert_eq!((timeout.duration(), timeout.setting()), (Duration::from_secs(7), Some("fourth")));

    for keys in [&["fourth"][..], &[]] {
        assert_eq!(RpcTimeout::from_conf(&conf, keys, None).unwrap_err().kind(), ErrorKind::Config);
    }
}

#[test]
fn durations_use_spark_time_units() {
    let parse = |text: &str| {
        let conf = RpcConf::new().with("key", text)?;
        RpcTimeout::from_conf(&conf, &["key"], None).map(|timeout| timeout.duration())
    };
    for (text, millis) in [
        ("120s", 120_000),
        ("500ms", 500),
        ("2min", 120_000),
        ("2m", 120_000),
        ("1h", 3_600_000),
        ("3", 3_000),
    ] {
        assert_eq!(parse(text).unwrap(), Duration::from_millis(millis), "{text}");
    }
    for text in ["", "s", "-1s", "1.5s", "1 week", "99999999999999999999", "999999999999999999d"] {
        let error = parse(text).unwrap_err();
        assert!(error.to_string().contains("key") && error.to_string().contains("120s"), "{error}");
    }
}

#[test]
fn invalid_setting_is_rejected_by_with() {
    let error = RpcConf::new().with("spark.rpc.askTimeout", "soon").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert_eq!(
        error.to_string(),
        "spark.rpc.askTimeout is `soon`; it takes a whole number with a unit, such as 120s, 500ms or 2min"
    );
}

#[test]
fn fault_u2_misspelt_keys_are_reported_with_nearest_setting() {
    let conf = RpcConf::from_settings([
        ("spark.rpc.askTimout", "1"),
        ("spark.rpc.io.backlog", "1"),
        ("spark.files.io.maxretries", "1"),
        ("spark.network.timeuot", "1"),
        ("spark.rpc.something", "1"),
    ]);
    let shown: Vec<_> = conf.unwrap().unknown_keys().iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "there is no setting spark.files.io.maxretries; did you mean spark.files.io.maxRetries?",
            "there is no setting spark.network.timeuot; did you mean spark.network.timeout?",
            "there is no setting spark.rpc.askTimout; did you mean spark.rpc.askTimeout?",
            "there is no setting spark.rpc.io.backlog; did you mean spark.rpc.io.backLog?",
            "there is no setting spark.rpc.something",
        ]
    );
}

#[test]
fn fault_u2_documented_settings_and_those_of_spark_are_known() {
    let rows = RpcConf::SETTINGS.lines().filter_map(|row| row.strip_prefix("| `"));
    let documented = rows.filter_map(|row| row.split('`').next());
    let others = [
        "spark.rpc.io.threads",
        "spark.rpc.io.numConnectionsPerPeer",
        "spark.files.io.connectionTimeout",
        "spark.executor.memory",
        "spark.driver.host",
        "spark.authenticate.secret.driver.file",
        "spark.network.maxRemoteBlockSizeFetchToMem",
    ];
    let keys: Vec<_> = documented.chain(others).collect();
    assert!(keys.len() > 25, "the table has no rows");
    let conf = RpcConf::from_settings(keys.iter().map(|key| (key, "1"))).unwrap();
    assert_eq!(conf.unknown_keys(), []);
}

#[test]
fn fault_t12_all_spellings_of_host_are_equal() {
    for (one, other) in [
        ("Host-A", "host-a"),
        ("::1", "[::1]"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("[0:0:0:0:0:0:0:1]", "::1"),
        ("FE80::1%eth0", "[fe80::1%eth0]"),
    ] {
        let (one, other) = (RpcAddress::new(one, 7077), RpcAddress::new(other, 7077));
        assert_eq!(one, other);
        assert_eq!(one.to_string(), other.to_string());
    }
}
