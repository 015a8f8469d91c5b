package order

import "time"

// Clock is the time at which an order is looked at, and what its program says of time.
type Clock struct {
	Now    time.Time // by the database's clock
	Limits *Limits   // nil: nothing was agreed
}

// Limits are the times of a program that an order is held to.
type Limits struct {
	SLA    SLA
	Budget map[Status]time.Duration // for how long an order may be in a status
	// SilentAfter is how long nothing may be heard of an order before D1 is asked;
	// 0 never asks.
	SilentAfter time.Duration
}

// settleTime makes what depends on time follow the state that was before.
func (s *State) settleTime(before State, clock Clock) {
	if s.Status != before.Status || s.Since.IsZero() {
		s.Since = clock.Now
	}
}
