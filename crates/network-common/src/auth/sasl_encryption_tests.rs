//! SASL blocks with 3DES or RC4: sizes, chunking and damaged blocks.

use super::*;
use crate::auth::test_support::one_bit_flips;

const HASH: [u8; 16] = *b"0123456789abcdef";

fn filter_pairs(cipher: SaslCipher) -> (FilterPair, FilterPair) {
    let side = |side| filters(cipher, &HASH, side, 65_536).unwrap();
    (side(Side::Client), side(Side::Server))
}

fn transform(filter: &mut Box<dyn ByteFilter>, input: &[u8]) -> Result<Vec<u8>, BoxError> {
    filter.transform_to_vec(input)
}

const BOTH: [SaslCipher; 2] = [SaslCipher::TripleDes, SaslCipher::Rc4];

#[test]
fn des_keys_have_parity_bits() {
    assert_eq!(des_key(&[0xff; 7]), [0xfe; 8]);
    assert_eq!(des_key(&[0x80, 0, 0, 0, 0, 0, 1]), [0x80, 0, 0, 0, 0, 0, 0, 0x02]);
}

#[test]
fn block_sizes_match_java() {
    for (plain, wrapped) in [(1, 22), (5, 22), (64, 86), (65_536, 65_558)] {
        let (mut client, mut server) = filter_pairs(SaslCipher::TripleDes);
        let block = transform(&mut client.seal_filter, &vec![3; plain]).unwrap();
        assert_eq!(block.len(), 8 + wrapped);
        assert_eq!(block[..8], (block.len() as u64).to_be_bytes());
        assert_eq!(block[block.len() - 6..], [0, 1, 0, 0, 0, 0]);
        assert!(transform(&mut server.open_filter, &block).unwrap() == vec![3; plain]);
    }
}

#[test]
fn sasl_06_blocks_are_decrypted_from_pieces_of_any_size() {
    for cipher in BOTH {
        let mut client = filters(cipher, &HASH, Side::Client, 1024).unwrap();
        let mut server = filters(cipher, &HASH, Side::Server, 1024).unwrap();
        let plain: Vec<u8> = (0..8192_u32).map(|index| index as u8).collect();
        let sealed = transform(&mut client.seal_filter, &plain).unwrap();
        let (mut rest, mut blocks) = (&sealed[..], 0);
        while let Some(length) = rest.first_chunk::<8>() {
            rest = &rest[u64::from_be_bytes(*length) as usize..];
            blocks += 1;
        }
        assert_eq!(blocks, 8);
        // Split into pieces of any size; both directions are independent.
        let mut opened = Vec::new();
        for piece in sealed.chunks(97) {
            opened.extend(server.open_filter.transform_to_vec(piece).unwrap());
        }
        assert!(opened == plain);
        let back = transform(&mut server.seal_filter, b"and back").unwrap();
        assert_eq!(transform(&mut client.open_filter, &back).unwrap(), b"and back");
    }
}

#[test]
fn damaged_blocks_are_rejected() {
    for cipher in BOTH {
        let (mut client, _) = filter_pairs(cipher);
        let block = transform(&mut client.seal_filter, b"hello").unwrap();
        for damaged in one_bit_flips(&block) {
            let (_, mut server) = filter_pairs(cipher);
            // A greater length makes the filter wait for more bytes.
            assert_eq!(transform(&mut server.open_filter, &damaged).unwrap_or_default(), b"");
        }
        for damaged in one_bit_flips(&block[8..]) {
            let (_, mut server) = filter_pairs(cipher);
            transform(&mut server.open_filter, &[&block[..8], &damaged].concat()).unwrap_err();
        }
        for end in 0..block.len() {
            let (_, mut server) = filter_pairs(cipher);
            assert_eq!(transform(&mut server.open_filter, &block[..end]).unwrap(), b"");
        }
        // A repeated block, or one that is sent back to its sender.
        let (_, mut server) = filter_pairs(cipher);
        transform(&mut server.open_filter, &block).unwrap();
        transform(&mut server.open_filter, &block).unwrap_err();
        transform(&mut client.open_filter, &block).unwrap_err();
    }
}

#[test]
fn announced_lengths_are_checked_at_once() {
    for length in [-1, 0, 8, 23, 1 << 40, i64::MIN, i64::MAX] {
        let (_, mut server) = filter_pairs(SaslCipher::TripleDes);
        let error = transform(&mut server.open_filter, &i64::to_be_bytes(length)).unwrap_err();
        assert!(error.to_string().contains(&length.to_string()), "{error}");
    }
}

/// Invalid blocks that only a peer with the keys can make.
#[test]
fn blocks_of_invalid_shape_are_rejected() {
    for size in [16, 17, 23, 25] {
        let (_, mut server) = filter_pairs(SaslCipher::TripleDes);
        let block = [&(8 + size as u64).to_be_bytes()[..], &vec![0; size - 6], &[0, 1, 0, 0, 0, 0]]
            .concat();
        transform(&mut server.open_filter, &block).unwrap_err();
    }
}

/// Keys are wiped when they are dropped.
#[test]
fn keys_are_wiped_on_drop() {
    fn wiped<T: zeroize::ZeroizeOnDrop>() {}
    wiped::<TdesEde2>();
    wiped::<cbc::Encryptor<TdesEde2>>();
    wiped::<cbc::Decryptor<TdesEde2>>();
    wiped::<Rc4>();
}
