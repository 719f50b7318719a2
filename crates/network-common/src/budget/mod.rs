//! [`ByteBudget`]: the bytes that a process holds for its peers, and their limit.
//!
//! Every connection counts its bytes in a [`ConnectionAccount`]. Bodies are requested from stream
//! managers only within the limit, and large requests over it are refused. If the limit is
//! exceeded nevertheless, connections whose peers do not read are closed.

mod account;
mod byte_budget;
mod memory_size;
mod pressure;
mod share;
mod waiting_bodies;

pub(crate) use account::Reservation;
pub use byte_budget::ByteBudget;
pub(crate) use byte_budget::{ConnectionAccount, SETTING, STEP};
pub use share::BudgetShare;
