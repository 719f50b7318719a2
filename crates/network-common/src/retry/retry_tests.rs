use std::cell::RefCell;
use std::future::pending;
use std::time::Duration;

use tokio::time::Instant;

use super::{RetryAttempt, RetryBudget, RetryPolicy};

const SECOND: Duration = Duration::from_secs(1);

/// Runs a policy on an operation that always fails; returns the seconds at which it was attempted.
async fn times_of_attempts(policy: &RetryPolicy) -> Vec<f64> {
    let (start, times) = (Instant::now(), RefCell::new(Vec::new()));
    let attempt = |attempt: RetryAttempt| {
        times.borrow_mut().push(start.elapsed().as_secs_f64());
        std::future::ready(Err::<(), _>(attempt.number))
    };
    let last = policy.run(attempt, |_| true).await.unwrap_err();
    assert_eq!(last as usize, times.borrow().len());
    times.into_inner()
}

#[tokio::test(start_paused = true)]
async fn retry_01_waits_grow_by_factor_up_to_cap() {
    let policy = RetryPolicy::new().attempts(5).first_wait(SECOND).factor(3.0);
    let policy = policy.max_wait(5 * SECOND).jitter(false);
    assert_eq!(times_of_attempts(&policy).await, [0.0, 1.0, 4.0, 9.0, 14.0]);
}

#[tokio::test(start_paused = true)]
async fn retry_01_constant_waits_are_those_of_block_fetches() {
    let policy = RetryPolicy::new().attempts(1 + 3).first_wait(5 * SECOND).factor(1.0);
    assert_eq!(times_of_attempts(&policy.jitter(false)).await, [0.0, 5.0, 10.0, 15.0]);
}

#[tokio::test(start_paused = true)]
async fn retry_01_extreme_values_do_not_panic() {
    for factor in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300] {
        let policy = RetryPolicy::new().attempts(u32::MAX).first_wait(Duration::MAX);
        let policy = policy.factor(factor).total_timeout(Duration::MAX);
        for failed in [0, 1, 2, u32::MAX] {
            assert!(policy.wait_after(failed) <= 10 * SECOND);
        }
        let unlimited = policy.max_wait(Duration::MAX).jitter(false);
        assert_eq!(unlimited.wait_after(1), Duration::MAX);
        let zero = unlimited.first_wait(Duration::ZERO);
        let _ = zero.wait_after(u32::MAX);
        assert!(zero.start().next_wait().is_some());
    }
    assert_eq!(times_of_attempts(&RetryPolicy::new().attempts(0)).await, [0.0]);
}

#[test]
fn retry_02_jitter_spreads_waits_from_zero_to_full_wait() {
    fastrand::seed(7);
    let policy = RetryPolicy::new().first_wait(SECOND).factor(1.0);
    let mut tenths = [0; 10];
    for _ in 0..1000 {
        let wait = policy.wait_after(1);
        assert!(wait <= SECOND);
        tenths[((wait.as_secs_f64() * 10.0) as usize).min(9)] += 1;
    }
    assert!(tenths.iter().all(|count| (60..=140).contains(count)), "{tenths:?}");
}

#[tokio::test(start_paused = true)]
async fn retry_03_no_attempt_begins_after_total_timeout() {
    let policy = RetryPolicy::new().attempts(100).first_wait(SECOND).factor(2.0).jitter(false);
    let policy = policy.max_wait(100 * SECOND).total_timeout(7 * SECOND);
    // The next one would begin at 7 s.
    assert_eq!(times_of_attempts(&policy).await, [0.0, 1.0, 3.0]);
}

#[tokio::test(start_paused = true)]
async fn retry_03_attempt_gets_remaining_time() {
    let policy = RetryPolicy::new().attempts(3).first_wait(SECOND).factor(1.0).jitter(false);
    let seen = RefCell::new(Vec::new());
    let result = policy
        .total_timeout(10 * SECOND)
        .run(
            |attempt| {
                seen.borrow_mut().push((attempt.number, attempt.remaining));
                async {
                    tokio::time::sleep(2 * SECOND).await;
                    Err::<(), _>(())
                }
            },
            |()| true,
        )
        .await;
    assert!(result.is_err());
    let expected = [(1, 10), (2, 7), (3, 4)].map(|(number, left)| (number, Some(left * SECOND)));
    assert_eq!(seen.into_inner(), expected);
}

#[tokio::test(start_paused = true)]
async fn retry_04_success_or_final_error_ends_the_run() {
    let run = |succeeds_at: u32, is_final_at: u32| async move {
        let attempt = move |attempt: RetryAttempt| async move {
            if attempt.number == succeeds_at { Ok(attempt.number) } else { Err(attempt.number) }
        };
        RetryPolicy::new().attempts(9).run(attempt, |number| *number != is_final_at).await
    };
    assert_eq!(run(1, 0).await, Ok(1));
    assert_eq!(run(4, 0).await, Ok(4));
    assert_eq!(run(4, 2).await, Err(2));
    assert_eq!(run(10, 0).await, Err(9));
}

#[tokio::test(start_paused = true)]
async fn retry_04_dropped_run_drops_its_attempt_and_begins_no_other() {
    let attempts = RefCell::new(0);
    let policy = RetryPolicy::new().attempts(9).first_wait(SECOND).jitter(false);
    let attempt = |_| {
        *attempts.borrow_mut() += 1;
        std::future::ready(Err::<(), _>(()))
    };
    let run = policy.run(attempt, |()| true);
    assert!(tokio::time::timeout(SECOND / 2, run).await.is_err());
    assert_eq!(*attempts.borrow(), 1);

    let guard = std::rc::Rc::new(());
    let held = guard.clone();
    let attempt = |_| {
        let held = held.clone();
        async move {
            pending::<()>().await;
            drop(held);
            Ok::<_, ()>(())
        }
    };
    let run = policy.run(attempt, |()| true);
    assert!(tokio::time::timeout(SECOND, run).await.is_err());
    assert_eq!(std::rc::Rc::strong_count(&guard), 2);
}

#[test]
fn retry_05_budget_permits_repetitions_while_half_of_it_is_left() {
    let budget = RetryBudget::new(10);
    let permitted = (0..100).filter(|_| budget.on_failure()).count();
    assert_eq!(permitted, 4);
    // Empty: 60 successes are needed for more than half of the tokens after one failure.
    (0..60).for_each(|_| budget.on_success());
    assert!(!budget.on_failure());
    (0..11).for_each(|_| budget.on_success());
    assert!(budget.on_failure());
    assert!(!budget.on_failure());
    // Successes never add up to more than all tokens.
    (0..100_000).for_each(|_| budget.on_success());
    assert_eq!((0..100).filter(|_| budget.on_failure()).count(), 4);
}

#[test]
fn retry_05_rare_failures_are_always_repeated() {
    let budget = RetryBudget::new(10);
    for _ in 0..1000 {
        assert!(budget.on_failure());
        (0..10).for_each(|_| budget.on_success());
    }
    assert!((0..1000).all(|_| !RetryBudget::new(0).on_failure()));
}
