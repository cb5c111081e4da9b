//! What a run of MQTT devices was worth.

/// What a run was worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    pub steps: u64,
    pub turns: u64,
    pub idle_turns: u64,
    pub connects: u64,
    pub resumed: u64,
    pub published: u64,
    pub acknowledged: u64,
    pub received: u64,
    pub wills: u64,
    pub shared: u64,
    pub redispatched: u64,
    pub values: u64,
    pub expired_sessions: u64,
}

impl Coverage {
    pub fn add(&mut self, other: &Coverage) {
        self.steps += other.steps;
        self.turns += other.turns;
        self.idle_turns += other.idle_turns;
        self.connects += other.connects;
        self.resumed += other.resumed;
        self.published += other.published;
        self.acknowledged += other.acknowledged;
        self.received += other.received;
        self.wills += other.wills;
        self.shared += other.shared;
        self.redispatched += other.redispatched;
        self.values += other.values;
        self.expired_sessions += other.expired_sessions;
    }

    /// Whether enough has happened in a dozen small worlds of everything that they are there for.
    pub fn is_enough(&self) -> bool {
        let rarer = [self.resumed, self.wills, self.shared, self.values, self.expired_sessions];
        self.received > 1_000 && rarer.into_iter().all(|count| count > 10)
    }
}
