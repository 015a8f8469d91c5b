package outbox

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"

	"cardorder/internal/d1client"
	"cardorder/internal/store"
)

var (
	errLease   = errors.New("the lease is about to end")
	errRetired = errors.New("the message is no longer this worker's")
)

// freshClaim is for how long a claim of a message that was never sent before
// needs no second look.
const freshClaim = time.Second

// fresh tells whether a claim is, by both clocks of this machine: the monotonic one
// stands still while the machine sleeps.
func fresh(now, claimedAt time.Time) bool {
	return now.Sub(claimedAt) < freshClaim && now.Round(0).Sub(claimedAt.Round(0)) < freshClaim
}

// mayStillSend is asked when the token and the connection are there, immediately
// before the first byte. Getting them takes time, and meanwhile D1 may have told
// that it has the order from an earlier sending, or a person may have stopped it.
func (l *lane) mayStillSend(ctx context.Context, j *job, deadline time.Time) error {
	if !time.Now().Before(deadline) {
		return errLease
	}
	if !j.SentBefore && fresh(time.Now(), j.claimedAt) {
		return nil
	}
	held, err := l.store.Holds(ctx, j.Message)
	if err == nil && !held {
		err = errRetired
	}
	return err
}

// call asks D1 for what the message needs. sent is false when the message is to
// be given back as it was.
func (l *lane) call(ctx context.Context, j *job, deadline time.Time) (c store.Completion, reply d1client.Reply, sent bool) {
	id, err := uuid.NewV7()
	if err != nil {
		return c, reply, false
	}
	attempt := store.Attempt{ID: id, StartedAt: time.Now().UTC()}
	if j.asks() {
		c, reply = l.ask(ctx, j.Message, attempt)
		return c, reply, true
	}
	toSend := d1client.Call{
		CardID: j.CardID, CorrelationID: id.String(), Body: j.Body,
		BeforeSend: func() error { return l.mayStillSend(ctx, j, deadline) },
	}
	if j.Kind == store.KindChange {
		return l.change(ctx, j, toSend, attempt)
	}
	if j.Err != nil {
		l.log.Error("an order's sealed content cannot be opened", "orderId", j.OrderID, "error", j.Err)
		return l.cfg.Policy.unreadable(j.Message, attempt), d1client.Reply{Reason: reasonUnreadableContent}, true
	}
	answer := l.d1.Produce(ctx, toSend)
	if answer.Reason == d1client.ReasonNotSent {
		return c, reply, false
	}
	return l.cfg.Policy.submitted(j.Message, attempt, answer), answer.Reply, true
}

// ask finds out whether D1 has an order, and how it stands.
func (l *lane) ask(ctx context.Context, m store.Message, attempt store.Attempt) (store.Completion, d1client.Reply) {
	answer := l.d1.ProductionStatus(ctx, m.CardID, attempt.ID.String())
	around, err := l.surroundings(ctx, m, answer)
	if err != nil {
		l.log.Error("looking up what belongs to a card failed", "orderId", m.OrderID, "error", err)
		answer.Finding = d1client.LookupFailed
	}
	return l.cfg.Policy.asked(m, attempt, answer, around), answer.Reply
}

func (l *lane) surroundings(ctx context.Context, m store.Message, answer d1client.StatusAnswer) (around surroundings, err error) {
	if answer.Finding == d1client.LookupFailed {
		return around, nil
	}
	around.proven = answer.Finding == d1client.CardNotFound && l.findsKnownCard(ctx, m)
	if len(answer.Operations) > 0 {
		var operations, requests []string
		for _, op := range answer.Operations {
			operations, requests = append(operations, op.OperationID), append(requests, op.IssuerRequestID)
		}
		if around.owners, err = l.store.Owners(ctx, l.cfg.IssuerID, operations, requests); err != nil {
			return around, err
		}
	}
	around.sibling, around.parked, err = l.store.Doubts(ctx, m)
	return around, err
}

// findsKnownCard proves that a 404 means "no such card" and not "no such path":
// the same question about another card, that D1 certainly has, gets its answer.
func (l *lane) findsKnownCard(ctx context.Context, m store.Message) bool {
	card, err := l.store.KnownCard(ctx, m.IssuerID, m.CardID, l.cfg.Policy.ResendAfter)
	if err != nil {
		if !errors.Is(err, store.ErrNotFound) {
			l.log.Error("looking for a known card failed", "error", err)
		}
		return false
	}
	return l.d1.ProductionStatus(ctx, card, "").Finding == d1client.Found
}
