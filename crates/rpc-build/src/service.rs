//! Generates the message enum of a service, and the implementations of its requests.

use std::collections::HashMap;
use std::fmt::Write;

use prost_build::{Comments, Method, Service, ServiceGenerator};
use prost_types::method_options::IdempotencyLevel;

/// The return type of rpcs without a reply.
pub(crate) const ONE_WAY: &str = ".rpc_core.OneWay";

/// The message that stands for `rpc_core::EndpointRef`.
pub(crate) const ENDPOINT_REF: &str = ".rpc_core.EndpointRef";

/// The attribute of all generated items.
///
/// It allows lints that a crate may have enabled for its own code. `dead_code` is needed for
/// clients, which construct requests but never match on the enum.
pub(crate) const ALLOW: &str = "#[allow(dead_code, missing_docs, unreachable_pub, \
                                unnameable_types, non_camel_case_types, \
                                clippy::all, clippy::pedantic, clippy::restriction)]";

pub(crate) struct Generator;

impl ServiceGenerator for Generator {
    fn generate(&mut self, service: Service, out: &mut String) {
        // Writing to a String cannot fail.
        let _ = write_service(&service, out);
    }
}

/// An rpc of the service.
struct Rpc<'a> {
    method: &'a Method,
    /// The type that implements `RpcRequest`.
    request: String,
    /// Indicates that `request` is a newtype around the message.
    is_newtype: bool,
    is_one_way: bool,
}

fn write_service(service: &Service, out: &mut String) -> std::fmt::Result {
    let mut use_counts = HashMap::<&str, usize>::new();
    for method in &service.methods {
        *use_counts.entry(&method.input_type).or_default() += 1;
    }
    let rpcs: Vec<Rpc<'_>> = service
        .methods
        .iter()
        .map(|method| {
            let is_newtype = use_counts[method.input_type.as_str()] > 1;
            let request = if is_newtype {
                format!("{}{}", service.name, method.proto_name)
            } else {
                method.input_type.clone()
            };
            Rpc { method, request, is_newtype, is_one_way: method.output_proto_type == ONE_WAY }
        })
        .collect();

    let full_name = if service.package.is_empty() {
        service.proto_name.clone()
    } else {
        format!("{}.{}", service.package, service.proto_name)
    };
    let message = format!("{}Message", service.name);

    write_enum(service, &message, &full_name, &rpcs, out)?;
    write_decode(&message, &full_name, &rpcs, out)?;
    for rpc in &rpcs {
        if rpc.is_newtype {
            write_newtype(&full_name, rpc, out)?;
        }
        write_request(&message, &full_name, rpc, out)?;
    }
    Ok(())
}

fn write_enum(
    service: &Service,
    message: &str,
    full_name: &str,
    rpcs: &[Rpc<'_>],
    out: &mut String,
) -> std::fmt::Result {
    write_docs(&service.comments, 0, out);
    if service.comments.leading.is_empty() {
        writeln!(out, "/// The messages of `{full_name}`.")?;
    }
    writeln!(out, "{ALLOW}\n#[derive(Debug)]\npub enum {message} {{")?;
    for rpc in rpcs {
        let Method { proto_name, input_type, output_type, comments, .. } = rpc.method;
        write_docs(comments, 1, out);
        if comments.leading.is_empty() {
            writeln!(out, "    /// The request of `rpc {proto_name}`.")?;
        }
        if rpc.is_one_way {
            writeln!(out, "    {proto_name}({input_type}),")?;
        } else {
            writeln!(
                out,
                "    {proto_name}({input_type}, ::rpc_core::RpcCallContext<{output_type}>),"
            )?;
        }
    }
    writeln!(out, "}}\n")
}

fn write_docs(comments: &Comments, indent: u8, out: &mut String) {
    let leading = Comments { leading: comments.leading.clone(), ..Comments::default() };
    leading.append_with_indent(indent, out);
}

fn write_decode(
    message: &str,
    full_name: &str,
    rpcs: &[Rpc<'_>],
    out: &mut String,
) -> std::fmt::Result {
    writeln!(out, "{ALLOW}\nimpl ::rpc_core::RpcMessage for {message} {{")?;
    writeln!(out, "    const SERVICES: &'static [&'static str] = &[\"{full_name}\"];\n")?;
    writeln!(
        out,
        "    fn decode(mut request: ::rpc_core::IncomingRequest<'_>) \
         -> ::core::result::Result<Self, ::rpc_core::RpcError> {{"
    )?;
    writeln!(out, "        match request.path() {{")?;
    for rpc in rpcs {
        let name = &rpc.method.proto_name;
        let context = if rpc.is_one_way { "" } else { ", request.context()" };
        writeln!(
            out,
            "            \"/{full_name}/{name}\" => Ok(Self::{name}(request.decode()?{context})),"
        )?;
    }
    writeln!(out, "            _ => Err(request.unknown_method()),\n        }}\n    }}\n}}\n")
}

fn write_newtype(full_name: &str, rpc: &Rpc<'_>, out: &mut String) -> std::fmt::Result {
    let Method { proto_name, input_type, .. } = rpc.method;
    writeln!(out, "/// The request of `rpc {proto_name}` of `{full_name}`.\n///")?;
    writeln!(out, "/// It is a newtype, because another rpc has the same request type.")?;
    writeln!(
        out,
        "{ALLOW}\n#[derive(Clone, Debug, PartialEq)]\npub struct {}(pub {input_type});\n",
        rpc.request
    )
}

fn write_request(
    message: &str,
    full_name: &str,
    rpc: &Rpc<'_>,
    out: &mut String,
) -> std::fmt::Result {
    let name = &rpc.method.proto_name;
    let inner = if rpc.is_newtype { "self.0" } else { "self" };
    let reply = if rpc.is_one_way { "()" } else { &rpc.method.output_type };
    writeln!(out, "{ALLOW}\nimpl ::rpc_core::RpcRequest<{message}> for {} {{", rpc.request)?;
    writeln!(out, "    type Reply = {reply};\n")?;
    writeln!(
        out,
        "    const METHOD: ::core::option::Option<::rpc_core::Method> = \
         ::core::option::Option::Some(::rpc_core::Method::new(\"/{full_name}/{name}\"));"
    )?;
    if rpc.method.options.idempotency_level() != IdempotencyLevel::IdempotencyUnknown {
        writeln!(out, "    const IDEMPOTENT: bool = true;")?;
    }
    if rpc.is_one_way {
        writeln!(out, "    const ONE_WAY: bool = true;")?;
        writeln!(
            out,
            "\n    fn into_message(self, _: ::rpc_core::RpcCallContext<()>) -> {message} {{"
        )?;
        writeln!(out, "        {message}::{name}({inner})\n    }}")?;
    } else {
        writeln!(
            out,
            "\n    fn into_message(self, context: ::rpc_core::RpcCallContext<{reply}>) \
             -> {message} {{"
        )?;
        writeln!(out, "        {message}::{name}({inner}, context)\n    }}")?;
    }
    let borrow = if rpc.is_newtype { "&self.0" } else { "self" };
    writeln!(
        out,
        "\n    fn encode(&self, body: &mut ::rpc_core::EncodeBuf<'_>) \
         -> ::core::result::Result<(), ::rpc_core::RpcError> {{"
    )?;
    writeln!(out, "        body.put_message({borrow})\n    }}")?;
    if !rpc.is_one_way {
        writeln!(
            out,
            "\n    fn decode_reply(body: ::rpc_core::DecodeBuf) \
             -> ::core::result::Result<{reply}, ::rpc_core::RpcError> {{"
        )?;
        writeln!(out, "        body.decode()\n    }}")?;
    }
    writeln!(out, "}}\n")
}
