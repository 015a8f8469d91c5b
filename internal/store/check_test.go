package store_test

import (
	"testing"
	"time"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

// check looks at the orders that are due.
func (f *fixture) check(questions int) store.Checked {
	f.t.Helper()
	done, err := f.Check(f.t.Context(), issuer, questions)
	if err != nil {
		f.t.Fatal(err)
	}
	return done
}

// Orders that D1 took without naming an operation are asked about, some at a time.
func TestCheckAsks(t *testing.T) {
	t.Parallel()
	f := open(t)
	for i, c := range []string{"a", "b", "c", "d"} {
		id := f.accept("card-"+c, "r-"+c).ID
		m := f.claim(1, time.Minute)
		operation := ""
		if i == 3 {
			operation = "operation"
		}
		done := taken(m[0], operation)
		if operation == "" {
			done.Seen = nil
		}
		f.complete(done)
		f.exec(`UPDATE order_state SET next_check_at = now() - $2 * interval '1 min', heard_at = now() - interval '1 min' WHERE order_id = $1`, id, i)
	}
	if done := f.check(2); done != (store.Checked{Looked: 4, Asked: 2}) { // the longest due first; D1's operation is known, so it needs no question
		t.Errorf("checked %+v", done)
	}
	if n := value[int](f, `SELECT count(*) FROM order_state WHERE checks = 1 AND next_check_at > now() + interval '15 s'`); n != 2 {
		t.Errorf("%d orders are asked about again in 20 s, want 2", n)
	}
	if n := value[int](f, `SELECT count(*) FROM order_state WHERE checks = 0 AND next_check_at > now() AND next_check_at < now() + interval '2 s'`); n != 1 {
		t.Error("the one without room is not looked at again soon")
	}
	if n := value[int](f, `SELECT count(*) FROM order_state WHERE next_check_at IS NULL AND operation_id IS NOT NULL`); n != 1 {
		t.Error("an order that needs no look gets one")
	}
	if n := value[int](f, `SELECT count(*) FROM outbox m JOIN order_state s USING (order_id)
		WHERE kind = 'ask' AND class = 2 AND lane = $1 AND m.first_sent_at = s.first_sent_at AND maybe_sent_at IS NULL`, lane); n != 2 {
		t.Errorf("%d questions, want 2", n)
	}
	f.exec(`UPDATE order_state SET next_check_at = now(), heard_at = now() - interval '1 min' WHERE next_check_at IS NOT NULL`)
	if done := f.check(2); done != (store.Checked{Looked: 3}) { // as many wait as may
		t.Errorf("checked %+v", done)
	}
	f.exec(`UPDATE order_state SET next_check_at = now() WHERE next_check_at IS NOT NULL`)
	if done := f.check(5); done.Asked != 3 {
		t.Errorf("checked %+v", done)
	}
	if n := value[int](f, `SELECT count(*) FROM outbox`); n != 3 {
		t.Errorf("%d questions, want 3: an order that is being asked about gets no second one", n)
	}
	f.whole()
}

// openLimited is open with orders that are held to limits.
func openLimited(t *testing.T, limits order.Limits) *fixture {
	t.Helper()
	f := open(t)
	f.Store = f.with(store.Config{Limits: func(string, string) *order.Limits { return &limits }})
	return f
}

// look has all orders that will be looked at looked at now.
func (f *fixture) look() store.Checked {
	f.t.Helper()
	f.exec(`UPDATE order_state SET next_check_at = now() WHERE next_check_at IS NOT NULL`)
	return f.check(10)
}

func TestSchedule(t *testing.T) {
	t.Parallel()
	f := openLimited(t, order.Limits{DispatchDelay: time.Hour})
	accept := func(name string, change func(*order.Request)) *store.Order {
		t.Helper()
		a := acceptance("card-"+name, "r-"+name, "")
		change(a.Request)
		got, err := f.Accept(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		o := f.order(got.Order.ID)
		if s := got.Order.State; s.Status != o.State.Status || s.Hold != o.State.Hold || !timesEqual(got.Order.NotBefore, o.NotBefore) {
			t.Errorf("answered %+v, stored %+v", got.Order, o)
		}
		return o
	}
	delayed := accept("delayed", func(*order.Request) {})
	urgent := accept("urgent", func(r *order.Request) { r.Urgent = true })
	later := accept("later", func(r *order.Request) { r.NotBefore, r.Urgent = time.Now().Add(24*time.Hour), true })
	past := accept("past", func(r *order.Request) { r.NotBefore, r.Urgent = time.Now().Add(-time.Hour), true })
	held := accept("held", func(r *order.Request) { r.Hold = true })
	for _, c := range []struct {
		o      *store.Order
		status order.Status
		hold   order.HoldReason
		in     time.Duration
	}{
		{delayed, order.Held, order.HeldBySchedule, time.Hour},
		{urgent, order.Accepted, "", 0},
		{later, order.Held, order.HeldBySchedule, 24 * time.Hour},
		{past, order.Accepted, "", 0},
		{held, order.Held, order.HeldByRequest, time.Hour},
	} {
		if c.o.State.Status != c.status || c.o.State.Hold != c.hold {
			t.Errorf("%s is %s by %q", c.o.CardID, c.o.State.Status, c.o.State.Hold)
		}
		if (c.o.NotBefore == nil) != (c.in == 0) || c.in > 0 && c.o.NotBefore.Sub(c.o.CreatedAt).Round(time.Minute) != c.in {
			t.Errorf("%s is not to be sent before %v", c.o.CardID, c.o.NotBefore)
		}
	}
	f.whole()
	if n := value[int](f, `SELECT count(*) FROM order_state WHERE next_check_at = (SELECT not_before FROM orders WHERE id = order_id)`); n != 3 {
		t.Errorf("%d orders are looked at when their time has come, want 3", n)
	}

	// Nothing happens too early, and all in time.
	if done := f.look(); done.Looked != 3 || done.Released != 0 {
		t.Errorf("checked %+v", done)
	}
	f.exec(`UPDATE orders SET not_before = now() WHERE not_before IS NOT NULL`)
	if done := f.look(); done != (store.Checked{Looked: 2, Released: 2}) { // there is nothing to look for in the one that is held
		t.Errorf("checked %+v", done)
	}
	for _, o := range []*store.Order{delayed, later} {
		if got := f.order(o.ID).State; got.Status != order.Accepted || got.Hold != "" {
			t.Errorf("%s is %s by %q", o.CardID, got.Status, got.Hold)
		}
		if e := f.lastEvent(o.ID); e.Type != store.EventStatusChanged || e.Cause.Kind != store.CauseTime || e.PreviousStatus != order.Held {
			t.Errorf("event %+v", e)
		}
	}
	if got := f.order(held.ID).State; got.Status != order.Held || got.Hold != order.HeldByRequest {
		t.Errorf("the held one is %s by %q", got.Status, got.Hold)
	}
	f.whole()
	if done := f.check(10); done.Looked != 0 {
		t.Errorf("checked %+v", done)
	}
}

func timesEqual(a, b *time.Time) bool {
	return a == nil && b == nil || a != nil && b != nil && a.Equal(*b)
}
