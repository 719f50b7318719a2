//! Compiles `.proto` files into Rust files, one for each package.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{env, fmt, fs, io};

use prost_types::FileDescriptorSet;
use protox::Compiler;
use protox::file::{
    ChainFileResolver, File, FileResolver, GoogleFileResolver, IncludeFileResolver,
};

use crate::service::{ALLOW, ENDPOINT_REF, Generator, ONE_WAY};

/// Compiles `protos` and writes one Rust file per package to `OUT_DIR`.
///
/// Include a file with `rpc_core::include_proto!`. `includes` are the directories that are searched
/// for `protos` and their imports, in this order. `rpc_core.proto` and `google/protobuf/*.proto`
/// are built in. The function prints `cargo:rerun-if-changed` for every file that it reads, so
/// cargo runs the build script again when one of them changes.
///
/// # Errors
///
/// Fails if a file is missing or invalid (the error contains the line and column), if an rpc uses
/// `stream`, or if `OUT_DIR` is not set or not writable.
pub fn compile_protos(
    protos: &[impl AsRef<Path>],
    includes: &[impl AsRef<Path>],
) -> Result<(), Error> {
    let out = env::var_os("OUT_DIR")
        .ok_or_else(|| Error::new("OUT_DIR is not set: call this from build.rs"))?;
    for file in compile_protos_into(Path::new(&out), protos, includes)? {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    Ok(())
}

/// Compiles `protos` into the directory `out`, and returns the paths of the files it read.
///
/// This is for crates that commit the generated code, so that their users need no build script.
/// `include!` includes a file of `out`.
///
/// # Errors
///
/// Fails as [`compile_protos`], or if `out` is not writable.
pub fn compile_protos_into(
    out: impl AsRef<Path>,
    protos: &[impl AsRef<Path>],
    includes: &[impl AsRef<Path>],
) -> Result<Vec<PathBuf>, Error> {
    let out = out.as_ref();
    let mut resolver = ChainFileResolver::new();
    for include in includes {
        resolver.add(IncludeFileResolver::new(include.as_ref().to_owned()));
    }
    resolver.add(BuiltInResolver);
    resolver.add(GoogleFileResolver::new());

    let mut compiler = Compiler::with_file_resolver(resolver);
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(protos.iter().map(AsRef::as_ref)).map_err(|e| Error(format!("{e:?}")))?;
    let files = compiler.files().filter_map(|file| file.path().map(Path::to_owned)).collect();
    let descriptors = compiler.file_descriptor_set();
    reject_streams(&descriptors)?;
    let packages: BTreeSet<String> =
        descriptors.file.iter().map(|file| file.package().to_owned()).collect();

    fs::create_dir_all(out).map_err(|e| Error(format!("cannot create {}: {e}", out.display())))?;
    prost_build::Config::new()
        .out_dir(out)
        .prost_path("::rpc_core::codegen::prost")
        .bytes(["."])
        // A `OneWay` is never sent or constructed. This path keeps it out of the output.
        .extern_path(ONE_WAY, "()")
        .extern_path(ENDPOINT_REF, "::rpc_core::EndpointRef")
        .type_attribute(".", ALLOW)
        .service_generator(Box::new(Generator))
        .compile_fds(descriptors)
        .map_err(|e| Error(e.to_string()))?;
    for package in packages {
        let file = out.join(format!("{package}.rs"));
        allow_lints_in_modules(&file)
            .map_err(|e| Error(format!("cannot rewrite {}: {e}", file.display())))?;
    }
    Ok(files)
}

/// Adds [`ALLOW`] to the modules in `file`.
///
/// prost-build adds attributes to types, but not to the modules of nested types.
fn allow_lints_in_modules(file: &Path) -> io::Result<()> {
    // A package whose types are all replaced by `extern_path` has no file.
    if !file.exists() {
        return Ok(());
    }
    let text = fs::read_to_string(file)?;
    fs::write(file, text.replace("\npub mod ", &format!("\n{ALLOW}\npub mod ")))
}

/// Fails if an rpc uses `stream`.
fn reject_streams(descriptors: &FileDescriptorSet) -> Result<(), Error> {
    for service in descriptors.file.iter().flat_map(|file| &file.service) {
        for method in &service.method {
            if method.client_streaming() || method.server_streaming() {
                return Err(Error(format!(
                    "rpc {}.{} uses `stream`, which rpc-core does not support: send bulk data \
                     through network-common, or one message per item",
                    service.name(),
                    method.name(),
                )));
            }
        }
    }
    Ok(())
}

/// Resolves the import of `rpc_core.proto`, which users do not have on disk.
struct BuiltInResolver;

impl FileResolver for BuiltInResolver {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        match name {
            "rpc_core.proto" => File::from_source(name, include_str!("../proto/rpc_core.proto")),
            _ => Err(protox::Error::file_not_found(name)),
        }
    }
}

/// The error of a failed compilation.
///
/// `Debug` prints the same text as `Display`, so that the text is readable if the build script
/// calls `unwrap` or returns the error.
pub struct Error(String);

impl Error {
    fn new(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(source: &str) -> Result<String, Error> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.proto"), source).unwrap();
        let out = dir.path().join("out");
        compile_protos_into(&out, &["a.proto"], &[dir.path()])?;
        Ok(fs::read_to_string(out.join("pkg.rs")).unwrap())
    }

    const HEADER: &str = "syntax = \"proto3\"; package pkg; import \"rpc_core.proto\"; \
                          import \"google/protobuf/empty.proto\"; message A {} message B {} ";

    fn compile_service(rpcs: &str) -> Result<String, Error> {
        compile(&format!("{HEADER} service Svc {{ {rpcs} }}"))
    }

    #[test]
    fn rpc_becomes_variant_with_call_context() {
        let text = compile_service("rpc Get(A) returns (B);").unwrap();
        assert!(text.contains("pub enum SvcMessage {"), "{text}");
        assert!(text.contains("Get(A, ::rpc_core::RpcCallContext<B>),"), "{text}");
        assert!(text.contains("impl ::rpc_core::RpcRequest<SvcMessage> for A {"), "{text}");
        assert!(text.contains("type Reply = B;"), "{text}");
        assert!(text.contains(r#"::rpc_core::Method::new("/pkg.Svc/Get")"#), "{text}");
    }

    #[test]
    fn one_way_rpc_becomes_variant_without_call_context() {
        let text = compile_service("rpc Post(A) returns (rpc_core.OneWay);").unwrap();
        assert!(text.contains("Post(A),"), "{text}");
        assert!(text.contains("const ONE_WAY: bool = true;"), "{text}");
        assert!(!text.contains("RpcCallContext<OneWay>"), "{text}");
    }

    #[test]
    fn retry_10_idempotent_rpc_is_marked() {
        let compile = |level| {
            let options = format!("{{ option idempotency_level = {level}; }}");
            compile_service(&format!("rpc Get(A) returns (B) {options}")).unwrap()
        };
        let mark = "const IDEMPOTENT: bool = true;";
        assert!(compile("IDEMPOTENT").contains(mark));
        assert!(compile("NO_SIDE_EFFECTS").contains(mark));
        assert!(!compile("IDEMPOTENCY_UNKNOWN").contains("IDEMPOTENT: bool"));
        assert!(!compile_service("rpc Get(A) returns (B);").unwrap().contains("IDEMPOTENT: bool"));
    }

    #[test]
    fn empty_return_type_becomes_unit_reply() {
        let text = compile_service("rpc Get(A) returns (google.protobuf.Empty);").unwrap();
        assert!(text.contains("Get(A, ::rpc_core::RpcCallContext<()>),"), "{text}");
    }

    #[test]
    fn ref_field_has_the_type_of_rpc_core() {
        let text =
            compile(&format!("{HEADER} message C {{ rpc_core.EndpointRef peer = 1; }}")).unwrap();
        assert!(
            text.contains("pub peer: ::core::option::Option<::rpc_core::EndpointRef>,"),
            "{text}"
        );
    }

    #[test]
    fn rpcs_with_the_same_request_type_get_newtypes() {
        let text = compile_service(
            "rpc Get(A) returns (B); rpc Put(A) returns (B); rpc Del(B) returns (A);",
        )
        .unwrap();
        assert!(text.contains("pub struct SvcGet(pub A);"), "{text}");
        assert!(text.contains("pub struct SvcPut(pub A);"), "{text}");
        assert!(text.contains("impl ::rpc_core::RpcRequest<SvcMessage> for SvcPut {"), "{text}");
        assert!(!text.contains("RpcRequest<SvcMessage> for A {"), "{text}");
        assert!(text.contains("impl ::rpc_core::RpcRequest<SvcMessage> for B {"), "{text}");
    }

    #[test]
    fn comment_becomes_doc_comment() {
        let text = compile_service("\n// Fetches it.\nrpc Get(A) returns (B);").unwrap();
        assert!(text.contains("    /// Fetches it.\n    Get("), "{text}");
    }

    #[test]
    fn error_names_rpc_that_uses_stream() {
        let error = compile_service("rpc Watch(A) returns (stream B);").unwrap_err();
        assert!(error.to_string().contains("Svc.Watch"), "{error}");
    }

    #[test]
    fn error_names_unknown_type() {
        let error =
            compile("syntax = \"proto3\"; package pkg; message A { Unknown u = 1; }").unwrap_err();
        assert!(error.to_string().contains("Unknown"), "{error}");
    }
}
