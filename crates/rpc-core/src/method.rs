//! `Method`: the path of one rpc, which messages carry in their envelope.

/// The path of one rpc in the form of gRPC: `/package.Service/Method`.
///
/// ```
/// let method = rpc_core::Method::new("/hello.Hello/SayHi");
/// assert_eq!((method.service(), method.name()), ("hello.Hello", "SayHi"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Method(&'static str);

impl Method {
    /// Makes a method from its path.
    #[must_use]
    pub const fn new(path: &'static str) -> Self {
        Self(path)
    }

    /// Returns the whole path, such as `/hello.Hello/SayHi`.
    #[must_use]
    pub const fn path(&self) -> &'static str {
        self.0
    }

    /// Returns the full name of the service, such as `hello.Hello`.
    #[must_use]
    pub fn service(&self) -> &'static str {
        split_path(self.0).0
    }

    /// Returns the name of the rpc in the service, such as `SayHi`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        split_path(self.0).1
    }
}

/// Returns whether a path is `/service/` and the name of a method.
pub(crate) fn is_of_service(path: &str, service: &str) -> bool {
    let path = path.as_bytes();
    path.first() == Some(&b'/')
        && path.get(service.len() + 1) == Some(&b'/')
        && &path[1..=service.len()] == service.as_bytes()
}

/// Splits a path into service and method. A text without `/` is a method with an empty service.
pub(crate) fn split_path(path: &str) -> (&str, &str) {
    path.strip_prefix('/').unwrap_or(path).rsplit_once('/').unwrap_or(("", path))
}
