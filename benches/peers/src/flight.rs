//! arrow-flight with one `do_get` per chunk.
//!
//! The server streams a chunk in messages of 1 MiB from memory, so it does not read a file. The
//! flow-control windows and the frames are large enough that they do not limit the rate.

use std::net::SocketAddr;

use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo,
    HandshakeRequest, HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket,
};
use benches::load::{Request, Target};
use benches::protocol::Case;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use tonic::transport::{Channel, Endpoint, Server, server::TcpIncoming};
use tonic::{Response, Status, Streaming};

use crate::{MAX_BODY, memory};

const MESSAGE: usize = 1 << 20;
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;
const FRAME: u32 = 1 << 20;

struct ChunkService;

type Messages<T> = BoxStream<'static, Result<T, Status>>;

/// Implements the methods of Flight that the benches do not use.
///
/// `async_trait` does not expand macro calls, so this macro writes the signatures that it would
/// generate.
macro_rules! unused {
    ($($name:ident($request:ty) -> $response:ty;)*) => {
        $(fn $name<'a, 'b>(
            &'a self,
            _: tonic::Request<$request>,
        ) -> BoxFuture<'b, Result<Response<$response>, Status>>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
        })*
    };
}

#[tonic::async_trait]
impl FlightService for ChunkService {
    type HandshakeStream = Messages<HandshakeResponse>;
    type ListFlightsStream = Messages<FlightInfo>;
    type DoGetStream = Messages<FlightData>;
    type DoPutStream = Messages<PutResult>;
    type DoExchangeStream = Messages<FlightData>;
    type DoActionStream = Messages<arrow_flight::Result>;
    type ListActionsStream = Messages<ActionType>;

    async fn do_get(
        &self,
        request: tonic::Request<Ticket>,
    ) -> Result<Response<Self::DoGetStream>, Status> {
        let size: usize = std::str::from_utf8(&request.into_inner().ticket)
            .ok()
            .and_then(|size| size.parse().ok())
            .filter(|size| *size <= MAX_BODY)
            .ok_or_else(|| Status::invalid_argument("the ticket is not a valid size"))?;
        let pieces = (0..size).step_by(MESSAGE).map(move |start| {
            Ok(FlightData { data_body: memory(MESSAGE.min(size - start)), ..FlightData::default() })
        });
        Ok(Response::new(Box::pin(stream::iter(pieces))))
    }

    unused! {
        handshake(Streaming<HandshakeRequest>) -> Self::HandshakeStream;
        list_flights(Criteria) -> Self::ListFlightsStream;
        get_flight_info(FlightDescriptor) -> FlightInfo;
        poll_flight_info(FlightDescriptor) -> PollInfo;
        get_schema(FlightDescriptor) -> SchemaResult;
        do_put(Streaming<FlightData>) -> Self::DoPutStream;
        do_exchange(Streaming<FlightData>) -> Self::DoExchangeStream;
        do_action(Action) -> Self::DoActionStream;
        list_actions(Empty) -> Self::ListActionsStream;
    }
}

/// Starts a server on a free port and returns its address.
pub async fn listen() -> anyhow::Result<SocketAddr> {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true));
    let address = incoming.local_addr()?;
    let service = FlightServiceServer::new(ChunkService).max_encoding_message_size(2 * MAX_BODY);
    let server = Server::builder().max_frame_size(FRAME).add_service(service);
    tokio::spawn(server.serve_with_incoming(incoming));
    Ok(address)
}

/// A connection.
#[derive(Clone)]
pub struct Flight(FlightServiceClient<Channel>);

impl Target for Flight {
    const CASES: &'static [Case] = &[Case::FetchFile, Case::FetchMemory];
    const IS_EAGER: bool = false;

    async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let client = FlightServiceClient::new(endpoint.connect().await?);
        Ok(Self(client.max_decoding_message_size(2 * MAX_BODY)))
    }

    fn call(&self, request: &Request) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let (mut client, size) = (self.0.clone(), request.size);
        async move {
            let mut messages =
                client.do_get(Ticket { ticket: size.to_string().into() }).await?.into_inner();
            let mut read = 0;
            while let Some(message) = messages.message().await? {
                read += message.data_body.len();
            }
            anyhow::ensure!(read == size, "the body has a wrong length");
            Ok(())
        }
    }
}
