package store_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

// refused is a refusal that need not be the order's fault; so many of them stop the lane.
func refused(m store.Message, stopAfter int) store.Completion {
	a := attempt("refused")
	a.Reason, a.HTTPStatus = "forbidden", 403
	return store.Completion{Message: m, Attempt: a, Next: store.Next{
		RunIn: time.Minute, Tries: m.Tries + 1, Refused: true, Burns: true, StopAfter: stopAfter,
	}}
}

func (f *fixture) acceptMany(n int) []*store.Order {
	f.t.Helper()
	var list []*store.Order
	for i := range n {
		list = append(list, f.accept(fmt.Sprint("card-", i), fmt.Sprint("r-", i)))
	}
	return list
}

func (f *fixture) statuses() string {
	f.t.Helper()
	return value[string](f, `SELECT coalesce(string_agg(status || ' ' || n, ', ' ORDER BY status), '') FROM (SELECT status, count(*) n FROM order_state GROUP BY 1) s`)
}

func (f *fixture) setAside() int {
	f.t.Helper()
	return value[int](f, `SELECT count(*) FROM outbox WHERE refused_at IS NOT NULL`)
}

func (f *fixture) stopped() bool {
	f.t.Helper()
	return value[bool](f, `SELECT EXISTS (SELECT FROM lanes WHERE lane = $1 AND stopped_at IS NOT NULL)`, lane)
}

func (f *fixture) probe() []store.Message {
	f.t.Helper()
	f.exec(`UPDATE lanes SET probe_at = now()`)
	list, err := f.ClaimProbe(f.t.Context(), lane, time.Minute)
	if err != nil {
		f.t.Fatal(err)
	}
	return list
}

// A refused order is rejected when D1 then takes another one, whose call began later; not
// before, and not while the refusal may still pass.
func TestNextAcceptanceDecidesAboutRefusals(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		prepare func(f *fixture, refusal *store.Completion)
		late    bool // the other order is claimed after the refusal
		want    string
		aside   int
	}{
		{"the other one was claimed later", nil, true, "REJECTED 1, SUBMITTED 1", 0},
		{"the other one was claimed before", nil, false, "ACCEPTED 1, SUBMITTED 1", 1},
		{"it may pass", func(_ *fixture, r *store.Completion) { r.Next.RejectAfter = time.Hour }, true, "ACCEPTED 1, SUBMITTED 1", 0},
		{"it may have passed", func(f *fixture, r *store.Completion) {
			r.Next.RejectAfter = time.Hour
			f.exec(`UPDATE outbox SET refused_since = now() - interval '2 h' WHERE id = $1`, r.Message.ID)
		}, true, "REJECTED 1, SUBMITTED 1", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := open(t)
			orders := f.acceptMany(2)
			limit := 2
			if c.late {
				limit = 1
			}
			claimed := f.claim(limit, time.Minute)
			refusal := refused(claimed[0], 5)
			if c.prepare != nil {
				c.prepare(f, &refusal)
			}
			f.complete(refusal)
			if got := f.statuses(); got != "ACCEPTED 2" || f.setAside() != 1 {
				t.Errorf("after the refusal: %s, %d set aside", got, f.setAside())
			}
			if c.late {
				claimed = append(claimed, f.claim(1, time.Minute)...)
			}
			acceptance := taken(claimed[1], "op")
			f.complete(acceptance)
			if got := f.statuses(); got != c.want || f.setAside() != c.aside {
				t.Errorf("in the end: %s, %d set aside; want %s, %d", got, f.setAside(), c.want, c.aside)
			}
			if strings.Contains(c.want, "REJECTED") {
				cause := value[string](f, `SELECT cause_id FROM order_events WHERE order_id = $1 AND status = 'REJECTED'`, orders[0].ID)
				if cause != acceptance.Attempt.ID.String() {
					t.Errorf("the cause is %s", cause)
				}
			}
			f.whole()
		})
	}
}

// So many different orders refused, with none accepted between, stop the lane, and all go
// back untouched. One order that is refused again and again does not.
func TestRefusalsStopTheLane(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.accept("card", "request")
	first := f.claim(1, time.Minute)[0]
	for range 4 {
		f.complete(refused(first, 3))
		f.exec(`UPDATE outbox SET run_at = now() WHERE id = $1`, first.ID)
		first = f.claim(1, time.Minute)[0]
	}
	if f.stopped() {
		t.Fatal("one order stopped the lane")
	}
	if first.TryingFor != 4*time.Minute {
		t.Errorf("it was tried for %s", first.TryingFor)
	}
	f.acceptMany(5)
	f.complete(refused(first, 3), refused(f.claim(1, time.Minute)[0], 3))
	late := f.claim(1, time.Minute)[0]
	if f.stopped() {
		t.Fatal("two orders stopped the lane")
	}
	f.complete(refused(f.claim(1, time.Minute)[0], 3))
	if !f.stopped() || f.setAside() != 0 || value[int](f, `SELECT count(*) FROM outbox WHERE run_at <= now() AND claim_token IS NULL`) != 5 {
		t.Errorf("stopped %v, %d set aside", f.stopped(), f.setAside())
	}
	if reason := value[string](f, `SELECT stop_reason FROM lanes`); reason != "forbidden (403)" {
		t.Errorf("the reason is %q", reason)
	}
	if len(f.claim(10, time.Minute)) != 0 {
		t.Error("a stopped lane is claimed from")
	}
	// A late refusal sets nothing aside.
	f.complete(refused(late, 3))
	if f.setAside() != 0 {
		t.Error("a refusal of a stopped lane set its order aside")
	}

	// Probes go round.
	seen := make(map[uuid.UUID]bool)
	for range 5 {
		m := f.probe()
		if len(m) != 1 || seen[m[0].OrderID] {
			t.Fatalf("probe %v, after %v", m, seen)
		}
		seen[m[0].OrderID] = true
		if again, err := f.ClaimProbe(t.Context(), lane, time.Minute); err != nil || len(again) != 0 {
			t.Errorf("a second probe at once: %v, %v", again, err)
		}
		f.complete(refused(m[0], 3))
	}
	if wait := value[time.Duration](f, `SELECT probe_at - now() FROM lanes`); wait < 15*time.Second || wait > time.Minute {
		t.Errorf("the next probe is in %s", wait)
	}
	// A probe that is accepted ends the stop and rejects nobody.
	f.exec(`UPDATE outbox SET run_at = now() WHERE id = $1`, first.ID)
	f.complete(taken(f.probe()[0], "op"))
	if f.stopped() || f.statuses() != "ACCEPTED 5, SUBMITTED 1" {
		t.Errorf("stopped %v, %s", f.stopped(), f.statuses())
	}
	f.exec(`UPDATE outbox SET run_at = now()`)
	if n := len(f.claim(10, time.Minute)); n != 5 {
		t.Errorf("%d orders are claimed", n)
	}
	f.whole()
}

// A batch that is refused as a whole does not keep a single order from being the probe.
func TestProbesTakeClassesInTurn(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.acceptMany(5)
	f.exec(`UPDATE outbox SET class = 1, run_at = now() - interval '1 h' WHERE id <= 4`)
	f.exec(`INSERT INTO lanes (lane, stopped_at) VALUES ($1, now())`, lane)
	var classes []store.Class
	for range 3 {
		m := f.probe()[0]
		classes = append(classes, m.Class)
		f.complete(refused(m, 3))
	}
	if !slices.Equal(classes, []store.Class{store.ClassSingle, store.ClassBatch, store.ClassBatch}) {
		t.Errorf("the probes are of %v", classes)
	}
}

// An acceptance of a call from before the stop does not end it.
func TestOldAcceptanceDoesNotEndAStop(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.acceptMany(3)
	m := f.claim(3, time.Minute)
	f.complete(refused(m[0], 2), refused(m[1], 2))
	f.complete(taken(m[2], "op"))
	if !f.stopped() {
		t.Error("it ended the stop")
	}
}

// Without anything to send, questions are the probes: they do not wait for a person.
func TestQuestionsOfAStoppedLane(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.acceptMany(1)
	m := f.claim(1, time.Minute)[0]
	f.complete(store.Completion{Message: m, Attempt: attempt("unknown"), Evidence: []order.Evidence{order.LostAnswer{}}, Next: store.Next{Maybe: store.MaybeNow}})
	f.exec(`INSERT INTO lanes (lane, stopped_at) VALUES ($1, now())`, lane)
	if m := f.probe(); len(m) != 1 || !m[0].MaybeSent {
		t.Errorf("the probe is %+v", m)
	}
	f.exec(`UPDATE lanes SET paused_at = now()`)
	f.exec(`UPDATE outbox SET run_at = now()`)
	if m := f.probe(); len(m) != 0 {
		t.Error("a paused lane is probed")
	}
}

// What may not be claimed, and by whom.
func TestGate(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.acceptMany(1)
	for _, c := range []struct {
		name, sql string
		claimed   int
	}{
		{"paused", `INSERT INTO lanes (lane, paused_at) VALUES ('d1/ISSUER0001', now())`, 0},
		{"stopped", `UPDATE lanes SET paused_at = NULL, stopped_at = now()`, 0},
		{"another lane", `UPDATE lanes SET lane = 'd1/another'`, 1},
		{"an earlier timeline", `INSERT INTO database_history (system_identifier, timeline) SELECT system_identifier, 77 FROM pg_control_system()`, 0},
		{"another cluster", `UPDATE database_history SET timeline = 1, system_identifier = 1`, 0},
		{"this history", `UPDATE database_history SET system_identifier = (SELECT system_identifier FROM pg_control_system())`, 1},
	} {
		f.exec(c.sql)
		m := f.claim(1, time.Minute)
		if len(m) != c.claimed {
			t.Errorf("%s: claimed %d, want %d", c.name, len(m), c.claimed)
		}
		if err := f.Release(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
}

func ofClass(f *fixture, class store.Class) []store.Message {
	f.t.Helper()
	list, err := f.Claim(f.t.Context(), store.ClaimRequest{Lane: lane, Class: class, Limit: 10, Lease: time.Minute})
	if err != nil {
		f.t.Fatal(err)
	}
	return list
}

// A message whose outcome is unknown is a question, until its order is to be sent again.
func TestClasses(t *testing.T) {
	t.Parallel()
	f := open(t)
	one := f.accept("single", "single")
	b := f.upload(upload, 1)
	for _, c := range []struct {
		class store.Class
		order uuid.UUID
	}{{store.ClassSingle, one.ID}, {store.ClassBatch, *f.results(b.ID, "")[0].OrderID}} {
		m := ofClass(f, c.class)
		if len(m) != 1 || m[0].OrderID != c.order || m[0].Class != c.class || m[0].Kind != store.KindSubmit {
			t.Fatalf("claimed %+v", m)
		}
		f.complete(store.Completion{Message: m[0], Attempt: attempt("unknown"), Evidence: []order.Evidence{order.LostAnswer{}}, Next: store.Next{Maybe: store.MaybeNow}})
		if len(ofClass(f, c.class)) != 0 {
			t.Error("it stayed in its class")
		}
		m = ofClass(f, store.ClassQuestion)
		if len(m) != 1 || !m[0].MaybeSent || !m[0].SentBefore {
			t.Fatalf("claimed %+v", m)
		}
		f.complete(store.Completion{Message: m[0], Attempt: attempt("found"), Evidence: []order.Evidence{order.NotFound{}}, Next: store.Next{Maybe: store.MaybeClear}})
		m = ofClass(f, c.class)
		if len(m) != 1 || m[0].MaybeSent || m[0].Resends != 1 || m[0].AcceptedAt.IsZero() || m[0].ClaimedAt.Before(m[0].AcceptedAt) {
			t.Errorf("to be sent again: %+v", m)
		}
	}
}

// One card at a time; what only asks neither waits nor blocks.
func TestOneCardAtATime(t *testing.T) {
	t.Parallel()
	f := open(t)
	first := f.accept("card", "first")
	a := store.Acceptance{IssuerID: issuer, Client: "test", Request: request("card", "second")}
	a.Request.DuplicateOverride = "for the test"
	second, err := f.Accept(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	firstIs := func(sql string) {
		f.exec(`UPDATE outbox SET run_at = now(), claim_token = NULL, leased_until = NULL, maybe_sent_at = NULL`)
		f.exec(sql, first.ID)
	}
	for _, c := range []struct {
		name, sql string
		second    bool
	}{
		{"backing off", `UPDATE outbox SET run_at = now() + interval '1 h' WHERE order_id = $1`, false},
		{"claimed", `UPDATE outbox SET claim_token = order_id, leased_until = now() + interval '1 h' WHERE order_id = $1`, false},
		{"unknown", `UPDATE outbox SET run_at = now() + interval '1 h', maybe_sent_at = now() WHERE order_id = $1`, false},
		{"given up", `UPDATE outbox SET run_at = 'infinity' WHERE order_id = $1`, true},
		{"given up, perhaps at D1", `UPDATE outbox SET run_at = 'infinity', maybe_sent_at = now() WHERE order_id = $1`, false},
		{"only asked about", `UPDATE outbox SET run_at = now() + interval '1 h', kind = 'ask', class = 2 WHERE order_id = $1`, true},
	} {
		firstIs(c.sql)
		m := f.claim(10, time.Minute)
		if claimed := len(m) == 1 && m[0].OrderID == second.Order.ID; claimed != c.second {
			t.Errorf("the first one is %s: claimed %d", c.name, len(m))
		}
	}
	// The first one, tried again, waits for the second one, which is claimed.
	f.exec(`UPDATE outbox SET kind = 'submit', class = 0, run_at = now() WHERE order_id = $1`, first.ID)
	if m := f.claim(10, time.Minute); len(m) != 0 {
		t.Errorf("two orders of a card at once: %+v", m)
	}
	f.exec(`UPDATE outbox SET kind = 'ask', class = 2 WHERE order_id = $1`, first.ID)
	m := ofClass(f, store.ClassQuestion)
	if len(m) != 1 || m[0].Kind != store.KindAsk || m[0].MaybeSent || !m[0].FirstSentAt.IsZero() {
		t.Fatalf("the question: %+v", m)
	}
	f.complete(store.Completion{Message: m[0], Attempt: attempt("found"), Next: store.Next{RunIn: -time.Second, Tries: 1}})
	m = ofClass(f, store.ClassQuestion)
	if len(m) != 1 || m[0].Tries != 1 {
		t.Fatalf("the question again: %+v", m)
	}
	f.complete(store.Completion{Message: m[0], Attempt: attempt("found"), Next: store.Next{Done: true}})
	if n := value[int](f, `SELECT count(*) FROM outbox WHERE order_id = $1`, first.ID); n != 0 {
		t.Error("the question that is over is still there")
	}
}

// Trying ends by what the waits add up to; an unknown outcome is asked about for ever.
func TestGivingUp(t *testing.T) {
	t.Parallel()
	f := open(t)
	orders := f.acceptMany(2)
	m := f.claim(2, time.Minute)
	f.complete(
		store.Completion{Message: m[0], Attempt: attempt("refused"), Next: store.Next{RunIn: time.Minute, Refused: true, Burns: true, GiveUp: true}},
		store.Completion{
			Message: m[1], Attempt: attempt("unknown"), Evidence: []order.Evidence{order.LostAnswer{}},
			Next: store.Next{RunIn: -time.Second, Maybe: store.MaybeNow, GiveUp: true},
		})
	for i, want := range []order.Status{order.Accepted, order.OutcomeUnknown} {
		if got := f.order(orders[i].ID).State; got.Status != want || !slices.Contains(got.Attention, order.AttentionGivenUp) {
			t.Errorf("order %d is %s, attention %v", i, got.Status, got.Attention)
		}
	}
	if at := value[string](f, `SELECT run_at::text FROM outbox WHERE order_id = $1`, orders[0].ID); at != "infinity" {
		t.Errorf("it is tried again at %s", at)
	}
	if q := ofClass(f, store.ClassQuestion); len(q) != 1 || !q[0].ResendOff {
		t.Errorf("the unknown one: %+v", q)
	}
}

// An order that D1 took without naming an operation is looked after until one is known.
func TestNextCheck(t *testing.T) {
	t.Parallel()
	f := open(t)
	o := f.accept("card", "request")
	nameless := taken(f.claim(1, time.Minute)[0], "")
	nameless.Seen = nil
	f.complete(nameless)
	if f.order(o.ID).State.Status != order.Submitted || !value[bool](f, `SELECT next_check_at > now() FROM order_state`) {
		t.Error("nobody asks about it")
	}
	n := notification(1, "operation", "CARD_PROD_READY")
	n.IssuerRequestID = "request"
	f.receive(n)
	f.exec(`UPDATE order_state SET next_check_at = now()`)
	if done := f.check(10); done.Looked != 1 || done.Asked != 0 {
		t.Errorf("it is asked about all the same: %+v", done)
	}
	if !value[bool](f, `SELECT next_check_at IS NULL FROM order_state`) {
		t.Error("it is looked at for ever")
	}
}

// A hold or a cancel that comes while D1 may have an order is done as soon as it is
// certain that D1 does not have it; it keeps the order from being sent again.
func TestHalts(t *testing.T) {
	t.Parallel()
	unknown := store.Next{Maybe: store.MaybeNow, RunIn: -time.Second}
	lost := []order.Evidence{order.LostAnswer{}}
	for _, c := range []struct {
		name     string
		evidence []order.Evidence
		next     store.Next
		want     [2]order.Status // after a hold, a cancel
		messages [2]int
		note     [2]bool
	}{
		{"not taken", nil, store.Next{Unsent: true, Tries: 1}, [2]order.Status{order.Held, order.Cancelled}, [2]int{}, [2]bool{}},
		{"refused, perhaps not for its fault", nil, store.Next{Refused: true, Tries: 1}, [2]order.Status{order.Held, order.Cancelled}, [2]int{}, [2]bool{}},
		{"refused", []order.Evidence{order.Refusal{}}, store.Next{}, [2]order.Status{order.Rejected, order.Cancelled}, [2]int{}, [2]bool{}},
		// A hold can only be told of; the cancel is sent to D1.
		{"taken", []order.Evidence{order.Taken{OperationID: "op"}}, store.Next{}, [2]order.Status{order.Submitted, order.Submitted}, [2]int{0, 1}, [2]bool{true, false}},
		{"unknown", lost, unknown, [2]order.Status{order.OutcomeUnknown, order.OutcomeUnknown}, [2]int{1, 1}, [2]bool{}},
	} {
		for i, action := range []store.BatchAction{store.BatchHold, store.BatchCancel} {
			t.Run(fmt.Sprint(c.name, "/", action), func(t *testing.T) {
				t.Parallel()
				f := open(t)
				b := f.upload(upload, 1)
				m := ofClass(f, store.ClassBatch)[0]
				if got, err := f.Act(t.Context(), issuer, b.ID, action, "operator"); err != nil || got.TooLate != 1 {
					t.Fatal(got, err)
				}
				if held, err := f.Holds(t.Context(), m); err != nil || held {
					t.Errorf("it may still be sent: %v", err)
				}
				f.complete(store.Completion{Message: m, Attempt: attempt("x"), Evidence: c.evidence, Next: c.next})
				got := f.order(m.OrderID).State
				if got.Status != c.want[i] || slices.Contains(got.Attention, order.AttentionStopTooLate) != c.note[i] {
					t.Errorf("the order is %s, attention %v", got.Status, got.Attention)
				}
				if n := value[int](f, `SELECT count(*) FROM outbox`); n != c.messages[i] {
					t.Errorf("%d messages", n)
				}
				if c.next.Maybe == store.MaybeNow { // asked in vain, often enough
					q := ofClass(f, store.ClassQuestion)[0]
					f.complete(store.Completion{Message: q, Attempt: attempt("found"), Evidence: []order.Evidence{order.NotFound{}}, Next: store.Next{Maybe: store.MaybeClear}})
					if got := f.order(m.OrderID).State.Status; got != [2]order.Status{order.Held, order.Cancelled}[i] {
						t.Errorf("when D1 does not have it, it is %s", got)
					}
				}
				f.whole()
			})
		}
	}
}

// A worker of the release before gives a message back, or reschedules it, whatever
// somebody wants of its order: that is done then.
func TestHaltThatNobodyLookedAt(t *testing.T) {
	t.Parallel()
	f := open(t)
	o := f.accept("card", "request")
	f.exec(`UPDATE outbox SET halt = 'cancel'`)
	m := f.claim(1, time.Minute)
	if len(m) != 1 || !m[0].Halted {
		t.Fatalf("claimed %+v", m)
	}
	if err := f.Release(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if got := f.order(o.ID).State.Status; got != order.Cancelled {
		t.Errorf("the order is %s", got)
	}
	f.whole()
}

// A halted message that is given back is held or cancelled; D1's word of it tells people
// that the halt came too late; a release takes a hold back, not a cancel.
func TestHaltsOtherwise(t *testing.T) {
	t.Parallel()
	f := open(t)
	b := f.upload(upload, 4)
	m := ofClass(f, store.ClassBatch)
	act := func(action store.BatchAction, want store.ActionCounts) {
		t.Helper()
		if got, err := f.Act(t.Context(), issuer, b.ID, action, "operator"); err != nil || got != want {
			t.Errorf("%s: %+v, %v", action, got, err)
		}
	}
	act(store.BatchHold, store.ActionCounts{TooLate: 4})
	if err := f.Release(t.Context(), m[:1]); err != nil {
		t.Fatal(err)
	}
	if got := f.order(m[0].OrderID).State.Status; got != order.Held {
		t.Errorf("given back, the order is %s", got)
	}
	n := notification(1, "op", "CARD_PROD_READY")
	n.IssuerRequestID = m[1].IssuerRequestID
	f.receive(n)
	if got := f.order(m[1].OrderID).State; got.Status != order.Ready || !slices.Contains(got.Attention, order.AttentionStopTooLate) {
		t.Errorf("D1 has it, and it is %s, attention %v", got.Status, got.Attention)
	}
	act(store.BatchRelease, store.ActionCounts{Changed: 3, Unchanged: 1})
	if held, err := f.Holds(t.Context(), m[2]); err != nil || !held {
		t.Errorf("a hold that was taken back keeps it: %v", err)
	}
	// An order whose lease ran out under a cancel is asked about.
	f.exec(`UPDATE order_batches SET status = 'COMPLETED'`)
	act(store.BatchCancel, store.ActionCounts{Changed: 1, TooLate: 3})
	f.exec(`UPDATE outbox SET leased_until = now() WHERE claim_token IS NOT NULL`)
	for _, m := range ofClass(f, store.ClassBatch) {
		if !m.MaybeSent {
			t.Errorf("a cancelled order is to be sent: %+v", m)
		}
	}
	f.whole()
}

// Claims go on from where the last one ended; what then comes to lie before that place
// is found all the same.
func TestMessagesBeforeTheFloor(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.acceptMany(4)
	f.claim(1, time.Minute)
	f.exec(`UPDATE outbox SET run_at = now() - interval '1 h' WHERE id = (SELECT max(id) FROM outbox)`)
	if m := f.claim(1, time.Minute); len(m) != 1 {
		t.Fatalf("claimed %d", len(m))
	}
	if m := f.claim(3, time.Minute); len(m) != 2 {
		t.Errorf("claimed %d of 2 that are due", len(m))
	}
	f.exec(`UPDATE outbox SET run_at = now(), claim_token = NULL, leased_until = NULL`)
	f.claim(1, time.Minute)
	f.exec(`UPDATE outbox SET run_at = now() - interval '1 h' WHERE id = (SELECT max(id) FROM outbox)`)
	var last store.Message
	for last.ID != 4 { // as long as there are others: twice a second
		m := f.claim(1, time.Minute)
		if len(m) != 1 {
			t.Fatal("it was passed over")
		}
		if last = m[0]; last.ID != 4 {
			f.exec(`UPDATE outbox SET run_at = now(), claim_token = NULL, leased_until = NULL, maybe_sent_at = NULL WHERE id = $1`, last.ID)
		}
	}
}
