//! Row U3: the failure of a request belongs to its caller, and is no error of the process.

use std::io;
use std::sync::{Arc, Mutex};

use rpc_core::{EndpointContext, RpcError, ThreadSafeRpcEndpoint};
use tracing::Level;
use tracing::subscriber::DefaultGuard;

use crate::actions::{Hooks, KINDS, Kind, act, reply, set_up};
use crate::common::{HelloMessage, bye, client, hi, server};
use crate::fixture::{NAME, look_up, promptly};

/// The log of this thread, which runs all tasks of a test.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn start() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || writer.clone());
        (log, tracing::subscriber::set_default(subscriber.finish()))
    }

    /// Returns the lines that contain `text`.
    fn lines(&self, text: &str) -> Vec<String> {
        let log = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        log.lines().filter(|line| line.contains(text)).map(ToOwned::to_owned).collect()
    }

    #[track_caller]
    fn assert_one(&self, text: &str, level: &str) {
        let lines = self.lines(text);
        assert!(lines.len() == 1 && lines[0].contains(level), "{level}: {lines:#?}");
    }
}

/// Fails every request by `?`, a one-way message, or by `send_failure`.
struct Refuses;

impl ThreadSafeRpcEndpoint for Refuses {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        match message {
            HelloMessage::SayHi(hi, _) => Err(RpcError::application(hi.msg)),
            HelloMessage::SayBye(bye, context) => {
                context.send_failure(RpcError::application(bye.msg));
                Ok(())
            }
        }
    }
}

#[tokio::test]
async fn fault_u3_failed_request_is_logged_at_debug() {
    let (log, _guard) = Log::start();
    let (server, client) = (server().await, client().await);
    let local = server.setup_endpoint(NAME, Refuses).unwrap();
    let remote = look_up(&client, &server).await;
    for (n, endpoint) in [local, remote].into_iter().enumerate() {
        let text = format!("refusal {n}");
        let error = promptly("the refusal", endpoint.ask(hi(&text))).await.unwrap_err();
        assert_eq!(error.to_string(), text);
        promptly("the second refusal", endpoint.ask(bye("by send_failure"))).await.unwrap_err();
        // The endpoint has logged the failure when it replies to the next request.
        log.assert_one(&text, "DEBUG");
        let one_way = format!("one-way {n}");
        endpoint.send(hi(&one_way)).unwrap();
        promptly("the next refusal", endpoint.ask(bye("by send_failure"))).await.unwrap_err();
        log.assert_one(&one_way, "ERROR");
    }
    assert!(log.lines("by send_failure").iter().all(|line| !line.contains("ERROR")));
}

#[tokio::test]
async fn fault_u3_panics_and_failures_without_caller_are_errors() {
    for kind in KINDS {
        if matches!(kind, Kind::IsolatedThreadSafe | Kind::Isolated(_)) {
            // Their threads have no subscriber.
            continue;
        }
        let (log, _guard) = Log::start();
        let env = client().await;
        let hooks = Hooks::on_start(|_| async { Err(RpcError::application("start failed")) });
        let endpoint = set_up(&env, kind, hooks);
        let panics = act(|_, _| async { panic!("the handler panics") });
        promptly("the panic", endpoint.ask(panics)).await.unwrap_err();
        let replied = act(|context, _| async {
            context.reply(1)?;
            Err(RpcError::application("failed after the reply"))
        });
        promptly("the reply", endpoint.ask(replied)).await.unwrap();
        let moved = act(|context, _| async {
            tokio::spawn(async move { context.reply(1) });
            Err(RpcError::application("failed without the context"))
        });
        promptly("the reply", endpoint.ask(moved)).await.unwrap();
        promptly("the last reply", endpoint.ask(reply())).await.unwrap();
        let texts = ["start failed", "the handler panics", "failed after", "failed without"];
        for text in texts {
            log.assert_one(text, "ERROR");
        }
    }
}
