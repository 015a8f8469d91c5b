package store_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

// ages lets time pass: everything that is stored of orders happened longer ago.
func (f *fixture) ages(by time.Duration) {
	f.t.Helper()
	f.exec(`UPDATE orders SET created_at = created_at - $1::interval, not_before = not_before - $1::interval`, by)
	f.exec(`UPDATE order_state SET status_since = status_since - $1::interval, heard_at = heard_at - $1::interval, due_at = due_at - $1::interval,
		first_sent_at = first_sent_at - $1::interval, next_check_at = next_check_at - $1::interval`, by)
	f.exec(`UPDATE outbox SET run_at = run_at - $1::interval, first_sent_at = first_sent_at - $1::interval, maybe_sent_at = maybe_sent_at - $1::interval,
		leased_until = leased_until - $1::interval, admitted_at = admitted_at - $1::interval`, by)
}

// timed checks that each order is looked at no later than the time alone may change it.
// The times of questions are apart: they follow from the last one, too.
func (f *fixture) timed(limits order.Limits) {
	f.t.Helper()
	rows, err := f.conn.Query(f.t.Context(), `SELECT order_id, next_check_at, first_sent_at, heard_at, checks, now() FROM order_state`)
	if err != nil {
		f.t.Fatal(err)
	}
	type row struct {
		id                       uuid.UUID
		next, firstSentAt, heard *time.Time
		checks                   int
		now                      time.Time
	}
	var list []row
	for rows.Next() {
		var r row
		if err := rows.Scan(&r.id, &r.next, &r.firstSentAt, &r.heard, &r.checks, &r.now); err != nil {
			f.t.Fatal(err)
		}
		list = append(list, r)
	}
	if err := rows.Err(); err != nil {
		f.t.Fatal(err)
	}
	zero := func(t *time.Time) time.Time {
		if t == nil {
			return time.Time{}
		}
		return *t
	}
	for _, r := range list {
		o, limits := f.order(r.id), limits
		if o.State.Rank == 0 {
			limits.SilentAfter = 0 // a look for that only spares a later one
		}
		clock := order.Clock{
			Now: r.now, Limits: &limits, Issuance: o.Terms.Services.Issuance, Urgent: o.Urgent, Accepted: o.CreatedAt,
			NotBefore: zero(o.NotBefore), Sent: zero(r.firstSentAt), Heard: zero(r.heard), Checks: r.checks, Asked: r.now,
		}
		want := order.NextLook(o.State, clock, 1)
		switch {
		case want.IsZero():
		case r.next == nil:
			f.t.Errorf("%s by %q is never looked at, want at %s: %+v", o.State.Status, o.State.Hold, want, o.State)
		case r.next.Sub(want) > time.Second:
			f.t.Errorf("%s by %q is looked at %s too late, at %s: %+v, not before %v", o.State.Status, o.State.Hold, r.next.Sub(want), *r.next, o.State, o.NotBefore)
		}
	}
}

// Whatever happens to orders, none of them is forgotten: it is looked at when it will be
// late, its schedule ends, or D1 is to be asked, and then is as the time says.
func TestNoOrderIsForgotten(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	limits := order.Limits{SilentAfter: 26 * time.Hour, Budget: make(map[order.Status]time.Duration)}
	for _, s := range order.Statuses {
		if order.HasBudget(s) && r.IntN(3) > 0 {
			limits.Budget[s] = time.Duration(1+r.IntN(72)) * time.Hour
		}
	}
	if r.IntN(2) == 0 {
		limits.Calendar = everyDay(t)
	}
	if r.IntN(3) == 0 {
		limits.SilentAfter = 0
	}
	f := openLimited(t, limits)
	ctx := t.Context()
	var ids []uuid.UUID
	pick := func() uuid.UUID { return ids[r.IntN(len(ids))] }
	n := 0
	accept := func() {
		n++
		a := acceptance(fmt.Sprint("card-", n), fmt.Sprint("r-", n), "")
		a.Request.Hold = r.IntN(4) == 0
		if r.IntN(3) == 0 {
			a.Request.NotBefore = time.Now().Add(time.Duration(r.IntN(90*24)) * time.Hour)
		}
		got, err := f.Accept(ctx, a)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, got.Order.ID)
	}
	words := []string{"CARD_PROD_REQUESTED", "DATA_PREPARED", "DATA_EXCEPTION", "CARD_PROD_READY", "HOLD", "CARD_PROD_ONGOING", "CARD_PROD_EXCEPTION",
		"CARD_PROD_CANCELED", "CARD_PROD_DONE", "CARD_SHIPPED", "CARD_RETURNED", "CARD_PROD_POLISHED", ""}
	said := func(id uuid.UUID) order.Report {
		word := words[min(r.IntN(len(words)), r.IntN(len(words)))]
		report := order.Report{OperationID: "op-" + id.String(), Status: word, OnHold: word == "HOLD", Operation: order.OperationPending}
		if r.IntN(6) == 0 {
			report.Operation = order.OperationFailed
		}
		if r.IntN(3) == 0 {
			report.DueDate = time.Now().AddDate(0, 0, r.IntN(9)-2).Format(time.DateOnly)
		}
		return report
	}
	check := func() {
		if _, err := f.Check(ctx, issuer, r.IntN(4)); err != nil {
			t.Fatal(err)
		}
	}
	tasks := []func(){
		accept, accept,
		func() { // to D1
			for _, m := range f.claim(3, time.Minute) {
				c := taken(m, "op-"+m.OrderID.String())
				switch r.IntN(6) {
				case 0:
					c.Seen, c.Evidence = nil, []order.Evidence{order.Taken{}}
				case 1:
					c.Seen, c.Evidence = nil, []order.Evidence{order.Refusal{}}
				case 2:
					c.Seen, c.Evidence, c.Next = nil, []order.Evidence{order.LostAnswer{}}, store.Next{Maybe: store.MaybeNow, RunIn: time.Minute}
				case 3:
					c.Seen, c.Evidence, c.Next = nil, nil, store.Next{Unsent: true, RunIn: time.Minute}
				}
				f.complete(c)
			}
		},
		func() { // questions
			messages, err := f.Claim(ctx, store.ClaimRequest{Lane: lane, Class: store.ClassQuestion, Limit: 3, Lease: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range messages {
				c := store.Completion{Message: m, Attempt: attempt("found"), Next: store.Next{Done: true}}
				c.Attempt.Kind = store.AttemptAsk
				switch r.IntN(3) {
				case 0:
					report := said(m.OrderID)
					report.Now = true
					c.Seen, c.Evidence = []string{report.OperationID}, []order.Evidence{report}
				case 1:
					if m.Kind == store.KindSubmit {
						c.Evidence, c.Next = []order.Evidence{order.NotFound{}}, store.Next{Maybe: store.MaybeClear}
					}
				default:
					if m.Kind == store.KindSubmit {
						c.Next = store.Next{Maybe: store.MaybeKeep, RunIn: time.Hour}
					}
				}
				f.complete(c)
			}
		},
		func() {
			id := pick()
			report := said(id)
			n++
			note := notification(n, report.OperationID, report.Status)
			note.Evidence, note.IssuerRequestID = report, f.order(id).IssuerRequestID
			f.receive(note)
		},
		func() { _, _ = f.HoldOrder(ctx, hold(pick(), "")) },
		func() { _, _ = f.ReleaseOrder(ctx, hold(pick(), "")) },
		func() { _, _ = f.Retry(ctx, store.Retry{Action: action(pick())}) },
		func() { _, _ = f.Refresh(ctx, action(pick())) },
		func() {
			_, _, _ = f.PlaceChange(ctx, placement(pick(), []order.ChangeType{order.ChangeCancel, order.ChangeAccelerate, order.ChangeRedirect}[r.IntN(3)]))
		},
		func() {
			f.ages(time.Duration(r.IntN(40*3600)) * time.Second)
			for value[bool](f, `SELECT EXISTS (SELECT FROM order_state WHERE next_check_at <= now())`) {
				check()
			}
			// What is due has been looked at: the time has nothing more to say of any order.
			for _, id := range ids {
				o := f.order(id)
				clock := order.Clock{Now: time.Now().Add(-time.Second), Limits: &limits, Issuance: o.Terms.Services.Issuance, Accepted: o.CreatedAt}
				if o.NotBefore != nil {
					clock.NotBefore = *o.NotBefore
				}
				if next, changed := order.Advance(o.State, clock); changed {
					t.Errorf("%s by %q, late %t; by the time it is %s, late %t: %+v", o.State.Status, o.State.Hold, o.State.Late, next.Status, next.Late, o.State)
				}
				if o.State.ScheduleEnded(clock) {
					t.Errorf("its time has come: %v", o.NotBefore)
				}
			}
		},
	}
	accept()
	for range 100 {
		tasks[r.IntN(len(tasks))]()
		f.timed(limits)
		if t.Failed() {
			break
		}
	}
	f.whole()
}

// An order that is held from the first moment, by its own request or its batch's, is late
// when it has been held for too long, also before the time that it is not to be sent before.
func TestHeldFromTheStart(t *testing.T) {
	t.Parallel()
	limits := order.Limits{Budget: map[order.Status]time.Duration{order.Held: time.Hour}}
	f := openLimited(t, limits)
	a := acceptance("card", "r", "")
	a.Request.Hold, a.Request.NotBefore = true, time.Now().Add(90*24*time.Hour)
	if _, err := f.Accept(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	up := upload
	up.Hold = true
	f.upload(up, 1)
	f.timed(limits)
	f.ages(time.Hour)
	if done := f.check(1); done.Looked != 2 || value[int](f, `SELECT count(*) FROM order_state WHERE late`) != 2 {
		t.Errorf("checked %+v", done)
	}
}
