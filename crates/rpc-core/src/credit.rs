//! How much may be sent to one endpoint over one connection: counted by both sides, told by the receiver.

/// Messages, and the bytes of their frames' bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

impl Volume {
    pub(crate) const fn new(messages: u64, bytes: u64) -> Self {
        Self { messages, bytes }
    }

    pub(crate) const fn message(bytes: u64) -> Self {
        Self { messages: 1, bytes }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.messages = self.messages.saturating_add(other.messages);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    pub(crate) fn remove(&mut self, other: Self) {
        *self = self.minus(other);
    }

    /// Never below zero.
    pub(crate) fn minus(self, other: Self) -> Self {
        Self {
            messages: self.messages.saturating_sub(other.messages),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }

    pub(crate) fn half(self) -> Self {
        Self { messages: self.messages.div_ceil(2), bytes: self.bytes.div_ceil(2) }
    }

    /// Both parts are below those of `limit`, so one more message fits.
    pub(crate) fn fits(self, limit: Self) -> bool {
        self.messages < limit.messages && self.bytes < limit.bytes
    }
}

/// The sender's side. It begins with one message, and the first brings more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Credit {
    messages: i64,
    bytes: i64,
}

impl Credit {
    pub(crate) fn new() -> Self {
        Self { messages: 1, bytes: 1 }
    }

    /// One more message may go. It may overdraw the bytes, so that one of any size passes.
    pub(crate) fn allows(&self) -> bool {
        self.messages > 0 && self.bytes > 0
    }

    /// All but the beginning can be given back.
    pub(crate) fn covers_a_new_one(&self) -> bool {
        let Self { messages, bytes } = Self::new();
        self.messages >= messages && self.bytes >= bytes
    }

    pub(crate) fn take(&mut self, bytes: usize) {
        self.messages -= 1;
        self.bytes = self.bytes.saturating_sub_unsigned(bytes as u64);
    }

    /// The receiver takes more; or what was taken here has not been sent.
    pub(crate) fn put(&mut self, more: Volume) {
        self.messages = self.messages.saturating_add_unsigned(more.messages);
        self.bytes = self.bytes.saturating_add_unsigned(more.bytes);
    }
}

/// What an inbox grants: a connection gets `initial` with its first message, and its window grows while there is room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Windows {
    pub(crate) initial: Volume,
    pub(crate) max: Volume,
}

impl Windows {
    /// For an inbox that holds `limit`.
    pub(crate) fn of(limit: Volume) -> Self {
        // A sixteenth leaves room for others; the bounds keep a burst of new connections small, and what a fast one
        // has on its way long enough.
        let window = |limit: u64, initial: u64, max: u64| {
            let initial = (limit / 16).clamp(1, initial);
            (initial, (limit / 16).clamp(initial, max))
        };
        let messages = window(limit.messages, 64, 4096);
        let bytes = window(limit.bytes, 64 << 10, 4 << 20);
        Self { initial: Volume::new(messages.0, bytes.0), max: Volume::new(messages.1, bytes.1) }
    }
}

/// The receiver's side: one connection's account with one inbox.
#[derive(Debug)]
pub(crate) struct Account {
    messages: Flow,
    bytes: Flow,
}

/// All totals since the connection began.
#[derive(Debug)]
struct Flow {
    received: u64,
    handled: u64,
    granted: u64,
    /// How much may be on its way or waiting.
    window: u64,
}

impl Account {
    pub(crate) fn new(windows: &Windows) -> Self {
        // As the sender assumes.
        let flow = |window| Flow { received: 0, handled: 0, granted: 1, window };
        Self { messages: flow(windows.initial.messages), bytes: flow(windows.initial.bytes) }
    }

    /// What the sender may still send.
    pub(crate) fn promised(&self) -> Volume {
        Volume::new(self.messages.promised(), self.bytes.promised())
    }

    /// The sender gives back what it was granted, but for the message that it begins with.
    pub(crate) fn forgo(&mut self) {
        for flow in [&mut self.messages, &mut self.bytes] {
            flow.granted = flow.granted.min(flow.received + 1);
        }
    }

    /// The sender keeps to what it was granted, so its next message is to be taken whatever else waits.
    pub(crate) fn expects(&self) -> bool {
        self.messages.promised() > 0 && self.bytes.promised() > 0
    }

    /// A message has come. Gives what the sender is to be told: after the first, what its window lets it send.
    pub(crate) fn receive(&mut self, bytes: u64) -> Option<Volume> {
        self.messages.received += 1;
        self.bytes.received += bytes;
        (self.messages.received == 1)
            .then(|| Volume::new(self.messages.open(), self.bytes.open()))
            .filter(|more| *more != Volume::default())
    }

    /// `done` has been handled. `free` is what the inbox could still promise to anybody. Gives what the sender is to
    /// be told, if that is worth a notice.
    pub(crate) fn handle(&mut self, done: Volume, free: Volume, windows: &Windows) -> Option<Volume> {
        self.messages.handled += done.messages;
        self.bytes.handled += done.bytes;
        if !self.messages.due() && !self.bytes.due() {
            return None;
        }
        Some(Volume::new(
            self.messages.grant(free.messages, windows.initial.messages, windows.max.messages),
            self.bytes.grant(free.bytes, windows.initial.bytes, windows.max.bytes),
        ))
    }
}

impl Flow {
    fn promised(&self) -> u64 {
        self.granted.saturating_sub(self.received)
    }

    /// Half the window is used up and handled.
    fn due(&self) -> bool {
        (self.handled + self.window).saturating_sub(self.granted) >= self.window.div_ceil(2)
    }

    fn grant(&mut self, free: u64, initial: u64, max: u64) -> u64 {
        if free >= self.window {
            self.window = max.min(2 * self.window);
        } else if free == 0 {
            self.window = initial.max(self.window / 2);
        }
        self.open()
    }

    /// Grants what the window allows; gives how much more that is.
    fn open(&mut self) -> u64 {
        let granted = self.granted.max(self.handled + self.window);
        granted - std::mem::replace(&mut self.granted, granted)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Turn {
        Sends,
        Handles,
        /// The sender gives its credit back.
        Forgoes,
    }

    fn turn() -> impl Strategy<Value = Turn> {
        prop_oneof![10 => Just(Turn::Sends), 10 => Just(Turn::Handles), 1 => Just(Turn::Forgoes)]
    }

    /// A sender that sends whenever it may, an inbox that takes what it promised: everything arrives, and what waits
    /// and is promised stays within the limit and the initial windows, whatever the order of events.
    fn play(limit: u64, senders: usize, turns: &[(usize, Turn)]) {
        let limit = Volume::new(limit, u64::MAX / 4);
        let windows = Windows::of(limit);
        let mut held = 0;
        let mut accounts: Vec<_> =
            (0..senders).map(|_| (Credit::new(), Account::new(&windows), 0_u64)).collect();
        let bound = limit.messages + senders as u64 * windows.initial.messages;
        for &(sender, turn) in turns {
            let promised: u64 = accounts.iter().map(|(_, account, _)| account.promised().messages).sum();
            assert!(held + promised <= bound, "{held} held and {promised} promised of {limit:?}");
            let (credit, account, waiting) = &mut accounts[sender % senders];
            if turn == Turn::Forgoes && credit.covers_a_new_one() {
                *credit = Credit::new();
                account.forgo();
            } else if turn == Turn::Handles && *waiting > 0 {
                *waiting -= 1;
                held -= 1;
                let free = limit.messages.saturating_sub(held + promised);
                let told = account.handle(Volume::message(1), Volume::new(free, u64::MAX / 8), &windows);
                told.into_iter().for_each(|more| credit.put(more));
            } else if credit.allows() {
                credit.take(1);
                assert!(account.expects());
                account.receive(1).into_iter().for_each(|more| credit.put(more));
                *waiting += 1;
                held += 1;
            }
            // Who has nothing waiting may send: nobody is left without credit for ever.
            for (credit, _, waiting) in &accounts {
                assert!(*waiting > 0 || credit.allows());
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_is_refused_and_memory_is_bounded(
            limit in 1_u64..5000,
            senders in 1_usize..6,
            turns in prop::collection::vec((0_usize..6, turn()), 0..3000),
        ) {
            play(limit, senders, &turns);
        }
    }

    #[test]
    fn a_sender_that_gave_its_credit_back_begins_anew() {
        let limit = Volume::new(65_536, 64 << 20);
        let windows = Windows::of(limit);
        let (mut credit, mut account) = (Credit::new(), Account::new(&windows));
        for round in 0..1000 {
            // It sends as much as it may, all is handled, and then it forgets what it may send.
            for _ in 0..=round {
                assert!(credit.allows());
                credit.take(100);
                let first = account.receive(100);
                let told = first.into_iter().chain(account.handle(Volume::message(100), limit, &windows));
                told.for_each(|more| credit.put(more));
            }
            assert!(credit.covers_a_new_one());
            account.forgo();
            credit = Credit::new();
            assert_eq!(account.promised(), Volume::new(1, 1));
        }
    }

    #[test]
    fn giving_credit_back_gains_nothing() {
        let windows = Windows::of(Volume::new(16, 16));
        let mut account = Account::new(&windows);
        for _ in 0..10 {
            account.receive(1);
            account.forgo();
            assert!(!account.expects(), "it was granted one message and has sent it");
        }
    }

    #[test]
    fn a_lone_fast_sender_gets_a_large_window() {
        let limit = Volume::new(65_536, 64 << 20);
        let windows = Windows::of(limit);
        let (mut credit, mut account) = (Credit::new(), Account::new(&windows));
        let mut notices = 0;
        for _ in 0..100_000 {
            assert!(credit.allows());
            credit.take(100);
            let first = account.receive(100);
            let told = first.into_iter().chain(account.handle(Volume::message(100), limit, &windows));
            told.for_each(|more| {
                notices += 1;
                credit.put(more);
            });
        }
        assert_eq!(account.messages.window, windows.max.messages);
        assert!(notices < 100, "{notices}");
    }
}
