//! The path of one rpc, which travels in the envelope.

/// The path of one rpc, as gRPC writes it: `/package.Service/Method`.
///
/// ```
/// let method = rpc_core::Method::new("/hello.Hello/SayHi");
/// assert_eq!((method.service(), method.name()), ("hello.Hello", "SayHi"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Method(&'static str);

impl Method {
    /// The rpc with this path.
    #[must_use]
    pub const fn new(path: &'static str) -> Self {
        Self(path)
    }

    /// The whole path: `/hello.Hello/SayHi`.
    #[must_use]
    pub const fn path(&self) -> &'static str {
        self.0
    }

    /// The full name of the service: `hello.Hello`.
    #[must_use]
    pub fn service(&self) -> &'static str {
        split(self.0).0
    }

    /// The name of the rpc in the service: `SayHi`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        split(self.0).1
    }
}

/// Whether a path is `/service/` and the name of a method.
pub(crate) fn is_of_service(path: &str, service: &str) -> bool {
    let path = path.as_bytes();
    path.first() == Some(&b'/')
        && path.get(service.len() + 1) == Some(&b'/')
        && &path[1..=service.len()] == service.as_bytes()
}

/// Splits a path into service and method. A text without `/` is a method of no service.
pub(crate) fn split(path: &str) -> (&str, &str) {
    path.strip_prefix('/').unwrap_or(path).rsplit_once('/').unwrap_or(("", path))
}
