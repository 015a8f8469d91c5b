package outbox

import "time"

// Health is what a process says of one of its lanes, for people. It travels as JSON in
// the process's heartbeat row. All times are by the database's clock.
type Health struct {
	Sending     BreakerHealth `json:"sending"`
	Asking      BreakerHealth `json:"asking"`
	InFlight    int           `json:"inFlight"`    // calls to D1 under way
	Concurrency int           `json:"concurrency"` // this process's share of the limit
	ClockSkewMs int64         `json:"clockSkewMs"` // by how much its clock is behind the database's
}

// BreakerHealth is how a process sees D1 in one direction.
type BreakerHealth struct {
	State  string     `json:"state"`            // closed, open, half-open
	Reason string     `json:"reason,omitempty"` // of the last failure; rate-limited when D1 asked for patience
	Until  *time.Time `json:"until,omitempty"`  // when it lets something out again

	left time.Duration // until then; 0 when nothing is waited for
}

// at says when, by a clock that shows now.
func (h BreakerHealth) at(now time.Time) BreakerHealth {
	if h.left > 0 {
		until := now.Add(h.left).Truncate(time.Millisecond)
		h.Until = &until
	}
	return h
}

// health is the lane as it stands; databaseNow is what the database's clock shows.
func (l *lane) health(now, databaseNow time.Time) Health {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Health{
		Sending: l.sending.view(now).at(databaseNow), Asking: l.asking.view(now).at(databaseNow),
		InFlight: l.slots.busy, Concurrency: l.slots.share,
	}
}
