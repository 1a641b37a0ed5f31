//! What the guard accepts and what it refuses: rules on terms and deadlines, without any effect.

use crate::model::{
    instance::{Armed, StartAs},
    moment::Moment,
    policy::PROMOTION_MARGIN,
    term::Term,
};

/// What the rules remember.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Law {
    /// The highest term that any accepted verb carried.
    pub(super) term: Term,
    /// The deadline in force.
    pub(super) armed: Option<Armed>,
    /// The newest term for which a promotion or a start as primary was accepted, until a start as standby after an empty tree.
    pub(super) primary_of: Option<Term>,
    /// `primary_of` before the last change of it.
    before: Option<Term>,
}

/// Why a verb is refused, for people.
type Refusal = String;

impl Law {
    /// Takes note of `term`, unless a higher one was seen.
    pub(super) fn hear(&mut self, term: Term) -> Result<(), Refusal> {
        if term < self.term {
            return Err(format!("term {term} is older than term {}, which this guard has seen", self.term));
        }
        self.term = term;
        Ok(())
    }

    /// Whether the deadline may become `armed`. An earlier one may always; a later one only after the session's own swap.
    pub(super) fn may_arm(&self, armed: Armed, by_own_swap: bool) -> Result<(), Refusal> {
        match self.armed {
            Some(now) if armed.until > now.until && !by_own_swap => Err(format!(
                "deadline {} is later than the armed {} and this session has not renewed the lease itself",
                armed.until, now.until
            )),
            _ => Ok(()),
        }
    }

    /// Whether PostgreSQL may become primary for `term`: the deadline is armed for exactly this term and far enough ahead.
    pub(super) fn may_lead(&self, term: Term, now: Moment) -> Result<(), Refusal> {
        let armed = self.armed.filter(|armed| armed.term == term).ok_or_else(|| format!("no deadline is armed for term {term}"))?;
        if armed.until < now.plus(PROMOTION_MARGIN) {
            let left = armed.until.since(now).as_millis();
            return Err(format!("{left} ms are left of term {term}, and {} ms are needed", PROMOTION_MARGIN.as_millis()));
        }
        Ok(())
    }

    /// Whether the deadline may be taken away. `lives`: a process tree of PostgreSQL is not known to be empty.
    pub(super) fn may_disarm(&self, lives: bool, paused: bool) -> Result<(), Refusal> {
        match self.primary_of {
            Some(term) if lives && !paused => Err(format!("PostgreSQL lives and is or may be primary of term {term}: stop it first")),
            _ => Ok(()),
        }
    }

    /// PostgreSQL is started (on an empty tree) or promoted.
    pub(super) fn led(&mut self, start: StartAs, term: Term) {
        self.before = self.primary_of;
        self.primary_of = match start {
            StartAs::Primary => Some(term),
            StartAs::Standby => None,
        };
    }

    /// The promotion last accepted was not begun after all.
    pub(super) fn not_led(&mut self) {
        self.primary_of = self.before;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::moment::Span;

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Span::from_millis(millis))
    }

    fn armed(term: u64, millis: u64) -> Armed {
        Armed { term: Term::new(term), until: at(millis) }
    }

    #[test]
    fn a_lower_term_is_refused_and_the_highest_is_kept() {
        let mut law = Law::default();
        assert_eq!(law.hear(Term::new(5)), Ok(()));
        assert_eq!(law.hear(Term::new(5)), Ok(()));
        assert!(law.hear(Term::new(4)).is_err());
        assert_eq!(law.term, Term::new(5));
    }

    #[test]
    fn a_later_deadline_needs_the_sessions_own_swap() {
        let law = Law { armed: Some(armed(1, 1_000)), ..Law::default() };
        assert!(law.may_arm(armed(1, 1_001), false).is_err());
        assert!(law.may_arm(armed(2, 1_001), false).is_err());
        assert_eq!(law.may_arm(armed(1, 1_001), true), Ok(()));
        assert_eq!(law.may_arm(armed(1, 999), false), Ok(()));
        assert_eq!(Law::default().may_arm(armed(1, 999), false), Ok(()), "any deadline is earlier than none");
    }

    #[test]
    fn leading_needs_a_deadline_of_this_very_term_with_the_margin_left() {
        let law = Law { armed: Some(armed(7, 1_500)), ..Law::default() };
        assert_eq!(law.may_lead(Term::new(7), at(1_000)), Ok(()));
        assert!(law.may_lead(Term::new(7), at(1_001)).is_err());
        assert!(law.may_lead(Term::new(7), at(2_000)).is_err());
        assert!(law.may_lead(Term::new(6), at(0)).is_err());
        assert!(law.may_lead(Term::new(8), at(0)).is_err());
        assert!(Law::default().may_lead(Term::new(1), at(0)).is_err());
    }

    #[test]
    fn a_living_primary_keeps_its_deadline() {
        let mut law = Law::default();
        assert_eq!(law.may_disarm(true, false), Ok(()));
        law.led(StartAs::Primary, Term::new(3));
        assert!(law.may_disarm(true, false).is_err());
        assert_eq!(law.may_disarm(true, true), Ok(()));
        assert_eq!(law.may_disarm(false, false), Ok(()));
        law.led(StartAs::Standby, Term::new(3));
        assert_eq!(law.may_disarm(true, false), Ok(()));
    }
}
