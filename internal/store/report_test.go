package store_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

// told is one event of an order, as the test knows it.
type told struct {
	kind             store.EventType
	status, previous order.Status
	at               time.Time
}

// life makes up what happens to an order, as the state machine lets it happen.
func life(r *rand.Rand, imported bool, begin time.Time) (events []told, ended bool) {
	s := order.NewState(order.Shipped)
	at := begin
	if r.IntN(4) == 0 {
		s.EndsAt = order.Produced
	}
	if imported {
		s.Version = 0
	} else {
		events = append(events, told{store.EventAccepted, s.Status, "", at})
	}
	words := []string{
		"CARD_PROD_REQUESTED", "DATA_PREPARED", "DATA_EXCEPTION", "CARD_PROD_READY", "HOLD", "CARD_PROD_ONGOING", "CARD_PROD_EXCEPTION",
		"CARD_PROD_CANCELED", "CARD_PROD_DONE", "CARD_SHIPPED", "CARD_RETURNED",
	}
	for range r.IntN(12) {
		at = at.Add(time.Duration(r.Int64N(int64(20 * time.Hour))))
		var e order.Evidence
		switch n := r.IntN(14); {
		case imported && len(events) == 0:
			e = order.Imported{Status: words[r.IntN(len(words))], OperationID: "op"}
			if strings.Contains(fmt.Sprint(e), "HOLD") {
				e = order.Imported{Status: "ON_HOLD", OperationID: "op"}
			}
		case n == 0:
			e = order.LostAnswer{}
		case n == 1:
			e = order.Refusal{}
		case n == 2:
			e = order.Retry{}
		case n == 3:
			e = order.Hold{Reason: order.HeldByPerson}
		case n == 4:
			e = order.Release{}
		case n == 5:
			e = order.Cancel{}
		default:
			word := words[r.IntN(len(words))]
			status := []order.OperationStatus{order.OperationPending, order.OperationSuccessful, order.OperationFailed}[r.IntN(3)]
			e = order.Report{OperationID: "op", Status: word, OnHold: word == "HOLD", Operation: status, Now: r.IntN(2) == 0,
				Parcel: order.Parcel{TrackingNumber: []string{"", "a", "b"}[r.IntN(3)]}}
		}
		next, changed := order.Advance(s, order.Clock{Now: at}, e)
		if !changed {
			continue
		}
		kind, previous := store.EventStatusChanged, s.Status
		if imported && len(events) == 0 {
			kind, previous = store.EventImported, ""
		}
		events = append(events, told{kind, next.Status, previous, at})
		s = next
	}
	return events, s.Ended()
}

// The totals are those of the events, whatever happened to the orders, on days of any
// time zone.
func TestDailyReport(t *testing.T) {
	t.Parallel()
	f := open(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	paris, err := time.LoadLocation("Europe/Paris")
	if err != nil {
		t.Fatal(err)
	}
	first := time.Date(2026, 3, 27, 0, 0, 0, 0, paris) // the clocks change on the 29th
	var days []time.Time
	for i := range 6 {
		days = append(days, first.AddDate(0, 0, i))
	}
	days, end := days[:5], days[5]
	batch := uuid.Must(uuid.NewV7())

	type line struct {
		day     int
		product string
		batch   bool
	}
	want := make(map[line]*store.DailyCount)
	dayOf := func(at time.Time) int {
		for i, d := range days {
			if at.In(paris).Format(time.DateOnly) == d.Format(time.DateOnly) {
				return i
			}
		}
		return -1
	}
	atD1 := []order.Status{order.Submitted, order.DataPrepared, order.Ready, order.OnHold, order.InProduction, order.Exception, order.Failed,
		order.Produced, order.Shipped, order.Delivered, order.Returned}
	for i := range 400 {
		id := uuid.Must(uuid.NewV7())
		product, batched, imported := []string{"gold", "silver"}[r.IntN(2)], r.IntN(3) == 0, r.IntN(6) == 0
		events, ended := life(r, imported, first.Add(time.Duration(r.Int64N(int64(6*24*time.Hour)))-24*time.Hour))
		if len(events) == 0 {
			continue
		}
		var of *uuid.UUID
		if batched {
			of = &batch
		}
		f.exec(`INSERT INTO orders (issuer_id, id, issuer_request_id, card_id, consumer_id, card_product_id, distribution_channel, terms, urgent, warnings,
				content_hash, content_hash_version, created_by, batch_id, imported)
			VALUES ($1, $2, $3, 'card', '', $4, 'THALES', '{}', false, '{}', '', 0, 'test', $5, $6)`, issuer, id, fmt.Sprint("r-", i), product, of, imported)
		f.exec(`INSERT INTO order_state (issuer_id, order_id, version, status, ends_at, ended_at) VALUES ($1, $2, $3, $4, 'SHIPPED', CASE WHEN $5 THEN now() END)`,
			issuer, id, len(events), events[len(events)-1].status, ended)
		for seq, e := range events {
			f.exec(`INSERT INTO order_events (issuer_id, order_id, seq, type, status, previous_status, attention, cause, created_at)
				VALUES ($1, $2, $3, $4, $5, nullif($6, ''), '{}', 'test', $7)`, issuer, id, seq+1, e.kind, e.status, e.previous, e.at)
		}
		// Each point once, by the event that first came there.
		count := func(hit func(told) bool, field func(*store.DailyCount) *int64) {
			i := slices.IndexFunc(events, hit)
			if i < 0 || events[i].kind == store.EventImported || dayOf(events[i].at) < 0 {
				return
			}
			key := line{dayOf(events[i].at), product, batched}
			if want[key] == nil {
				want[key] = &store.DailyCount{Day: key.day, CardProductID: product, BatchID: of}
			}
			*field(want[key])++
		}
		in := func(set ...order.Status) func(told) bool {
			return func(e told) bool { return slices.Contains(set, e.status) }
		}
		accepted := func(e told) bool { return e.kind == store.EventAccepted }
		count(accepted, func(c *store.DailyCount) *int64 { return &c.Accepted })
		count(in(atD1...), func(c *store.DailyCount) *int64 { return &c.Submitted })
		count(in(atD1[7:]...), func(c *store.DailyCount) *int64 { return &c.Produced })
		count(in(atD1[8:]...), func(c *store.DailyCount) *int64 { return &c.Shipped })
		count(in(order.Failed), func(c *store.DailyCount) *int64 { return &c.Failed })
		count(in(order.Cancelled), func(c *store.DailyCount) *int64 { return &c.Cancelled })
		if !ended {
			count(accepted, func(c *store.DailyCount) *int64 { return &c.Open })
		}
	}
	got, err := f.DailyReport(t.Context(), issuer, days, end)
	if err != nil {
		t.Fatal(err)
	}
	text := func(c store.DailyCount) string { // batches by whether there is one
		return fmt.Sprintf("day %d %s batch %v: %d accepted %d submitted %d produced %d shipped %d failed %d cancelled %d open",
			c.Day, c.CardProductID, c.BatchID != nil, c.Accepted, c.Submitted, c.Produced, c.Shipped, c.Failed, c.Cancelled, c.Open)
	}
	var gotLines, wantLines []string
	for _, c := range got {
		if c.Accepted+c.Submitted+c.Produced+c.Shipped+c.Failed+c.Cancelled > 0 {
			gotLines = append(gotLines, text(c))
		}
	}
	for _, c := range want {
		wantLines = append(wantLines, text(*c))
	}
	slices.Sort(gotLines)
	slices.Sort(wantLines)
	if !slices.Equal(gotLines, wantLines) {
		t.Errorf("the report says\n%s\nthe events\n%s", strings.Join(gotLines, "\n"), strings.Join(wantLines, "\n"))
	}
	if !slices.IsSortedFunc(got, func(x, y store.DailyCount) int {
		return cmp.Or(cmp.Compare(x.Day, y.Day), cmp.Compare(x.CardProductID, y.CardProductID))
	}) {
		t.Error("the lines are in no order")
	}
	if none, err := f.DailyReport(t.Context(), "NOBODY0001", days, end); err != nil || len(none) > 0 {
		t.Errorf("of another issuer: %v %v", none, err)
	}
}

// A day is found among many without reading the others.
func TestDailyReportReadsItsDaysOnly(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.exec(`INSERT INTO order_events (issuer_id, order_id, seq, type, status, attention, cause, created_at)
		SELECT $1, gen_random_uuid(), 1, 'accepted', 'ACCEPTED', '{}', 'request', '2026-01-01'::timestamptz + n * interval '1 min'
		FROM generate_series(1, 150000) n`, issuer)
	f.exec(`VACUUM ANALYZE order_events`)
	plans := &planner{}
	st := f.traced(plans)
	day := time.Date(2026, 2, 3, 0, 0, 0, 0, time.UTC)
	if _, err := st.DailyReport(t.Context(), issuer, []time.Time{day}, day.AddDate(0, 0, 1)); err != nil {
		t.Fatal(err)
	}
	if plan := plans.explain(f)[0]; !strings.Contains(plan, "Bitmap Index Scan on order_events_created") || strings.Contains(plan, "Seq Scan on order_events") {
		t.Errorf("it reads all days:\n%s", plan)
	}
}
