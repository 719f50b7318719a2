//! Finds few steps that still violate a promise.

use crate::outcome::Outcome;
use crate::play::Step;

/// Removes steps while the play still violates a promise; returns the timeline of the rest.
///
/// Tries to remove halves first, then smaller parts, then single steps.
pub(crate) fn shrink<A: Clone>(
    mut steps: Vec<Step<A>>,
    run: impl Fn(&[Step<A>], bool) -> Outcome,
) -> Vec<String> {
    let is_violating = |steps: &[Step<A>]| !run(steps, false).violations.is_empty();
    let mut part = steps.len().div_ceil(2).max(1);
    loop {
        let mut start = 0;
        let before = steps.len();
        while start < steps.len() {
            let end = (start + part).min(steps.len());
            let rest: Vec<Step<A>> = [&steps[..start], &steps[end..]].concat();
            if is_violating(&rest) {
                steps = rest;
            } else {
                start = end;
            }
        }
        if part == 1 && steps.len() == before {
            break;
        }
        part = part.div_ceil(2).max(1);
    }
    let outcome = run(&steps, true);
    let violations = outcome.violations.iter().map(|text| format!("violation: {text}"));
    outcome.timeline.into_iter().chain(violations).collect()
}
