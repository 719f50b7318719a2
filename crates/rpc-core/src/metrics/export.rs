//! Export of a snapshot to the recorder of the `metrics` crate.

use std::time::Duration;

use metrics::{counter, gauge};
use network_common::MetricsSnapshot;

use super::{EndpointSnapshot, EnvSnapshot, PeerSnapshot};

impl EnvSnapshot {
    /// Sets the counters and gauges of the [`metrics`] crate's recorder to these values.
    ///
    /// To be called every few seconds, or before each export. The names begin with `rpc_`. The
    /// labels are `env` and, where they apply, `endpoint`, `peer` or `side`. Durations are in
    /// seconds. Requires the feature `metrics`.
    pub fn export(&self) {
        let env = &self.name;
        gauge!("rpc_pending_asks", "env" => env.clone()).set(self.pending_asks as f64);
        gauge!("rpc_inbox_bytes", "env" => env.clone()).set(self.inbox_bytes as f64);
        gauge!("rpc_route_bytes", "env" => env.clone()).set(self.route_bytes as f64);
        counter!("rpc_undelivered_total", "env" => env.clone()).absolute(self.undelivered);
        self.endpoints.iter().for_each(|endpoint| export_endpoint(env, endpoint));
        self.peers.iter().for_each(|peer| export_peer(env, peer));
        export_transport(env, "server", &self.server);
        export_transport(env, "client", &self.client);
    }
}

fn export_endpoint(env: &str, endpoint: &EndpointSnapshot) {
    let labels = [("env", env.to_owned()), ("endpoint", endpoint.name.clone())];
    let seconds = |time: Duration| time.as_secs_f64();
    gauge!("rpc_endpoint_held_messages", &labels).set(endpoint.held as f64);
    gauge!("rpc_endpoint_held_bytes", &labels).set(endpoint.held_bytes as f64);
    gauge!("rpc_endpoint_lag_seconds", &labels).set(seconds(endpoint.lag));
    counter!("rpc_endpoint_handled_total", &labels).absolute(endpoint.handled);
    counter!("rpc_endpoint_failed_total", &labels).absolute(endpoint.failed);
    counter!("rpc_endpoint_rejected_total", &labels).absolute(endpoint.rejected);
    counter!("rpc_endpoint_dropped_total", &labels).absolute(endpoint.dropped);
    counter!("rpc_endpoint_expired_total", &labels).absolute(endpoint.expired);
    let processing = &endpoint.processing;
    gauge!("rpc_endpoint_processing_seconds_p50", &labels).set(seconds(processing.quantile(0.5)));
    gauge!("rpc_endpoint_processing_seconds_p99", &labels).set(seconds(processing.quantile(0.99)));
    gauge!("rpc_endpoint_processing_seconds_max", &labels).set(seconds(processing.max()));
}

fn export_peer(env: &str, peer: &PeerSnapshot) {
    let labels = [("env", env.to_owned()), ("peer", peer.address.to_string())];
    gauge!("rpc_peer_connected", &labels).set(f64::from(u8::from(peer.connected)));
    gauge!("rpc_peer_queued_messages", &labels).set(peer.queued as f64);
    gauge!("rpc_peer_queued_bytes", &labels).set(peer.queued_bytes as f64);
    counter!("rpc_peer_refused_retries_total", &labels).absolute(peer.refused_retries);
}

fn export_transport(env: &str, side: &'static str, transport: &MetricsSnapshot) {
    let labels = [("env", env.to_owned()), ("side", side.to_owned())];
    gauge!("rpc_connections", &labels).set(transport.connections as f64);
    gauge!("rpc_write_queue_bytes", &labels).set(transport.write_queue_bytes as f64);
    gauge!("rpc_held_bytes", &labels).set(transport.held_bytes as f64);
    counter!("rpc_refused_messages_total", &labels).absolute(transport.refused_messages);
    counter!("rpc_closed_for_budget_total", &labels).absolute(transport.closed_for_budget);
    counter!("rpc_connections_total", &labels).absolute(transport.connections_total);
    counter!("rpc_received_bytes_total", &labels).absolute(transport.received_bytes);
    counter!("rpc_sent_bytes_total", &labels).absolute(transport.sent_bytes);
}
