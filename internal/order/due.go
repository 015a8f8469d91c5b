package order

import (
	"slices"
	"time"
)

// Clock is the time at which an order is looked at, and what matters of it for whether
// it is late, silent, or still to be kept back.
type Clock struct {
	Now    time.Time // by the database's clock
	Limits *Limits   // nil: nothing was agreed

	Issuance  Issuance
	Urgent    bool
	Accepted  time.Time // when the order was
	NotBefore time.Time // when it may be sent; zero: at once
	Sent      time.Time // when D1 may first have learned of it, zero when never
	Heard     time.Time // when D1 last told something new of it, zero when never
	Checks    int       // how often D1 was asked in vain since then
	Asked     time.Time // when it was last asked, where that is known
}

// Limits are the times of a program that an order is held to.
type Limits struct {
	Calendar *Calendar                // nil: no SLA
	Budget   map[Status]time.Duration // for how long an order may be in a status
	// SilentAfter is how long nothing may be heard of an order before D1 is asked;
	// 0 never asks.
	SilentAfter time.Duration
	// DispatchDelay keeps orders that are not urgent back, so that they can be cancelled
	// for certain.
	DispatchDelay time.Duration
	// MaxOrdersPerConsumerPerDay holds further orders of a consumer; 0 holds none.
	MaxOrdersPerConsumerPerDay int
}

// Any tells whether there is anything that an order is held to.
func (l *Limits) Any() bool {
	return l != nil && (l.Calendar != nil || len(l.Budget) > 0 || l.SilentAfter > 0)
}

func (c Clock) limits() Limits {
	if c.Limits == nil {
		return Limits{}
	}
	return *c.Limits
}

// Early tells whether the order may not be sent yet.
func (c Clock) Early() bool { return c.NotBefore.After(c.Now) }

// started is when the time of an order began to run: D1's, or, before D1 had it, ours.
func (c Clock) started(s State) time.Time {
	switch {
	case s.Rank > 0 && !c.Sent.IsZero():
		return c.Sent // before NotBefore, when somebody would not wait for that
	case c.NotBefore.After(c.Accepted):
		return c.NotBefore
	}
	return c.Accepted
}

// settleTime makes what depends on time follow the state that was before.
func (s *State) settleTime(before State, clock Clock) {
	unscheduled := before.Hold == HeldBySchedule && s.Hold != HeldBySchedule
	if s.Status != before.Status || unscheduled || s.Since.IsZero() {
		s.Since = clock.Now
	}
	if unscheduled && s.Status != Held && clock.Early() { // it is not waited for its time
		s.DueAt, clock.NotBefore = time.Time{}, clock.Now
	}
	if before.Rank == 0 && s.Rank > 0 {
		s.DueAt = time.Time{} // the bureau's time runs from now on
		clock.Sent = clock.Now
	}
	if s.DueDate != before.DueDate {
		s.DueAt = time.Time{}
	}
	s.DueAt = s.Due(clock)
	s.Late = s.overdue(clock) || s.overBudget(clock) && (before.Late || !slices.Contains(s.LateIn, s.Status))
	if s.Late && !slices.Contains(s.LateIn, s.Status) {
		s.LateIn = append(slices.Clip(s.LateIn), s.Status)
	}
}

// Due is by when the order should have arrived: as D1 estimates it; else by the SLA,
// which counts from when D1 took it, and before that from when it was accepted or may
// be sent. Zero when nothing is known.
func (s State) Due(clock Clock) time.Time {
	if !s.DueAt.IsZero() {
		return s.DueAt
	}
	calendar := clock.limits().Calendar
	if due, ok := calendar.dueDate(s.DueDate.Value); ok {
		return due
	}
	if calendar == nil || clock.Accepted.IsZero() && s.Rank == 0 {
		return time.Time{}
	}
	return calendar.Due(clock.started(s), clock.Issuance, clock.Urgent)
}

func (s State) overdue(clock Clock) bool {
	due := s.Due(clock)
	return !s.Ended() && !due.IsZero() && !clock.Now.Before(due)
}

// budgetEnd is when the order will have been in its status for too long, zero for never.
func (s State) budgetEnd(clock Clock) time.Time {
	budget, ok := clock.limits().Budget[s.Status]
	if !ok || s.Ended() || s.Since.IsZero() || s.Hold == HeldBySchedule {
		return time.Time{}
	}
	return s.Since.Add(budget)
}

// HasBudget tells whether an order may be late because it has a status for too long.
func HasBudget(s Status) bool {
	return KnownStatus(s) && !State{Status: s}.Ended()
}

func (s State) overBudget(clock Clock) bool {
	end := s.budgetEnd(clock)
	return !end.IsZero() && !clock.Now.Before(end)
}

// ScheduleEnded tells whether the order waits for nothing but a time that has come.
func (s State) ScheduleEnded(clock Clock) bool {
	return s.Status == Held && s.Hold == HeldBySchedule && !clock.Early()
}

// Waits between questions to D1: they double from the first to the last.
const (
	firstNameless = 10 * time.Second // for the name of an operation
	lastNameless  = time.Hour
	lastSilent    = 7 * 24 * time.Hour
)

// wait is how long D1 is waited for before it is asked about the order, after so many
// questions that taught nothing; 0 for ever.
func (s State) wait(clock Clock, checks int) time.Duration {
	first, last := clock.limits().SilentAfter, lastSilent
	if s.OperationID == "" {
		first, last = firstNameless, lastNameless
	}
	if s.Rank == 0 || s.Ended() || first <= 0 {
		return 0
	}
	for range checks {
		if first >= last/2 {
			return max(first, last)
		}
		first *= 2
	}
	return first
}

// question is when D1 is to be asked next, from 0.9 (the earliest) to 1.1 times the wait;
// zero for never.
func (s State) question(clock Clock, times float64) time.Time {
	total := time.Duration(0)
	since := clock.Asked
	if !since.IsZero() {
		total = s.wait(clock, clock.Checks)
	} else {
		since = clock.Heard
		if since.IsZero() {
			since = s.Since // stored before it was noted
		}
		for n := range clock.Checks + 1 {
			total += s.wait(clock, n)
		}
	}
	if total <= 0 || since.IsZero() {
		return time.Time{}
	}
	return since.Add(time.Duration(times * float64(total)))
}

// ToBeAsked tells whether D1 has been silent about the order for too long, or has not
// named its operation yet.
func (s State) ToBeAsked(clock Clock) bool {
	at := s.question(clock, 0.9)
	return !at.IsZero() && !clock.Now.Before(at)
}

// NextLook is when the order has to be looked at again, because time alone may change
// something then: it is late, its schedule ends, or D1 is to be asked. Zero for never.
// spread, from 0 to 1, spreads the questions of many orders.
func NextLook(s State, clock Clock, spread float64) time.Time {
	if s.Ended() {
		return time.Time{}
	}
	var next time.Time
	at := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	if !s.Late {
		at(s.Due(clock))
		if !slices.Contains(s.LateIn, s.Status) {
			at(s.budgetEnd(clock))
		}
	}
	if s.Status == Held && s.Hold == HeldBySchedule {
		at(clock.NotBefore)
	}
	switch limits := clock.limits(); {
	case s.ToBeAsked(clock):
		// There was no room for the question: it comes later, and in no hurry, since
		// there may be very many of them.
		wait := max(time.Second, s.wait(clock, clock.Checks)/8)
		at(clock.Now.Add(time.Duration(float64(wait) * (0.5 + spread))))
	case s.Rank > 0:
		at(s.question(clock, 0.9+0.2*spread))
	case limits.SilentAfter > 0:
		// Once D1 has it, it will have to be looked at about then. To know that already
		// keeps progress from having to move the time.
		at(clock.Now.Add(limits.SilentAfter))
	}
	return next
}
