//! Servers that send wrong, short, or no bytes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use network_common::ErrorKind;
use network_shuffle::client::{BlockError, BlockLocation, FetchTarget};
use network_shuffle::protocol::{BlockId, BlockTransferMessage};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::server::{Answer, BlockServer, block, client, collect, text, within};
use crate::support::EXEC;

const RPC_RESPONSE: u8 = 4;
const CHUNK_SUCCESS: u8 = 1;
const STREAM_RESPONSE: u8 = 7;

fn handle(num_chunks: i32) -> Bytes {
    BlockTransferMessage::StreamHandle { stream_id: 7, num_chunks }.encode()
}

#[tokio::test]
async fn bc_04_wrong_answers_to_open_request_fail_every_block() {
    let cases = [
        (Bytes::new(), "message type"),
        (Bytes::from_static(&[99]), "Unknown message type: 99"),
        (Bytes::from_static(&[3, 0]), "streamId"),
        (BlockTransferMessage::BlocksRemoved { count: 2 }.encode(), "no StreamHandle"),
        (handle(1), "1 chunks for 2 blocks"),
        (handle(3), "3 chunks for 2 blocks"),
        (handle(i32::MAX), "2147483647 chunks for 2 blocks"),
        (handle(-1), "-1 chunks for 2 blocks"),
    ];
    for (answer, expected) in cases {
        let server = BlockServer::start(move |_| Answer::Bytes(answer.clone())).await;
        let fetch = client(&[]).fetch_blocks(
            &server.location(),
            [block(0, 0), block(1, 0)],
            FetchTarget::Memory,
        );
        let results = collect(fetch).await;
        assert_eq!(results.len(), 2);
        for (_, result) in results {
            let error = result.unwrap_err();
            assert!(matches!(error, BlockError::UnexpectedAnswer { .. }), "{error:?}");
            assert!(text(&error).contains(expected), "{error:#}");
            assert!(text(&error).contains(&server.location().address.to_string()), "{error:#}");
        }
        // A repetition would get the same answer.
        assert_eq!(server.opened_blocks().len(), 1);
    }
}

/// Accepts connections one after the other, and runs `serve` on each.
async fn raw_server<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            serve(socket).await;
        }
    });
    address
}

/// Reads a frame; returns its type and the bytes behind it.
async fn read_frame(socket: &mut TcpStream) -> (u8, Vec<u8>) {
    let length = socket.read_u64().await.unwrap();
    let mut payload = vec![0; length as usize - 8];
    socket.read_exact(&mut payload).await.unwrap();
    (payload[0], payload[1..].to_vec())
}

/// Returns a frame that announces `missing` bytes more than it has.
fn frame(kind: u8, parts: &[&[u8]], missing: u64) -> Vec<u8> {
    let payload = parts.concat();
    let length = 9 + payload.len() as u64 + missing;
    [&length.to_be_bytes()[..], &[kind], &payload].concat()
}

/// Answers the request to open a stream, and reads the next request.
async fn open(socket: &mut TcpStream, chunks: i32) {
    let (_, request) = read_frame(socket).await;
    let answer = handle(chunks);
    let length = (answer.len() as u32).to_be_bytes();
    let response = frame(RPC_RESPONSE, &[&request[..8], &length, &answer], 0);
    socket.write_all(&response).await.unwrap();
    read_frame(socket).await;
}

async fn fetch_raw(
    address: SocketAddr,
    target: FetchTarget,
    settings: &[(&str, &str)],
) -> Vec<(BlockId, Result<Bytes, BlockError>)> {
    let mut all = vec![("spark.shuffle.io.maxRetries", "1")];
    all.extend_from_slice(settings);
    let location = BlockLocation::new(address, EXEC);
    let fetch = client(&all).fetch_blocks(&location, [block(0, 0), block(1, 0)], target);
    collect(fetch).await
}

#[tokio::test]
async fn bc_04_body_that_is_cut_fails_as_lost_connection() {
    let address = raw_server(|mut socket| async move {
        open(&mut socket, 2).await;
        let id = [7_i64.to_be_bytes().to_vec(), 0_i32.to_be_bytes().to_vec()].concat();
        let response = frame(CHUNK_SUCCESS, &[&id, &[1; 1000]], 5000);
        socket.write_all(&response).await.unwrap();
    })
    .await;
    for (_, result) in fetch_raw(address, FetchTarget::Memory, &[]).await {
        let error = result.unwrap_err();
        let BlockError::Transport { source, .. } = &error else { panic!("{error:?}") };
        // A reset, if the server has not read the last request.
        let is_lost = matches!(source.kind(), ErrorKind::Closed | ErrorKind::Io);
        assert!(is_lost, "{error:#}");
    }
}

#[tokio::test]
async fn bc_04_stream_that_is_cut_fails_and_leaves_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let address = raw_server(|mut socket| async move {
        open(&mut socket, 2).await;
        let id = [&3_u32.to_be_bytes()[..], b"7_0"].concat();
        let response = frame(STREAM_RESPONSE, &[&id, &5_000_000_i64.to_be_bytes()], 0);
        socket.write_all(&response).await.unwrap();
        socket.write_all(&[1; 1_000_000]).await.unwrap();
    })
    .await;
    let target = FetchTarget::Files(directory.path().to_owned());
    for (_, result) in fetch_raw(address, target, &[]).await {
        result.unwrap_err();
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn bc_04_chunks_that_were_not_requested_are_ignored() {
    let address = raw_server(|mut socket| async move {
        open(&mut socket, 2).await;
        for (stream, index, body) in [
            (8_i64, 0_i32, b"wrong stream"),
            (7, 5, b"wrong chunk!"),
            (7, 0, b"right chunk!"),
            (7, 1, b"right chunk!"),
        ] {
            let response =
                frame(CHUNK_SUCCESS, &[&stream.to_be_bytes(), &index.to_be_bytes(), body], 0);
            socket.write_all(&response).await.unwrap();
        }
        // Until the client closes.
        let _ = socket.read_to_end(&mut Vec::new()).await;
    })
    .await;
    for (_, result) in fetch_raw(address, FetchTarget::Memory, &[]).await {
        assert_eq!(result.unwrap(), "right chunk!");
    }
}

#[tokio::test]
async fn bc_04_stalled_server_times_out_at_every_step() {
    let timeout = [("spark.shuffle.io.connectionTimeout", "1s")];
    for step in 0..3 {
        let address = raw_server(move |mut socket| async move {
            if step > 0 {
                open(&mut socket, 2).await;
            }
            if step > 1 {
                let id = [7_i64.to_be_bytes().to_vec(), 0_i32.to_be_bytes().to_vec()].concat();
                let half = frame(CHUNK_SUCCESS, &[&id, &[1; 1000]], 5000);
                socket.write_all(&half).await.unwrap();
            }
            let _ = socket.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let start = Instant::now();
        let settings = [timeout[0], ("spark.shuffle.io.maxRetries", "0")];
        for (_, result) in fetch_raw(address, FetchTarget::Memory, &settings).await {
            let error = result.unwrap_err();
            let BlockError::Transport { source, .. } = &error else { panic!("{error:?}") };
            assert_eq!(source.kind(), ErrorKind::Timeout, "step {step}: {error:#}");
            assert!(text(&error).contains("spark.shuffle.io.connectionTimeout"), "{error:#}");
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn bc_04_garbage_is_not_repeated() {
    let address = raw_server(|mut socket| async move {
        read_frame(&mut socket).await;
        socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let _ = socket.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let results = within(fetch_raw(address, FetchTarget::Memory, &[])).await;
    for (_, result) in results {
        let error = result.unwrap_err();
        let BlockError::Transport { source, .. } = &error else { panic!("{error:?}") };
        assert_eq!(source.kind(), ErrorKind::Protocol, "{error:#}");
    }
}
