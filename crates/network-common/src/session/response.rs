//! Successful responses to this side's requests.

use bytes::Bytes;
#[cfg(feature = "merged-blocks")]
use roaring::RoaringBitmap;

use super::StreamBody;
#[cfg(feature = "merged-blocks")]
use crate::error::BoxError;
use crate::error::TransportError;
#[cfg(feature = "merged-blocks")]
use crate::protocol::read_bitmaps;

/// The chunk bitmaps of a merged shuffle block.
///
/// [`TransportClient::merged_block_meta`](crate::TransportClient::merged_block_meta) returns it.
///
/// ```no_run
/// # use network_common::{BoxError, TransportClient};
/// # async fn example(client: TransportClient) -> Result<(), BoxError> {
/// let meta = client.merged_block_meta("app", 1, 0, 7).await?;
/// # #[cfg(feature = "merged-blocks")]
/// assert_eq!(meta.bitmaps()?.len(), meta.num_chunks as usize);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MergedBlockMeta {
    /// The number of chunks of the merged block, and of bitmaps in the body.
    pub num_chunks: i32,
    /// One serialized bitmap per chunk, without separators.
    pub body: Bytes,
}

#[cfg(feature = "merged-blocks")]
impl MergedBlockMeta {
    /// Decodes the bitmaps, one per chunk, of the map outputs that the chunk contains.
    ///
    /// # Errors
    /// The body is not `num_chunks` bitmaps in the portable format of RoaringBitmap.
    pub fn bitmaps(&self) -> Result<Vec<RoaringBitmap>, BoxError> {
        Ok(read_bitmaps(&self.body, usize::try_from(self.num_chunks)?)?)
    }
}

/// A successful response.
#[derive(Debug)]
pub(crate) enum Response {
    Body(Bytes),
    MergedBlockMeta(MergedBlockMeta),
    /// Boxed, because every pending request has space for a response.
    Stream(Box<StreamBody>),
}

impl Response {
    pub(crate) fn into_body(self) -> Option<Bytes> {
        if let Self::Body(body) = self { Some(body) } else { None }
    }

    pub(crate) fn into_meta(self) -> Option<MergedBlockMeta> {
        if let Self::MergedBlockMeta(meta) = self { Some(meta) } else { None }
    }

    pub(crate) fn into_stream(self) -> Option<StreamBody> {
        if let Self::Stream(body) = self { Some(*body) } else { None }
    }
}

/// The result of one request.
pub(crate) type RequestResult = Result<Response, TransportError>;
