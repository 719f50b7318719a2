//! The cases of the client. The Java client of `interop/java` has the same cases and names.

use std::future::Future;
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use network_common::{
    ErrorKind, ManagedBuffer, RpcFuture, TransportClient, TransportClientFactory, TransportContext,
    TransportError,
};
use tempfile::NamedTempFile;

use crate::client::{
    Report, check_equal, check_equal_text, collect_stream, expect_close, expect_failure,
    expect_success,
};
use crate::protocol::{digest_response_for, pattern};

const MIB: usize = 1 << 20;
/// Two chunks of 4 MiB and a rest, so that segments can begin and end at any offset.
const FILE_SIZE: usize = 9 * MIB + 17;
const NO_SUCH_STREAM_ID: i64 = 4_611_686_018_427_387_905;

/// Runs all cases, and returns whether none failed.
pub(crate) async fn run(
    context: TransportContext,
    host: String,
    port: u16,
    since_3_2: bool,
) -> Result<bool> {
    let content = file_content();
    let file = NamedTempFile::with_prefix("spark-peer")?;
    std::fs::write(&file, &content)?;
    let factory = context.create_client_factory();

    let mut report = Report::default();
    let mut client = None;
    report
        .check("connect", async {
            client = Some(factory.create_client((host.as_str(), port)).await?);
            Ok(())
        })
        .await;
    if let Some(client) = client {
        let server = TestedServer { client, factory, host, port, file, content, since_3_2 };
        server.rpcs(&mut report).await;
        server.chunks(&mut report).await;
        server.streams(&mut report).await;
        server.uploads(&mut report).await;
        server.merged_block_meta(&mut report).await;
        report
            .check("all kinds of requests at once on one connection", server.everything_at_once())
            .await;
        server.callbacks(&mut report).await;
        server.connections(&mut report).await;
    }
    Ok(report.finish())
}

/// The server under test, and the data that the cases share.
struct TestedServer {
    /// The connection that all cases share, except those that close a connection.
    client: TransportClient,
    factory: TransportClientFactory,
    host: String,
    port: u16,
    file: NamedTempFile,
    /// The content of the file.
    content: Bytes,
    /// The server has merged block meta and can respond to an upload with bytes.
    since_3_2: bool,
}

impl TestedServer {
    async fn rpcs(&self, report: &mut Report) {
        report.check("echo of no bytes", self.echo(b"")).await;
        report.check("echo of a few bytes", self.echo(b"abc")).await;
        report.check("echo of every byte value", self.echo(&every_byte())).await;
        report.check("echo of 1 MiB", self.echo(&pattern(1, MIB))).await;
        // From 20 MiB on, Spark's frame decoder consolidates the received buffers.
        report.check("echo of 24 MiB", self.echo(&pattern(2, 24 * MIB))).await;
        let expect_failure = |request: &'static str, part: &'static str| {
            expect_failure(self.client.send_rpc(request), ErrorKind::Remote, part)
        };
        report
            .check(
                "fail carries its message",
                expect_failure("fail:out of cheese ü ✓", "out of cheese ü ✓"),
            )
            .await;
        report.check("fail without a message", expect_failure("fail:", "")).await;
        report
            .check("unknown request fails", expect_failure("nonsense:1", "unknown request"))
            .await;
        report.check("empty request fails", expect_failure("", "unknown request")).await;
        report.check("100 concurrent echoes", self.echoes(100, 997)).await;
        report.check("5000 pipelined echoes", self.echoes(5000, 3)).await;
        report.check("one-way messages are counted and get no response", self.one_ways()).await;
    }

    async fn chunks(&self, report: &mut Report) {
        report.check("memory chunks one by one", self.memory_chunks(16, 10_000, false)).await;
        report.check("memory chunks pipelined", self.memory_chunks(16, 100_000, true)).await;
        report.check("1000 small memory chunks pipelined", self.memory_chunks(1000, 7, true)).await;
        report.check("empty memory chunks", self.memory_chunks(3, 0, true)).await;
        report.check("memory chunks of 4 MiB", self.memory_chunks(3, 4 * MIB, true)).await;
        report.check("empty file chunks", self.file_chunks(3, 0)).await;
        report.check("file chunks of 1 byte", self.file_chunks(5, 1)).await;
        report.check("file chunks of 100000 bytes", self.file_chunks(20, 100_000)).await;
        report.check("file chunks of 4 MiB", self.file_chunks(2, 4 * MIB)).await;
        report.check("a file in one chunk", self.file_chunks(1, FILE_SIZE)).await;
        report.check("two streams read alternately", self.two_chunk_streams()).await;

        let expect_failure = |id, index, part| {
            expect_failure(self.client.fetch_chunk(id, index), ErrorKind::ChunkFetchFailure, part)
        };
        let case = async {
            let id = self.open("open:3:10").await?;
            expect_failure(id, 1, "out-of-order chunk index").await?;
            expect_failure(id, -1, "out-of-order chunk index").await?;
            for i in 0..3 {
                check_equal(
                    &pattern(i, 10),
                    &expect_success(self.client.fetch_chunk(id, i as i32)).await?,
                )?;
            }
            Ok(())
        };
        report.check("chunk out of order fails, the stream continues", case).await;
        let case = async {
            let id = self.open("open:1:10").await?;
            check_equal(&pattern(0, 10), &expect_success(self.client.fetch_chunk(id, 0)).await?)?;
            expect_failure(id, 1, "").await?;
            self.alive().await
        };
        report.check("chunk beyond the end fails", case).await;
        let case = async {
            expect_failure(NO_SUCH_STREAM_ID, 0, "").await?;
            self.alive().await
        };
        report.check("chunk of an unknown stream fails", case).await;
    }

    async fn streams(&self, report: &mut Report) {
        report.check("empty stream", self.pattern_stream(0)).await;
        report.check("stream of 1 byte", self.pattern_stream(1)).await;
        report.check("stream of 100000 bytes", self.pattern_stream(100_000)).await;
        report.check("stream of 8 MiB", self.pattern_stream(8 * MIB)).await;
        report.check("stream of a file", self.stream(&self.file_stream(), &self.content)).await;
        let case = async {
            let empty = NamedTempFile::with_prefix("spark-peer-empty")?;
            self.stream(&format!("file:{}", empty.path().display()), b"").await
        };
        report.check("stream of an empty file", case).await;

        let expect_failure = |id: String, part| async move {
            expect_failure(self.client.stream(&id), ErrorKind::StreamFailure, part).await?;
            self.alive().await
        };
        let case = expect_failure("no such ü".to_owned(), "Stream 'no such ü' was not found");
        report.check("unknown stream fails", case).await;
        let case = expect_failure(self.file_stream() + ".missing", "was not found");
        report.check("stream of a missing file fails", case).await;
        report.check("20 concurrent streams, some failing", self.concurrent_streams()).await;
    }

    async fn uploads(&self, report: &mut Report) {
        report.check("upload of no bytes", self.upload(Bytes::new())).await;
        report.check("upload of a few bytes", self.upload(every_byte())).await;
        report.check("upload of 1 MiB", self.upload(pattern(3, MIB).into())).await;
        report.check("upload of a file", self.upload_file(0..FILE_SIZE)).await;
        report.check("upload of a part of a file", self.upload_file(1001..1001 + 3 * MIB)).await;
        report.check("10 concurrent uploads", self.concurrent_uploads()).await;
        let case = async {
            let own = self.own_connection().await?;
            expect_failure(
                own.upload_stream("nonsense", every_byte()),
                ErrorKind::Remote,
                "unknown upload",
            )
            .await
        };
        report.check("upload of an unknown kind fails", case).await;
    }

    async fn merged_block_meta(&self, report: &mut Report) {
        if !self.since_3_2 {
            return report.skip("merged block meta", "came with Spark 3.2");
        }
        let succeeds = |app_id, shuffle_id, shuffle_merge_id, reduce_id| async move {
            let request =
                self.client.merged_block_meta(app_id, shuffle_id, shuffle_merge_id, reduce_id);
            let meta = expect_success(request).await?;
            ensure!(
                meta.num_chunks == 3,
                "the response has {} chunks instead of 3",
                meta.num_chunks
            );
            check_equal_text(
                &format!("merged:{app_id}:{shuffle_id}:{shuffle_merge_id}:{reduce_id}"),
                &meta.body,
            )
        };
        report.check("merged block meta", succeeds("app-ü", 7, 2, 5)).await;
        report
            .check("merged block meta of extreme numbers", succeeds("", i32::MIN, -1, i32::MAX))
            .await;
        let request = self.client.merged_block_meta("app-1", 7, 2, -1);
        report
            .check(
                "merged block meta fails",
                expect_failure(request, ErrorKind::Remote, "no merged block"),
            )
            .await;
    }

    async fn callbacks(&self, report: &mut Report) {
        let callback = |count| async move {
            let done = expect_success(self.client.send_rpc(format!("callback:{count}"))).await?;
            check_equal_text(&format!("done:{count}"), &done)
        };
        report.check("no callback", callback(0)).await;
        report.check("5 callbacks", callback(5)).await;
        report.check("500 callbacks", callback(500)).await;
    }

    async fn connections(&self, report: &mut Report) {
        let case = async {
            let own = self.own_connection().await?;
            let (mut first, mut second) = (own.send_rpc("hang"), own.send_rpc("hang"));
            // The server handles requests in order, so it has received both now.
            check_equal(b"", &expect_success(own.send_rpc("echo:")).await?)?;
            let has_response =
                (&mut first).now_or_never().is_some() || (&mut second).now_or_never().is_some();
            ensure!(!has_response, "the server responded to hang");
            own.close();
            expect_failure(first, ErrorKind::Closed, "").await?;
            expect_failure(second, ErrorKind::Closed, "").await
        };
        report.check("closing the connection fails pending requests", case).await;
        let case = async {
            let own = self.own_connection().await?;
            let hanging = own.send_rpc("hang");
            expect_failure(own.send_rpc("close"), ErrorKind::Closed, "").await?;
            expect_failure(hanging, ErrorKind::Closed, "").await?;
            expect_close(&own).await
        };
        report.check("close by the server fails pending requests", case).await;
        report.check("8 connections at once", self.eight_connections()).await;
        report.check("the shared connection is still open", self.alive()).await;
        let case = async {
            expect_failure(self.client.send_rpc("close"), ErrorKind::Closed, "").await?;
            expect_close(&self.client).await?;
            let next = self.factory.create_client((self.host.as_str(), self.port)).await?;
            ensure!(next.id() != self.client.id(), "the pool returned the closed connection");
            check_equal(b"alive", &expect_success(next.send_rpc("echo:alive")).await?)
        };
        report.check("the pool replaces a connection that the server closed", case).await;
    }

    async fn echo(&self, body: &[u8]) -> Result<()> {
        check_equal(body, &expect_success(echo(&self.client, body)).await?)
    }

    async fn echoes(&self, count: usize, step: usize) -> Result<()> {
        let body = |i| pattern(i, i * step % 20_000);
        let mut responses = Vec::new();
        for i in 0..count {
            expect_success(self.client.ready()).await?;
            responses.push(echo(&self.client, &body(i)));
        }
        for (i, echoed) in responses.into_iter().enumerate() {
            check_equal(&body(i), &expect_success(echoed).await?)?;
        }
        Ok(())
    }

    async fn one_ways(&self) -> Result<()> {
        const SENT: usize = 50;
        let count = async || -> Result<usize> {
            let text = expect_success(self.client.send_rpc("count")).await?;
            Ok(std::str::from_utf8(&text)?.parse()?)
        };
        let before = count().await?;
        for i in 0..SENT {
            self.client.send(pattern(i, i * 1000))?;
        }
        // This is sent over the same connection, so the server handles it after the messages.
        let received = count().await? - before;
        ensure!(received == SENT, "the server received {received} of {SENT} messages");
        Ok(())
    }

    async fn memory_chunks(&self, count: usize, size: usize, pipelined: bool) -> Result<()> {
        let id = self.open(&format!("open:{count}:{size}")).await?;
        let expected = |i| Bytes::from(pattern(i, size));
        self.fetch_all(id, count, expected, pipelined).await
    }

    async fn file_chunks(&self, count: usize, size: usize) -> Result<()> {
        let id = self.open_file(count, size).await?;
        self.fetch_all(id, count, |i| self.segment(i, size), true).await
    }

    async fn fetch_all(
        &self,
        id: i64,
        count: usize,
        expected: impl Fn(usize) -> Bytes,
        pipelined: bool,
    ) -> Result<()> {
        let fetch = |i: usize| self.client.fetch_chunk(id, i as i32);
        if pipelined {
            let chunks: Vec<_> = (0..count).map(fetch).collect();
            for (i, chunk) in chunks.into_iter().enumerate() {
                check_equal(&expected(i), &expect_success(chunk).await?)?;
            }
        } else {
            for i in 0..count {
                check_equal(&expected(i), &expect_success(fetch(i)).await?)?;
            }
        }
        Ok(())
    }

    async fn two_chunk_streams(&self) -> Result<()> {
        let memory = self.open("open:4:1000").await?;
        let segments = self.open_file(4, 2000).await?;
        ensure!(memory != segments, "two streams have the id {memory}");
        for i in 0..4 {
            let first = self.client.fetch_chunk(memory, i as i32);
            let second = self.client.fetch_chunk(segments, i as i32);
            check_equal(&pattern(i, 1000), &expect_success(first).await?)?;
            check_equal(&self.segment(i, 2000), &expect_success(second).await?)?;
        }
        Ok(())
    }

    async fn pattern_stream(&self, size: usize) -> Result<()> {
        self.stream(&format!("pattern:{size}"), &pattern(0, size)).await
    }

    async fn stream(&self, id: &str, expected: &[u8]) -> Result<()> {
        let body = expect_success(self.client.stream(id)).await?;
        ensure!(body.stream_id() == id, "requested stream {id}, received {}", body.stream_id());
        ensure!(body.len() == expected.len() as u64, "the announced length is {}", body.len());
        check_equal(expected, &expect_success(body.collect()).await?)
    }

    async fn concurrent_streams(&self) -> Result<()> {
        let id = |i: usize| match i % 4 {
            1 => self.file_stream(),
            3 => format!("missing-{i}"),
            _ => format!("pattern:{}", i * 10_000),
        };
        let streams: Vec<_> = (0..20).map(|i| collect_stream(&self.client, &id(i))).collect();
        // The bodies are read concurrently, because an unread body blocks the following ones.
        let checks = streams.into_iter().enumerate().map(|(i, stream)| async move {
            match i % 4 {
                1 => check_equal(&self.content, &expect_success(stream).await?),
                3 => expect_failure(stream, ErrorKind::StreamFailure, "was not found").await,
                _ => check_equal(&pattern(0, i * 10_000), &expect_success(stream).await?),
            }
        });
        join_all(checks).await.into_iter().collect()
    }

    async fn upload(&self, bytes: Bytes) -> Result<()> {
        let request = self.client.upload_stream("digest", bytes.clone());
        self.check_upload(&bytes, request).await?;
        self.check_last_upload(&bytes).await
    }

    async fn upload_file(&self, range: Range<usize>) -> Result<()> {
        let data = ManagedBuffer::file(self.file.path(), range.start as u64..range.end as u64);
        let bytes = self.content.slice(range);
        self.check_upload(&bytes, self.client.upload_stream("digest", data)).await?;
        self.check_last_upload(&bytes).await
    }

    async fn concurrent_uploads(&self) -> Result<()> {
        let bodies: Vec<Bytes> = (0..10).map(|i| pattern(i, i * 50_000).into()).collect();
        let uploads: Vec<_> =
            bodies.iter().map(|body| self.client.upload_stream("digest", body.clone())).collect();
        for (body, upload) in bodies.iter().zip(uploads) {
            self.check_upload(body, upload).await?;
        }
        if !self.since_3_2 {
            // Spark before 3.2 responds without bytes, and it completes uploads in order.
            self.check_last_upload(&bodies[9]).await?;
        }
        Ok(())
    }

    /// Checks an upload's response. A server before 3.2 responds without bytes.
    async fn check_upload(&self, bytes: &[u8], upload: RpcFuture) -> Result<()> {
        let expected = if self.since_3_2 { digest_response_for(bytes) } else { String::new() };
        check_equal_text(&expected, &expect_success(upload).await?)
    }

    async fn check_last_upload(&self, bytes: &[u8]) -> Result<()> {
        check_equal_text(
            &digest_response_for(bytes),
            &expect_success(self.client.send_rpc("lastdigest")).await?,
        )
    }

    async fn everything_at_once(&self) -> Result<()> {
        const SIZE: usize = 300_000;
        let memory = self.open(&format!("open:8:{SIZE}")).await?;
        let segments = self.open_file(8, SIZE).await?;
        let client = &self.client;
        let mut checks: Vec<BoxFuture<'_, Result<()>>> = Vec::new();
        for i in 0..8 {
            let bytes = Bytes::from(pattern(i, SIZE));
            let part = self.segment(i, SIZE);
            checks.push(expect(bytes.clone(), client.fetch_chunk(memory, i as i32)));
            let stream = collect_stream(client, &format!("pattern:{}", i * SIZE));
            checks.push(expect(pattern(0, i * SIZE).into(), stream));
            checks.push(expect(part.clone(), client.fetch_chunk(segments, i as i32)));
            checks.push(expect(part.clone(), echo(client, &part)));
            let upload = client.upload_stream("digest", bytes.clone());
            client.send(bytes.clone())?;
            checks.push(Box::pin(async move { self.check_upload(&bytes, upload).await }));
        }
        join_all(checks).await.into_iter().collect()
    }

    async fn eight_connections(&self) -> Result<()> {
        let body = |i| pattern(i, 64 << 10);
        let mut connections = Vec::new();
        for i in 0..8 {
            let own = self.own_connection().await?;
            let echoed = echo(&own, &body(i));
            connections.push((own, echoed));
        }
        for (i, (_own, echoed)) in connections.into_iter().enumerate() {
            check_equal(&body(i), &expect_success(echoed).await?)?;
        }
        Ok(())
    }

    async fn alive(&self) -> Result<()> {
        self.echo(b"alive").await
    }

    async fn own_connection(&self) -> Result<TransportClient> {
        Ok(self.factory.create_unmanaged_client((self.host.as_str(), self.port)).await?)
    }

    async fn open(&self, request: &str) -> Result<i64> {
        let id = expect_success(self.client.send_rpc(request.to_owned())).await?;
        let id = <[u8; 8]>::try_from(&id[..]);
        Ok(i64::from_be_bytes(id.context("a stream id has 8 bytes")?))
    }

    async fn open_file(&self, count: usize, size: usize) -> Result<i64> {
        self.open(&format!("openfile:{}:{count}:{size}", self.file.path().display())).await
    }

    /// Returns chunk `i` of the file if all chunks have `size` bytes.
    fn segment(&self, i: usize, size: usize) -> Bytes {
        self.content.slice(i * size..(i + 1) * size)
    }

    fn file_stream(&self) -> String {
        format!("file:{}", self.file.path().display())
    }
}

fn echo(client: &TransportClient, body: &[u8]) -> RpcFuture {
    client.send_rpc([b"echo:", body].concat())
}

fn expect<'a>(
    expected: Bytes,
    request: impl Future<Output = Result<Bytes, TransportError>> + Send + 'a,
) -> BoxFuture<'a, Result<()>> {
    Box::pin(async move { check_equal(&expected, &expect_success(request).await?) })
}

fn every_byte() -> Bytes {
    (0..=255).collect()
}

/// Differs from all memory patterns and in every MiB, so that a wrong offset is detected.
fn file_content() -> Bytes {
    (0..FILE_SIZE).map(|j| (j * 31 + (j >> 8) * 17 + (j >> 16)) as u8).collect()
}
