package store_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

func (f *fixture) checkTimeline(st *store.Store, want bool) {
	f.t.Helper()
	if changed, err := st.CheckTimeline(f.t.Context(), time.Minute); err != nil || changed != want {
		f.t.Errorf("changed: %t, %v; want %t", changed, err, want)
	}
}

// elsewhere makes the database remember another history than it is in.
func (f *fixture) elsewhere() { f.exec(`UPDATE database_history SET timeline = timeline + 1`) }

func TestTimeline(t *testing.T) {
	t.Parallel()
	f := open(t)
	other := f.traced(nil)
	fresh, claimed, givenUp := f.accept("card-1", "r-1"), f.accept("card-2", "r-2"), f.accept("card-3", "r-3")
	f.exec(`UPDATE outbox SET run_at = now() - interval '1 h' WHERE order_id = $1`, claimed.ID)
	f.exec(`UPDATE outbox SET run_at = 'infinity' WHERE order_id = $1`, givenUp.ID)
	f.checkTimeline(f.Store, false) // the first one is remembered
	f.checkTimeline(other, false)
	held := f.claim(1, time.Minute)
	if len(held) != 1 || held[0].OrderID != claimed.ID {
		t.Fatalf("claimed %+v", held)
	}
	f.exec(`UPDATE outbox SET refused_since = now(), refused_at = now(), reject_after = '1 min', tries = 3, negatives = 1, asks = 4 WHERE order_id = $1`, fresh.ID)

	f.elsewhere()
	f.checkTimeline(f.Store, true)
	f.checkTimeline(f.Store, false)
	f.checkTimeline(other, false) // one process marks for all
	if n := value[int](f, `SELECT count(*) FROM outbox m JOIN orders o ON o.id = m.order_id
		WHERE maybe_sent_at BETWEEN now() + interval '30 s' AND now() + interval '1 min' AND class = 2 AND claim_token IS NULL
			AND tries = 0 AND asks = 0 AND negatives = 0 AND refused_since IS NULL AND refused_at IS NULL AND reject_after IS NULL
			AND first_sent_at >= o.created_at`); n != 3 {
		t.Errorf("%d messages are marked, want 3", n)
	}
	if n := value[int](f, `SELECT count(*) FROM outbox m JOIN orders o ON o.id = m.order_id WHERE m.first_sent_at = o.created_at`); n != 2 {
		t.Errorf("%d messages may have been sent as soon as they were accepted, want 2", n)
	}
	if n := value[int](f, `SELECT count(*) FROM outbox WHERE run_at <= now() + interval '1 min'`); n != 3 {
		t.Errorf("%d messages are asked about within a minute, want 3", n)
	}
	if n := value[int](f, `SELECT count(*) FROM outbox WHERE resend_off AND order_id = $1`, givenUp.ID) + value[int](f, `SELECT count(*) FROM outbox WHERE resend_off`); n != 2 {
		t.Error("what was given up is sent again, or what was not is not")
	}

	// What a worker does with a claim of before is a fact, and moves nothing.
	if holds, err := f.Holds(t.Context(), held[0]); err != nil || holds {
		t.Errorf("the claim holds: %t, %v", holds, err)
	}
	f.complete(store.Completion{Message: held[0], Attempt: attempt("refused"), Evidence: []order.Evidence{order.Refusal{}}})
	if o := f.order(claimed.ID); o.State.Status != order.Accepted || !o.Asking {
		t.Errorf("a lost claim moved the order to %s (asking: %t)", o.State.Status, o.Asking)
	}
	f.complete(taken(held[0], "operation"))
	if n := value[int](f, `SELECT count(*) FROM operations`); n != 1 {
		t.Error("the operation of a lost claim was forgotten")
	}
	if lost := value[int](f, `SELECT count(*) FROM attempts WHERE claim_lost`); lost != 2 {
		t.Errorf("%d attempts of the lost claim, want 2", lost)
	}
	f.exec(`UPDATE outbox SET run_at = now()`)
	messages, err := f.Claim(t.Context(), store.ClaimRequest{Lane: lane, Class: store.ClassQuestion, Limit: 10, Lease: time.Minute})
	if err != nil || len(messages) != 3 || slices.ContainsFunc(messages, func(m store.Message) bool { return !m.MaybeSent }) {
		t.Errorf("claimed %+v, %v: not all are to be asked about", messages, err)
	}
	f.whole()
}

// A process that dies while it marks leaves the rest to the next one: nothing is
// claimed meanwhile. One that makes progress is left alone: where there are many
// messages, processes that begin anew each time would never come to an end.
func TestInterruptedMarking(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		seenAt string
		marks  int
	}{
		{"another process marks", `now()`, 0},
		{"it died", `now() - interval '11 s'`, 1},
		{"it died, and the clock is behind since a failover", `now() + interval '1 h'`, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := open(t)
			f.checkTimeline(f.Store, false)
			f.accept("card", "r")
			f.exec(`UPDATE database_history SET timeline = 0, seen_at = ` + c.seenAt)
			f.checkTimeline(f.Store, true)
			if n := value[int](f, `SELECT count(*) FROM outbox WHERE maybe_sent_at IS NOT NULL`); n != c.marks {
				t.Errorf("%d messages are marked, want %d", n, c.marks)
			}
			f.exec(`UPDATE outbox SET run_at = now()`)
			if m := f.claim(1, time.Minute); len(m) != 0 { // marked ones are questions
				t.Errorf("claimed %+v", m)
			}
			f.checkTimeline(f.Store, c.marks == 0)
		})
	}
}

// What fails under way, as on a connection that a failover cut, is begun anew at once.
func TestMarkingThatFailed(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.checkTimeline(f.Store, false)
	f.accept("card", "r")
	f.elsewhere()
	f.exec(`ALTER TABLE outbox RENAME COLUMN asks TO gone`)
	if _, err := f.CheckTimeline(t.Context(), time.Minute); err == nil {
		t.Fatal("it did not fail")
	}
	f.exec(`ALTER TABLE outbox RENAME COLUMN gone TO asks`)
	f.checkTimeline(f.Store, true)
	if n := value[int](f, `SELECT count(*) FROM outbox WHERE maybe_sent_at IS NOT NULL`); n != 1 {
		t.Error("the message is not marked")
	}
}

// A copy of the database's files that was put back has no new timeline: a process that
// saw it further on sees it.
func TestDatabaseSetBack(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.checkTimeline(f.Store, false)
	f.accept("card", "r")
	f.SawFurther()
	f.checkTimeline(f.Store, true)
	f.checkTimeline(f.Store, false)
	if n := value[int](f, `SELECT count(*) FROM outbox WHERE maybe_sent_at IS NOT NULL`); n != 1 {
		t.Error("the message is not marked")
	}
}

func TestRestored(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.accept("card", "r")
	if err := f.Restored(t.Context(), time.Minute); err != nil { // also when the service never ran on it
		t.Fatal(err)
	}
	f.checkTimeline(f.Store, false)
	if n := value[int](f, `SELECT count(*) FROM outbox WHERE maybe_sent_at IS NOT NULL`); n != 1 {
		t.Error("the message is not marked")
	}
	f.accept("card-2", "r-2")
	if n := value[int](f, `SELECT count(*) FROM outbox WHERE maybe_sent_at IS NOT NULL`); n != 1 {
		t.Error("an order that came later is marked")
	}
}

// An order that has no message may have been released, or tried again, in the lost
// history: D1 is asked before it is sent. Once it has changed since, that is settled.
func TestOrdersWithoutAMessage(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.checkTimeline(f.Store, false)
	b := f.upload(store.BatchUpload{IssuerID: issuer, Key: "k", Client: "test", Format: "ndjson", Hold: true}, 1)
	act := func(action store.BatchAction) {
		t.Helper()
		if n, err := f.Act(t.Context(), issuer, b.ID, action, "ada"); err != nil || n.Changed != 1 {
			t.Fatalf("%s: %+v, %v", action, n, err)
		}
	}
	maybe := `SELECT maybe_sent_at IS NOT NULL AND first_sent_at = (SELECT created_at FROM orders WHERE id = order_id) FROM outbox`
	f.elsewhere()
	f.checkTimeline(f.Store, true)
	act(store.BatchRelease)
	if !value[bool](f, maybe) {
		t.Error("an order that was held before the change is sent unasked")
	}
	f.exec(`UPDATE outbox SET maybe_sent_at = NULL, first_sent_at = NULL`) // D1 does not have it
	act(store.BatchHold)
	act(store.BatchRelease)
	if value[bool](f, `SELECT maybe_sent_at IS NOT NULL FROM outbox`) {
		t.Error("what was held after the change is doubted")
	}

	rejected := f.accept("card-r", "r-r").ID
	m := f.claim(10, time.Minute)
	f.complete(store.Completion{
		Message:  m[slices.IndexFunc(m, func(m store.Message) bool { return m.OrderID == rejected })],
		Attempt:  attempt("refused"),
		Evidence: []order.Evidence{order.Refusal{}},
	})
	f.elsewhere()
	f.checkTimeline(f.Store, true)
	if o := f.retry(rejected); !o.Asking || o.State.Status != order.Accepted {
		t.Errorf("retried: %s, asking %t", o.State.Status, o.Asking)
	}
	f.whole()
}

func (f *fixture) retry(id uuid.UUID) *store.Order {
	f.t.Helper()
	o, err := f.Retry(f.t.Context(), store.Retry{Action: store.Action{IssuerID: issuer, OrderID: id, Actor: "ada"}})
	if err != nil {
		f.t.Fatal(err)
	}
	return o
}

// Whatever else happens to an order that may have been sent in the lost history, it stays so
// until D1 was asked: nobody is told that it is cancelled, and it is not sent unasked.
func TestDoubtOutlastsOtherNews(t *testing.T) {
	t.Parallel()
	for name, happens := range map[string]func(f *fixture, id uuid.UUID) error{
		"a note": func(f *fixture, id uuid.UUID) error {
			_, _, err := f.AddNote(f.t.Context(), store.NewNote{Action: action(id), Text: "asked the bank"})
			return err
		},
		"a question": func(f *fixture, id uuid.UUID) error {
			_, err := f.Refresh(f.t.Context(), action(id))
			return err
		},
		"a hold": func(f *fixture, id uuid.UUID) error {
			_, err := f.HoldOrder(f.t.Context(), hold(id, ""))
			return err
		},
		"a redirect": func(f *fixture, id uuid.UUID) error {
			_, _, err := f.PlaceChange(f.t.Context(), placement(id, order.ChangeRedirect))
			return err
		},
		"a release that leaves it to its schedule": func(f *fixture, id uuid.UUID) error {
			f.exec(`UPDATE orders SET not_before = now() + interval '1 h' WHERE id = $1`, id)
			f.exec(`UPDATE order_state SET hold = 'person' WHERE order_id = $1`, id)
			_, err := f.ReleaseOrder(f.t.Context(), hold(id, ""))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := open(t)
			f.checkTimeline(f.Store, false)
			b := f.upload(store.BatchUpload{IssuerID: issuer, Key: "k", Client: "test", Format: "ndjson", Hold: true}, 3)
			results := f.results(b.ID, store.RowAccepted)
			cancelled, released, swept := *results[0].OrderID, *results[1].OrderID, *results[2].OrderID
			f.elsewhere()
			f.checkTimeline(f.Store, true)
			for _, id := range []uuid.UUID{cancelled, released, swept} {
				if err := happens(f, id); err != nil {
					t.Fatal(err)
				}
			}
			if c := f.change(placement(cancelled, order.ChangeCancel)); c.State != order.ChangeRequested {
				t.Errorf("the cancel is %s %s", c.State, c.Reason)
			}
			f.released(released)
			if f.order(released).State.Status == order.Held { // by its schedule
				f.released(released)
			}
			if counts, err := f.Act(t.Context(), issuer, b.ID, store.BatchCancel, "ada"); err != nil || counts.Changed != 0 || counts.TooLate != 3 {
				t.Errorf("the cancel of the batch: %+v, %v", counts, err)
			}
			for _, id := range []uuid.UUID{cancelled, released, swept} {
				if n := value[int](f, `SELECT count(*) FROM outbox WHERE order_id = $1 AND kind = 'submit' AND maybe_sent_at IS NOT NULL AND halt = 'cancel'`, id); n != 1 {
					t.Errorf("D1 is not asked before the order is %s", f.order(id).State.Status)
				}
			}
			if n := value[int](f, `SELECT count(*) FROM order_changes WHERE type = 'CANCEL' AND state = 'REQUESTED'`); n != 3 {
				t.Errorf("%d cancels wait for what D1 says", n)
			}
			f.consistent()
			f.whole()
			// D1 does not have them.
			for _, id := range []uuid.UUID{cancelled, released, swept} {
				f.exec(`DELETE FROM outbox WHERE kind = 'ask'`)
				f.exec(`UPDATE outbox SET run_at = now()`)
				f.complete(store.Completion{
					Message: f.claimOf(id), Attempt: attempt("absent"), Evidence: []order.Evidence{order.NotFound{}}, Next: store.Next{Maybe: store.MaybeClear},
				})
				if s := f.order(id).State; s.Status != order.Cancelled {
					t.Errorf("the order is %s", s.Status)
				}
			}
			f.consistent()
		})
	}
}

// What somebody does with an order while the change of history is being noticed: no message
// comes to be between those that are marked and those that are made with the doubt.
func TestActionWhileTheHistoryChanges(t *testing.T) {
	t.Parallel()
	for name, act := range map[string]func(f *fixture, batch, id uuid.UUID) error{
		"a release": func(f *fixture, _, id uuid.UUID) error {
			_, err := f.ReleaseOrder(f.t.Context(), hold(id, ""))
			return err
		},
		"a retry": func(f *fixture, _, id uuid.UUID) error {
			_, err := f.Retry(f.t.Context(), store.Retry{Action: action(id)})
			return err
		},
		"a cancel": func(f *fixture, _, id uuid.UUID) error {
			_, _, err := f.PlaceChange(f.t.Context(), placement(id, order.ChangeCancel))
			return err
		},
		"the release of a batch": func(f *fixture, batch, _ uuid.UUID) error {
			_, err := f.Act(f.t.Context(), issuer, batch, store.BatchRelease, "ada")
			return err
		},
		"the cancel of a batch": func(f *fixture, batch, _ uuid.UUID) error {
			_, err := f.Act(f.t.Context(), issuer, batch, store.BatchCancel, "ada")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := open(t)
			f.checkTimeline(f.Store, false)
			b := f.upload(store.BatchUpload{IssuerID: issuer, Key: "k", Client: "test", Format: "ndjson", Hold: true}, 1)
			id := *f.results(b.ID, store.RowAccepted)[0].OrderID
			if name == "a retry" {
				f.exec(`UPDATE order_state SET status = 'REJECTED', hold = NULL`)
			}
			f.elsewhere()
			tx, err := f.conn.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(t.Context(), `SELECT FROM order_state FOR UPDATE`); err != nil {
				t.Fatal(err)
			}
			acted, checked := make(chan error, 1), make(chan error, 1)
			go func() { acted <- act(f, b.ID, id) }()
			f.untilWaiting("transactionid")
			go func() {
				_, err := f.CheckTimeline(t.Context(), time.Minute)
				checked <- err
			}()
			patience := time.Now().Add(20 * time.Second)
			for len(checked) == 0 && value[int](f, waiting) < 2 {
				if time.Now().After(patience) {
					t.Fatal("the change of history is neither noticed nor waited with")
				}
			}
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := <-acted; err != nil {
				t.Fatal(err)
			}
			if err := <-checked; err != nil {
				t.Fatal(err)
			}
			if n := value[int](f, `SELECT count(*) FROM outbox WHERE kind = 'submit' AND maybe_sent_at IS NOT NULL`); n != 1 {
				t.Errorf("D1 is not asked first; the order is %s", f.order(id).State.Status)
			}
			f.whole()
		})
	}
}

// waiting counts who waits for a lock in this database.
const waiting = `SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted AND pid IN (
	SELECT pid FROM pg_locks WHERE database = (SELECT oid FROM pg_database WHERE datname = current_database()))`
