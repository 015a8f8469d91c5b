package d1sim

import (
	"context"
	"errors"
	"time"
)

// ErrNotMet is returned by Wait when the time is up.
var ErrNotMet = errors.New("d1sim: condition not met in time")

// Condition is what a test waits for: all of its members must hold at once. The zero value holds.
type Condition struct {
	// Cards is the least number of cards made, of those that fit Status, IssuerRequestID and CardID.
	Cards int
	// Status counts only cards in this status now, like CARD_SHIPPED.
	Status string

	// Requests is the least number of requests answered, of those that fit Kind, IssuerRequestID and CardID.
	Requests int
	Kind     Kind

	// Deliveries is the least number of notification calls that were delivered.
	Deliveries int

	// Delivered waits until no notification is queued or in a call.
	Delivered bool
	// Idle waits until no card is walking (those stopped at Settings.StopAt are not), every change is decided and every
	// notification delivered.
	Idle bool

	// IssuerRequestID and CardID narrow Cards and Requests to an order or a card.
	IssuerRequestID string
	CardID          string
}

func (c Condition) holds(b *book) bool {
	return b.countCards(c) >= c.Cards &&
		(c.Requests == 0 || b.countRequests(Filter{c.Kind, c.IssuerRequestID, c.CardID}) >= c.Requests) &&
		(c.Deliveries == 0 || b.countDelivered() >= c.Deliveries) &&
		(!c.Delivered && !c.Idle || b.allDelivered()) &&
		(!c.Idle || len(b.walking)+len(b.hurrying)+len(b.undecided) == 0)
}

func (b *book) countCards(c Condition) int {
	if c.Status == "" && c.IssuerRequestID == "" && c.CardID == "" {
		return len(b.cards)
	}
	count := 0
	for _, card := range b.cards {
		if (c.Status == "" || c.Status == card.op.Details.Status) &&
			(c.IssuerRequestID == "" || c.IssuerRequestID == card.op.IssuerRequestID) &&
			(c.CardID == "" || c.CardID == card.op.CardID) {
			count++
		}
	}
	return count
}

func (b *book) countRequests(f Filter) int {
	count := 0
	for _, r := range b.history {
		if f.fits(r) {
			count++
		}
	}
	return count
}

func (b *book) countDelivered() int {
	count := 0
	for _, d := range b.deliveries {
		if d.Error == "" {
			count++
		}
	}
	return count
}

func (b *book) allDelivered() bool {
	for _, queue := range b.queued {
		if len(queue) > 0 {
			return false
		}
	}
	return b.inFlight == 0 && len(b.late) == 0
}

// Wait returns once the condition holds; an error that is ErrNotMet when ctx ended before.
func (s *Sim) Wait(ctx context.Context, c Condition) error {
	for {
		s.mu.Lock()
		started := time.Now()
		met, changed := c.holds(s.book), s.changed
		looked := time.Since(started)
		s.mu.Unlock()
		if met {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ErrNotMet, ctx.Err())
		case <-changed:
		}
		// A look goes through all cards while everything else waits, and every request is a change: with many cards
		// most of the time must be left to the requests.
		pause(ctx, 20*looked)
	}
}

// pause waits and tells whether the time passed before ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
