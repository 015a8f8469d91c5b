package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

func hold(id uuid.UUID, reason string) store.Hold {
	return store.Hold{Action: action(id), Reason: reason}
}

// held holds an order that must allow it.
func (f *fixture) held(id uuid.UUID, reason string) *store.Order {
	f.t.Helper()
	o, err := f.HoldOrder(f.t.Context(), hold(id, reason))
	if err != nil {
		f.t.Fatal(err)
	}
	return o
}

func (f *fixture) released(id uuid.UUID) *store.Order {
	f.t.Helper()
	o, err := f.ReleaseOrder(f.t.Context(), hold(id, ""))
	if err != nil {
		f.t.Fatal(err)
	}
	return o
}

func TestHoldAndRelease(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.accept("card", "r").ID
	refuse := func(h store.Hold, hold, release error) {
		t.Helper()
		if _, err := f.HoldOrder(t.Context(), h); !errors.Is(err, hold) {
			t.Errorf("hold: %v, want %v", err, hold)
		}
		if _, err := f.ReleaseOrder(t.Context(), h); !errors.Is(err, release) {
			t.Errorf("release: %v, want %v", err, release)
		}
	}
	refuse(hold(uuid.New(), ""), store.ErrNotFound, store.ErrNotFound)
	wrong := hold(id, "")
	wrong.Version = 7
	refuse(wrong, store.ErrVersion, store.ErrVersion)

	o := f.held(id, "the customer called")
	if o.State.Status != order.Held || o.State.Hold != order.HeldByPerson || o.HoldPending || o.State.Version != 2 {
		t.Errorf("held: %+v", o)
	}
	e := f.lastEvent(id)
	if e.Type != store.EventHoldRequested || e.Cause.Actor != "ada" || string(e.Cause.Detail) != `{"reason": "the customer called"}` {
		t.Errorf("event %+v %s", e, e.Cause.Detail)
	}
	if again := f.held(id, "twice"); again.State.Version != 2 {
		t.Errorf("held twice: version %d", again.State.Version)
	}
	if m := f.claim(10, time.Minute); len(m) != 0 {
		t.Error("a held order is sent")
	}
	f.whole()

	// While it is held its card is guarded still; another order that was let in beside it
	// is in the way of its release.
	other := request("card", "r2")
	other.DuplicateOverride = "both"
	b, err := f.Accept(t.Context(), store.Acceptance{IssuerID: issuer, Client: "test", Request: other})
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.ReleaseOrder(t.Context(), hold(id, ""))
	if kind, order := conflictOf(err); kind != store.DuplicateOrder || order != b.Order.ID {
		t.Errorf("released beside another order: %v", err)
	}
	h := hold(id, "")
	h.DuplicateOverride = "both are wanted"
	o, err = f.ReleaseOrder(t.Context(), h)
	if err != nil || o.State.Status != order.Accepted || o.State.Hold != "" {
		t.Fatalf("released: %+v, %v", o, err)
	}
	if e := f.lastEvent(id); e.Type != store.EventReleaseRequested || string(e.Cause.Detail) != `{"duplicateOverride": "both are wanted"}` {
		t.Errorf("event %+v %s", e, e.Cause.Detail)
	}
	refuse2 := func(id uuid.UUID) {
		t.Helper()
		if _, err := f.ReleaseOrder(t.Context(), hold(id, "")); !errors.Is(err, store.ErrNotHeld) {
			t.Errorf("released what is not held: %v", err)
		}
	}
	refuse2(id)
	// The other one says itself why both are wanted.
	f.held(b.Order.ID, "")
	f.released(b.Order.ID)

	m := f.claim(10, time.Minute)
	f.complete(taken(m[0], "operation"))
	refuse(hold(m[0].OrderID, ""), store.ErrNotHoldable, store.ErrNotHeld)
	f.whole()
}

// A hold that comes when a worker has the order is written down, and comes true or not as
// the answer says.
func TestPendingHold(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		release   bool
		complete  func(m store.Message) store.Completion
		want      order.Status
		pending   bool
		attention []order.Attention
	}{
		"certainly not taken": {complete: func(m store.Message) store.Completion {
			return store.Completion{Message: m, Attempt: attempt("not-taken"), Next: store.Next{Unsent: true, RunIn: time.Minute}}
		}, want: order.Held},
		"taken": {complete: func(m store.Message) store.Completion { return taken(m, "operation") },
			want: order.Submitted, attention: []order.Attention{order.AttentionStopTooLate}},
		"unknown": {complete: func(m store.Message) store.Completion {
			return store.Completion{Message: m, Attempt: attempt("unknown"), Evidence: []order.Evidence{order.LostAnswer{}}, Next: store.Next{Maybe: store.MaybeNow}}
		}, want: order.OutcomeUnknown, pending: true},
		"taken back": {release: true, complete: func(m store.Message) store.Completion {
			return store.Completion{Message: m, Attempt: attempt("not-taken"), Next: store.Next{Unsent: true, RunIn: time.Minute}}
		}, want: order.Accepted},
		"taken back and taken": {release: true, complete: func(m store.Message) store.Completion { return taken(m, "operation") }, want: order.Submitted},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := open(t)
			id := f.accept("card", "r").ID
			m := f.claim(1, time.Minute)
			if o := f.held(id, ""); o.State.Status != order.Accepted || !o.HoldPending || o.State.Version != 2 {
				t.Errorf("held: %+v", o)
			}
			if o := f.held(id, ""); o.State.Version != 2 {
				t.Error("held twice")
			}
			if holds, err := f.Holds(t.Context(), m[0]); err != nil || holds {
				t.Errorf("it would be sent: %v", err)
			}
			if test.release {
				if o := f.released(id); o.HoldPending {
					t.Error("still pending")
				}
			}
			f.complete(test.complete(m[0]))
			o := f.order(id)
			if o.State.Status != test.want || o.HoldPending != test.pending || !slices.Equal(o.State.Attention, test.attention) {
				t.Errorf("%s, pending %v, %v", o.State.Status, o.HoldPending, o.State.Attention)
			}
			f.whole()
		})
	}
}

func (f *fixture) accepts(r *order.Request) *store.Order {
	f.t.Helper()
	a, err := f.Accept(f.t.Context(), store.Acceptance{IssuerID: issuer, Client: "test", Request: r})
	if err != nil {
		f.t.Fatal(err)
	}
	return a.Order
}

func limits(n int) func(string) map[string]int {
	return func(string) map[string]int { return map[string]int{"gold": n} }
}

// admit claims and admits, as a lane does.
func admit(t *testing.T, s *store.Store, limit int) []store.Message {
	t.Helper()
	m, err := s.Claim(t.Context(), store.ClaimRequest{Lane: lane, Class: store.ClassSingle, Limit: limit, Lease: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if m, err = s.Admit(t.Context(), issuer, m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestConsumerRule(t *testing.T) {
	t.Parallel()
	f := open(t)
	s := f.with(store.Config{ConsumerLimits: limits(2)})
	var ids []uuid.UUID
	for i := range 4 {
		ids = append(ids, f.accept(fmt.Sprintf("card-%d", i), fmt.Sprintf("r-%d", i)).ID)
	}
	free := request("free", "free")
	free.Production.CardProductID = "silver" // without the rule, but it counts
	f.accepts(free)
	other := request("other", "other")
	other.Production.ConsumerID = "another"
	f.accepts(other)

	m := admit(t, s, 10)
	var sent []string
	for _, m := range m {
		sent = append(sent, m.IssuerRequestID)
	}
	if !slices.Equal(sent, []string{"r-0", "r-1", "free", "other"}) {
		t.Fatalf("admitted %v", sent)
	}
	for _, id := range ids[2:] {
		o := f.order(id)
		e := f.lastEvent(id)
		if o.State.Status != order.Held || o.State.Hold != order.HeldByRule || !slices.Equal(o.State.Attention, []order.Attention{order.AttentionHeldByRule}) ||
			e.Cause.Kind != store.CauseRule || string(e.Cause.Detail) != `{"maxOrdersPerConsumerPerDay": 2}` {
			t.Errorf("%+v, event %+v %s", o.State, e, e.Cause.Detail)
		}
	}
	f.whole()
	// What was admitted and given back passes again; what was sent counts for a day.
	if err := s.Release(t.Context(), m[:2]); err != nil {
		t.Fatal(err)
	}
	if m := admit(t, s, 10); len(m) != 2 {
		t.Fatalf("%d pass again", len(m))
	} else {
		f.complete(taken(m[0], "op-0"), taken(m[1], "op-1"))
	}
	next := f.accept("card-4", "r-4").ID
	if m := admit(t, s, 10); len(m) != 0 || f.order(next).State.Hold != order.HeldByRule {
		t.Error("a third one was sent in a day")
	}
	// A person lets one through in spite of the rule, and takes another one over.
	f.released(ids[2])
	if m := admit(t, s, 10); len(m) != 1 || m[0].OrderID != ids[2] {
		t.Errorf("released: %v", m)
	}
	if o := f.held(ids[3], "ask first"); o.State.Hold != order.HeldByPerson || len(o.State.Attention) != 0 {
		t.Errorf("taken over: %+v", o.State)
	}
	// A day later the consumer may have others.
	f.exec(`UPDATE order_state SET first_sent_at = first_sent_at - interval '25 h'`)
	f.exec(`UPDATE outbox SET admitted_at = NULL`)
	f.accept("card-5", "r-5")
	if m := admit(t, s, 10); len(m) != 1 {
		t.Errorf("%d pass a day later", len(m))
	}
	// Nothing is counted where there is no rule.
	if m, err := f.Admit(t.Context(), issuer, []store.Message{{Kind: store.KindSubmit}}); err != nil || len(m) != 1 {
		t.Errorf("without a rule: %v, %v", m, err)
	}
}

// However many replicas claim at once, no consumer gets more than the rule allows.
func TestConsumerRuleUnderConcurrency(t *testing.T) {
	t.Parallel()
	const consumers, each, most, replicas = 4, 6, 3, 4
	f := open(t)
	for i := range each {
		for c := range consumers {
			r := request(fmt.Sprintf("card-%d-%d", c, i), fmt.Sprintf("r-%d-%d", c, i))
			r.Production.ConsumerID = fmt.Sprintf("consumer-%d", c)
			f.accepts(r)
		}
	}
	var mu sync.Mutex
	counts := make(map[string]int)
	var wg sync.WaitGroup
	for range replicas {
		s := f.with(store.Config{ConsumerLimits: limits(most), MaxConns: 2})
		wg.Go(func() {
			for n := 0; n < each*consumers; n++ {
				claimed, err := s.Claim(context.Background(), store.ClaimRequest{Lane: lane, Class: store.ClassSingle, Limit: 2, Lease: time.Minute})
				if err != nil {
					t.Error(err)
					return
				}
				if len(claimed) == 0 {
					return
				}
				m, err := s.Admit(context.Background(), issuer, claimed)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, m := range m {
					counts[strings.Split(m.IssuerRequestID, "-")[1]]++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for c := range consumers {
		if n := counts[fmt.Sprint(c)]; n != most {
			t.Errorf("%d orders of consumer %d pass, want %d", n, c, most)
		}
	}
	if n := value[int](f, `SELECT count(*) FROM order_state WHERE status = 'HELD' AND hold = 'rule' AND attention = '{held-by-rule}'`); n != consumers*(each-most) {
		t.Errorf("%d are held", n)
	}
	f.whole()
}

// A schedule is a hold of its own: a person's hold outlasts it, a release leaves the rest of
// it in force, and a release of the schedule itself ends it.
func TestHoldAndSchedule(t *testing.T) {
	t.Parallel()
	f := open(t)
	later := request("card", "r")
	later.NotBefore = time.Now().Add(time.Hour)
	id := f.accepts(later).ID
	is := func(o *store.Order, status order.Status, reason order.HoldReason) {
		t.Helper()
		if o.State.Status != status || o.State.Hold != reason {
			t.Errorf("%s by %q, want %s by %q", o.State.Status, o.State.Hold, status, reason)
		}
	}
	is(f.order(id), order.Held, order.HeldBySchedule)
	is(f.held(id, ""), order.Held, order.HeldByPerson)
	is(f.released(id), order.Held, order.HeldBySchedule)
	is(f.held(id, ""), order.Held, order.HeldByPerson)
	f.exec(`UPDATE orders SET not_before = now() - interval '1 s'`)
	f.exec(`UPDATE order_state SET next_check_at = now()`)
	if _, err := f.Check(t.Context(), issuer, 10); err != nil {
		t.Fatal(err)
	}
	is(f.order(id), order.Held, order.HeldByPerson)
	is(f.released(id), order.Accepted, "")

	later = request("card-2", "r-2")
	later.NotBefore = time.Now().Add(time.Hour)
	second := f.accepts(later).ID
	is(f.released(second), order.Accepted, "")
	if m := f.claim(10, time.Minute); len(m) != 2 {
		t.Errorf("%d are sent", len(m))
	}
	f.whole()
}

// What somebody wants held or cancelled is not the rule's to hold: the wish would be lost
// with the message.
func TestRuleLeavesWhatIsHalted(t *testing.T) {
	t.Parallel()
	f := open(t)
	s := f.with(store.Config{ConsumerLimits: limits(1)})
	first, cancelled, held := f.accept("card-1", "r-1").ID, f.accept("card-2", "r-2").ID, f.accept("card-3", "r-3").ID
	claimed := f.claim(10, time.Minute)
	c := f.change(placement(cancelled, order.ChangeCancel))
	f.held(held, "")
	m, err := s.Admit(t.Context(), issuer, claimed)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range m {
		if holds, err := f.Holds(t.Context(), m); err != nil || holds != (m.OrderID == first) {
			t.Errorf("order %s would be sent: %v, %v", m.IssuerRequestID, holds, err)
		}
	}
	if err := f.Release(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	f.wantStands(c, "ACCEPTED before-dispatch")
	if o := f.order(cancelled); o.State.Status != order.Cancelled {
		t.Errorf("what was cancelled is %s", o.State.Status)
	}
	if o := f.order(held); o.State.Hold != order.HeldByPerson {
		t.Errorf("what was held is %s by %q", o.State.Status, o.State.Hold)
	}
	f.whole()
}

// The release of a batch is a person's, too: the rule does not hold the same orders again.
func TestBatchReleaseAdmits(t *testing.T) {
	t.Parallel()
	f := open(t)
	s := f.with(store.Config{ConsumerLimits: limits(1)})
	f.accept("card-1", "r-1")
	id := f.accept("card-2", "r-2").ID
	batch := uuid.New()
	f.exec(`INSERT INTO order_batches (issuer_id, id, key, status, format, hold, held, digest, created_by, lease_until)
		VALUES ($1, $2, 'batch', 'COMPLETED', 'csv', false, false, '', 'test', now())`, issuer, batch)
	if m := admit(t, s, 10); len(m) != 1 || f.order(id).State.Hold != order.HeldByRule {
		t.Fatalf("%d pass", len(m))
	}
	f.exec(`UPDATE orders SET batch_id = $1, urgent = true WHERE id = $2`, batch, id)
	if counts, err := f.Act(t.Context(), issuer, batch, store.BatchRelease, "ada"); err != nil || counts.Changed != 1 {
		t.Fatalf("%+v, %v", counts, err)
	}
	if m := admit(t, s, 10); len(m) != 1 || m[0].OrderID != id {
		t.Errorf("released: %v, held by %q", m, f.order(id).State.Hold)
	}
}

// In another history of the database, D1 may have an order of which this one knows no
// sending: until it was asked about, nobody is told that it is held.
func TestHoldInAnotherHistory(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.accept("card", "request").ID
	if _, err := f.CheckTimeline(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	f.exec(`UPDATE database_history SET timeline = timeline + 1`)
	o, err := f.HoldOrder(t.Context(), hold(id, ""))
	if err != nil || o.State.Status != order.Accepted || !o.HoldPending {
		t.Fatalf("the order is %s, hold pending: %v, %v", o.State.Status, o.HoldPending, err)
	}
}
