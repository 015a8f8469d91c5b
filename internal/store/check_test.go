package store_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

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
	if (done.Looked > 0) != (done.Behind > 0) {
		f.t.Errorf("%d orders were looked at, the first was due for %s", done.Looked, done.Behind)
	}
	done.Behind = 0
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
	if n := value[int](f, `SELECT count(*) FROM order_state WHERE checks = 0 AND next_check_at > heard_at + interval '1 min' AND next_check_at < now() + interval '2 s'`); n != 1 {
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

// A schedule that ends in another history of the database may have ended before, and its
// order been sent: D1 is asked first.
func TestScheduleInAnotherHistory(t *testing.T) {
	t.Parallel()
	f := openLimited(t, order.Limits{DispatchDelay: time.Hour})
	id := f.accept("card", "r").ID
	f.checkTimeline(f.Store, false)
	f.elsewhere()
	f.exec(`UPDATE orders SET not_before = now()`)
	f.exec(`UPDATE order_state SET next_check_at = now()`)
	if done, err := f.Check(t.Context(), issuer, 10); err != nil || done.Looked != 0 {
		t.Errorf("looked before D1 is to be asked: %+v, %v", done, err)
	}
	f.checkTimeline(f.Store, true)
	if done := f.look(); done.Released != 1 {
		t.Errorf("checked %+v", done)
	}
	if o := f.order(id); o.State.Status != order.Accepted || !o.Asking {
		t.Errorf("it is %s, asked about %t", o.State.Status, o.Asking)
	}
	f.whole()
}

func timesEqual(a, b *time.Time) bool {
	return a == nil && b == nil || a != nil && b != nil && a.Equal(*b)
}

// Late turns on and off by itself, with an event each, and the list knows it.
func TestLate(t *testing.T) {
	t.Parallel()
	f := openLimited(t, order.Limits{Budget: map[order.Status]time.Duration{order.Accepted: time.Hour, order.Submitted: time.Hour}})
	id, other := f.accept("card", "r").ID, f.accept("card-2", "r-2").ID
	if n := value[int](f, `SELECT count(*) FROM order_state WHERE next_check_at BETWEEN now() + interval '58 min' AND now() + interval '1 h'`); n != 2 {
		t.Errorf("%d orders are looked at when their time is up, want 2", n)
	}
	list := func(want ...uuid.UUID) {
		t.Helper()
		orders, err := f.Orders(t.Context(), issuer, store.Filter{Late: true, Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		var got []uuid.UUID
		for _, o := range orders {
			got = append(got, o.ID)
		}
		if !slices.Equal(got, want) {
			t.Errorf("late are %v, want %v", got, want)
		}
	}
	f.look()
	list()
	f.exec(`UPDATE order_state SET status_since = now() - interval '1 h' WHERE order_id = $1`, id)
	if done := f.look(); done.Looked != 2 {
		t.Errorf("checked %+v", done)
	}
	list(id)
	if e := f.lastEvent(id); e.Type != store.EventLateChanged || !e.Late || e.Cause.Kind != store.CauseTime || e.Seq != 2 || e.Status != order.Accepted {
		t.Errorf("event %+v", e)
	}
	if n := value[int](f, `SELECT count(*) FROM order_state WHERE next_check_at IS NULL`); n != 1 {
		t.Error("what is late is looked at all the same")
	}
	for _, m := range f.claim(2, time.Minute) {
		f.complete(taken(m, "op-"+m.IssuerRequestID))
	}
	list()
	if e := f.lastEvent(id); e.Type != store.EventStatusChanged || e.Late {
		t.Errorf("event %+v", e)
	}
	if n := value[int](f, `SELECT count(*) FROM order_state WHERE next_check_at <= now() + interval '1 h'`); n != 2 {
		t.Errorf("%d orders are looked at in their new status, want 2", n)
	}
	f.exec(`UPDATE order_state SET status_since = now() - interval '2 h'`)
	f.look()
	list(other, id)
	stats, err := f.Stats(t.Context())
	if err != nil || stats.Late[issuer] != 2 {
		t.Errorf("%d orders are late, %v", stats.Late[issuer], err)
	}
	f.receive(notification(1, "op-r", "CARD_SHIPPED"))
	list(other)
	f.whole()
}

// Progress leaves the timer alone, so that a status changes within its page.
func TestProgressLeavesTheTimerAlone(t *testing.T) {
	t.Parallel()
	f := openLimited(t, order.Limits{SilentAfter: 24 * time.Hour, Calendar: everyDay(t)})
	f.accept("card", "r")
	timer := func() string { return value[string](f, `SELECT next_check_at::text FROM order_state`) }
	first := timer()
	f.complete(taken(f.claim(1, time.Minute)[0], "op"))
	for i, status := range []string{"CARD_PROD_REQUESTED", "DATA_PREPARED", "CARD_PROD_READY", "CARD_PROD_ONGOING"} {
		f.receive(notification(i, "op", status))
	}
	if got := timer(); got != first {
		t.Errorf("the timer was at %s and is at %s", first, got)
	}
	if n := value[int](f, `SELECT count(*) FROM order_state WHERE heard_at > now() - interval '1 min' AND status = 'IN_PRODUCTION'`); n != 1 {
		t.Error("nobody knows that D1 was heard")
	}
	n := notification(9, "op", "CARD_PROD_ONGOING")
	r := n.Evidence.(order.Report)
	r.DueDate = "2020-01-01"
	n.Evidence = r
	f.receive(n)
	if !value[bool](f, `SELECT late AND next_check_at = $1::timestamptz FROM order_state`, first) {
		t.Error("it is not late")
	}
	f.receive(notification(10, "op", "CARD_SHIPPED"))
	if !value[bool](f, `SELECT next_check_at IS NULL AND NOT late FROM order_state`) {
		t.Error("an order that has ended is looked at")
	}
	f.whole()
}

// everyDay is the calendar of a centre that never rests and takes a week.
func everyDay(t *testing.T) *order.Calendar {
	t.Helper()
	c, err := order.NewCalendar(order.SLA{WorkingDays: map[order.Issuance]int{order.IssuanceCreation: 7}, Weekend: []time.Weekday{}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// D1 is asked about an order that it is silent about, ever more rarely, until there is news.
func TestCheckOfSilence(t *testing.T) {
	t.Parallel()
	f := openLimited(t, order.Limits{SilentAfter: time.Hour})
	id := f.accept("card", "r").ID
	f.complete(taken(f.claim(1, time.Minute)[0], "op"))
	if done := f.look(); done != (store.Checked{Looked: 1}) {
		t.Errorf("checked %+v", done)
	}
	in := func(least, most string) {
		t.Helper()
		if !value[bool](f, `SELECT next_check_at BETWEEN now() + $1::interval AND now() + $2::interval FROM order_state`, least, most) {
			t.Errorf("the next look is in %s", value[string](f, `SELECT (next_check_at - now())::text FROM order_state`))
		}
	}
	in("53 min", "67 min")
	silent := func(hours int) {
		f.exec(`UPDATE order_state SET heard_at = now() - $1 * interval '1 h'`, hours)
	}
	silent(1)
	if done := f.look(); done != (store.Checked{Looked: 1, Asked: 1}) {
		t.Errorf("checked %+v", done)
	}
	in("107 min", "133 min")
	f.exec(`DELETE FROM outbox`)           // it taught nothing
	if done := f.look(); done.Asked != 0 { // too early
		t.Errorf("checked %+v", done)
	}
	silent(3)
	f.exec(`UPDATE order_state SET next_check_at = now()`)
	if done := f.check(0); done != (store.Checked{Looked: 1}) { // no question can be asked now
		t.Errorf("checked %+v", done)
	}
	in("7 min", "23 min")
	if done := f.look(); done.Asked != 1 {
		t.Errorf("checked %+v", done)
	}
	in("214 min", "266 min")
	if n := value[int](f, `SELECT checks FROM order_state`); n != 2 {
		t.Errorf("%d checks, want 2", n)
	}
	f.exec(`DELETE FROM outbox`)
	f.receive(notification(1, "op", "CARD_PROD_READY"))
	if !value[bool](f, `SELECT checks = 0 AND heard_at > now() - interval '1 min' FROM order_state`) {
		t.Error("the news did not count")
	}
	if v := f.order(id).State.Version; v != 3 {
		t.Errorf("asking made versions of its own: %d", v)
	}
}

// Open orders that were stored without a timer get one, a few at a time; those that
// nothing is to be looked for in get none.
func TestAdopt(t *testing.T) {
	t.Parallel()
	f := openLimited(t, order.Limits{SilentAfter: time.Hour})
	for i := range 3 {
		f.accept(fmt.Sprint("card-", i), fmt.Sprint("r-", i))
	}
	for _, m := range f.claim(2, time.Minute) {
		f.complete(taken(m, "op-"+m.IssuerRequestID))
	}
	f.receive(notification(1, "op-r-0", "CARD_SHIPPED"))
	f.exec(`UPDATE order_state SET next_check_at = NULL`)
	last, err := f.Adopt(t.Context(), issuer, uuid.Nil)
	if err != nil || last != uuid.Nil {
		t.Errorf("%s, %v", last, err)
	}
	if n := value[int](f, `SELECT count(*) FROM order_state WHERE next_check_at BETWEEN now() AND now() + interval '1 h'`); n != 2 {
		t.Errorf("%d orders are looked at within the hour, want 2", n)
	}
	f.exec(`UPDATE order_state SET next_check_at = NULL, due_date = CASE status WHEN 'SUBMITTED' THEN '2026-03-06' END`)
	f.Store = f.with(store.Config{})
	if _, err := f.Adopt(t.Context(), issuer, uuid.Nil); err != nil {
		t.Fatal(err)
	}
	if n := value[int](f, `SELECT count(*) FROM order_state WHERE next_check_at IS NOT NULL AND due_date IS NOT NULL`); n != 1 {
		t.Errorf("%d orders are looked at, want the one that D1 gave a date", n)
	}
}

// One order that cannot be dealt with strands no other.
func TestCheckWithoutOne(t *testing.T) {
	t.Parallel()
	f := openLimited(t, order.Limits{DispatchDelay: time.Hour})
	bad, good := f.accept("card-1", "r-1").ID, f.accept("card-2", "r-2").ID
	f.exec(`INSERT INTO outbox (lane, kind, issuer_id, order_id, card_id) SELECT $2, 'submit', issuer_id, id, card_id FROM orders WHERE id = $1`, bad, lane)
	f.exec(`UPDATE orders SET not_before = now() - interval '1 h'`)
	if done := f.look(); done != (store.Checked{Looked: 1, Released: 1}) {
		t.Errorf("checked %+v", done)
	}
	for id, want := range map[uuid.UUID]order.Status{bad: order.Held, good: order.Accepted} {
		if got := f.order(id).State.Status; got != want {
			t.Errorf("it is %s, want %s", got, want)
		}
	}
	if !value[bool](f, `SELECT next_check_at > now() + interval '50 s' FROM order_state WHERE order_id = $1`, bad) {
		t.Error("it is the first again")
	}
}

// What is done to a batch and what its orders wait for do not get into each other's way.
func TestBatchOfScheduled(t *testing.T) {
	t.Parallel()
	f := openLimited(t, order.Limits{DispatchDelay: time.Hour})
	b := f.upload(upload, 2)
	act := func(action store.BatchAction, want store.ActionCounts) {
		t.Helper()
		got, err := f.Act(t.Context(), issuer, b.ID, action, "operator")
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", action, got, err, want)
		}
	}
	holds := func(status order.Status, hold order.HoldReason) {
		t.Helper()
		if n := value[int](f, `SELECT count(*) FROM order_state WHERE status = $1 AND coalesce(hold, '') = $2`, status, hold); n != 2 {
			t.Errorf("%d orders are %s by %q, want 2", n, status, hold)
		}
	}
	holds(order.Held, order.HeldBySchedule)
	act(store.BatchRelease, store.ActionCounts{Unchanged: 2})
	act(store.BatchHold, store.ActionCounts{Changed: 2})
	holds(order.Held, order.HeldByPerson)
	act(store.BatchHold, store.ActionCounts{Unchanged: 2})
	f.whole()
	act(store.BatchRelease, store.ActionCounts{Changed: 2})
	holds(order.Held, order.HeldBySchedule) // its time has not come
	f.whole()
	act(store.BatchHold, store.ActionCounts{Changed: 2})
	f.exec(`UPDATE orders SET not_before = now()`)
	f.look()
	holds(order.Held, order.HeldByPerson)
	act(store.BatchRelease, store.ActionCounts{Changed: 2})
	holds(order.Accepted, "")
	f.whole()
	act(store.BatchCancel, store.ActionCounts{Changed: 2})
}
