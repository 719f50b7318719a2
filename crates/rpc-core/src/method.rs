//! The name of one rpc, which travels in the envelope.

/// The name of one rpc.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Method {
    service: &'static str,
    name: &'static str,
}

impl Method {
    /// The rpc `name` of the service with the full name `service`.
    #[must_use]
    pub const fn new(service: &'static str, name: &'static str) -> Self {
        Self { service, name }
    }

    /// Full name of the service: `hello.Hello`.
    #[must_use]
    pub fn service(&self) -> &'static str {
        self.service
    }

    /// Name of the rpc: `SayHi`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }
}
