package store_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

func action(id uuid.UUID) store.Action {
	return store.Action{IssuerID: issuer, OrderID: id, Actor: "ada"}
}

// lastEvent returns the newest event of an order.
func (f *fixture) lastEvent(id uuid.UUID) store.Event {
	f.t.Helper()
	entries, err := f.Timeline(f.t.Context(), issuer, id)
	if err != nil {
		f.t.Fatal(err)
	}
	var last store.Event
	for _, e := range entries {
		if e.Event != nil {
			last = *e.Event
		}
	}
	return last
}

func (f *fixture) reject(id uuid.UUID) {
	f.t.Helper()
	m := f.claim(100, time.Minute)
	i := slices.IndexFunc(m, func(m store.Message) bool { return m.OrderID == id })
	if i < 0 {
		f.t.Fatal("the order was not claimed")
	}
	f.complete(store.Completion{Message: m[i], Attempt: attempt("refused"), Evidence: []order.Evidence{order.Refusal{}}})
}

func TestRefresh(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.accept("card", "r").ID
	refuse := func(a store.Action, want error) {
		t.Helper()
		if _, err := f.Refresh(t.Context(), a); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	refuse(action(uuid.New()), store.ErrNotFound)
	refuse(action(id), store.ErrNotSent)
	wrong := action(id)
	wrong.Version = 2
	refuse(wrong, store.ErrVersion)

	refresh := func() *store.Order {
		t.Helper()
		before := f.order(id)
		a := action(id)
		a.Version = before.State.Version
		o, err := f.Refresh(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		if o.State.Version != before.State.Version+1 || o.State.Status != before.State.Status || !o.Asking {
			t.Errorf("refreshed: %+v", o)
		}
		e := f.lastEvent(id)
		if e.Type != store.EventRefreshRequested || e.Cause.Kind != store.CauseRequest || e.Cause.Actor != "ada" || e.Seq != o.State.Version {
			t.Errorf("event %+v", e)
		}
		return o
	}
	m := f.claim(1, time.Minute)
	f.complete(store.Completion{
		Message: m[0], Attempt: attempt("unknown"), Evidence: []order.Evidence{order.LostAnswer{}},
		Next: store.Next{RunIn: time.Hour, Asks: 3, Maybe: store.MaybeNow},
	})
	refresh() // its own message asks
	if n := value[int](f, `SELECT count(*) FROM outbox WHERE run_at <= now() AND kind = 'submit'`); n != 1 {
		t.Error("the question is not due")
	}
	f.exec(`UPDATE outbox SET class = 0`)
	m = f.claim(1, time.Minute)
	refresh() // a worker has it: it is being asked
	if n := value[int](f, `SELECT count(*) FROM outbox WHERE leased_until > now() AND claim_token IS NOT NULL`); n != 1 {
		t.Error("a claim was cut short")
	}
	f.complete(taken(m[0], "operation"))
	if f.order(id).Asking {
		t.Error("nobody asks any more")
	}
	refresh()
	f.exec(`UPDATE outbox SET run_at = now() + interval '1 h'`)
	refresh() // once more: the same question, now
	if n := value[int](f, `SELECT count(*) FROM outbox WHERE run_at <= now() AND kind = 'ask' AND class = 2 AND first_sent_at <= now()`); n != 1 {
		t.Error("the question is not due")
	}
	f.exec(`DELETE FROM outbox`) // as when it is over
	f.whole()
}

func TestRetry(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.accept("card", "r").ID
	refuse := func(a store.Action, want error) {
		t.Helper()
		if _, err := f.Retry(t.Context(), store.Retry{Action: a}); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	refuse(action(uuid.New()), store.ErrNotFound)
	refuse(action(id), store.ErrNotRetryable)
	wrong := action(id)
	wrong.Version = 2
	refuse(wrong, store.ErrVersion)

	// One that was rejected is sent, with other card data.
	f.reject(id)
	o, err := f.Retry(t.Context(), store.Retry{Action: action(id), EncryptedData: "f.g.h.i.j"})
	if err != nil || o.State.Status != order.Accepted || o.Asking || len(o.State.Attention) != 0 {
		t.Fatalf("retried: %+v, %v", o, err)
	}
	e := f.lastEvent(id)
	if e.Type != store.EventRetryRequested || e.PreviousStatus != order.Rejected || e.Cause.Actor != "ada" || string(e.Cause.Detail) != `{"cardDataReplaced": true}` {
		t.Errorf("event %+v %s", e, e.Cause.Detail)
	}
	m := f.claim(1, time.Minute)
	if len(m) != 1 || m[0].MaybeSent || !bytes.Contains(m[0].Body, []byte(`"encryptedData":"f.g.h.i.j"`)) || m[0].IssuerRequestID != "r" {
		t.Fatalf("claimed %+v", m)
	}
	f.whole()

	// One whose outcome is unknown is asked about anew; a worker that has it keeps it.
	f.complete(store.Completion{
		Message: m[0], Attempt: attempt("unknown"), Evidence: []order.Evidence{order.LostAnswer{}, order.Notice{Attention: order.AttentionConflict}},
		Next: store.Next{RunIn: time.Hour, Tries: 3, Asks: 9, Negatives: 1, ResendOff: true, Maybe: store.MaybeNow},
	})
	f.exec(`UPDATE outbox SET trying_for = '9 days', halt = 'hold', claim_token = $1`, uuid.New())
	f.retry(id)
	if n := value[int](f, `SELECT count(*) FROM outbox WHERE run_at > now() AND claim_token IS NOT NULL AND NOT resend_off`); n != 1 {
		t.Error("a claim was lost")
	}
	f.exec(`UPDATE outbox SET claim_token = NULL, resend_off = true, asks = 9, negatives = 1, tries = 3`)
	if o := f.retry(id); !o.Asking || o.State.Status != order.OutcomeUnknown || len(o.State.Attention) != 0 {
		t.Errorf("retried: %+v", o)
	}
	if n := value[int](f, `SELECT count(*) FROM outbox WHERE run_at <= now() AND maybe_sent_at IS NOT NULL AND NOT resend_off
		AND asks = 0 AND negatives = 0 AND tries = 0 AND trying_for = '0' AND halt IS NULL`); n != 1 {
		t.Error("the limits are not lifted")
	}

	// One that was given up is tried again.
	f.exec(`UPDATE outbox SET run_at = 'infinity', class = 0, maybe_sent_at = NULL, trying_for = '9 days'`)
	f.exec(`UPDATE order_state SET status = 'ACCEPTED', attention = '{given-up}'`)
	if o := f.retry(id); o.Asking || len(o.State.Attention) != 0 {
		t.Errorf("retried: %+v", o)
	}
	if n := value[int](f, `SELECT count(*) FROM outbox WHERE run_at <= now() AND trying_for = '0'`); n != 1 {
		t.Error("what was given up is not tried")
	}
	f.whole()
}

// A rejected order holds its card still. One that was let in beside it, or made the card
// meanwhile, is in the way of its retry.
func TestRetryPassesTheGuard(t *testing.T) {
	t.Parallel()
	f := open(t)
	first := f.accept("card", "r-1").ID
	f.reject(first)
	a := acceptance("card", "r-2", "")
	a.Request.DuplicateOverride = "the first one has a wrong name"
	second, err := f.Accept(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	conflict := func() {
		t.Helper()
		_, err := f.Retry(t.Context(), store.Retry{Action: action(first)})
		if kind, other := conflictOf(err); kind != store.DuplicateOrder || other != second.Order.ID {
			t.Errorf("got %v", err)
		}
		if o := f.order(first); o.State.Status != order.Rejected {
			t.Errorf("the order is %s", o.State.Status)
		}
	}
	conflict()
	f.complete(taken(f.claim(1, time.Minute)[0], "operation"))
	f.receive(notification(1, "operation", "CARD_SHIPPED"))
	if got := f.order(second.Order.ID).State.Status; got != order.Shipped {
		t.Fatalf("the second order is %s", got)
	}
	conflict()
	o, err := f.Retry(t.Context(), store.Retry{Action: action(first), DuplicateOverride: "the card was lost"})
	if err != nil || o.State.Status != order.Accepted {
		t.Fatalf("overridden: %+v, %v", o, err)
	}
	if e := f.lastEvent(first); string(e.Cause.Detail) != `{"duplicateOverride": "the card was lost"}` {
		t.Errorf("the reason is not kept: %s", e.Cause.Detail)
	}
	f.whole()
}
