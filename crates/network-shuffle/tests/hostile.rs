//! Peers that send what no executor sends, and directories that change while they are read.
mod support;
