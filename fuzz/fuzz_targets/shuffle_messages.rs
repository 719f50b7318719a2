//! Decodes arbitrary bytes as a message of the block transfer protocol.
//!
//! Properties: a message that can be decoded can be encoded and decoded again with the same result.
//! A block id that can be parsed is printed as a text with the same meaning.
//!
//! Input: the message.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use network_shuffle::protocol::{BlockId, BlockTransferMessage};

fuzz_target!(|input: &[u8]| {
    let Ok(message) = BlockTransferMessage::decode(&Bytes::copy_from_slice(input)) else { return };
    assert_eq!(BlockTransferMessage::decode(&message.encode()).as_ref(), Ok(&message));
    let (BlockTransferMessage::OpenBlocks { block_ids, .. }
    | BlockTransferMessage::RemoveBlocks { block_ids, .. }) = message
    else {
        return;
    };
    for id in block_ids.iter() {
        if let Ok(block) = id.parse::<BlockId>() {
            assert_eq!(block.to_string().parse(), Ok(block));
        }
    }
});
