package outbox

import (
	"math/rand/v2"
	"time"

	"cardorder/internal/d1client"
)

// breaker keeps a lane from calling a D1 that is in trouble, in one direction: sending
// or asking. It is this process's own view, for its certificate, its key file and its
// way to D1 may be bad while those of others are good. It reads no clock: the caller
// says what time it is, by the monotonic clock.
//
// Closed, everything goes out. After threshold failures in a row, or one of a kind that
// cannot be chance, it opens: nothing goes out until a wait has passed, which doubles
// each time. Then it is half-open: one message is tried, and decides.
//
// A 429 is no failure. It holds a direction back for a while and then lets it go on.
type breaker struct {
	threshold int

	state    breakerState
	failures int             // in a row
	wait     time.Duration   // of the last opening
	until    time.Time       // when an open one half-opens
	reason   d1client.Reason // of the last failure, or of the 429 that holds it back
	trying   bool            // half-open: the one message is under way

	heldUntil time.Time     // after a 429
	holding   time.Duration // of the last hold that D1 named no time for
}

type breakerState int

const (
	breakerClosed breakerState = iota
	breakerOpen
	breakerHalfOpen
)

var breakerStates = []breakerState{breakerClosed, breakerOpen, breakerHalfOpen}

func (s breakerState) String() string {
	switch s {
	case breakerOpen:
		return "open"
	case breakerHalfOpen:
		return "half-open"
	default:
		return "closed"
	}
}

// Bounds of the waits.
const (
	breakerFirstWait = time.Second
	breakerMaxWait   = time.Minute
	maxHold          = 5 * time.Minute // whatever Retry-After says: then one call finds out
)

// allowance is what may be claimed.
type allowance int

const (
	allowNone allowance = iota
	allowOne            // to be tried, with tryOne
	allowAll
)

// allows tells what may be claimed now, and if nothing, when it is worth asking again;
// zero when only news can change it.
func (b *breaker) allows(now time.Time) (allowance, time.Time) {
	switch {
	case now.Before(b.heldUntil):
		return allowNone, b.heldUntil
	case b.state == breakerClosed:
		return allowAll, time.Time{}
	case b.state == breakerOpen && now.Before(b.until):
		return allowNone, b.until
	case b.trying:
		return allowNone, time.Time{}
	default:
		b.state = breakerHalfOpen
		return allowOne, time.Time{}
	}
}

// sends tells whether what was claimed already may still go out.
func (b *breaker) sends(now time.Time) bool {
	return b.state != breakerOpen && !now.Before(b.heldUntil)
}

// tryOne begins the one try of a half-open breaker; undoTry ends it without news, when
// there was nothing to send after all.
func (b *breaker) tryOne()  { b.trying = true }
func (b *breaker) undoTry() { b.trying = false }

// verdict is what a call tells about D1 as a whole, not about an order.
type verdict int

const (
	verdictNone    verdict = iota // nothing
	verdictAnswers                // D1 works, whatever it thinks of the order
	verdictFailure                // trouble, which may be chance
	verdictSetup                  // trouble that does not pass by itself
	verdictHold                   // D1 asks for patience
)

// judge tells what the reason of a call says about D1. What nobody thought of is
// trouble, never health.
func judge(r d1client.Reason) verdict {
	switch r {
	case d1client.ReasonAccepted, d1client.ReasonAcceptedWithoutID, d1client.ReasonFound, d1client.ReasonNotFound,
		d1client.ReasonRefused, d1client.ReasonConflict, d1client.ReasonClientError:
		return verdictAnswers
	case d1client.ReasonRateLimited, d1client.ReasonTooEarly:
		return verdictHold
	case d1client.ReasonTLS, d1client.ReasonTokenRefused, d1client.ReasonToken, d1client.ReasonUnauthorized:
		return verdictSetup
	case d1client.ReasonNotSent, d1client.ReasonInvalidCall, d1client.ReasonCancelled, reasonUnreadableContent:
		return verdictNone
	default: // dial, timeout, cut, unreadable, redirect, 408, 5xx
		return verdictFailure
	}
}

// record takes in what a call told. tried tells that it was the one of tryOne.
func (b *breaker) record(now time.Time, reason d1client.Reason, retryAfter time.Duration, tried bool) {
	if tried {
		b.trying = false
	}
	switch judge(reason) {
	case verdictAnswers:
		*b = breaker{threshold: b.threshold, heldUntil: b.heldUntil}
	case verdictHold:
		b.hold(now, reason, retryAfter)
	case verdictFailure:
		b.fail(now, reason, retryAfter, false, tried)
	case verdictSetup:
		b.fail(now, reason, retryAfter, true, tried)
	case verdictNone:
	}
}

func (b *breaker) fail(now time.Time, reason d1client.Reason, retryAfter time.Duration, certain, tried bool) {
	b.failures++
	if b.state != breakerClosed && !tried {
		return // a call from before it opened: nothing new
	}
	b.reason = reason
	if !certain && !tried && b.failures < b.threshold {
		return
	}
	b.wait = min(max(2*b.wait, breakerFirstWait), breakerMaxWait)
	b.state, b.until = breakerOpen, now.Add(max(jittered(b.wait), min(retryAfter, maxHold)))
}

// hold does without calls for as long as D1 asked for, or for ever longer when it goes on
// answering 429 without saying for how long. Answers to calls that were under way
// together count once.
func (b *breaker) hold(now time.Time, reason d1client.Reason, retryAfter time.Duration) {
	b.reason = reason
	if retryAfter == 0 {
		if now.Before(b.heldUntil) {
			return
		}
		b.holding = min(max(2*b.holding, breakerFirstWait), breakerMaxWait)
		retryAfter = b.holding
	}
	retryAfter = min(retryAfter, maxHold)
	// Never before the time that D1 named.
	if until := now.Add(retryAfter + jitter(retryAfter/10)); until.After(b.heldUntil) {
		b.heldUntil = until
	}
}

// resume is a person's wish: one message is tried now.
func (b *breaker) resume() {
	b.heldUntil, b.holding = time.Time{}, 0
	if b.state == breakerOpen {
		b.state, b.wait = breakerHalfOpen, 0
	}
}

// view is the breaker for people. Held back by a 429 it is closed, with a reason.
func (b *breaker) view(now time.Time) BreakerHealth {
	h := BreakerHealth{State: b.state.String()}
	switch {
	case now.Before(b.heldUntil):
		h.Reason, h.left = string(b.reason), b.heldUntil.Sub(now)
	case b.state == breakerOpen:
		h.Reason, h.left = string(b.reason), max(0, b.until.Sub(now))
	case b.state == breakerHalfOpen:
		h.Reason = string(b.reason)
	}
	return h
}

// jittered is between a half and the whole of d, so that replicas do not come at once.
func jittered(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }
