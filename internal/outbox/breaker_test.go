package outbox

import (
	"testing"
	"time"

	"cardorder/internal/d1client"
)

// at is a moment of the tests' clock.
func at(d time.Duration) time.Time { return sent.Add(d) }

// The breaker's life, step by step: at a time, either a call ends with a reason or
// somebody asks what may go out.
func TestBreaker(t *testing.T) {
	t.Parallel()
	const (
		taken   = d1client.ReasonAccepted
		refused = d1client.ReasonRefused
		down    = d1client.ReasonServerError
		setup   = d1client.ReasonTLS
		busy    = d1client.ReasonRateLimited
		late    = d1client.ReasonTimeout
	)
	type step struct {
		at     time.Duration
		reason d1client.Reason // of a call that ended; "" for none
		after  time.Duration   // its Retry-After
		try    bool            // it was the one try
		resume bool
		want   allowance // afterwards
	}
	open := []step{{reason: down, want: allowAll}, {reason: late, want: allowAll}, {reason: down, want: allowNone}}
	for name, steps := range map[string][]step{
		"failures in a row open it": open,
		"an answer between closes it again": {
			{reason: down, want: allowAll}, {reason: down, want: allowAll}, {reason: refused, want: allowAll},
			{reason: down, want: allowAll}, {reason: down, want: allowAll},
		},
		"a set-up at fault opens it at once": {{reason: setup, want: allowNone}},
		"it half-opens by itself": append(open[:3:3],
			step{at: breakerFirstWait/2 - 1, want: allowNone}, step{at: breakerFirstWait + 1, want: allowOne}),
		"one at a time is tried": append(open[:3:3],
			step{at: time.Minute, want: allowOne}, step{at: time.Minute, try: true, want: allowNone}),
		"the try succeeds": append(open[:3:3],
			step{at: time.Minute, want: allowOne}, step{at: time.Minute, try: true, want: allowNone},
			step{at: time.Minute, try: true, reason: refused, want: allowAll}),
		"the try fails, and the wait doubles": append(open[:3:3],
			step{at: time.Minute, want: allowOne}, step{at: time.Minute, try: true, want: allowNone},
			step{at: time.Minute, try: true, reason: down, want: allowNone},
			step{at: time.Minute + breakerFirstWait - 1, want: allowNone},
			step{at: time.Minute + 2*breakerFirstWait + 1, want: allowOne}),
		"a late failure from before changes nothing": append(open[:3:3],
			step{at: breakerFirstWait / 4, reason: down, want: allowNone}, step{at: breakerFirstWait + 1, want: allowOne}),
		"a late success from before closes it": append(open[:3:3], step{reason: taken, want: allowAll}),
		"a person's wish":                      append(open[:3:3], step{resume: true, want: allowOne}),
		"what tells nothing tells nothing":     append(open[:2:2], step{reason: d1client.ReasonNotSent, want: allowAll}, step{reason: down, want: allowNone}),
		"a 429 holds back for as long as D1 says": {
			{reason: busy, after: 10 * time.Second, want: allowNone}, {at: 10*time.Second - 1, want: allowNone}, {at: 11*time.Second + 1, want: allowAll},
		},
		"but not for ever": {
			{reason: busy, after: time.Hour, want: allowNone}, {at: maxHold + maxHold/10 + 1, want: allowAll},
		},
		"without a time, ever longer": {
			{reason: busy, want: allowNone}, {reason: busy, want: allowNone}, {at: 1100*time.Millisecond + 1, want: allowAll},
			{at: 2 * time.Second, reason: busy, want: allowNone}, {at: 4*time.Second - 1, want: allowNone}, {at: 4200*time.Millisecond + 1, want: allowAll},
		},
		"a 429 is no failure": {
			{reason: down, want: allowAll}, {reason: down, want: allowAll}, {reason: busy, want: allowNone}, {at: 2 * time.Second, want: allowAll},
		},
		"a person lifts a hold": {{reason: busy, after: time.Minute, want: allowNone}, {resume: true, want: allowAll}},
		"Retry-After of a 503":  append(open[:2:2], step{reason: d1client.ReasonUnavailable, after: time.Minute, want: allowNone}, step{at: time.Minute - 1, want: allowNone}, step{at: time.Minute, want: allowOne}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := breaker{threshold: 3}
			for i, s := range steps {
				switch {
				case s.reason != "":
					b.record(at(s.at), s.reason, s.after, s.try)
				case s.try:
					b.tryOne()
				case s.resume:
					b.resume()
				}
				if got, _ := b.allows(at(s.at)); got != s.want {
					t.Fatalf("step %d, %+v: allows %d: %+v", i, s, got, b)
				}
			}
		})
	}
}

// The waits grow to their bound and no further, whatever happens.
func TestBreakerWaits(t *testing.T) {
	t.Parallel()
	b, now := breaker{threshold: 1}, at(0)
	for range 100 {
		b.record(now, d1client.ReasonDial, 0, b.trying)
		allowed, until := b.allows(now)
		if wait := until.Sub(now); allowed != allowNone || wait < breakerFirstWait/2 || wait > breakerMaxWait {
			t.Fatalf("waits %v: %+v", wait, b)
		}
		now = until
		if allowed, _ := b.allows(now); allowed != allowOne {
			t.Fatalf("after the wait: %+v", b)
		}
		b.tryOne()
	}
	if b.wait != breakerMaxWait {
		t.Errorf("the last wait is %v", b.wait)
	}
}

// Every reason there is was thought of: what is not D1's health is not taken for it.
func TestJudge(t *testing.T) {
	t.Parallel()
	want := map[d1client.Reason]verdict{
		d1client.ReasonAccepted: verdictAnswers, d1client.ReasonAcceptedWithoutID: verdictAnswers, d1client.ReasonFound: verdictAnswers,
		d1client.ReasonNotFound: verdictAnswers, d1client.ReasonRefused: verdictAnswers, d1client.ReasonConflict: verdictAnswers,
		d1client.ReasonClientError: verdictAnswers, d1client.ReasonRateLimited: verdictHold, d1client.ReasonTooEarly: verdictHold,
		d1client.ReasonUnauthorized: verdictSetup, d1client.ReasonTokenRefused: verdictSetup, d1client.ReasonToken: verdictSetup, d1client.ReasonTLS: verdictSetup,
		d1client.ReasonRequestTimeout: verdictFailure, d1client.ReasonUnavailable: verdictFailure, d1client.ReasonServerError: verdictFailure,
		d1client.ReasonRedirect: verdictFailure, d1client.ReasonUnreadable: verdictFailure, d1client.ReasonDial: verdictFailure,
		d1client.ReasonTimeout: verdictFailure, d1client.ReasonCut: verdictFailure,
		d1client.ReasonCancelled: verdictNone, d1client.ReasonNotSent: verdictNone, d1client.ReasonInvalidCall: verdictNone,
	}
	for _, r := range d1client.Reasons() {
		if v, known := want[r]; !known || judge(r) != v {
			t.Errorf("%s: %d", r, judge(r))
		}
	}
}

// For people the times are by the database's clock, whatever this process's shows.
func TestBreakerHealth(t *testing.T) {
	t.Parallel()
	b, database := breaker{threshold: 1}, at(0).Add(-time.Hour)
	if h := b.view(at(0)).at(database); h != (BreakerHealth{State: "closed"}) {
		t.Errorf("in health: %+v", h)
	}
	b.record(at(0), d1client.ReasonTLS, 0, false)
	h := b.view(at(0)).at(database)
	if h.State != "open" || h.Reason != "tls" || h.Until == nil || h.Until.Before(database) || h.Until.After(database.Add(breakerFirstWait)) {
		t.Errorf("open: %+v", h)
	}
	b.resume()
	if h := b.view(at(0)).at(database); h.State != "half-open" || h.Reason != "tls" || h.Until != nil {
		t.Errorf("half-open: %+v", h)
	}
	b = breaker{threshold: 1}
	b.record(at(0), d1client.ReasonRateLimited, 10*time.Second, false)
	if h := b.view(at(0)).at(database); h.State != "closed" || h.Reason != "rate-limited" || h.Until == nil {
		t.Errorf("held back: %+v", h)
	}
}
