use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Send,
    /// The sender waited for credit before this message.
    SendBlocked,
    Handle,
    /// The sender closes its route. The receiver keeps it open if messages are unhandled.
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => Just(Step::Send),
        3 => Just(Step::SendBlocked),
        10 => Just(Step::Handle),
        1 => Just(Step::Close),
    ]
}

/// Both ends of one route.
struct Ends {
    sender: SendCredit,
    receiver: RecvCredit,
    unhandled: u64,
}

/// Runs `steps` on routes to one inbox, and checks the invariants after each step.
///
/// Messages with credit are accepted. Held and granted messages together stay within the limit
/// plus one initial window for each sender.
fn run_steps(limit: u64, senders: usize, steps: &[(usize, Step)]) {
    let limits = CreditLimits::new(Volume::new(limit, u64::MAX / 4));
    let mut held = 0;
    let new_ends = || {
        let mut ends =
            Ends { sender: SendCredit::new(), receiver: RecvCredit::new(), unhandled: 0 };
        ends.receiver.restart(Some(&limits)).into_iter().for_each(|more| ends.sender.add(more));
        ends
    };
    let mut all: Vec<_> = (0..senders).map(|_| new_ends()).collect();
    let bound = limit + senders as u64 * limits.initial.messages;
    for &(sender, step) in steps {
        let granted: u64 = all.iter().map(|ends| ends.receiver.outstanding().messages).sum();
        assert!(held + granted <= bound, "{held} held and {granted} granted of {limit:?}");
        let free = Volume::new(limit.saturating_sub(held + granted), u64::MAX / 8);
        let Ends { sender, receiver, unhandled } = &mut all[sender % senders];
        match step {
            Step::Close => {
                *sender = SendCredit::none();
                if receiver.has_unhandled() {
                    receiver.on_credit_returned().into_iter().for_each(|more| sender.add(more));
                } else {
                    (*sender, *receiver) = (SendCredit::new(), RecvCredit::new());
                    receiver.restart(Some(&limits)).into_iter().for_each(|more| sender.add(more));
                }
            }
            Step::Handle if *unhandled > 0 => {
                *unhandled -= 1;
                held -= 1;
                let free = Volume::new(free.messages + 1, free.bytes);
                let more = receiver.on_handled(Volume::message(1), || Some((free, &limits)));
                more.into_iter().for_each(|more| sender.add(more));
            }
            Step::Send | Step::SendBlocked | Step::Handle if sender.has_credit() => {
                assert!(receiver.has_outstanding());
                if step == Step::SendBlocked {
                    let more = receiver.on_sender_blocked(3, free, &limits, senders as u64);
                    more.into_iter().for_each(|more| sender.add(more));
                }
                sender.consume(1);
                receiver.on_received(1);
                *unhandled += 1;
                held += 1;
            }
            Step::Send | Step::SendBlocked | Step::Handle => {}
        }
        // A sender without unhandled messages has credit: none is blocked forever.
        for ends in &all {
            assert!(ends.unhandled > 0 || ends.sender.has_credit());
        }
    }
}

proptest! {
    #[test]
    fn messages_with_credit_are_accepted_and_memory_is_bounded(
        limit in 1_u64..5000,
        senders in 1_usize..6,
        steps in prop::collection::vec((0_usize..6, step()), 0..3000),
    ) {
        run_steps(limit, senders, &steps);
    }
}

/// One sender has half of the inbox before the others begin.
#[test]
fn fault_c14_windows_stay_within_limit_when_more_senders_begin() {
    const LIMIT: u64 = 4096;
    let limits = CreditLimits::new(Volume::new(LIMIT, u64::MAX / 4));
    // The granted and the unhandled messages.
    let total = |all: &[RecvCredit]| -> u64 {
        all.iter().map(|one| one.messages.granted - one.messages.handled).sum()
    };
    let free = |all: &[RecvCredit]| Volume::new(LIMIT.saturating_sub(total(all)), u64::MAX / 8);
    for senders in 2..7_usize {
        let mut all: Vec<_> = (0..senders).map(|_| RecvCredit::new()).collect();
        for one in &mut all {
            one.restart(Some(&limits));
        }
        let bound = LIMIT + senders as u64 * limits.initial.messages;
        let alone = std::iter::repeat_n((0, 1), 12);
        let rounds = alone.chain((0..40).map(|round| (round % senders, senders as u64)));
        for (number, (sender, routes)) in rounds.enumerate() {
            let available = free(&all);
            all[sender].on_sender_blocked(BLOCKED_BY_MESSAGES, available, &limits, routes);
            // Sometimes less than half of a window is sent, and not granted again yet.
            let sent = all[sender].outstanding().messages * (1 + number as u64 % 5) / 5;
            (0..sent).for_each(|_| all[sender].on_received(1));
            for _ in 0..sent {
                let mut available = free(&all);
                available.messages += 1;
                let done = Volume::message(1);
                all[sender].on_handled(done, || Some((available, &limits)));
            }
        }
        // All senders wait for credit at the same time.
        for sender in 0..senders {
            let available = free(&all);
            let routes = senders as u64;
            all[sender].on_sender_blocked(BLOCKED_BY_MESSAGES, available, &limits, routes);
            assert!(total(&all) <= bound, "{senders} senders: {} of {LIMIT}", total(&all));
        }
        let least = all.iter().map(|one| one.messages.window).min();
        assert!(least >= Some(LIMIT / 16), "{senders} senders: a window of {least:?}");
    }
}

/// A peer opens a route, sends a message and closes the route in a loop.
#[test]
fn peer_that_returns_credit_in_loop_gains_none() {
    let mut credit = RecvCredit::new();
    credit.restart(Some(&CreditLimits::new(Volume::new(16, 16))));
    for _ in 0..10 {
        credit.on_received(1);
        assert_eq!(credit.on_credit_returned(), None, "its one message is unhandled");
        assert!(!credit.has_outstanding());
    }
}

#[test]
fn window_of_lone_fast_sender_grows() {
    let limit = Volume::new(65_536, 64 << 20);
    let limits = CreditLimits::new(limit);
    let (mut sender, mut receiver) = (SendCredit::new(), RecvCredit::new());
    receiver.restart(Some(&limits)).into_iter().for_each(|more| sender.add(more));
    let mut notices = 0;
    for _ in 0..100_000 {
        assert!(sender.has_credit());
        sender.consume(100);
        receiver.on_received(100);
        if let Some(more) = receiver.on_handled(Volume::message(100), || Some((limit, &limits))) {
            notices += 1;
            sender.add(more);
        }
    }
    assert_eq!(receiver.messages.window, limits.usual.messages);
    assert!(notices < 100, "{notices}");
}

/// On a link with a long round trip, the whole window arrives and is handled before the next grant
/// reaches the sender.
#[test]
fn fault_c14_window_of_far_sender_grows_to_its_share() {
    let limit = Volume::new(65_536, 64 << 20);
    let limits = CreditLimits::new(limit);
    let mut receiver = RecvCredit::new();
    receiver.restart(Some(&limits));
    let mut round_trips = 0;
    while receiver.messages.window < limit.messages / 2 {
        round_trips += 1;
        assert!(round_trips <= 10, "window of {}", receiver.messages.window);
        let window = receiver.outstanding().messages;
        for message in 0..window {
            if message == 0 {
                receiver.on_sender_blocked(BLOCKED_BY_MESSAGES, limit, &limits, 1);
            }
            receiver.on_received(100);
        }
        receiver.on_handled(Volume::new(window, 100 * window), || Some((limit, &limits)));
    }
    assert_eq!(receiver.messages.window, limit.messages / 2);
}

#[test]
fn window_stays_at_usual_size_when_endpoint_is_slow() {
    let limit = Volume::new(65_536, 64 << 20);
    let limits = CreditLimits::new(limit);
    let mut receiver = RecvCredit::new();
    receiver.restart(Some(&limits));
    for _ in 0..100 {
        for _ in 0..receiver.outstanding().messages {
            receiver.on_received(100);
        }
        let half = (receiver.messages.received - receiver.messages.handled).div_ceil(2);
        receiver.on_handled(Volume::new(half, 100 * half), || Some((limit, &limits)));
        receiver.on_sender_blocked(BLOCKED_BY_MESSAGES, limit, &limits, 1);
    }
    assert!(receiver.messages.window <= limits.usual.messages, "{}", receiver.messages.window);
}

#[test]
fn credit_saturates_on_overflow() {
    let mut sender = SendCredit::new();
    for _ in 0..3 {
        sender.add(Volume::new(u64::MAX, u64::MAX));
    }
    assert!(sender.has_credit());
    sender.consume(128 << 20);
    assert_eq!(sender.blocked_by(), 0);
}
