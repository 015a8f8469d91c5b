package outbox

import (
	"errors"
	"fmt"
	"time"

	"pgregory.net/rapid"

	"cardorder/internal/d1client"
	"cardorder/internal/order"
	"cardorder/internal/store"
)

// Changes of orders in the world of TestAnyOrderOfEvents.

// wanted is a change as the bureau has it: one for each time it was asked.
type wanted struct {
	id      string // of its operation
	kind    order.ChangeType
	request string // of the order
	card    string
	decided bool
	done    bool
}

func (w *anyWorld) change(t *rapid.T) {
	o, ok := pick(t, "order", w.orders, anything)
	if !ok {
		return
	}
	kind := choose(t, "type", order.ChangeCancel, order.ChangeCancel, order.ChangeAccelerate, order.ChangeRedirect, order.ChangeAccelerateAndRedirect)
	r := &order.ChangeRequest{Type: kind, Canonical: []byte(kind)}
	if kind.Redirects() {
		r.NewDeliveryAddress = &order.Address{Line1: "9 New Street", ZipCode: "1", City: "Lyon", CountryCode: "FR"}
	}
	key := w.name("key")
	c, _, err := w.st.PlaceChange(w.ctx, store.ChangePlacement{
		Action: store.Action{IssuerID: w.issuer, OrderID: o.id, Actor: "ada"}, IdempotencyKey: key, Request: r,
	})
	w.Logf("%s of %s: %v, %+v", kind, o.request, err, c)
	conflict, _ := errors.AsType[*store.ChangeConflictError](err)
	if conflict == nil && !errors.Is(err, store.ErrShipped) && !errors.Is(err, store.ErrNotChangeable) {
		w.must(err)
	}
}

// sendChange is the call that brings a change to D1.
func (w *anyWorld) sendChange(x *worker, attempt store.Attempt, kind string) store.Completion {
	if !w.leased(x, 0) {
		kind = "late"
	}
	a := d1client.Answer{Outcome: d1client.Unknown, Reply: d1client.Reply{Reason: d1client.ReasonCut}}
	switch kind {
	case "taken":
		a.Outcome, a.OperationID = d1client.Taken, w.takeChange(x.Message)
	case "nameless":
		a.Outcome = d1client.Taken
		w.takeChange(x.Message)
	case "lost after":
		w.takeChange(x.Message)
	case "429":
		a.Outcome = d1client.NotTaken
	case "refused", "403", "404", "409":
		a.Outcome = d1client.Refused
	}
	return changed(x.Message, attempt, a)
}

func (w *anyWorld) takeChange(m store.Message) string {
	c := &wanted{id: w.name("change"), kind: m.Change.Type, request: m.IssuerRequestID, card: m.CardID}
	w.wanted = append(w.wanted, c)
	w.Logf("D1 has %s of %s as %s", c.kind, c.request, c.id)
	if len(w.ofRequest(c.request)) == 0 {
		w.Fatalf("D1 is told to change %s, which it does not have", c.request)
	}
	return c.id
}

func (w *anyWorld) ofRequest(request string) (list []*made) {
	for _, m := range w.made {
		if m.request == request {
			list = append(list, m)
		}
	}
	return list
}

// decideChange is the centre that does what is wanted, or not.
func (w *anyWorld) decideChange(t *rapid.T) {
	c, ok := pick(t, "change", w.wanted, func(c *wanted) bool { return !c.decided })
	if !ok {
		return
	}
	c.decided = true
	if below(t, "refused", 3) == 0 {
		return
	}
	for _, m := range w.ofRequest(c.request) {
		if m.failed || m.cancelled || m.step == len(steps)-1 {
			continue
		}
		c.done = true
		if c.kind == order.ChangeCancel {
			m.cancelled = true
		}
	}
}

// tellOfChange tells of a change, under way or decided, in any order and again.
func (w *anyWorld) tellOfChange(t *rapid.T) {
	if c, ok := pick(t, "change", w.wanted, anything); ok {
		w.tellChange(c)
	}
}

func (w *anyWorld) tellChange(c *wanted) {
	status := order.OperationPending
	switch {
	case c.done:
		status = order.OperationSuccessful
	case c.decided:
		status = order.OperationFailed
	}
	text := fmt.Sprint(c.id, status)
	n := store.Notification{
		Raw: []byte(text), Content: []byte(text), Operation: store.OperationChange, OperationID: c.id, CardID: c.card, Status: string(status),
		StartTime: time.Now(),
	}
	if w.named {
		n.IssuerRequestID = c.request
	}
	w.parsed[text] = n
	outcomes, err := w.st.Receive(w.ctx, w.issuer, []store.Notification{n})
	w.must(err)
	w.Logf("told: %s of %s, %s", text, c.request, outcomes)
}

func (w *anyWorld) expire(*rapid.T) {
	_, err := w.st.ExpireChanges(w.ctx)
	w.must(err)
}

// wrongChanges finds what must never be of changes: open_changes says what order_changes
// does, and messages bring those changes to D1 that wait for it, of orders that it has.
const wrongChanges = `SELECT 'a change is ' || c.state || ', listed as ' || coalesce(l.state, 'nothing') || ': ' || c.id
		FROM order_changes c LEFT JOIN LATERAL (SELECT e->>'state' AS state, e->>'operationId' AS operation_id, coalesce((e->>'tried')::boolean, false) AS tried
			FROM order_state s, jsonb_array_elements(s.open_changes) AS e
			WHERE s.issuer_id = c.issuer_id AND s.order_id = c.order_id AND e->>'id' = c.id::text) l ON true
		WHERE c.issuer_id = $1 AND CASE WHEN l.state IS NULL THEN c.state IN ('REQUESTED', 'SENT', 'EXPIRED')
			ELSE (l.state, l.operation_id, l.tried) IS DISTINCT FROM (c.state, c.operation_id, c.sent_at IS NOT NULL) END
	UNION ALL SELECT 'a message of a change that is ' || coalesce(c.state, 'gone') || ', of an order that is ' || s.status || ': ' || m.change_id
		FROM outbox m JOIN order_state s USING (issuer_id, order_id) LEFT JOIN order_changes c ON c.issuer_id = m.issuer_id AND c.id = m.change_id
		WHERE m.issuer_id = $1 AND m.kind = 'change' AND (c.state IS DISTINCT FROM 'REQUESTED' OR s.rank = 0 OR s.ended_at IS NOT NULL)
	UNION ALL SELECT 'nobody brings a change to D1: ' || c.id FROM order_changes c JOIN order_state s USING (issuer_id, order_id)
		WHERE c.issuer_id = $1 AND c.state = 'REQUESTED' AND s.rank > 0
			AND NOT EXISTS (SELECT FROM outbox m WHERE m.issuer_id = c.issuer_id AND m.order_id = c.order_id AND m.kind = 'change')
	UNION ALL SELECT 'a cancel that waits, and nothing keeps the order from being sent: ' || c.id FROM order_changes c JOIN order_state s USING (issuer_id, order_id)
		WHERE c.issuer_id = $1 AND c.state = 'REQUESTED' AND c.type = 'CANCEL' AND s.rank = 0
			AND NOT EXISTS (SELECT FROM outbox m WHERE m.issuer_id = c.issuer_id AND m.order_id = c.order_id AND m.kind = 'submit' AND m.halt = 'cancel')
	UNION ALL SELECT 'open and the order has ended: ' || c.id FROM order_changes c JOIN order_state s USING (issuer_id, order_id)
		WHERE c.issuer_id = $1 AND c.state = 'REQUESTED' AND s.ended_at IS NOT NULL`

// cancelsAreExact: what was cancelled before it was sent D1 never makes.
func (w *anyWorld) cancelsAreExact() {
	for _, o := range w.orders {
		if len(w.cards(o)) == 0 || !w.promised() {
			continue
		}
		var cancelled bool
		w.must(w.conn.QueryRow(w.ctx, `SELECT EXISTS (SELECT FROM order_changes WHERE issuer_id = $1 AND order_id = $2
			AND type = 'CANCEL' AND state = 'ACCEPTED' AND reason = 'before-dispatch')`, w.issuer, o.id).Scan(&cancelled))
		if cancelled {
			w.Errorf("%s was cancelled before D1 had it, and is made", o.request)
		}
	}
}

// changesAreSettled: with a bureau in good health, every change has come to it or to an
// end, and a cancel that it did has ended the order.
func (w *anyWorld) changesAreSettled() {
	for _, o := range w.orders {
		changes, err := w.st.Changes(w.ctx, w.issuer, o.id, [16]byte{}, 100)
		w.must(err)
		state := w.state(o)
		for _, c := range changes {
			if c.State == order.ChangeRequested && state.Rank > 0 {
				w.Errorf("%s of %s still waits, the order is %s", c.Type, o.request, state.Status)
			}
			if c.Type == order.ChangeCancel && c.State == order.ChangeAccepted && state.Status != order.Cancelled && len(state.Attention) == 0 {
				w.Errorf("%s was cancelled and is %s", o.request, state.Status)
			}
		}
	}
}
