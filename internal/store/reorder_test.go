package store_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

// again is a reorder of an order with its own content.
func (f *fixture) again(first *store.Order, key string) store.Reorder {
	f.t.Helper()
	o, err := f.Original(f.t.Context(), issuer, first.ID)
	if err != nil {
		f.t.Fatal(err)
	}
	r := request(o.CardID, "")
	r.Production, r.ReplacesOrderID, r.Canonical = o.Production, first.ID.String(), []byte("again"+first.ID.String())
	r.Production.IssuerRequestID = ""
	return store.Reorder{Action: action(first.ID), Reason: "moved", Acceptance: store.Acceptance{
		IssuerID: issuer, IdempotencyKey: key, Client: "ada", Request: r,
	}}
}

func TestReorder(t *testing.T) {
	t.Parallel()
	f := open(t)
	first := f.accept("card", "r")
	if _, err := f.Original(t.Context(), issuer, uuid.New()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the content of no order: %v", err)
	}
	reorder := f.again(first, "key")
	if p := reorder.Request.Production; p.EncryptedData != "a.b.c.d.e" || p.Shipment.DeliveryAddress.City != "Paris" {
		t.Errorf("the content is not the first one's")
	}
	refuse := func(r store.Reorder, want error) {
		t.Helper()
		if _, err := f.Reorder(t.Context(), r); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	refuse(reorder, store.ErrNotReorderable) // it may still come
	m := f.claim(1, time.Minute)
	f.complete(taken(m[0], "operation"))
	refuse(reorder, store.ErrNotReorderable)
	f.exec(`UPDATE order_state SET status = 'RETURNED', rank = 80, step_rank = 60, top_rank = 80, ended_at = now(), attention = '{returned}'`)
	f.exec(`UPDATE card_guard SET order_ids = '{}', creation_order_id = $1, creation_until = now() + interval '30 days'`, first.ID)
	wrong := reorder
	wrong.Version = 1
	refuse(wrong, store.ErrVersion)

	// Its own CREATION is not in the way of the card that is to take its place.
	a, err := f.Reorder(t.Context(), reorder)
	if err != nil || a.Replayed || a.Order.State.Status != order.Accepted || *a.Order.ReplacesOrderID != first.ID || a.Order.IssuerRequestID == "r" {
		t.Fatalf("reordered: %+v, %v", a, err)
	}
	o := f.order(first.ID)
	e := f.lastEvent(first.ID)
	if want := fmt.Sprintf(`{"reason": "moved", "orderId": %q}`, a.Order.ID); !slices.Equal(o.ReplacedBy, []uuid.UUID{a.Order.ID}) ||
		e.Type != store.EventReordered || e.Cause.Actor != "ada" || string(e.Cause.Detail) != want {
		t.Errorf("the first order: %+v, event %+v %s", o, e, e.Cause.Detail)
	}
	// The same request again leads to its order, whatever became of the first one.
	b, err := f.Reorder(t.Context(), reorder)
	if err != nil || !b.Replayed || b.Order.ID != a.Order.ID {
		t.Errorf("again: %+v, %v", b, err)
	}
	f.exec(`UPDATE order_state SET status = 'SHIPPED', rank = 60 WHERE order_id = $1`, first.ID)
	if b, err = f.Reorder(t.Context(), reorder); err != nil || !b.Replayed {
		t.Errorf("again, of one that was sent anew: %+v, %v", b, err)
	}
	f.exec(`UPDATE order_state SET status = 'RETURNED', rank = 80 WHERE order_id = $1`, first.ID)
	other := f.again(first, "key")
	other.Request.Canonical = []byte("to another address")
	if _, err := f.Reorder(t.Context(), other); !isConflict(err, store.ContentDiffers, a.Order.ID) {
		t.Errorf("another request with the same key: %v", err)
	}
	// The new one guards the card.
	if _, err := f.Reorder(t.Context(), f.again(first, "another")); !isConflict(err, store.DuplicateOrder, a.Order.ID) {
		t.Errorf("a second one: %v", err)
	}
	if events := value[int](f, `SELECT count(*) FROM order_events WHERE order_id = $1 AND type = 'reordered'`, first.ID); events != 1 {
		t.Errorf("%d events", events)
	}
	// What somebody else's CREATION bars stays barred.
	f.exec(`DELETE FROM card_guard`)
	f.exec(`INSERT INTO card_guard (issuer_id, card_id, order_ids, creation_order_id, creation_until) VALUES ($1, 'card', '{}', $2, now() + interval '1 day')`,
		issuer, a.Order.ID)
	if _, err := f.Reorder(t.Context(), f.again(first, "third")); !isConflict(err, store.DuplicateOrder, a.Order.ID) {
		t.Errorf("beside another creation: %v", err)
	}
	f.exec(`DELETE FROM order_payload WHERE order_id = $1`, first.ID)
	if _, err := f.Original(t.Context(), issuer, first.ID); !errors.Is(err, store.ErrNotReorderable) {
		t.Errorf("the content that is gone: %v", err)
	}
}

// However many reorder an order at once, one order takes its place.
func TestConcurrentReorders(t *testing.T) {
	t.Parallel()
	f := open(t)
	first := f.accept("card", "r")
	f.complete(taken(f.claim(1, time.Minute)[0], "operation"))
	failed := notification(1, "operation", "")
	failed.Evidence = order.Report{OperationID: "operation", Operation: order.OperationFailed}
	f.receive(failed)
	var made atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		r := f.again(first, fmt.Sprint("key-", i/2)) // each key twice
		wg.Go(func() {
			a, err := f.Reorder(context.Background(), r)
			if kind, _ := conflictOf(err); err != nil && kind != store.DuplicateOrder {
				t.Error(err)
			}
			if err == nil && !a.Replayed {
				made.Add(1)
			}
		})
	}
	wg.Wait()
	if n := len(f.order(first.ID).ReplacedBy); made.Load() != 1 || n != 1 {
		t.Errorf("%d calls made an order, %d are there", made.Load(), n)
	}
	f.whole()
}

func isConflict(err error, kind store.ConflictKind, id uuid.UUID) bool {
	k, i := conflictOf(err)
	return k == kind && i == id
}

// jweFor looks like a JWE under a key.
func jweFor(kid string) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"kid":%q}`, kid)) + ".b.c.d.e"
}

func TestCardDataNeeded(t *testing.T) {
	t.Parallel()
	f := open(t)
	accept := func(name, kid string) uuid.UUID {
		r := request("card-"+name, name)
		r.Production.EncryptedData = jweFor(kid)
		return f.accepts(r).ID
	}
	sent := accept("sent", "old")
	rejected := accept("rejected", "old")
	for _, m := range f.claim(2, time.Minute) {
		if m.OrderID == sent {
			f.complete(taken(m, "operation"))
		} else {
			f.complete(store.Completion{Message: m, Attempt: attempt("refused"), Evidence: []order.Evidence{order.Refusal{}}})
		}
	}
	waiting, held, fresh := accept("waiting", "old"), accept("held", "old"), accept("fresh", "new")
	f.held(held, "")
	f.exec(`UPDATE order_payload SET key_id = NULL WHERE order_id = $1 OR order_id = $2`, held, fresh) // of the release before
	mark := func(want int, keys ...string) {
		t.Helper()
		if n, err := f.MarkCardDataNeeded(t.Context(), issuer, keys); err != nil || n != want {
			t.Errorf("%d orders, %v; want %d", n, err, want)
		}
	}
	mark(0, "new", "old")
	if n := value[int](f, `SELECT count(*) FROM order_payload WHERE key_id IS NULL`); n != 0 {
		t.Errorf("of %d orders it is not known which key they need", n)
	}
	mark(3, "new")
	mark(0, "new")
	needed := func() (ids []uuid.UUID) {
		t.Helper()
		list, err := f.Orders(t.Context(), issuer, store.Filter{Attention: order.AttentionCardDataNeeded, Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range list {
			ids = append(ids, o.ID)
		}
		return ids
	}
	if got := needed(); !slices.Equal(got, []uuid.UUID{held, waiting, rejected}) {
		t.Errorf("%v need card data", got)
	}
	if _, err := f.Retry(t.Context(), store.Retry{Action: action(waiting)}); !errors.Is(err, store.ErrNotRetryable) {
		t.Errorf("without card data: %v", err)
	}
	// New card data cures it, in whatever state the order waits.
	for _, id := range []uuid.UUID{held, waiting, rejected} {
		before := f.order(id).State.Status
		o, err := f.Retry(t.Context(), store.Retry{Action: action(id), EncryptedData: jweFor("new")})
		if err != nil || slices.Contains(o.State.Attention, order.AttentionCardDataNeeded) || before != order.Rejected && o.State.Status != before {
			t.Errorf("%s with other card data: %+v, %v", before, o, err)
		}
	}
	mark(0, "new")
	// One that a person has dealt with is not told of again, and may still get other card
	// data.
	mark(4, "newest")
	if _, err := f.ClearAttention(t.Context(), store.Clearance{Action: action(held), Attention: order.AttentionCardDataNeeded, Note: "it will be cancelled"}); err != nil {
		t.Fatal(err)
	}
	mark(0, "newest")
	if _, err := f.Retry(t.Context(), store.Retry{Action: action(held), EncryptedData: jweFor("newest")}); err != nil {
		t.Error(err)
	}
	mark(1, "other keys") // again, when that key goes too
	f.whole()
}
