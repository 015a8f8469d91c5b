package store_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

var newAddress = &order.Address{Line1: "9 New Street", ZipCode: "00-001", City: "Warszawa", CountryCode: "PL"}

// placement is a change of an order under a key of its own.
func placement(id uuid.UUID, kind order.ChangeType) store.ChangePlacement {
	return keyed(id, kind, uuid.NewString())
}

func keyed(id uuid.UUID, kind order.ChangeType, key string) store.ChangePlacement {
	r := &order.ChangeRequest{Type: kind, Canonical: []byte(`{"type":"` + kind + `"}`)}
	if kind.Redirects() {
		r.NewDeliveryAddress = newAddress
	}
	return store.ChangePlacement{Action: action(id), IdempotencyKey: key, Request: r}
}

func (f *fixture) change(p store.ChangePlacement) *store.Change {
	f.t.Helper()
	c, replayed, err := f.PlaceChange(f.t.Context(), p)
	if err != nil || replayed {
		f.t.Fatalf("placing a change: replayed %v, %v", replayed, err)
	}
	return c
}

// stands tells how a change stands: "STATE reason".
func (f *fixture) stands(c *store.Change) string {
	f.t.Helper()
	c, err := f.Change(f.t.Context(), issuer, c.OrderID, c.ID)
	if err != nil {
		f.t.Fatal(err)
	}
	return strings.TrimSpace(string(c.State) + " " + string(c.Reason))
}

func (f *fixture) wantStands(c *store.Change, want string) {
	f.t.Helper()
	if got := f.stands(c); got != want {
		f.t.Errorf("the change is %s, want %s", got, want)
	}
	f.consistent()
}

// consistent checks that order_state.open_changes says of each change what order_changes
// does, and holds all that may still be heard of.
func (f *fixture) consistent() {
	f.t.Helper()
	wrong := value[string](f, `
		WITH listed AS (
			SELECT s.issuer_id, s.order_id, (c->>'id')::uuid AS id, c->>'type' AS type, c->>'state' AS state, coalesce(c->>'reason', '') AS reason,
				coalesce(c->>'operationId', '') AS operation_id, coalesce((c->>'tried')::boolean, false) AS tried
			FROM order_state s, jsonb_array_elements(s.open_changes) AS c
		)
		SELECT coalesce(string_agg(c.id || ' is ' || c.state || ', listed as ' || coalesce(l.state, 'nothing'), '; '), '')
		FROM order_changes c FULL JOIN listed l USING (issuer_id, order_id, id)
		WHERE CASE WHEN l.id IS NULL THEN c.state IN ('REQUESTED', 'SENT', 'EXPIRED')
			ELSE (c.type, c.state, coalesce(c.reason, ''), coalesce(c.operation_id, ''), c.sent_at IS NOT NULL)
				IS DISTINCT FROM (l.type, l.state, l.reason, l.operation_id, l.tried) END`)
	if wrong != "" {
		f.t.Errorf("lists of changes are wrong: %s", wrong)
	}
	if n := value[int](f, `SELECT count(*) FROM outbox m LEFT JOIN order_changes c ON c.issuer_id = m.issuer_id AND c.id = m.change_id
		WHERE m.kind = 'change' AND c.state IS DISTINCT FROM 'REQUESTED'`); n > 0 {
		f.t.Errorf("%d messages bring changes to D1 that need no sending", n)
	}
}

// changeEvents are the events of an order that tell of changes: "TYPE STATE reason".
func (f *fixture) changeEvents(id uuid.UUID) []string {
	f.t.Helper()
	entries, err := f.Timeline(f.t.Context(), issuer, id)
	if err != nil {
		f.t.Fatal(err)
	}
	var list []string
	seq := 0
	for _, e := range entries {
		if e.Event == nil {
			continue
		}
		if seq++; e.Event.Seq != seq {
			f.t.Errorf("event %d comes as number %d", e.Event.Seq, seq)
		}
		if e.Event.Type == store.EventChangeChanged {
			var d struct{ ChangeID, Type, State, Reason string }
			if err := json.Unmarshal(e.Event.Cause.Detail, &d); err != nil || d.ChangeID == "" {
				f.t.Errorf("the event says %s, %v", e.Event.Cause.Detail, err)
			}
			list = append(list, strings.TrimSpace(d.Type+" "+d.State+" "+d.Reason))
		}
	}
	return list
}

func (f *fixture) wantEvents(id uuid.UUID, want ...string) {
	f.t.Helper()
	if got := f.changeEvents(id); !slices.Equal(got, want) {
		f.t.Errorf("the timeline tells of %q, want %q", got, want)
	}
}

// atD1 is an order that D1 has, under operation.
func (f *fixture) atD1(card, operation string) uuid.UUID {
	f.t.Helper()
	o := f.accept(card, "request-"+card)
	f.complete(taken(f.claimOf(o.ID), operation))
	return o.ID
}

// claimOf claims the message of an order, and gives back others.
func (f *fixture) claimOf(id uuid.UUID) store.Message {
	f.t.Helper()
	var mine *store.Message
	var others []store.Message
	for _, class := range store.Classes {
		messages, err := f.Claim(f.t.Context(), store.ClaimRequest{Lane: lane, Class: class, Limit: 100, Lease: time.Minute})
		if err != nil {
			f.t.Fatal(err)
		}
		for _, m := range messages {
			if m.OrderID == id && mine == nil {
				mine = &m
			} else {
				others = append(others, m)
			}
		}
	}
	if err := f.Release(f.t.Context(), others); err != nil {
		f.t.Fatal(err)
	}
	if mine == nil {
		f.t.Fatal("there is nothing to be sent of the order")
	}
	return *mine
}

func changeAttempt(outcome string) store.Attempt {
	a := attempt(outcome)
	a.Kind = store.AttemptChange
	return a
}

// took is D1's yes to a change.
func took(m store.Message, operation string) store.Completion {
	return store.Completion{Message: m, Attempt: changeAttempt("taken"), Change: &store.ChangeAnswer{Taken: true, OperationID: operation}}
}

// refused is D1's no to one.
func refusedChange(m store.Message) store.Completion {
	return store.Completion{Message: m, Attempt: changeAttempt("refused"), Change: &store.ChangeAnswer{}}
}

// lost is a call for a change whose answer never came.
func lost(m store.Message) store.Completion {
	return store.Completion{Message: m, Attempt: changeAttempt("unknown"), Next: store.Next{Tries: m.Tries + 1}}
}

// A cancel of what D1 does not have is done at once, and D1 never hears of the order.
func TestCancelBeforeDispatch(t *testing.T) {
	t.Parallel()
	f := open(t)
	accepted, held, rejected := f.accept("accepted", "r1").ID, f.accept("held", "r2").ID, f.accept("rejected", "r3").ID
	f.reject(rejected)
	f.exec(`UPDATE outbox SET claim_token = NULL, leased_until = NULL`)
	f.exec(`UPDATE order_state SET status = 'HELD', hold = 'person' WHERE order_id = $1`, held)
	f.exec(`DELETE FROM outbox WHERE order_id = $1`, held)
	for _, id := range []uuid.UUID{accepted, held, rejected} {
		c := f.change(placement(id, order.ChangeCancel))
		f.wantStands(c, "ACCEPTED before-dispatch")
		f.wantEvents(id, "CANCEL ACCEPTED before-dispatch")
		if o := f.order(id); o.State.Status != order.Cancelled || len(o.State.Attention) > 0 {
			t.Errorf("the order is %s %q", o.State.Status, o.State.Attention)
		}
		if c.CreatedBy != "ada" || c.SentAt != nil || c.ExpiresAt != nil {
			t.Errorf("the change is %+v", c)
		}
	}
	if n := value[int](f, `SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM card_guard)`); n != 0 {
		t.Errorf("%d messages and guards are left", n)
	}
	if e := f.lastEvent(accepted); e.Cause.Actor != "ada" || e.Cause.Kind != store.CauseRequest {
		t.Errorf("the event is %+v", e)
	}
	// What has ended cannot be changed.
	if _, _, err := f.PlaceChange(t.Context(), placement(accepted, order.ChangeCancel)); !errors.Is(err, store.ErrNotChangeable) {
		t.Errorf("the second cancel: %v", err)
	}
}

// A redirect of what D1 does not have changes what is sent, and nothing of it rests elsewhere.
func TestRedirectBeforeDispatch(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.accept("card", "request").ID
	c := f.change(placement(id, order.ChangeRedirect))
	f.wantStands(c, "ACCEPTED before-dispatch")
	f.wantEvents(id, "REDIRECT ACCEPTED before-dispatch")
	if n := value[int](f, `SELECT count(*) FROM order_changes WHERE address IS NOT NULL`); n != 0 {
		t.Error("the address rests with the change too")
	}
	if detail := string(f.lastEvent(id).Cause.Detail); strings.Contains(detail, "New Street") || !strings.Contains(detail, `"redirected": true`) {
		t.Errorf("the timeline tells %s", detail)
	}
	m := f.claimOf(id)
	var body order.Production
	if err := json.Unmarshal(m.Body, &body); err != nil || m.Err != nil {
		t.Fatal(err, m.Err)
	}
	want := request("card", "request").Production
	want.Shipment.DeliveryAddress = newAddress
	text, _ := json.Marshal(want)
	if got, _ := json.Marshal(body); string(got) != string(text) {
		t.Errorf("D1 is sent\n%s, want\n%s", got, text)
	}
}

// What is to be accelerated is sent sooner, and D1 told as soon as it has the order.
func TestAccelerateBeforeDispatch(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.accept("card", "request").ID
	f.exec(`UPDATE outbox SET class = 1`)
	both := f.change(placement(id, order.ChangeAccelerateAndRedirect))
	f.wantStands(both, "REQUESTED")
	if class := value[store.Class](f, `SELECT class FROM outbox`); class != store.ClassSingle {
		t.Errorf("the order is of class %s", class)
	}
	// One that is done here needs not wait for it; another one of its kind does.
	f.wantStands(f.change(placement(id, order.ChangeRedirect)), "ACCEPTED before-dispatch")
	_, _, err := f.PlaceChange(t.Context(), placement(id, order.ChangeAccelerate))
	if e, ok := errors.AsType[*store.ChangeConflictError](err); !ok || e.Kind != store.ChangePending || e.ChangeID != both.ID {
		t.Errorf("a second one: %v", err)
	}
	m := f.claimOf(id)
	if m.Kind != store.KindSubmit || !strings.Contains(string(m.Body), "New Street") {
		t.Fatalf("%s, redirected: %v", m.Kind, strings.Contains(string(m.Body), "New Street"))
	}
	f.complete(taken(m, "operation"))
	if m = f.claimOf(id); m.Kind != store.KindChange || m.Change.ID != both.ID || m.Change.Type != order.ChangeAccelerateAndRedirect ||
		string(m.Body) != `{"type":"ACCELERATE","issuerRequestId":"request"}` { // D1 has the address already
		t.Errorf("D1 is sent %s %+v", m.Body, m.Change)
	}
	f.complete(took(m, "change"))
	f.wantStands(both, "SENT")

	// One that waits for its time is sent now.
	id = f.accept("scheduled", "scheduled").ID
	f.exec(`UPDATE order_state SET status = 'HELD', hold = 'schedule' WHERE order_id = $1`, id)
	f.exec(`DELETE FROM outbox WHERE order_id = $1`, id)
	c := f.change(placement(id, order.ChangeAccelerate))
	if o := f.order(id); o.State.Status != order.Accepted {
		t.Errorf("the order is %s %s", o.State.Status, o.State.Hold)
	}
	// The order may end without D1 ever hearing of the change.
	f.wantStands(f.change(placement(id, order.ChangeCancel)), "ACCEPTED before-dispatch")
	f.wantStands(c, "REFUSED order-ended")
	f.wantEvents(id, "ACCELERATE REQUESTED", "ACCELERATE REFUSED order-ended", "CANCEL ACCEPTED before-dispatch")
}

// A cancel that comes while a worker has the order waits for what comes of that.
func TestCancelOfAClaimedOrder(t *testing.T) {
	t.Parallel()
	unknown := func(m store.Message) store.Completion {
		return store.Completion{
			Message: m, Attempt: attempt("unknown"), Evidence: []order.Evidence{order.LostAnswer{}},
			Next: store.Next{Maybe: store.MaybeNow},
		}
	}
	for _, c := range []struct {
		name   string
		comes  func(f *fixture, m store.Message) // of the call
		change string
		status order.Status
		sent   bool // D1 is then sent the change
	}{
		{"given back", func(f *fixture, m store.Message) {
			if err := f.Release(f.t.Context(), []store.Message{m}); err != nil {
				f.t.Fatal(err)
			}
		}, "ACCEPTED before-dispatch", order.Cancelled, false},
		{"not taken", func(f *fixture, m store.Message) {
			f.complete(store.Completion{Message: m, Attempt: attempt("not-taken"), Next: store.Next{Unsent: true}})
		}, "ACCEPTED before-dispatch", order.Cancelled, false},
		{"refused", func(f *fixture, m store.Message) {
			f.complete(store.Completion{Message: m, Attempt: attempt("refused"), Evidence: []order.Evidence{order.Refusal{}}})
		}, "ACCEPTED before-dispatch", order.Cancelled, false},
		{"taken", func(f *fixture, m store.Message) { f.complete(taken(m, "operation")) }, "REQUESTED", order.Submitted, true},
		{"unknown", func(f *fixture, m store.Message) { f.complete(unknown(m)) }, "REQUESTED", order.OutcomeUnknown, false},
		{"unknown, and not there", func(f *fixture, m store.Message) {
			f.complete(unknown(m))
			f.complete(store.Completion{
				Message: f.claimOf(m.OrderID), Attempt: attempt("absent"), Evidence: []order.Evidence{order.NotFound{}},
				Next: store.Next{Maybe: store.MaybeClear},
			})
		}, "ACCEPTED before-dispatch", order.Cancelled, false},
		{"unknown, and found", func(f *fixture, m store.Message) {
			f.complete(unknown(m))
			f.complete(taken(f.claimOf(m.OrderID), "operation"))
		}, "REQUESTED", order.Submitted, true},
		{"told of by a notification", func(f *fixture, m store.Message) {
			n := notification(1, "operation", "CARD_PROD_READY")
			n.IssuerRequestID = "request-card"
			f.receive(n)
		}, "REQUESTED", order.Ready, true},
		{"shipped already", func(f *fixture, m store.Message) {
			n := notification(1, "operation", "CARD_SHIPPED")
			n.IssuerRequestID = "request-card"
			f.receive(n)
		}, "REFUSED shipped-first", order.Shipped, false},
		{"retried", func(f *fixture, m store.Message) {
			f.complete(unknown(m))
			if _, err := f.Retry(f.t.Context(), store.Retry{Action: action(m.OrderID)}); err != nil {
				f.t.Fatal(err)
			}
		}, "REFUSED retried", order.OutcomeUnknown, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := open(t)
			id := f.accept("card", "request-card").ID
			m := f.claimOf(id)
			cancel := f.change(placement(id, order.ChangeCancel))
			f.wantStands(cancel, "REQUESTED")
			if held, err := f.Holds(t.Context(), m); err != nil || held {
				t.Errorf("the worker may still send it: %v, %v", held, err)
			}
			_, _, err := f.PlaceChange(t.Context(), placement(id, order.ChangeCancel))
			if e, ok := errors.AsType[*store.ChangeConflictError](err); !ok || e.Kind != store.ChangePending || e.ChangeID != cancel.ID {
				t.Errorf("a second cancel: %v", err)
			}
			c.comes(f, m)
			f.wantStands(cancel, c.change)
			if o := f.order(id); o.State.Status != c.status || slices.Contains(o.State.Attention, order.AttentionStopTooLate) {
				t.Errorf("the order is %s %q, want %s", o.State.Status, o.State.Attention, c.status)
			}
			if n := value[int](f, `SELECT count(*) FROM outbox WHERE kind = 'change'`); (n == 1) != c.sent {
				t.Errorf("%d changes are sent", n)
			}
			if c.sent {
				if m := f.claimOf(id); m.Kind != store.KindChange || string(m.Body) != `{"type":"CANCEL","issuerRequestId":"request-card"}` {
					t.Errorf("D1 is sent %s %s", m.Kind, m.Body)
				}
			}
		})
	}
}

// What an older history of the database may have sent is asked about before it is cancelled.
func TestCancelAfterARestore(t *testing.T) {
	t.Parallel()
	f := open(t)
	held, rejected := f.accept("held", "r1").ID, f.accept("rejected", "r2").ID
	f.reject(rejected)
	f.exec(`DELETE FROM outbox`)
	f.exec(`UPDATE order_state SET status = 'HELD', hold = 'person' WHERE order_id = $1`, held)
	if _, err := f.CheckTimeline(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := f.Restored(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	for _, id := range []uuid.UUID{held, rejected} {
		c := f.change(placement(id, order.ChangeCancel))
		f.wantStands(c, "REQUESTED")
		m := f.claimOf(id)
		if !m.MaybeSent {
			t.Fatal("D1 is sent the order")
		}
		f.complete(store.Completion{
			Message: m, Attempt: attempt("absent"), Evidence: []order.Evidence{order.NotFound{}}, Next: store.Next{Maybe: store.MaybeClear},
		})
		f.wantStands(c, "ACCEPTED before-dispatch")
	}
}

// What D1 has is changed by D1: the change is sent until D1 has said that it has it.
func TestChangeAtD1(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.atD1("card", "operation")
	c := f.change(placement(id, order.ChangeRedirect))
	f.wantStands(c, "REQUESTED")
	if c.ExpiresAt == nil || c.SentAt != nil {
		t.Errorf("the change is %+v", c)
	}
	m := f.claimOf(id)
	if want := `{"type":"REDIRECT","issuerRequestId":"request-card","newDeliveryAddress":` + addressText(newAddress) + `}`; string(m.Body) != want || m.Err != nil {
		t.Errorf("D1 is sent %s, %v; want %s", m.Body, m.Err, want)
	}
	if m.MaybeSent || m.Class != store.ClassSingle || m.Halted {
		t.Errorf("the message is %+v", m)
	}
	// An answer that is lost, a call that was not made, a lease that ran out: it is sent again.
	f.complete(lost(m))
	if c, _ := f.Change(t.Context(), issuer, id, c.ID); c.SentAt == nil || c.State != order.ChangeRequested {
		t.Errorf("the change is %+v", c)
	}
	if m = f.claimOf(id); m.Tries != 1 || m.MaybeSent {
		t.Errorf("the message is %+v", m)
	}
	f.exec(`UPDATE outbox SET leased_until = now()`)
	again := f.claimOf(id)
	if again.MaybeSent || again.Change.ID != c.ID {
		t.Errorf("after its lease: %+v", again)
	}
	// Of a worker that lost its claim the yes counts and the no does not.
	f.complete(refusedChange(m))
	f.wantStands(c, "REQUESTED")
	f.complete(took(m, "change-op"))
	f.wantStands(c, "SENT")
	f.complete(refusedChange(again))
	f.wantStands(c, "SENT")
	f.wantEvents(id, "REDIRECT REQUESTED", "REDIRECT SENT")
	sent, _ := f.Change(t.Context(), issuer, id, c.ID)
	if sent.OperationID != "change-op" || sent.ExpiresAt == nil || sent.ExpiresAt.Before(time.Now().Add(71*time.Hour)) {
		t.Errorf("the change is %+v", sent)
	}
	if owner := value[uuid.UUID](f, `SELECT order_id FROM operations WHERE operation_id = 'change-op' AND operation = 'UPDATE_ORDER'`); owner != id {
		t.Error("the operation is not known")
	}
	if n := value[int](f, `SELECT count(*) FROM outbox`); n != 0 {
		t.Errorf("%d messages are left", n)
	}
	if kinds := value[int](f, `SELECT count(*) FROM attempts WHERE kind = 'change'`); kinds != 4 {
		t.Errorf("%d attempts are stored", kinds)
	}
	// Another one may be wanted while D1 decides. It is refused at once.
	c = f.change(placement(id, order.ChangeAccelerate))
	f.complete(refusedChange(f.claimOf(id)))
	f.wantStands(c, "REFUSED refused-by-bureau")
	if n := value[int](f, `SELECT count(*) FROM outbox`); n != 0 {
		t.Errorf("%d messages are left", n)
	}
	if s := f.order(id).State; s.Status != order.Submitted || len(s.Attention) > 0 {
		t.Errorf("the order is %s %q", s.Status, s.Attention)
	}
}

func addressText(a *order.Address) string {
	text, _ := json.Marshal(a)
	return string(text)
}

// A cancel overtakes what D1 was to be told; what a worker has goes first.
func TestCancelGoesFirst(t *testing.T) {
	t.Parallel()
	for _, claimed := range []bool{false, true} {
		f := open(t)
		id := f.atD1("card", "operation")
		faster := f.change(placement(id, order.ChangeAccelerate))
		var m store.Message
		if claimed {
			m = f.claimOf(id)
		}
		_, _, err := f.PlaceChange(t.Context(), placement(id, order.ChangeRedirect))
		if e, ok := errors.AsType[*store.ChangeConflictError](err); !ok || e.Kind != store.ChangePending || e.ChangeID != faster.ID {
			t.Errorf("another change: %v", err)
		}
		cancel := f.change(placement(id, order.ChangeCancel))
		first, second := cancel, faster
		if claimed {
			first, second = faster, cancel
		} else {
			m = f.claimOf(id)
		}
		for i, c := range []*store.Change{first, second} {
			if m.Change.ID != c.ID {
				t.Fatalf("D1 is sent %s, want %s", m.Change.Type, c.Type)
			}
			f.complete(took(m, fmt.Sprint("op-", i)))
			f.wantStands(c, "SENT")
			if i == 0 {
				m = f.claimOf(id)
			}
		}
	}
}

// What an order does settles its changes.
func TestChangesFollowTheOrder(t *testing.T) {
	t.Parallel()
	f := open(t)
	for i, c := range []struct {
		status           string
		operation        order.OperationStatus
		cancel, redirect string
	}{
		{"CARD_PROD_ONGOING", order.OperationPending, "SENT", "REQUESTED"},
		{"CARD_PROD_CANCELED", order.OperationPending, "ACCEPTED", "REFUSED order-ended"},
		{"CARD_PROD_EXCEPTION", order.OperationFailed, "REFUSED order-ended", "REFUSED order-ended"},
		{"CARD_SHIPPED", order.OperationSuccessful, "REFUSED shipped-first", "REFUSED shipped-first"},
	} {
		operation := fmt.Sprint("operation-", i)
		id := f.atD1(fmt.Sprint("card-", i), operation)
		cancel := f.change(placement(id, order.ChangeCancel))
		f.complete(took(f.claimOf(id), operation+"-cancel"))
		redirect := f.change(placement(id, order.ChangeRedirect))
		n := notification(i, operation, c.status)
		n.Evidence = order.Report{OperationID: operation, Operation: c.operation, Status: c.status}
		f.receive(n)
		f.wantStands(cancel, c.cancel)
		f.wantStands(redirect, c.redirect)
		waits := c.redirect == "REQUESTED"
		if n := value[int](f, `SELECT count(*) FROM outbox WHERE order_id = $1`, id); (n > 0) != waits {
			t.Errorf("%s: %d messages", c.status, n)
		}
		if address := value[bool](f, `SELECT address IS NOT NULL FROM order_changes WHERE id = $1`, redirect.ID); address != waits {
			t.Errorf("%s: the address rests: %v", c.status, address)
		}
		if s := f.order(id).State; slices.Contains(s.Attention, order.AttentionStopTooLate) {
			t.Errorf("%s: %q", c.status, s.Attention)
		}
		if c.cancel == "REFUSED shipped-first" {
			if _, _, err := f.PlaceChange(t.Context(), placement(id, order.ChangeCancel)); !errors.Is(err, store.ErrShipped) {
				t.Errorf("a cancel after the shipping: %v", err)
			}
		}
	}
}

func TestChangeIdempotency(t *testing.T) {
	t.Parallel()
	f := open(t)
	id, other := f.atD1("card", "operation"), f.atD1("other", "operation-2")
	first := f.change(keyed(id, order.ChangeAccelerate, "key"))
	f.complete(took(f.claimOf(id), "change-op"))
	before := f.order(id).State.Version
	// The same again, whatever else has changed: the order's version, what is allowed.
	p := keyed(id, order.ChangeAccelerate, "key")
	p.Version, p.Faults = 1, order.Faults{{Pointer: "/x", Code: order.CodeOutsideProgram}}
	c, replayed, err := f.PlaceChange(t.Context(), p)
	if err != nil || !replayed || c.ID != first.ID || c.State != order.ChangeSent {
		t.Errorf("a replay: %+v %v, %v", c, replayed, err)
	}
	if v := f.order(id).State.Version; v != before {
		t.Errorf("a replay made version %d of %d", v, before)
	}
	for name, p := range map[string]store.ChangePlacement{
		"another content": keyed(id, order.ChangeCancel, "key"), "another order": keyed(other, order.ChangeAccelerate, "key"),
	} {
		_, _, err := f.PlaceChange(t.Context(), p)
		if e, ok := errors.AsType[*store.ChangeConflictError](err); !ok || e.Kind != store.ContentDiffers || e.ChangeID != first.ID {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What is wrong with a new one.
	p = placement(id, order.ChangeCancel)
	p.Version = before - 1
	if _, _, err := f.PlaceChange(t.Context(), p); !errors.Is(err, store.ErrVersion) {
		t.Errorf("an older version: %v", err)
	}
	p.Faults = order.Faults{{Pointer: "/x", Code: order.CodeOutsideProgram}}
	if _, _, err := f.PlaceChange(t.Context(), p); !isFaults(err) {
		t.Errorf("one with faults: %v", err)
	}
	p.Request = nil
	if _, _, err := f.PlaceChange(t.Context(), p); !isFaults(err) {
		t.Errorf("one that cannot be read: %v", err)
	}
	if _, _, err := f.PlaceChange(t.Context(), placement(uuid.New(), order.ChangeCancel)); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("of no order: %v", err)
	}
	if n := value[int](f, `SELECT count(*) FROM order_changes`); n != 1 {
		t.Errorf("%d changes are stored", n)
	}
}

func isFaults(err error) bool {
	_, ok := errors.AsType[order.Faults](err)
	return ok
}

// One key at once, for one order and for several.
func TestChangeIdempotencyRace(t *testing.T) {
	t.Parallel()
	f := open(t)
	ids := []uuid.UUID{f.atD1("a", "op-a"), f.atD1("b", "op-b")}
	var wait sync.WaitGroup
	results := make([]string, 16)
	for i := range results {
		wait.Go(func() {
			_, replayed, err := f.PlaceChange(t.Context(), keyed(ids[i%2], order.ChangeCancel, "key"))
			e, conflict := errors.AsType[*store.ChangeConflictError](err)
			switch {
			case err == nil && !replayed:
				results[i] = "placed"
			case err == nil:
				results[i] = "replayed"
			case conflict && e.Kind == store.ContentDiffers:
				results[i] = "conflict"
			default:
				results[i] = err.Error()
			}
		})
	}
	wait.Wait()
	count := map[string]int{}
	for _, r := range results {
		count[r]++
	}
	if count["placed"] != 1 || count["replayed"] != 7 || count["conflict"] != 8 {
		t.Errorf("got %v", count)
	}
	f.consistent()
}

func TestExpireChanges(t *testing.T) {
	t.Parallel()
	f := open(t)
	sent, unsent, waiting := f.atD1("sent", "op-1"), f.atD1("unsent", "op-2"), f.accept("waiting", "r").ID
	a := f.change(placement(sent, order.ChangeCancel))
	f.complete(took(f.claimOf(sent), "change-op"))
	b := f.change(placement(unsent, order.ChangeRedirect))
	claimed := f.claimOf(waiting)
	c := f.change(placement(waiting, order.ChangeCancel))
	expire := func(want int) {
		t.Helper()
		if n, err := f.ExpireChanges(t.Context()); err != nil || n != want {
			t.Errorf("%d changes expired, %v; want %d", n, err, want)
		}
	}
	expire(0)
	f.exec(`UPDATE order_changes SET expires_at = now() WHERE expires_at IS NOT NULL`)
	expire(2)
	expire(0)
	f.wantStands(a, "EXPIRED no-answer")
	f.wantStands(b, "EXPIRED not-sent")
	f.wantStands(c, "REQUESTED") // it is not D1's to be answered yet
	for _, id := range []uuid.UUID{sent, unsent} {
		if s := f.order(id).State; !slices.Equal(s.Attention, []order.Attention{order.AttentionChangeUnanswered}) {
			t.Errorf("the order has %q", s.Attention)
		}
		if e := f.lastEvent(id); e.Cause.Kind != store.CauseTime {
			t.Errorf("the cause is %+v", e.Cause)
		}
	}
	if n := value[int](f, `SELECT count(*) FROM outbox WHERE kind = 'change'`); n != 0 {
		t.Errorf("%d changes are still sent", n)
	}
	f.complete(taken(claimed, "op-3"))
	// What the order does settles it still.
	n := notification(1, "op-1", "CARD_PROD_CANCELED")
	f.receive(n)
	f.wantStands(a, "ACCEPTED")
	if s := f.order(sent).State; s.Status != order.Cancelled || len(s.Attention) > 0 {
		t.Errorf("the order is %s %q", s.Status, s.Attention)
	}
}

// An order that cannot be written, or that somebody keeps locked, does not keep the
// changes of the others waiting; its own expire when it can be.
func TestExpireChangesInSpiteOfOne(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.exec(`ALTER TABLE order_state ADD CONSTRAINT broken CHECK (operation_id <> 'op-broken' OR attention = '{}')`)
	const many = 5
	var others []*store.Change
	broken, locked := f.atD1("broken", "op-broken"), f.atD1("locked", "op-locked")
	first, second := f.change(placement(broken, order.ChangeCancel)), f.change(placement(locked, order.ChangeCancel))
	for i := range many {
		others = append(others, f.change(placement(f.atD1(fmt.Sprint("card-", i), fmt.Sprint("op-", i)), order.ChangeCancel)))
	}
	f.exec(`UPDATE order_changes SET expires_at = now() - interval '1 min'`)
	f.exec(`UPDATE order_changes SET expires_at = now() - interval '1 h' WHERE order_id IN ($1, $2)`, broken, locked)
	tx, err := f.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT FROM order_state WHERE order_id = $1 FOR UPDATE`, locked); err != nil {
		t.Fatal(err)
	}
	expire := func(want int) {
		t.Helper()
		if n, err := f.ExpireChanges(t.Context()); err != nil || n != want {
			t.Errorf("%d changes expired, %v; want %d", n, err, want)
		}
	}
	for n, calls := 0, 0; n < many; calls++ { // a slow machine may take more than one
		expired, err := f.ExpireChanges(t.Context())
		if n += expired; err != nil || calls > many {
			t.Fatalf("%d changes expired, %v; want %d", n, err, many)
		}
	}
	expire(0) // the two are put off
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range others {
		f.wantStands(c, "EXPIRED not-sent")
	}
	f.wantStands(first, "REQUESTED")
	f.wantStands(second, "REQUESTED")
	f.exec(`UPDATE order_changes SET expires_at = now() WHERE state = 'REQUESTED'`)
	expire(1)
	f.wantStands(second, "EXPIRED not-sent")
	f.exec(`ALTER TABLE order_state DROP CONSTRAINT broken`)
	f.exec(`UPDATE order_changes SET expires_at = now() WHERE state = 'REQUESTED'`)
	expire(1)
	f.wantStands(first, "EXPIRED not-sent")
	f.consistent()
}

// A cancel of a batch is sent to D1 for those orders that turn out to be there.
func TestBatchCancelBecomesChanges(t *testing.T) {
	t.Parallel()
	f := open(t)
	batch := uuid.New()
	f.exec(`INSERT INTO order_batches (issuer_id, id, key, status, format, hold, held, digest, created_by, lease_until)
		VALUES ($1, $2, 'batch', 'COMPLETED', 'csv', false, false, '', 'test', now())`, issuer, batch)
	ids := make([]uuid.UUID, 4)
	for i := range ids {
		ids[i] = f.accept(fmt.Sprint("card-", i), fmt.Sprint("r-", i)).ID
	}
	f.exec(`UPDATE orders SET batch_id = $1`, batch)
	messages := make([]store.Message, 3)
	for i := range messages {
		messages[i] = f.claimOf(ids[i])
	}
	for range 2 {
		if _, err := f.Act(t.Context(), issuer, batch, store.BatchCancel, "ada"); err != nil {
			t.Fatal(err)
		}
	}
	if n := value[int](f, `SELECT count(*) FROM order_changes WHERE key IS NULL AND created_by = 'ada' AND state = 'REQUESTED'`); n != 3 {
		t.Errorf("%d changes are wanted, want 3", n)
	}
	f.complete(taken(messages[0], "op-0"), taken(messages[1], "op-1"),
		store.Completion{Message: messages[2], Attempt: attempt("not-taken"), Next: store.Next{Unsent: true}})
	f.complete(took(f.claimOf(ids[0]), "change-0"))
	f.complete(refusedChange(f.claimOf(ids[1])))
	f.wantEvents(ids[0], "CANCEL REQUESTED", "CANCEL SENT")
	f.wantEvents(ids[1], "CANCEL REQUESTED", "CANCEL REFUSED refused-by-bureau")
	f.wantEvents(ids[2], "CANCEL REQUESTED", "CANCEL ACCEPTED before-dispatch")
	// Nobody waits for the outcome of the one that was refused.
	for i, want := range [][]order.Attention{nil, {order.AttentionStopTooLate}, nil, nil} {
		if s := f.order(ids[i]).State; !slices.Equal(s.Attention, want) {
			t.Errorf("order %d has %q, want %q", i, s.Attention, want)
		}
	}
	f.consistent()
}

func TestListChanges(t *testing.T) {
	t.Parallel()
	f := open(t)
	id, other := f.atD1("card", "operation"), f.atD1("other", "operation-2")
	var want []uuid.UUID
	for range 3 {
		c := f.change(placement(id, order.ChangeAccelerate))
		f.complete(refusedChange(f.claimOf(id)))
		want = slices.Insert(want, 0, c.ID)
	}
	ids := func(before uuid.UUID, limit int) (list []uuid.UUID) {
		t.Helper()
		changes, err := f.Changes(t.Context(), issuer, id, before, limit)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range changes {
			list = append(list, c.ID)
		}
		return list
	}
	if got := ids(uuid.Nil, 2); !slices.Equal(got, want[:2]) {
		t.Errorf("got %v, want %v", got, want[:2])
	}
	if got := ids(want[1], 2); !slices.Equal(got, want[2:]) {
		t.Errorf("got %v, want %v", got, want[2:])
	}
	if list, err := f.Changes(t.Context(), issuer, other, uuid.Nil, 10); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := f.Changes(t.Context(), issuer, uuid.New(), uuid.Nil, 10); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("of no order: %v", err)
	}
	if _, err := f.Change(t.Context(), issuer, other, want[0]); !errors.Is(err, store.ErrNoChange) {
		t.Errorf("of another order: %v", err)
	}
	if _, err := f.Change(t.Context(), issuer, uuid.New(), want[0]); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("of no order: %v", err)
	}
}

// However a cancel races with the workers, and those with notifications: the order is
// cancelled here and never sent, or D1 is sent the cancel too.
func TestCancelRace(t *testing.T) {
	t.Parallel()
	f := open(t)
	const orders = 24
	ids := make([]uuid.UUID, orders)
	for i := range ids {
		ids[i] = f.accept(fmt.Sprint("card-", i), fmt.Sprint("r-", i)).ID
	}
	var wait sync.WaitGroup
	cancels := make([]*store.Change, orders)
	for i := range ids {
		wait.Go(func() {
			c, _, err := f.PlaceChange(t.Context(), placement(ids[i], order.ChangeCancel))
			if err != nil {
				t.Error(err)
			}
			cancels[i] = c
		})
	}
	var mu sync.Mutex
	sent := make(map[uuid.UUID]bool)
	for range 2 {
		wait.Go(func() {
			for range orders {
				messages, err := f.Claim(t.Context(), store.ClaimRequest{Lane: lane, Class: store.ClassSingle, Limit: 3, Lease: time.Minute})
				if err != nil {
					t.Error(err)
				}
				for _, m := range messages {
					mu.Lock()
					sent[m.OrderID] = true
					mu.Unlock()
					c := taken(m, "op-"+m.CardID)
					n := notification(int(m.ID), "op-"+m.CardID, "CARD_PROD_REQUESTED")
					n.IssuerRequestID = m.IssuerRequestID
					if m.Kind == store.KindChange {
						c, n = took(m, "change-"+m.CardID), updated(int(m.ID), "change-"+m.CardID, order.OperationPending)
					}
					if m.ID%2 == 0 { // D1 tells of it before its answer is stored
						if _, err := f.Receive(t.Context(), issuer, []store.Notification{n}); err != nil {
							t.Error(err)
						}
					}
					if err := f.Complete(t.Context(), []store.Completion{c}); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wait.Wait()
	for {
		messages := f.claim(orders, time.Minute)
		if len(messages) == 0 {
			break
		}
		for _, m := range messages {
			f.complete(took(m, "change-"+m.CardID))
		}
	}
	for i, id := range ids {
		s, stands := f.order(id).State, f.stands(cancels[i])
		if here := s.Status == order.Cancelled && stands == "ACCEPTED before-dispatch" && !sent[id]; !here &&
			!(sent[id] && s.Status == order.Submitted && stands == "SENT") {
			t.Errorf("order %d is %s, sent: %v, its cancel %s", i, s.Status, sent[id], stands)
		}
	}
	f.consistent()
}

// updated is what D1 says of a change.
func updated(i int, operation string, status order.OperationStatus) store.Notification {
	raw := fmt.Appendf(nil, `{"n":%d,"operation":"UPDATE_ORDER","operationId":%q,"status":%q}`, i, operation, status)
	return store.Notification{Raw: raw, Content: raw, Operation: store.OperationChange, OperationID: operation, Status: string(status), CardID: "card"}
}

// D1 says what became of a change, by whatever the change can be told: also before its
// answer is stored, after the answer was lost, and after it was not expected any more.
func TestChangeReported(t *testing.T) {
	t.Parallel()
	const done, failed, pending = order.OperationSuccessful, order.OperationFailed, order.OperationPending
	answered := func(operation string) func(*fixture, uuid.UUID) {
		return func(f *fixture, id uuid.UUID) { f.complete(took(f.claimOf(id), operation)) }
	}
	unanswered := func(f *fixture, id uuid.UUID) { f.complete(lost(f.claimOf(id))) }
	expired := func(f *fixture, id uuid.UUID) {
		answered("change-op")(f, id)
		f.exec(`UPDATE order_changes SET expires_at = now()`)
		if _, err := f.ExpireChanges(f.t.Context()); err != nil {
			f.t.Fatal(err)
		}
	}
	shipped := func(f *fixture, id uuid.UUID) {
		answered("change-op")(f, id)
		f.receive(notification(9, "operation", "CARD_SHIPPED"))
	}
	byRequest := func(n store.Notification) store.Notification {
		n.IssuerRequestID = "request-card"
		return n
	}
	byCardOnly := func(n store.Notification) store.Notification {
		n.OperationID = ""
		return n
	}
	for _, c := range []struct {
		name      string
		kind      order.ChangeType
		before    func(*fixture, uuid.UUID)
		says      store.Notification
		outcome   store.Outcome
		change    string
		status    order.Status
		attention []order.Attention
	}{
		{"cancelled", order.ChangeCancel, answered("change-op"), updated(1, "change-op", done), store.OutcomeApplied, "ACCEPTED", order.Cancelled, nil},
		{"not cancelled", order.ChangeCancel, answered("change-op"), updated(1, "change-op", failed), store.OutcomeApplied, "REFUSED refused-by-bureau", order.Submitted, nil},
		{"redirected", order.ChangeRedirect, answered("change-op"), updated(1, "change-op", done), store.OutcomeApplied, "ACCEPTED", order.Submitted, nil},
		{"under way", order.ChangeRedirect, answered("change-op"), updated(1, "change-op", pending), store.OutcomeApplied, "SENT", order.Submitted, nil},
		{"by the order's request", order.ChangeRedirect, answered(""), byRequest(updated(1, "change-op", done)), store.OutcomeApplied, "ACCEPTED", order.Submitted, nil},
		{"by the card", order.ChangeRedirect, answered(""), updated(1, "change-op", done), store.OutcomeApplied, "ACCEPTED", order.Submitted, nil},
		{"by the card alone", order.ChangeRedirect, answered("change-op"), byCardOnly(updated(1, "", done)), store.OutcomeApplied, "ACCEPTED", order.Submitted, nil},
		{"another operation", order.ChangeRedirect, answered("change-op"), byRequest(updated(1, "other-op", done)), store.OutcomeApplied, "SENT", order.Submitted, nil},
		{"not known to be there", order.ChangeRedirect, func(*fixture, uuid.UUID) {}, byRequest(updated(1, "change-op", done)), store.OutcomeParked, "REQUESTED", order.Submitted, nil},
		{"after a lost answer", order.ChangeRedirect, unanswered, byRequest(updated(1, "change-op", done)), store.OutcomeApplied, "ACCEPTED", order.Submitted, nil},
		{"under way after a lost answer", order.ChangeCancel, unanswered, byRequest(updated(1, "change-op", pending)), store.OutcomeApplied, "SENT", order.Submitted, nil},
		{"too late, but done", order.ChangeCancel, expired, updated(1, "change-op", done), store.OutcomeApplied, "ACCEPTED", order.Cancelled, nil},
		{"too late, and not done", order.ChangeRedirect, expired, updated(1, "change-op", failed), store.OutcomeApplied, "REFUSED refused-by-bureau", order.Submitted, nil},
		{"cancelled and shipped", order.ChangeCancel, shipped, updated(1, "change-op", done), store.OutcomeApplied, "REFUSED shipped-first", order.Shipped, []order.Attention{order.AttentionContradiction}},
		{"redirected and shipped", order.ChangeRedirect, shipped, updated(1, "change-op", done), store.OutcomeApplied, "ACCEPTED", order.Shipped, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := open(t)
			id := f.atD1("card", "operation")
			change := f.change(placement(id, c.kind))
			c.before(f, id)
			if got := f.receive(c.says); got[0] != c.outcome {
				t.Errorf("the notification is %s, want %s", got[0], c.outcome)
			}
			f.wantStands(change, c.change)
			if s := f.order(id).State; s.Status != c.status || !slices.Equal(s.Attention, c.attention) {
				t.Errorf("the order is %s %q, want %s %q", s.Status, s.Attention, c.status, c.attention)
			}
			if c.outcome != store.OutcomeApplied {
				return
			}
			// Said again, in other words, it is nothing new.
			version := f.order(id).State.Version
			again := c.says
			again.Raw, again.Content = []byte("again"), []byte("again")
			f.receive(again)
			f.wantStands(change, c.change)
			if v := f.order(id).State.Version; v != version {
				t.Errorf("version %d, want %d", v, version)
			}
		})
	}
}

// What D1 says of a change before its answer is stored waits for that.
func TestChangeReportedFirst(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.atD1("card", "operation")
	c := f.change(placement(id, order.ChangeCancel))
	m := f.claimOf(id)
	n := updated(1, "change-op", order.OperationSuccessful)
	if got := f.receive(n); got[0] != store.OutcomeParked {
		t.Errorf("the notification is %s", got[0])
	}
	f.complete(took(m, "change-op"))
	f.wantStands(c, "SENT")
	f.exec(`UPDATE notifications SET next_try_at = now()`)
	f.sweep(n)
	f.wantStands(c, "ACCEPTED")
	f.wantEvents(id, "CANCEL REQUESTED", "CANCEL SENT", "CANCEL ACCEPTED")
}

// Of several changes at D1 each is told by its operation.
func TestSeveralChangesReported(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.atD1("card", "operation")
	faster := f.change(placement(id, order.ChangeAccelerate))
	f.complete(took(f.claimOf(id), "op-faster"))
	cancel := f.change(placement(id, order.ChangeCancel))
	f.complete(took(f.claimOf(id), "")) // D1 names no operation
	n := updated(1, "op-cancel", order.OperationFailed)
	n.IssuerRequestID = "request-card"
	f.receive(n)
	f.wantStands(cancel, "REFUSED refused-by-bureau")
	f.wantStands(faster, "SENT")
	f.receive(updated(2, "op-faster", order.OperationSuccessful))
	f.wantStands(faster, "ACCEPTED")
}

// In another history of the database D1 may have an order of which this one knows no sending:
// it is not told as cancelled before D1 was asked.
func TestBatchCancelInAnotherHistory(t *testing.T) {
	t.Parallel()
	f := open(t)
	batch := uuid.New()
	f.exec(`INSERT INTO order_batches (issuer_id, id, key, status, format, hold, held, digest, created_by, lease_until)
		VALUES ($1, $2, 'batch', 'COMPLETED', 'csv', false, false, '', 'test', now())`, issuer, batch)
	id := f.accept("card", "request").ID
	f.exec(`UPDATE orders SET batch_id = $1`, batch)
	if _, err := f.CheckTimeline(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	f.exec(`UPDATE database_history SET timeline = timeline + 1`)
	counts, err := f.Act(t.Context(), issuer, batch, store.BatchCancel, "ada")
	if s := f.order(id).State.Status; err != nil || counts != (store.ActionCounts{TooLate: 1}) || s != order.Accepted {
		t.Fatalf("the order is %s: %+v, %v", s, counts, err)
	}
	if halt := value[string](f, `SELECT halt FROM outbox`); halt != "cancel" {
		t.Errorf("its message is to %s", halt)
	}
}

// An order is not changed without end; but there is room for a cancel.
func TestTooManyChanges(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.atD1("card", "operation")
	for i := range 20 {
		f.change(placement(id, order.ChangeAccelerate))
		f.complete(took(f.claimOf(id), fmt.Sprint("op-", i)))
	}
	if _, _, err := f.PlaceChange(t.Context(), placement(id, order.ChangeAccelerate)); !errors.Is(err, store.ErrTooManyChanges) {
		t.Errorf("the next one: %v", err)
	}
	f.wantStands(f.change(placement(id, order.ChangeCancel)), "REQUESTED")
}

// What D1 calls a change is kept also when the change was settled while it was on the wire:
// its notification must not wait for ever.
func TestChangeSettledOnTheWire(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.atD1("card", "operation")
	change := f.change(placement(id, order.ChangeCancel))
	m := f.claimOf(id)
	f.receive(notification(9, "operation", "CARD_PROD_CANCELED"))
	f.wantStands(change, "ACCEPTED")
	f.complete(took(m, "change-op"))
	if got := f.receive(updated(1, "change-op", order.OperationSuccessful)); got[0] != store.OutcomeApplied {
		t.Errorf("the notification is %s", got[0])
	}
	c, err := f.Change(t.Context(), issuer, id, change.ID)
	if err != nil || c.OperationID != "change-op" || c.State != order.ChangeAccepted {
		t.Errorf("the change is %+v, %v", c, err)
	}
}

// A no to a repeat is the last word only when it says that the first one was none either.
func TestChangeRefusedWhenRepeated(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		repeated, mayHave bool
		want              string
	}{
		"the first try":                  {false, false, "REFUSED refused-by-bureau"},
		"the first try, perhaps done":    {false, true, "REFUSED refused-by-bureau"},
		"after a lost answer":            {true, false, "REFUSED refused-by-bureau"},
		"after a lost one, perhaps done": {true, true, "SENT"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := open(t)
			id := f.atD1("card", "operation")
			change := f.change(placement(id, order.ChangeRedirect))
			if c.repeated {
				f.complete(lost(f.claimOf(id)))
			}
			refused := refusedChange(f.claimOf(id))
			refused.Change.MayHave = c.mayHave
			f.complete(refused)
			f.wantStands(change, c.want)
			f.consistent()
		})
	}
}

// Only what is known as a change's operation settles it when D1 is asked.
func TestChangeShown(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.atD1("card", "operation")
	change := f.change(placement(id, order.ChangeRedirect))
	f.complete(took(f.claimOf(id), "change-op"))
	for _, c := range []struct {
		shown store.ShownChange
		want  string
	}{
		{store.ShownChange{OperationID: "other-op", Status: order.OperationFailed}, "SENT"},
		{store.ShownChange{OperationID: "change-op", Status: order.OperationPending}, "SENT"},
		{store.ShownChange{OperationID: "change-op", Status: order.OperationSuccessful}, "ACCEPTED"},
		{store.ShownChange{OperationID: "change-op", Status: order.OperationFailed}, "ACCEPTED"},
	} {
		if _, err := f.Refresh(t.Context(), action(id)); err != nil {
			t.Fatal(err)
		}
		a := attempt("found")
		a.Kind = store.AttemptAsk
		f.complete(store.Completion{Message: f.claimOf(id), Attempt: a, Changes: []store.ShownChange{c.shown}, Next: store.Next{Done: true}})
		f.wantStands(change, c.want)
	}
	f.consistent()
}

// A replica of the release before knows no changes, and must not take one for an order.
func TestChangeIsKeptFromTheReleaseBefore(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.atD1("card", "operation")
	f.change(placement(id, order.ChangeCancel))
	_, err := f.conn.Exec(t.Context(), `UPDATE outbox m SET claim_token = $1, leased_until = now() + interval '1 min',
		first_sent_at = CASE m.kind WHEN 'submit' THEN coalesce(m.first_sent_at, now()) ELSE m.first_sent_at END`, uuid.New())
	if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || pg.ConstraintName != "outbox_change_claimed" {
		t.Errorf("its claim: %v", err)
	}
	if m := f.claimOf(id); m.Kind != store.KindChange {
		t.Errorf("claimed %s", m.Kind)
	}
}

// Where a card goes after all is known for one that takes its place.
func TestOriginalOfARedirected(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.atD1("card", "operation")
	goesTo := func(want *order.Address) {
		t.Helper()
		o, err := f.Original(t.Context(), issuer, id)
		if err != nil || *o.Production.Shipment.DeliveryAddress != *want {
			t.Errorf("%+v, %v; want %+v", o.Production.Shipment.DeliveryAddress, err, want)
		}
	}
	first := request("card", "request-card").Production.Shipment.DeliveryAddress
	goesTo(first)
	f.change(placement(id, order.ChangeRedirect))
	f.complete(took(f.claimOf(id), "change-op"))
	goesTo(first)
	f.receive(updated(1, "change-op", order.OperationSuccessful))
	goesTo(newAddress)
	f.change(placement(id, order.ChangeRedirect))
	f.complete(refusedChange(f.claimOf(id)))
	goesTo(newAddress)
}

// A claim that began before a redirect was done does not send the order to the old address:
// it has read what stood there then.
func TestRedirectWhileAClaimBegins(t *testing.T) {
	t.Parallel()
	for _, kind := range []order.ChangeType{order.ChangeRedirect, order.ChangeAccelerateAndRedirect} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			f := open(t)
			id := f.accept("card", "request").ID
			slow := f.slowClaims()
			var claimed []store.Message
			var failed error
			var claiming sync.WaitGroup
			claiming.Go(func() {
				claimed, failed = f.Claim(t.Context(), store.ClaimRequest{Lane: lane, Class: store.ClassSingle, Limit: 1, Lease: time.Minute})
			})
			f.untilWaiting("advisory")
			c := f.change(placement(id, kind))
			slow()
			claiming.Wait()
			if failed != nil {
				t.Fatal(failed)
			}
			if len(claimed) == 0 {
				claimed = f.claim(1, time.Minute)
			}
			if len(claimed) != 1 || !strings.Contains(string(claimed[0].Body), "New Street") {
				t.Errorf("%d messages are claimed, and the card goes to the old address; the change is %s", len(claimed), f.stands(c))
			}
		})
	}
}

// A replica of the release before stores D1's answer without a look at the changes that
// wait for it: they are sent with the next news.
func TestCancelThatTheReleaseBeforeMissed(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.accept("card", "request").ID
	f.claimOf(id)
	c := f.change(placement(id, order.ChangeCancel))
	f.exec(`DELETE FROM outbox`)
	f.exec(`INSERT INTO operations (issuer_id, operation_id, order_id, operation, source) VALUES ($1, 'operation', $2, 'PRODUCE', 'submit')`, issuer, id)
	f.exec(`UPDATE order_state SET version = version + 1, status = 'SUBMITTED', rank = 10, step_rank = 10, top_rank = 10, operation_id = 'operation',
		first_sent_at = now(), updated_at = now()`)
	f.wantStands(c, "REQUESTED")
	f.receive(notification(1, "operation", "CARD_PROD_READY"))
	m := f.claimOf(id)
	if m.Kind != store.KindChange || m.Change.ID != c.ID {
		t.Fatalf("D1 is sent %s", m.Kind)
	}
	f.receive(notification(2, "operation", "CARD_PROD_ONGOING")) // it is being sent
	f.complete(took(m, "change"))
	f.wantStands(c, "SENT")
}

// A cancel goes before a change whose answer was lost, and that one is sent again after it.
func TestCancelGoesBeforeWhatIsSentAgain(t *testing.T) {
	t.Parallel()
	for name, unsent := range map[string]bool{"not sent": true, "lost": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := open(t)
			id := f.atD1("card", "operation")
			a := f.change(placement(id, order.ChangeAccelerate))
			m := f.claimOf(id)
			b := f.change(placement(id, order.ChangeCancel))
			done := lost(m)
			done.Next.Unsent, done.Next.RunIn = unsent, time.Hour
			f.complete(done)
			m = f.claimOf(id)
			if m.Change.ID != b.ID || m.Tries != 0 {
				t.Fatalf("D1 is sent %s", m.Change.Type)
			}
			f.complete(took(m, "change"))
			f.wantStands(b, "SENT")
			if m = f.claimOf(id); m.Change.ID != a.ID {
				t.Errorf("D1 is then sent %s", m.Change.Type)
			}
		})
	}
}

// A cancel takes the place of a change that waits, while a claim of that begins: the claim has
// not seen the cancel, and must not be the end of its message.
func TestCancelWhileAClaimBegins(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.atD1("card", "operation")
	f.change(placement(id, order.ChangeAccelerate))
	slow := f.slowClaims()
	// The cancel has begun before the claim, and waits for the order.
	tx, err := f.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT FROM order_state WHERE order_id = $1 FOR UPDATE`, id); err != nil {
		t.Fatal(err)
	}
	var cancel *store.Change
	var failed error
	var cancelling, claiming sync.WaitGroup
	cancelling.Go(func() { cancel, _, failed = f.PlaceChange(t.Context(), placement(id, order.ChangeCancel)) })
	f.untilWaiting("transactionid")
	var claimed []store.Message
	claiming.Go(func() { claimed = f.claim(1, time.Minute) })
	f.untilWaiting("advisory")
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	cancelling.Wait()
	slow()
	claiming.Wait()
	if failed != nil {
		t.Fatal(failed)
	}
	if len(claimed) == 0 {
		claimed = f.claim(1, time.Minute)
	}
	if len(claimed) != 1 || claimed[0].Change == nil || claimed[0].Change.ID != cancel.ID || claimed[0].Err != nil {
		t.Errorf("claimed is %+v, want the cancel", claimed)
	}
	f.wantStands(cancel, "REQUESTED")
}

// slowClaims makes claims wait as they begin, until what it returns is called.
func (f *fixture) slowClaims() (end func()) {
	// A claim looks at its lane before it looks for messages: there it waits.
	f.exec(`INSERT INTO lanes (lane) VALUES ($1) ON CONFLICT DO NOTHING`, lane)
	f.exec(`ALTER TABLE lanes RENAME TO slow_lanes`)
	f.exec(`CREATE VIEW lanes AS SELECT * FROM (SELECT *, pg_advisory_xact_lock_shared(7)::text AS v FROM slow_lanes OFFSET 0) l WHERE v IS NOT NULL`)
	f.exec(`SELECT pg_advisory_lock(7)`)
	return func() { f.exec(`SELECT pg_advisory_unlock(7)`) }
}

// untilWaiting returns when somebody waits for a lock of a kind.
func (f *fixture) untilWaiting(kind string) {
	f.t.Helper()
	patience := time.Now().Add(time.Minute)
	for value[int](f, waiting+` AND locktype = $1`, kind) == 0 {
		if time.Now().After(patience) {
			f.t.Fatalf("nobody waits for a lock of kind %s", kind)
		}
	}
}

// A worker that died with a change on the wire may have brought it to D1: that D1 does not want
// it again is no refusal then, and its word on it counts.
func TestChangeOfAWorkerThatDied(t *testing.T) {
	t.Parallel()
	mayHave := func(m store.Message) store.Completion {
		c := refusedChange(m)
		c.Change.MayHave = true
		return c
	}
	notTaken := func(m store.Message) store.Completion {
		c := lost(m)
		c.Next.Unsent = true
		return c
	}
	for _, c := range []struct {
		name   string
		comes  func(f *fixture, id uuid.UUID)
		stands string
	}{
		{"refused again", func(f *fixture, id uuid.UUID) { f.complete(mayHave(f.claimOf(id))) }, "SENT"},
		{"not reached again", func(f *fixture, id uuid.UUID) { f.complete(notTaken(f.claimOf(id))) }, "REQUESTED"},
		{"sent in a lost history", func(f *fixture, id uuid.UUID) {
			f.exec(`UPDATE outbox SET claim_token = NULL, leased_until = NULL, first_sent_at = NULL`)
			if err := f.Restored(f.t.Context(), time.Minute); err != nil {
				f.t.Fatal(err)
			}
			f.complete(mayHave(f.claimOf(id)))
		}, "SENT"},
		{"expired", func(f *fixture, _ uuid.UUID) {
			f.exec(`UPDATE order_changes SET expires_at = now()`)
			if _, err := f.ExpireChanges(f.t.Context()); err != nil {
				f.t.Fatal(err)
			}
		}, "EXPIRED no-answer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := open(t)
			id := f.atD1("card", "operation")
			change := f.change(placement(id, order.ChangeRedirect))
			f.claimOf(id)
			f.exec(`UPDATE outbox SET leased_until = now(), first_sent_at = first_sent_at - interval '1 min'`)
			c.comes(f, id)
			f.wantStands(change, c.stands)
			if got := f.receive(updated(1, "change-op", order.OperationSuccessful)); got[0] != store.OutcomeApplied {
				t.Errorf("what D1 says of it is %s", got[0])
			}
			f.wantStands(change, "ACCEPTED")
		})
	}
	// One that takes its place was not sent.
	f := open(t)
	id := f.atD1("card", "operation")
	f.change(placement(id, order.ChangeRedirect))
	f.claimOf(id)
	f.exec(`UPDATE outbox SET leased_until = now(), first_sent_at = first_sent_at - interval '1 min'`)
	f.complete(notTaken(f.claimOf(id)))
	cancel := f.change(placement(id, order.ChangeCancel))
	f.complete(mayHave(f.claimOf(id)))
	f.wantStands(cancel, "REFUSED refused-by-bureau")
}

// A redirect whose answer was lost may have been done although the card left: D1's word may
// come after the news of that.
func TestRedirectThatWasLostBeforeTheShipping(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.atD1("card", "operation")
	c := f.change(placement(id, order.ChangeRedirect))
	f.complete(lost(f.claimOf(id)))
	f.receive(notification(1, "operation", "CARD_SHIPPED"))
	f.wantStands(c, "SENT")
	f.receive(updated(2, "change-op", order.OperationSuccessful))
	f.wantStands(c, "ACCEPTED")
}

// D1 says that it made a cancel after an end that had refused it.
func TestCancelDoneAfterAnotherEnd(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.atD1("card", "operation")
	c := f.change(placement(id, order.ChangeCancel))
	f.complete(took(f.claimOf(id), "change-op"))
	f.exec(`UPDATE order_state SET ends_at = 'PRODUCED'`)
	f.receive(notification(1, "operation", "CARD_PROD_DONE"))
	f.wantStands(c, "REFUSED produced-first")
	f.receive(updated(2, "change-op", order.OperationSuccessful))
	f.wantStands(c, "ACCEPTED")
	if s := f.order(id).State; s.Status != order.Cancelled {
		t.Errorf("the order is %s", s.Status)
	}
}
