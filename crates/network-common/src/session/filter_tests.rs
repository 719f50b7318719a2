//! Where filters leave what they yield.

use crate::session::{ByteFilter, FilterChain, FilterOutput};

/// Every byte twice.
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

/// What fits whole goes into the place; nothing does any more once something did not.
#[test]
fn output_fills_the_place_and_then_the_buffer() {
    let (mut place, mut buffer) = ([9; 5], vec![9; 3]);
    let mut output = FilterOutput::new(&mut place, &mut buffer);
    for piece in ["ab", "cd", "ef", "g", "hij"] {
        output.extend_from_slice(piece.as_bytes());
    }
    assert_eq!(output.lengths(), (4, 6));
    assert_eq!((&place[..4], &buffer[..6]), (&b"abcd"[..], &b"efghij"[..]));
}

#[test]
fn output_counts_only_what_was_written() {
    let (mut place, mut buffer) = ([0; 4], Vec::new());
    let mut output = FilterOutput::new(&mut place, &mut buffer);
    for length in [4, 5] {
        let failed = output.append(length, |room| {
            room.fill(7);
            Err::<usize, _>("a wrong tag")
        });
        assert_eq!(failed, Err("a wrong tag"));
    }
    for (length, written) in [(4, 3), (9, 2)] {
        let Ok(()) = output.append(length, |room| {
            room[..written].fill(1);
            Ok::<_, std::convert::Infallible>(written)
        });
    }
    assert_eq!(output.lengths(), (3, 2));
    assert_eq!((&place[..3], &buffer[..2]), (&[1; 3][..], &[1; 2][..]));
}

#[test]
fn a_stack_passes_on_what_its_lower_filter_yields() {
    let mut stack = FilterChain::join(Some(Box::new(Twice)), Some(Box::new(Twice))).unwrap();
    assert_eq!(stack.transform_to_vec(b"ab").unwrap(), b"aaaabbbb");
}
