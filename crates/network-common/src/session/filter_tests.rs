//! Tests of [`FilterOutput`] and [`FilterChain`].

use crate::session::{ByteFilter, FilterChain, FilterOutput};

/// A filter that doubles every byte.
struct Twice;

impl ByteFilter for Twice {
    fn transform(
        &mut self,
        input: &[u8],
        output: &mut FilterOutput<'_>,
    ) -> Result<(), crate::BoxError> {
        input.iter().for_each(|byte| output.extend_from_slice(&[*byte; 2]));
        Ok(())
    }
}

/// Pieces go to the slice until one does not fit. That one and all later ones go to the buffer.
#[test]
fn output_fills_slice_before_buffer() {
    let (mut slice, mut buffer) = ([9; 5], vec![9; 3]);
    let mut output = FilterOutput::new(&mut slice, &mut buffer);
    for piece in ["ab", "cd", "ef", "g", "hij"] {
        output.extend_from_slice(piece.as_bytes());
    }
    assert_eq!(output.lengths(), (4, 6));
    assert_eq!((&slice[..4], &buffer[..6]), (&b"abcd"[..], &b"efghij"[..]));
}

#[test]
fn output_counts_only_written_bytes() {
    let (mut slice, mut buffer) = ([0; 4], Vec::new());
    let mut output = FilterOutput::new(&mut slice, &mut buffer);
    for length in [4, 5] {
        let failed = output.append(length, |target| {
            target.fill(7);
            Err::<usize, _>("failed after writing")
        });
        assert_eq!(failed, Err("failed after writing"));
    }
    for (length, written) in [(4, 3), (9, 2)] {
        let Ok(()) = output.append(length, |target| {
            target[..written].fill(1);
            Ok::<_, std::convert::Infallible>(written)
        });
    }
    assert_eq!(output.lengths(), (3, 2));
    assert_eq!((&slice[..3], &buffer[..2]), (&[1; 3][..], &[1; 2][..]));
}

#[test]
fn stacked_filter_receives_output_of_lower_filter() {
    let mut chain = FilterChain::join(Some(Box::new(Twice)), Some(Box::new(Twice))).unwrap();
    assert_eq!(chain.transform_to_vec(b"ab").unwrap(), b"aaaabbbb");
}
