package store_test

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

// submitted accepts an order and brings it to D1.
func (f *fixture) submitted(card, request, operation string) *store.Order {
	f.t.Helper()
	o := f.accept(card, request)
	f.complete(taken(f.claim(1, time.Minute)[0], operation))
	return o
}

// parse reads what notification wrote.
func parsed(list ...store.Notification) func(string, []byte, string) store.Notification {
	return func(_ string, raw []byte, _ string) store.Notification {
		for _, n := range list {
			if string(n.Raw) == string(raw) {
				return n
			}
		}
		return store.Notification{}
	}
}

// sweepAll tries all that waits.
func (f *fixture) sweepAll(list ...store.Notification) {
	f.t.Helper()
	f.exec(`UPDATE notifications SET next_try_at = now() WHERE next_try_at IS NOT NULL`)
	if _, _, err := f.Sweep(f.t.Context(), nil, parsed(list...)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) outcomes() map[string]int {
	f.t.Helper()
	rows, err := f.conn.Query(f.t.Context(), `SELECT outcome, count(*) FROM notifications GROUP BY 1`)
	if err != nil {
		f.t.Fatal(err)
	}
	counts := make(map[string]int)
	for rows.Next() {
		var outcome string
		var n int
		if err := rows.Scan(&outcome, &n); err != nil {
			f.t.Fatal(err)
		}
		counts[outcome] = n
	}
	return counts
}

// A row is written once, with what became of it.
func TestReceivedRowIsWrittenOnce(t *testing.T) {
	t.Parallel()
	f := open(t)
	o := f.submitted("card", "request", "operation")
	other := notification(2, "unknown", "CARD_PROD_READY")
	ignored := notification(3, "x", "")
	ignored.Operation = "DELETE"
	list := []store.Notification{notification(1, "operation", "CARD_PROD_READY"), other, ignored, other}
	want := []store.Outcome{store.OutcomeApplied, store.OutcomeParked, store.OutcomeIgnored, store.OutcomeRepeated}
	if outcomes := f.receive(list...); !slices.Equal(outcomes, want) {
		t.Errorf("outcomes %v, want %v", outcomes, want)
	}
	if n := value[int](f, `SELECT count(*) FROM notifications WHERE xmax = 0 AND tries = 0
		AND (order_id = $1) IS NOT DISTINCT FROM CASE WHEN outcome = 'applied' THEN true END`, o.ID); n != 3 {
		t.Errorf("%d rows were written once, want 3", n)
	}
	if seq := value[int](f, `SELECT seq FROM order_events e JOIN notifications n ON e.cause_id = n.id::text WHERE n.outcome = 'applied'`); seq != 3 {
		t.Errorf("the event has seq %d", seq)
	}
	if seen := value[int](f, `SELECT times_seen FROM notifications WHERE outcome = 'parked'`); seen != 2 {
		t.Errorf("the one that came twice was seen %d times", seen)
	}
}

// How each kind of operation finds its order.
func TestMatching(t *testing.T) {
	t.Parallel()
	f := open(t)
	plain := f.submitted("card-plain", "r-plain", "op-plain")
	shipped := f.submitted("card-shipped", "r-shipped", "op-shipped")
	shipment := notification(0, "op-shipped", "CARD_SHIPPED")
	shipment.Shipment = store.ShipmentUpdate{TrackingNumber: "track-1", Carrier: "dhl"}
	f.receive(shipment)
	changed, twice := f.submitted("card-changed", "r-changed", "op-changed"), f.submitted("card-twice", "r-twice", "op-twice")
	waiting := f.accept("card-waiting", "r-waiting")
	f.exec(`INSERT INTO shipments (issuer_id, order_id, tracking_number) VALUES ($1, $2, 'track-waiting')`, issuer, waiting.ID)
	change := uuid.MustParse("01a20a68-0000-7000-8000-00000000cafe")
	for i, c := range []struct {
		id, order uuid.UUID
	}{{change, changed.ID}, {uuid.New(), twice.ID}, {uuid.New(), twice.ID}} {
		f.exec(`INSERT INTO order_changes (issuer_id, id, order_id, type, state, created_by, operation_id) VALUES ($1, $2, $3, 'CANCEL', 'SENT', 'test', $4)`,
			issuer, c.id, c.order, fmt.Sprint("change-", i))
	}
	f.exec(`INSERT INTO operations (issuer_id, operation_id, order_id, operation, source) VALUES ($1, 'change-0', $2, 'UPDATE_ORDER', 'change')`, issuer, changed.ID)
	for name, test := range map[string]struct {
		n    store.Notification
		want uuid.UUID // nil: parked
	}{
		"PRODUCE, its operation":                     {store.Notification{Operation: "PRODUCE", OperationID: "op-plain", IssuerRequestID: "else"}, plain.ID},
		"PRODUCE, the request":                       {store.Notification{Operation: "PRODUCE", IssuerRequestID: "r-plain"}, plain.ID},
		"PRODUCE, an unknown request":                {store.Notification{Operation: "PRODUCE", IssuerRequestID: "else", CardID: "card-plain"}, uuid.Nil},
		"PRODUCE, the operation of a change":         {store.Notification{Operation: "PRODUCE", OperationID: "change-0"}, uuid.Nil},
		"PRODUCE, a card with a known operation":     {store.Notification{Operation: "PRODUCE", CardID: "card-plain", StartTime: time.Now().Add(time.Hour)}, uuid.Nil},
		"UPDATE_ORDER, the order's operation":        {store.Notification{Operation: "UPDATE_ORDER", OperationID: "op-changed"}, uuid.Nil},
		"UPDATE_ORDER, a request with two changes":   {store.Notification{Operation: "UPDATE_ORDER", IssuerRequestID: "r-twice"}, uuid.Nil},
		"UPDATE_ORDER, a card with two":              {store.Notification{Operation: "UPDATE_ORDER", CardID: "card-twice"}, uuid.Nil},
		"UPDATE_ORDER, a card and somebody's file":   {store.Notification{Operation: "UPDATE_ORDER", CardID: "card-changed", NotByCard: true}, uuid.Nil},
		"UPDATE_ORDER, an order without changes":     {store.Notification{Operation: "UPDATE_ORDER", IssuerRequestID: "r-plain"}, plain.ID},
		"tracking, the number":                       {tracking("", "track-1", ""), shipped.ID},
		"tracking, the card":                         {tracking("", "", "card-shipped"), shipped.ID},
		"tracking, another number of the card":       {tracking("", "track-2", "card-shipped"), shipped.ID},
		"tracking, a number of an order not sent":    {tracking("", "track-waiting", ""), uuid.Nil},
		"tracking, the card of an order not sent":    {tracking("", "", "card-waiting"), uuid.Nil},
		"tracking, the card of an order that D1 has": {tracking("", "", "card-plain"), plain.ID},
		"tracking, nothing known":                    {tracking("track-op", "track-9", "card-9"), uuid.Nil},
	} {
		n := test.n
		n.Raw, n.Content = []byte(name), []byte(name)
		if n.Operation == "PRODUCE" {
			n.Evidence = order.Report{OperationID: n.OperationID, Operation: order.OperationPending, Status: "DATA_PREPARED"}
		}
		f.receive(n)
		var got *uuid.UUID
		if got = value[*uuid.UUID](f, `SELECT order_id FROM notifications ORDER BY id DESC LIMIT 1`); got == nil {
			got = &uuid.Nil
		}
		if *got != test.want {
			t.Errorf("%s: matched to %s, want %s", name, got, test.want)
		}
	}
}

func tracking(operation, number, card string) store.Notification {
	return store.Notification{
		Operation: "STANDALONE_TRACKING", OperationID: operation, CardID: card, Shipment: store.ShipmentUpdate{TrackingNumber: number},
		Evidence: order.Tracking{Operation: order.OperationPending, Type: "SHIPMENT", Parcel: order.Parcel{TrackingNumber: number}},
	}
}

// The operation of a tracked card is remembered: what it says next may name nothing else.
func TestTrackingIsFoundByItsOperationAfterwards(t *testing.T) {
	t.Parallel()
	f := open(t)
	o := f.submitted("card", "request", "operation")
	f.receive(notification(1, "operation", "CARD_SHIPPED"))
	first, second := tracking("hub", "", "card"), tracking("hub", "", "")
	first.Raw, first.Content = []byte("first"), []byte("first")
	second.Raw, second.Content = []byte("second"), []byte("second")
	if outcomes := f.receive(first); outcomes[0] != store.OutcomeApplied {
		t.Fatalf("outcomes %v", outcomes)
	}
	if outcomes := f.receive(second); outcomes[0] != store.OutcomeApplied {
		t.Errorf("outcomes %v", outcomes)
	}
	if got := f.order(o.ID).State; slices.Contains(got.Attention, order.AttentionSecondCard) {
		t.Error("the tracking is taken for a second card")
	}
	f.whole()
}

// A parked content that its order has already is one row with it, and no error.
func TestParkedRepeatIsMerged(t *testing.T) {
	t.Parallel()
	f := open(t)
	n := notification(1, "operation", "CARD_PROD_READY")
	f.submitted("card", "request", "operation")
	f.receive(n)
	f.exec(`INSERT INTO notifications (issuer_id, digest, body, operation, outcome, next_try_at, times_seen)
		SELECT issuer_id, digest, body, operation, 'parked', now(), 3 FROM notifications`)
	f.sweepAll(n)
	if rows, seen := value[int](f, `SELECT count(*) FROM notifications`), value[int](f, `SELECT sum(times_seen) FROM notifications`); rows != 1 || seen != 4 {
		t.Errorf("%d rows, seen %d times", rows, seen)
	}
	if version := value[int](f, `SELECT version FROM order_state`); version != 3 {
		t.Errorf("the order has version %d", version)
	}
}

// A call that cannot be applied takes no other with it that came at the same moment.
func TestPoisonedCallHarmsNoOther(t *testing.T) {
	t.Parallel()
	f := open(t)
	const calls = 12
	for i := range calls {
		f.submitted(fmt.Sprint("card-", i), fmt.Sprint("r-", i), fmt.Sprint("operation-", i))
	}
	f.exec(`ALTER TABLE order_state ADD CONSTRAINT broken CHECK (status <> 'READY' OR operation_id <> 'operation-5')`)
	outcomes := make([]store.Outcome, calls)
	var wg sync.WaitGroup
	for i := range calls {
		wg.Go(func() {
			got, err := f.Receive(t.Context(), issuer, []store.Notification{notification(i, fmt.Sprint("operation-", i), "CARD_PROD_READY")})
			if err != nil {
				t.Error(err)
				return
			}
			outcomes[i] = got[0]
		})
	}
	wg.Wait()
	for i, outcome := range outcomes {
		if want := map[bool]store.Outcome{true: store.OutcomeUnapplied, false: store.OutcomeApplied}[i == 5]; outcome != want {
			t.Errorf("call %d: %s, want %s", i, outcome, want)
		}
	}
}

// Waiting for too long makes a notification somebody else's; a replay has it tried again.
func TestForeignNotifications(t *testing.T) {
	t.Parallel()
	f := open(t)
	n := notification(1, "operation", "CARD_PROD_READY")
	n.IssuerRequestID = "request"
	f.receive(n)
	f.sweepAll(n)
	if got := f.outcomes(); got["parked"] != 1 {
		t.Fatalf("after a moment: %v", got)
	}
	f.exec(`UPDATE notifications SET created_at = now() - interval '31 days'`)
	f.sweepAll(n)
	if got := f.outcomes(); got["foreign"] != 1 || value[bool](f, `SELECT next_try_at IS NOT NULL FROM notifications`) {
		t.Fatalf("after a month: %v", got)
	}
	if outcomes := f.receive(n); outcomes[0] != store.OutcomeRepeated {
		t.Errorf("when it comes again: %v", outcomes)
	}
	o := f.accept("card", "request")
	if got := f.order(o.ID).State.Status; got != order.Accepted {
		t.Errorf("a foreign notification made it %s", got)
	}
	if outcomes := f.receive(n); outcomes[0] != store.OutcomeRepeated {
		t.Errorf("when it comes again, and has an order: %v", outcomes)
	}
	if got := f.outcomes(); got["parked"] != 1 {
		t.Errorf("it is %v", got)
	}
	f.sweepAll(n)
	if got := f.order(o.ID).State.Status; got != order.Ready {
		t.Errorf("the order is %s", got)
	}
	id := value[int64](f, `SELECT id FROM notifications`)
	done, err := f.Replay(t.Context(), issuer, id, parsed(n))
	if err != nil || done.Outcome != store.OutcomeApplied || done.OrderID != o.ID {
		t.Errorf("replayed: %+v, %v", done, err)
	}
	if got := f.order(o.ID).State.Status; got != order.Ready {
		t.Errorf("the order is %s", got)
	}
	f.whole()
}

// A process whose configuration lacks the issuer, or the key that it was sealed with, as in
// a roll-out that adds one, leaves a notification to those that have it.
func TestUnreadableNotificationWaits(t *testing.T) {
	t.Parallel()
	f := open(t)
	o := f.submitted("card", "request", "operation")
	f.exec(`ALTER TABLE order_state ADD CONSTRAINT broken CHECK (status <> 'READY')`)
	parked, unapplied := notification(1, "other", "CARD_PROD_READY"), notification(2, "operation", "CARD_PROD_READY")
	f.receive(parked, unapplied)
	f.exec(`ALTER TABLE order_state DROP CONSTRAINT broken`)
	f.sweepAll() // which reads none
	for _, id := range value[[]int64](f, `SELECT array_agg(id) FROM notifications`) {
		if _, err := f.Replay(t.Context(), issuer, id, parsed()); err != nil {
			t.Error(err)
		}
	}
	if got, want := f.outcomes(), map[string]int{"parked": 1, "unapplied": 1}; !maps.Equal(got, want) {
		t.Errorf("they are %v, want %v", got, want)
	}
	if n := value[int](f, `SELECT count(*) FROM notifications WHERE next_try_at > now() AND (order_id = $1) IS NOT DISTINCT FROM CASE outcome WHEN 'unapplied' THEN true END`, o.ID); n != 2 {
		t.Errorf("%d wait, want 2", n)
	}
	f.sweepAll(parked, unapplied)
	if got := f.order(o.ID).State; got.Status != order.Ready || len(got.Attention) > 0 {
		t.Errorf("the order is %s, attention %v", got.Status, got.Attention)
	}
}

// What is about no order goes after a week.
func TestIgnoredNotificationsAreForgotten(t *testing.T) {
	t.Parallel()
	f := open(t)
	for i := range 3 {
		n := notification(i, "x", "")
		n.Operation = "SUSPEND"
		f.receive(n)
	}
	f.receive(notification(9, "x", ""))
	f.exec(`UPDATE notifications SET created_at = now() - interval '8 days' WHERE id <> (SELECT min(id) FROM notifications)`)
	if more, err := f.ForgetIgnored(t.Context()); err != nil || more {
		t.Errorf("more %t, %v", more, err)
	}
	if got, want := f.outcomes(), map[string]int{"ignored": 1, "parked": 1}; !maps.Equal(got, want) {
		t.Errorf("left are %v, want %v", got, want)
	}
}

// A replay applies by today's rules, and twice is like once.
func TestReplay(t *testing.T) {
	t.Parallel()
	f := open(t)
	o := f.submitted("card", "request", "operation")
	n := notification(1, "operation", "CARD_PROD_READY")
	n.Shipment = store.ShipmentUpdate{TrackingNumber: "t", Status: "early"}
	later := notification(2, "operation", "CARD_PROD_ONGOING")
	later.Shipment = store.ShipmentUpdate{TrackingNumber: "t", Status: "late"}
	f.receive(n, later)
	id := value[int64](f, `SELECT min(id) FROM notifications`)
	before := f.order(o.ID)
	for range 2 {
		done, err := f.Replay(t.Context(), issuer, id, parsed(n))
		if err != nil || done.Outcome != store.OutcomeApplied || done.OrderID != o.ID {
			t.Fatalf("replayed: %+v, %v", done, err)
		}
	}
	if after := f.order(o.ID); after.State.Version != before.State.Version {
		t.Errorf("replaying what was heard made version %d of %d", after.State.Version, before.State.Version)
	}
	if status := value[string](f, `SELECT status FROM shipments`); status != "late" {
		t.Errorf("the shipment went back to %q", status)
	}
	// The word is read in another way now.
	n.Evidence = order.Report{OperationID: "operation", Operation: order.OperationPending, Status: "CARD_PROD_DONE"}
	if _, err := f.Replay(t.Context(), issuer, id, parsed(n)); err != nil {
		t.Fatal(err)
	}
	if got := f.order(o.ID).State.Status; got != order.Produced {
		t.Errorf("by other rules the order is %s", got)
	}
	for _, miss := range []struct {
		issuer string
		id     int64
	}{{"ISSUER0002", id}, {issuer, id + 1000}} {
		if _, err := f.Replay(t.Context(), miss.issuer, miss.id, parsed(n)); !errors.Is(err, store.ErrNoNotification) {
			t.Errorf("%+v: %v", miss, err)
		}
	}
	f.exec(`ALTER TABLE order_state ADD CONSTRAINT broken CHECK (status <> 'SHIPPED')`)
	poison := notification(3, "operation", "CARD_SHIPPED")
	if outcomes := f.receive(poison); outcomes[0] != store.OutcomeUnapplied {
		t.Fatalf("outcomes %v", outcomes)
	}
	id = value[int64](f, `SELECT max(id) FROM notifications`)
	if done, err := f.Replay(t.Context(), issuer, id, parsed(poison)); err != nil || done.Outcome != store.OutcomeUnapplied {
		t.Errorf("still poison: %+v, %v", done, err)
	}
	f.exec(`ALTER TABLE order_state DROP CONSTRAINT broken`)
	if done, err := f.Replay(t.Context(), issuer, id, parsed(poison)); err != nil || done.Outcome != store.OutcomeApplied {
		t.Errorf("poison no more: %+v, %v", done, err)
	}
	if got := f.order(o.ID).State; got.Status != order.Shipped || len(got.Attention) > 0 {
		t.Errorf("the order is %s, attention %v", got.Status, got.Attention)
	}
	f.whole()
}

// A replay of a time goes on from call to call until all of it is done.
func TestReplayRange(t *testing.T) {
	t.Parallel()
	f := open(t)
	const many = 2250
	for first := 0; first < many; first += 250 {
		var list []store.Notification
		for i := range 250 {
			n := notification(first+i, "operation", "DATA_PREPARED")
			n.Operation = "PRODUCE"
			list = append(list, n)
		}
		f.receive(list...)
	}
	o := f.submitted("card", "request", "operation")
	ready := notification(0, "operation", "CARD_PROD_READY")
	all := func(string, []byte, string) store.Notification { return ready }
	in := store.ReplayRange{From: time.Now().Add(-time.Hour), To: time.Now().Add(time.Hour), Outcome: store.OutcomeParked}
	counts, next, err := f.ReplayRange(t.Context(), issuer, in, all)
	if err != nil || counts[store.OutcomeApplied] != 2000 || next == 0 {
		t.Fatalf("at first %v, %d, %v", counts, next, err)
	}
	in.After = next
	if counts, next, err = f.ReplayRange(t.Context(), issuer, in, all); err != nil || counts[store.OutcomeApplied] != many-2000 || next != 0 {
		t.Errorf("then %v, %d, %v", counts, next, err)
	}
	in.After = 0
	if counts, _, err = f.ReplayRange(t.Context(), issuer, in, all); err != nil || len(counts) > 0 {
		t.Errorf("of the parked are left %v, %v", counts, err)
	}
	if got := f.order(o.ID).State; got.Status != order.Ready || got.Version != 3 {
		t.Errorf("the order is %s in version %d", got.Status, got.Version)
	}
	in.Outcome, in.From = "", time.Now().Add(time.Minute)
	if counts, _, err = f.ReplayRange(t.Context(), issuer, in, all); err != nil || len(counts) > 0 {
		t.Errorf("of a time when nothing came: %v, %v", counts, err)
	}
	if counts, _, err = f.ReplayRange(t.Context(), "ISSUER0002", store.ReplayRange{From: time.Now().Add(-time.Hour), To: time.Now()}, all); err != nil || len(counts) > 0 {
		t.Errorf("of another issuer: %v, %v", counts, err)
	}
}

// The bounds of a time hold to the notification, also where ids are missing and times go
// back a little from one id to the next.
func TestReplayRangeBounds(t *testing.T) {
	t.Parallel()
	f := open(t)
	var list []store.Notification
	for i := range 120 {
		list = append(list, notification(i, fmt.Sprint("operation-", i), "CARD_PROD_READY"))
	}
	f.receive(list...)
	f.exec(`DELETE FROM notifications WHERE id % 7 = 0 OR id BETWEEN 30 AND 50`)
	f.exec(`UPDATE notifications SET created_at = '2026-01-01'::timestamptz + id * interval '10 s' + id % 5 * interval '11 s'`)
	parse := parsed(list...)
	begin := value[time.Time](f, `SELECT min(created_at) FROM notifications`)
	end := value[time.Time](f, `SELECT max(created_at) FROM notifications`)
	for _, c := range []struct {
		name     string
		from, to time.Time
	}{
		{"all", begin.Add(-time.Hour), end.Add(time.Hour)},
		{"all but the last", begin, end},
		{"the last", end, end.Add(time.Microsecond)},
		{"before the first", begin.Add(-time.Hour), begin},
		{"after the last", end.Add(time.Microsecond), end.Add(time.Hour)},
		{"some", begin.Add(100 * time.Second), begin.Add(250 * time.Second)},
		{"where ids are missing", begin.Add(320 * time.Second), begin.Add(600 * time.Second)},
		{"a moment", begin.Add(700 * time.Second), begin.Add(711 * time.Second)},
	} {
		want := value[int](f, `SELECT count(*) FROM notifications WHERE created_at >= $1 AND created_at < $2`, c.from, c.to)
		counts, next, err := f.ReplayRange(t.Context(), issuer, store.ReplayRange{From: c.from, To: c.to}, parse)
		if err != nil || counts[store.OutcomeForeign] != want || next != 0 {
			t.Errorf("%s: %v, %d, %v; want %d", c.name, counts, next, err, want)
		}
	}
	middle := value[int64](f, `SELECT id FROM notifications ORDER BY id OFFSET 60 LIMIT 1`)
	for _, after := range []int64{-1, middle, middle + 1, 1000, math.MaxInt64} {
		want := value[int](f, `SELECT count(*) FROM notifications WHERE id > $1`, after)
		in := store.ReplayRange{From: begin, To: end.Add(time.Hour), After: after}
		if counts, next, err := f.ReplayRange(t.Context(), issuer, in, parse); err != nil || counts[store.OutcomeForeign] != want || next != 0 {
			t.Errorf("after %d: %v, %d, %v; want %d", after, counts, next, err, want)
		}
	}
	f.exec(`DELETE FROM notifications`)
	if counts, next, err := f.ReplayRange(t.Context(), issuer, store.ReplayRange{From: begin, To: end}, parse); err != nil || len(counts) > 0 || next != 0 {
		t.Errorf("of none: %v, %d, %v", counts, next, err)
	}
}

// No statement of a replay reads all of a time, whatever is looked for in it.
func TestReplayRangeReadsLittle(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.exec(`INSERT INTO notifications (issuer_id, digest, body, outcome, created_at)
		SELECT $1, sha256(i::text::bytea), 'x', 'applied', '2026-01-01'::timestamptz + i * interval '1 s' FROM generate_series(1, 40000) i`, issuer)
	f.exec(`VACUUM ANALYZE notifications`)
	plans := &planner{}
	st := f.traced(plans)
	day := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	in := store.ReplayRange{From: day.AddDate(0, 0, -1), To: day.AddDate(0, 0, 1), Outcome: store.OutcomeForeign}
	counts, next, err := st.ReplayRange(t.Context(), issuer, in, parsed())
	if err != nil || len(counts) > 0 || next != 0 && next < 5000 {
		t.Fatalf("replayed %v, %d, %v", counts, next, err)
	}
	if n := len(plans.statements); n > 120 {
		t.Errorf("it took %d statements", n)
	}
	most := 0
	for _, plan := range plans.analyze(f) {
		for _, read := range rowsRead.FindAllStringSubmatch(plan, -1) {
			n, err := strconv.Atoi(read[1])
			if most = max(most, n); err != nil || n > 5000 {
				t.Errorf("%s rows are read:\n%s", read[1], plan)
			}
		}
	}
	if most < 1000 {
		t.Errorf("no plan tells that it has read more than %d rows", most)
	}
}

// rowsRead finds how many rows a part of a plan gave, and how many it passed.
var rowsRead = regexp.MustCompile(`(?:actual time=\S+ rows=|Rows Removed by \w+: )(\d+)`)

// Whatever comes at once, in whatever order and however often, while its orders are
// accepted: each content has one row, is counted as often as it came, and is heard once.
func TestNotificationsThatComeAtOnce(t *testing.T) {
	t.Parallel()
	f := open(t)
	const orders = 12
	statuses := []string{"DATA_PREPARED", "CARD_PROD_READY", "CARD_PROD_ONGOING", "CARD_PROD_DONE"}
	var contents []store.Notification
	for i := range orders + 4 {
		for j, status := range statuses {
			n := notification(i*10+j, fmt.Sprint("operation-", i), status)
			n.IssuerRequestID, n.CardID = fmt.Sprint("r-", i), fmt.Sprint("card-", i)
			contents = append(contents, n)
		}
	}
	var mu sync.Mutex
	sent := make(map[string]int)
	var work sync.WaitGroup
	for worker := range 6 {
		work.Go(func() {
			r := rand.New(rand.NewPCG(uint64(worker), 7))
			for range 25 {
				var list []store.Notification
				for range 1 + r.IntN(40) {
					list = append(list, contents[r.IntN(len(contents))])
				}
				if _, err := f.Receive(t.Context(), issuer, list); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, n := range list {
					sent[string(n.Raw)]++
				}
				mu.Unlock()
			}
		})
	}
	work.Go(func() {
		for i := range orders {
			if _, err := f.Accept(t.Context(), acceptance(fmt.Sprint("card-", i), fmt.Sprint("r-", i), "")); err != nil {
				t.Error(err)
			}
		}
	})
	work.Go(func() {
		for range 20 {
			if _, err := f.Pool().Exec(t.Context(), `UPDATE notifications SET next_try_at = now()
				WHERE id IN (SELECT id FROM notifications WHERE outcome = 'parked' FOR UPDATE SKIP LOCKED)`); err != nil {
				t.Error(err)
			}
			if _, _, err := f.Sweep(t.Context(), nil, parsed(contents...)); err != nil {
				t.Error(err)
			}
		}
	})
	work.Wait()
	f.sweepAll(contents...)
	total := 0
	for _, n := range sent {
		total += n
	}
	rows, seen := value[int](f, `SELECT count(*) FROM notifications`), value[int](f, `SELECT sum(times_seen) FROM notifications`)
	if rows != len(sent) || seen != total {
		t.Errorf("%d rows for %d contents, seen %d times of %d", rows, len(sent), seen, total)
	}
	if n := value[int](f, `SELECT count(*) FROM notifications n WHERE (outcome = 'applied') <> EXISTS (SELECT FROM orders o WHERE o.issuer_request_id = n.issuer_request_id)`); n != 0 {
		t.Errorf("%d notifications are applied without an order, or not with one: %v", n, f.outcomes())
	}
	if n := value[int](f, `SELECT count(*) FROM order_state WHERE status <> 'PRODUCED' OR attention <> '{}' OR version > 6`); n != 0 {
		t.Errorf("%d orders are not as their notifications say", n)
	}
	f.whole()
}

// A notification that cannot be stored with what was read of it waits as its bytes, and is
// not forgotten as one that is about no order.
func TestBareNotificationWaits(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.submitted("card-1", "r-1", "operation-1")
	poison, good := notification(1, "poison\x00", "CARD_PROD_READY"), notification(2, "operation-1", "CARD_PROD_READY")
	if outcomes := f.receive(poison, good); !slices.Equal(outcomes, []store.Outcome{store.OutcomeParked, store.OutcomeApplied}) {
		t.Errorf("outcomes %v", outcomes)
	}
	if n := value[int](f, `SELECT count(*) FROM notifications WHERE outcome = 'parked' AND next_try_at IS NOT NULL AND operation_id IS NULL`); n != 1 {
		t.Errorf("%d wait", n)
	}
}

// What panics among many is contained as it is among few.
func TestPanicInALargeCall(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.submitted("card-1", "r-1", "operation-1")
	list := make([]store.Notification, 50)
	for i := range list {
		list[i] = notification(i, fmt.Sprint("other-", i), "CARD_PROD_READY")
	}
	list[7] = notification(7, "operation-1", "CARD_PROD_READY")
	list[7].Evidence = (*order.Report)(nil)
	for i, outcome := range f.receive(list...) {
		if outcome != store.OutcomeParked && i != 7 {
			t.Errorf("%d is %s", i, outcome)
		}
	}
	f.sweepAll(list...) // on a slow machine it was not reached before the answer
	if got := f.outcomes(); got["unapplied"] != 1 || got["parked"] != 49 {
		t.Errorf("outcomes %v", got)
	}
}
