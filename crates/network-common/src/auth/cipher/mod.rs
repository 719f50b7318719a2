//! What seals a connection once its handshake is over: AES as a stream (CTR) or in authenticated
//! segments (GCM).

mod ctr;
mod gcm;

use std::fmt;

use zeroize::Zeroizing;

pub use gcm::{GcmOpen, GcmSeal};

pub(super) use self::ctr::Ctr;
use super::AuthError;
use crate::conf::CipherName;
use crate::session::FilterPair;

/// What a handshake yields, named as the client sees it (auth 3.4).
pub(super) struct SessionKeys {
    pub(super) key: Zeroizing<Vec<u8>>,
    pub(super) input_iv: [u8; 16],
    pub(super) output_iv: [u8; 16],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

impl SessionKeys {
    pub(super) fn filters(&self, cipher: CipherName, side: Side) -> Result<FilterPair, AuthError> {
        let (seal_iv, open_iv) = match side {
            Side::Client => (self.output_iv, self.input_iv),
            Side::Server => (self.input_iv, self.output_iv),
        };
        Ok(match cipher {
            CipherName::AesCtr => FilterPair {
                seal_filter: Box::new(Ctr::new(&self.key, seal_iv)?),
                open_filter: Box::new(Ctr::new(&self.key, open_iv)?),
            },
            CipherName::AesGcm => FilterPair {
                seal_filter: Box::new(GcmSeal::new(&self.key)?),
                open_filter: Box::new(GcmOpen::new(&self.key)?),
            },
        })
    }
}

impl fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKeys(..)")
    }
}
