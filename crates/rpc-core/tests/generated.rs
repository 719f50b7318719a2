//! Code that rpc-build generates: it compiles under strict lints, and each form of rpc works.

/// The generated code of a service with every form of rpc.
#[deny(warnings, missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::unwrap_used)]
pub mod coverage {
    include!("generated/coverage.rs");
}

use std::collections::BTreeMap;

use coverage::{Key, Mark, Pair, StoreGet, StoreMessage, StoreRemove, Value};
use rpc_core::{EndpointContext, RpcEnv, RpcError, RpcMessage, ThreadSafeRpcEndpoint};

/// An endpoint that stores values by name, and counts `Touch` messages.
#[derive(Default)]
struct Store {
    values: BTreeMap<String, i64>,
    touched: i64,
}

impl ThreadSafeRpcEndpoint for Store {
    type Message = StoreMessage;

    async fn receive(
        &mut self,
        message: StoreMessage,
        _: &EndpointContext<StoreMessage>,
    ) -> Result<(), RpcError> {
        match message {
            StoreMessage::Get(key, context) => match self.values.get(&key.name) {
                Some(value) => context.reply(Value { value: *value }),
                None => Err(RpcError::application(format!("no {}", key.name))),
            },
            StoreMessage::Remove(key, context) => {
                self.values.remove(&key.name);
                context.reply(())
            }
            StoreMessage::Put(pair, context) => {
                let name = pair.key.unwrap_or_default().name;
                self.values.insert(name, pair.value.unwrap_or_default().value);
                context.reply(())
            }
            StoreMessage::Touch(_) => {
                self.touched += 1;
                Ok(())
            }
            StoreMessage::Count((), context) => context.reply(Value { value: self.touched }),
        }
    }
}

#[tokio::test]
async fn generated_code_handles_every_form_of_rpc() -> Result<(), RpcError> {
    assert_eq!(StoreMessage::SERVICES, ["coverage.Store"]);
    let env = RpcEnv::builder("generated").client_mode().start().await?;
    let store = env.setup_endpoint("store", Store::default())?;
    let key = Key { name: "a".to_owned() };
    store
        .ask(Pair { key: Some(key.clone()), value: Some(Value { value: 5 }), ..Pair::default() })
        .await?;
    store.send(Mark { name: String::new() })?;
    assert_eq!(store.ask(StoreGet(key.clone())).await?.value, 5);
    store.ask(StoreRemove(key.clone())).await?;
    assert_eq!(store.ask(StoreGet(key)).await.unwrap_err().to_string(), "no a");
    assert_eq!(store.ask(()).await?.value, 1);
    Ok(())
}
