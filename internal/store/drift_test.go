package store_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

// asking is a fixture whose store tells what asking D1 found.
type asking struct {
	*fixture
	found []store.Difference
}

func openAsking(t *testing.T, limits *order.Limits) *asking {
	t.Helper()
	f := open(t)
	a := &asking{fixture: f}
	f.Store = f.with(store.Config{
		Limits:  func(string, string) *order.Limits { return limits },
		OnDrift: func(_ string, d store.Difference) { a.found = append(a.found, d) },
	})
	return a
}

// placed is an order that D1 took under an operation of the same name.
func (a *asking) placed(name string) *store.Order {
	a.t.Helper()
	o := a.accept("card-"+name, name)
	a.complete(taken(a.claim(1, time.Minute)[0], name))
	return o
}

// question has D1 asked about an order, and returns the claimed question.
func (a *asking) question(id uuid.UUID) store.Message {
	a.t.Helper()
	a.exec(`INSERT INTO outbox (lane, kind, class, issuer_id, order_id, card_id, first_sent_at)
		SELECT $2, 'ask', 2, issuer_id, id, card_id, created_at FROM orders WHERE id = $1`, id, lane)
	messages, err := a.Claim(a.t.Context(), store.ClaimRequest{Lane: lane, Class: store.ClassQuestion, Limit: 1, Lease: time.Minute})
	if err != nil || len(messages) != 1 || messages[0].OrderID != id {
		a.t.Fatalf("claimed %+v, %v", messages, err)
	}
	return messages[0]
}

// answer stores D1's answer to the question how an order stands, and returns the order.
func (a *asking) answer(id uuid.UUID, parcels []store.ShipmentUpdate, evidence ...order.Evidence) (*store.Order, string) {
	a.t.Helper()
	c := store.Completion{Message: a.question(id), Attempt: attempt("found"), Shipments: parcels, Evidence: evidence, Next: store.Next{Done: true}}
	c.Attempt.Kind = store.AttemptAsk
	for _, e := range evidence {
		if r, ok := e.(order.Report); ok {
			c.Seen = append(c.Seen, r.OperationID)
		}
	}
	a.complete(c)
	return a.order(id), c.Attempt.ID.String()
}

func word(operationID, status string) order.Report {
	return order.Report{OperationID: operationID, Operation: order.OperationPending, Status: status, Now: true}
}

// What asking finds is an event of its own cause, counted, and listed; an answer without
// news leaves nothing but its attempt.
func TestWhatAskingFinds(t *testing.T) {
	t.Parallel()
	a := openAsking(t, nil)
	o := a.placed("op")
	parcel := store.ShipmentUpdate{TrackingNumber: "T1", Carrier: "ups"}

	a.receive(notification(1, "op", "CARD_PROD_READY"))
	got, _ := a.answer(o.ID, nil, word("op", "CARD_PROD_READY"))
	if got.State.Version != 3 || len(a.found) > 0 {
		t.Fatalf("an answer without news made version %d, found %v", got.State.Version, a.found)
	}
	got, asked := a.answer(o.ID, []store.ShipmentUpdate{parcel}, word("op", "CARD_PROD_DONE"))
	if got.State.Status != order.Produced || got.State.Version != 4 || len(got.Shipments) != 1 || got.Shipments[0].Carrier != "ups" {
		t.Errorf("the order is %s, version %d, with %v", got.State.Status, got.State.Version, got.Shipments)
	}
	if e := a.lastEvent(o.ID); e.Cause.Kind != store.CauseReconciliation || e.Cause.ID != asked {
		t.Errorf("the event's cause is %+v, want the attempt %s", e.Cause, asked)
	}
	// The same again, and with less of the parcel.
	for _, same := range []store.ShipmentUpdate{parcel, {TrackingNumber: "T1"}} {
		if got, _ := a.answer(o.ID, []store.ShipmentUpdate{same}, word("op", "CARD_PROD_DONE")); got.State.Version != 4 {
			t.Errorf("the same answer made version %d", got.State.Version)
		}
	}
	// The carrier alone has news.
	parcel.Status = "IN_TRANSIT"
	if got, _ := a.answer(o.ID, []store.ShipmentUpdate{parcel}, word("op", "CARD_PROD_DONE")); got.State.Version != 5 || got.Shipments[0].Status != "IN_TRANSIT" {
		t.Errorf("a carrier's update made version %d with %v", got.State.Version, got.Shipments)
	}
	if want := []store.Difference{store.Difference(order.Produced), store.DifferenceDetails}; !slices.Equal(a.found, want) {
		t.Errorf("found %v, want %v", a.found, want)
	}
	if n := value[int](a.fixture, `SELECT count(*) FROM attempts WHERE kind = 'ask'`); n != 5 {
		t.Errorf("%d attempts are kept, want 5", n)
	}

	list := func(f store.DriftFilter) []*store.Drift {
		t.Helper()
		f.Limit = max(f.Limit, 1)
		list, err := a.Drift(t.Context(), issuer, f)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	all := list(store.DriftFilter{Limit: 10})
	if len(all) != 2 || all[0].Seq != 5 || all[1].Seq != 4 || all[1].Status != order.Produced || all[1].PreviousStatus != order.Ready ||
		all[1].Type != store.EventStatusChanged || all[1].AttemptID != asked || all[1].OrderID != o.ID || all[1].NotifiedLater {
		t.Errorf("the list is %+v", all)
	}
	if next := list(store.DriftFilter{Limit: 10, Before: all[0].Place()}); len(next) != 1 || next[0].Seq != 4 {
		t.Errorf("after the first one: %+v", next)
	}
	if rest := list(store.DriftFilter{Limit: 10, Before: all[1].Place()}); len(rest) != 0 {
		t.Errorf("after the last one: %+v", rest)
	}
	for name, f := range map[string]store.DriftFilter{
		"before": {To: all[1].At, Limit: 10}, "after": {From: time.Now().Add(time.Hour), Limit: 10},
	} {
		if got := list(f); len(got) != 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
	// The missing notification comes, too late to say anything new.
	a.receive(notification(2, "op", "CARD_PROD_DONE"))
	if got := a.order(o.ID); got.State.Version != 5 {
		t.Errorf("a late notification made version %d", got.State.Version)
	}
	if all = list(store.DriftFilter{Limit: 10}); !all[0].NotifiedLater || !all[1].NotifiedLater {
		t.Errorf("the list after it is %+v", all)
	}
}

// An order that D1 took and does not show any more calls for people, until D1 tells of it.
// One that D1 never took does not.
func TestNotShownIsADifference(t *testing.T) {
	t.Parallel()
	a := openAsking(t, nil)
	o := a.placed("op")
	got, _ := a.answer(o.ID, nil, order.NotShown{})
	if !slices.Equal(got.State.Attention, []order.Attention{order.AttentionNotShown}) || got.State.Status != order.Submitted {
		t.Errorf("not shown: %s, %v", got.State.Status, got.State.Attention)
	}
	if !slices.Equal(a.found, []store.Difference{store.DifferenceAttention}) || a.lastEvent(o.ID).Cause.Kind != store.CauseReconciliation {
		t.Errorf("found %v", a.found)
	}
	if again, _ := a.answer(o.ID, nil, order.NotShown{}); again.State.Version != got.State.Version {
		t.Errorf("the same again made version %d", again.State.Version)
	}
	if got, _ := a.answer(o.ID, nil, word("op", "CARD_PROD_REQUESTED")); len(got.State.Attention) > 0 {
		t.Errorf("shown again: %v", got.State.Attention)
	}
	rejected := a.accept("card-2", "rejected")
	a.reject(rejected.ID)
	if got, _ := a.answer(rejected.ID, nil, order.NotShown{}); slices.Contains(got.State.Attention, order.AttentionNotShown) {
		t.Errorf("one that D1 refused: %v", got.State.Attention)
	}
}

// Three questions without news, for long enough, call for people; the next news end it.
func TestSilence(t *testing.T) {
	t.Parallel()
	a := openAsking(t, &order.Limits{SilentAfter: time.Hour})
	o := a.placed("op")
	asked := func(checks int, heard time.Duration) []order.Attention {
		t.Helper()
		a.exec(`UPDATE order_state SET checks = $2, heard_at = now() - $3::interval WHERE order_id = $1`, o.ID, checks, heard)
		got, _ := a.answer(o.ID, nil, word("op", "CARD_PROD_REQUESTED"))
		return got.State.Attention
	}
	if got := asked(2, 3*time.Hour); len(got) > 0 {
		t.Errorf("after two questions: %v", got)
	}
	if got := asked(3, time.Minute); len(got) > 0 {
		t.Errorf("too soon: %v", got)
	}
	if got := asked(3, 3*time.Hour); !slices.Equal(got, []order.Attention{order.AttentionSilent}) {
		t.Errorf("after three questions: %v", got)
	}
	if e := a.lastEvent(o.ID); e.Cause.Kind != store.CauseTime || e.Cause.ID != "" || len(a.found) > 0 {
		t.Errorf("it is nothing that D1 said: %+v, %v", e.Cause, a.found)
	}
	version := a.order(o.ID).State.Version
	if asked(4, 4*time.Hour); a.order(o.ID).State.Version != version {
		t.Error("it was told twice")
	}
	a.receive(notification(1, "op", "CARD_PROD_REQUESTED"))
	if got := a.order(o.ID); !slices.Equal(got.State.Attention, []order.Attention{order.AttentionSilent}) {
		t.Errorf("a repeat ended it: %v", got.State.Attention)
	}
	a.receive(notification(2, "op", "DATA_PREPARED"))
	if got := a.order(o.ID); len(got.State.Attention) > 0 {
		t.Errorf("after news: %v", got.State.Attention)
	}
	// So are those of a parcel, whether D1 tells them by itself or is asked.
	parcel := store.ShipmentUpdate{TrackingNumber: "T1", Carrier: "ups"}
	if got := asked(9, 9*time.Hour); !slices.Equal(got, []order.Attention{order.AttentionSilent}) {
		t.Errorf("silent again: %v", got)
	}
	announced := notification(3, "op", "DATA_PREPARED")
	announced.Shipment = parcel
	a.receive(announced)
	if got := a.order(o.ID); len(got.State.Attention) > 0 {
		t.Errorf("after news of a parcel: %v", got.State.Attention)
	}
	a.exec(`UPDATE order_state SET checks = 9, heard_at = now() - interval '9 h' WHERE order_id = $1`, o.ID)
	parcel.Status = "LABELLED"
	if got, _ := a.answer(o.ID, []store.ShipmentUpdate{parcel}, word("op", "DATA_PREPARED")); len(got.State.Attention) > 0 || len(a.found) != 1 {
		t.Errorf("an answer with news of a parcel: %v, found %v", got.State.Attention, a.found)
	}
	if n := value[int](a.fixture, `SELECT checks FROM order_state WHERE order_id = $1`, o.ID); n != 0 {
		t.Errorf("%d questions in vain", n)
	}
	// News and silence in one answer are news.
	a.exec(`UPDATE order_state SET checks = 9, heard_at = now() - interval '9 h' WHERE order_id = $1`, o.ID)
	if got, _ := a.answer(o.ID, nil, word("op", "CARD_PROD_READY")); len(got.State.Attention) > 0 {
		t.Errorf("an answer with news: %v", got.State.Attention)
	}
}
