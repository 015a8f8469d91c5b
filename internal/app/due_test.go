package app_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"cardorder/client"
	"cardorder/internal/d1sim"
	"cardorder/internal/order"
)

// withLimits is a programs file whose orders of bank.thales are held to limits.
func withLimits(settings string) string {
	return "issuers:\n  - issuerId: ISSUER0001\n    programs:\n      - {cardProductId: gold, " + settings + "}\n"
}

// soon is a moment by the database's clock.
func (b *bank) soon(in time.Duration) time.Time {
	b.t.Helper()
	return query[time.Time](b, `SELECT clock_timestamp() + $1::interval`, in)
}

// view is an order as the Go client reads it.
func (b *bank) view(id string) *client.Order {
	b.t.Helper()
	o, err := b.client().Order(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	return o
}

// late lists the orders that are late.
func (b *bank) late() (ids []string) {
	b.t.Helper()
	for o, err := range b.client().AllOrders(b.t.Context(), client.OrderFilter{Late: true}) {
		if err != nil {
			b.t.Fatal(err)
		}
		ids = append(ids, o.ID)
	}
	return ids
}

// events are an order's events, as "type status", with "late" where it was.
func (b *bank) events(id string) (list []string) {
	b.t.Helper()
	timeline, err := b.client().Timeline(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, e := range timeline {
		if e.Event == nil {
			continue
		}
		text := e.Event.Type + " " + string(e.Event.Status)
		if e.Event.Late {
			text += " late"
		}
		list = append(list, text)
	}
	return list
}

// That orders cannot be looked at shows in the metric that raises the alarm.
func TestOrdersThatAreNotLookedAt(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	b.place(b.thales("later").with(body{"notBefore": b.soon(time.Hour).Format(time.RFC3339Nano)}))
	b.execute(`
		CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE disk_full; END $$;
		UPDATE order_state SET next_check_at = now() - interval '2 h';
		CREATE TRIGGER no_room BEFORE UPDATE ON order_state EXECUTE FUNCTION no_room()`)
	b.eventually("the metric tells of it", func() bool {
		return strings.Contains(b.metrics(), `cardorder_looks_behind_seconds{issuer="ISSUER0001"} 72`)
	})
}

// Until its time D1 does not hear of an order, so that it can be cancelled for certain;
// then it is sent.
func TestNotBefore(t *testing.T) {
	t.Parallel()
	b := newBank(t, unforgiving())
	until := b.soon(10 * time.Second)
	o := b.thales("later").with(body{"notBefore": until.Format(time.RFC3339Nano)})
	dry := b.do(http.MethodPost, orders+"?dryRun=true", nil, mustJSON(t, o))
	var shown client.DryRun
	if err := json.Unmarshal([]byte(dry.text), &shown); err != nil || shown.Status != client.StatusHeld || shown.CancellableUntil == nil || !shown.CancellableUntil.Equal(until) {
		t.Errorf("a dry run shows %s", dry.text)
	}
	id := b.place(o)
	held := b.view(id)
	if held.Status != client.StatusHeld || held.Hold == nil || held.Hold.Reason != string(order.HeldBySchedule) || held.Hold.Until == nil || !held.Hold.Until.Equal(until) ||
		held.NotBefore == nil || !held.NotBefore.Equal(until) || held.CancellableUntil == nil || !held.CancellableUntil.Equal(until) {
		t.Errorf("it is %+v", held)
	}
	if again := b.post(o, nil); again.status != http.StatusOK || again.view.ID != id {
		t.Errorf("the same again: %d %s", again.status, again.text)
	}
	if other := b.post(o.with(body{"notBefore": until.Add(time.Second).Format(time.RFC3339Nano)}), nil); other.status != http.StatusUnprocessableEntity {
		t.Errorf("another time: %d %s", other.status, other.text)
	}
	for value, code := range map[string]string{"2126-03-09T06:00:00Z": "invalid-value", "tomorrow": "invalid-format"} {
		if a := b.post(b.thales("never").with(body{"notBefore": value}), nil); a.status != http.StatusBadRequest || len(a.view.Errors) != 1 || a.view.Errors[0].Pointer != "/notBefore" || a.view.Errors[0].Code != code {
			t.Errorf("%s: %d %s", value, a.status, a.text)
		}
	}

	// Two of a batch: one is cancelled in time, with the batch.
	rows := b.lines(b.thales("cancelled").with(body{"notBefore": until.Format(time.RFC3339Nano)}), b.thales("at-once").with(body{"notBefore": "2020-01-01T00:00:00Z"}))
	batch := b.upload("", "b", "application/x-ndjson", strings.NewReader(rows), nil)
	if batch.status != http.StatusCreated {
		t.Fatalf("uploading: %d %s", batch.status, batch.text)
	}
	results := b.results(batch.ID, "")
	b.await(results[1].Order, "SHIPPED")
	csv := "cardId,issuerRequestId,consumerId,cardProductId,distributionChannel,services.issuance,paymentApplication.config,paymentApplication.odaKeyIndex,paymentApplication.derivationKeyIndex,encryptedData,notBefore,hold\n" +
		fmt.Sprintf("card-c,request-c,consumer-c,gold,CENTRAL,CREATION,visa,1,1,%s,%s,\n", b.jwe(), until.Add(time.Hour).Format(time.RFC3339)) +
		fmt.Sprintf("card-h,request-h,consumer-h,gold,CENTRAL,CREATION,visa,1,1,%s,,true\n", b.jwe())
	table := b.upload("", "csv", "text/csv", bytes.NewReader([]byte(csv)), nil)
	if table.status != http.StatusCreated || table.Rows.Accepted != 2 {
		t.Fatalf("uploading: %d %s", table.status, table.text)
	}
	kept := b.results(table.ID, "")
	if o := b.view(kept[0].Order); o.Status != client.StatusHeld || o.Hold.Reason != string(order.HeldBySchedule) {
		t.Errorf("of CSV: %+v", o)
	}
	if o := b.view(kept[1].Order); o.Status != client.StatusHeld || o.Hold.Reason != string(order.HeldByRequest) || o.Hold.Until != nil || o.CancellableUntil != nil {
		t.Errorf("of CSV: %+v", o)
	}
	got := b.act(batch.ID, "cancel")
	heard := len(b.calls("card-later")) + len(b.calls("card-cancelled"))
	if b.soon(0).Before(until) { // else this machine is too slow
		if got.Changed != 1 || got.TooLate != 1 {
			t.Errorf("cancelled: %+v", got)
		}
		if heard > 0 {
			t.Error("D1 has heard of them before their time")
		}
	}

	b.await(id, "SHIPPED")
	b.oneCard("request-later")
	if !query[bool](b, `SELECT created_at >= $2 FROM order_events WHERE order_id = $1 AND seq = 2`, id, until) {
		t.Error("it was to be sent before its time")
	}
	if got := b.view(id); got.Hold != nil || got.CancellableUntil != nil || got.NotBefore == nil {
		t.Errorf("it still waits: %+v", got)
	}
	if calls := b.calls("card-cancelled"); b.get(results[0].Order).view.Status == "CANCELLED" && len(calls) > 0 {
		t.Errorf("D1 heard of a cancelled order: %v", calls)
	}
	b.noGaps(id)
}

// A stage that takes too long makes an order late, and progress ends it, once each.
func TestLateStage(t *testing.T) {
	t.Parallel()
	sim := fast
	sim.StepInterval = d1sim.Duration(time.Hour)
	_, use := programsFile(t, withLimits("stageBudgets: {SUBMITTED: 500ms}"))
	b := newBank(t, sim, use)
	id := b.place(b.thales("slow"))
	b.await(id, "SUBMITTED")
	b.eventually("it is late", func() bool { return b.view(id).Late })
	if got := b.late(); !slices.Equal(got, []string{id}) {
		t.Errorf("late are %v", got)
	}
	if a := b.get(id); len(a.view.Attention) > 0 {
		t.Errorf("late is no attention: %v", a.view.Attention)
	}
	b.wantMetrics(`cardorder_late_orders{issuer="ISSUER0001"} 1`, `cardorder_late_total{issuer="ISSUER0001",status="SUBMITTED"} 1`)
	b.move(id, d1sim.Move{Status: "CARD_PROD_READY"})
	b.await(id, "READY")
	if b.view(id).Late || len(b.late()) > 0 {
		t.Error("it has caught up, and is late")
	}
	want := []string{"accepted ACCEPTED", "status-changed SUBMITTED", "late-changed SUBMITTED late", "status-changed READY"}
	if got := b.events(id); !slices.Equal(slices.DeleteFunc(got, func(e string) bool { return strings.HasPrefix(e, "details") }), want) {
		t.Errorf("events %q, want %q", got, want)
	}
	b.noGaps(id)
}

// D1's date decides when it comes; another one ends the lateness.
func TestLateByDate(t *testing.T) {
	t.Parallel()
	sim := fast
	sim.StepInterval = d1sim.Duration(time.Hour)
	_, use := programsFile(t, withLimits("sla: {workingDays: {CREATION: 1}, timeZone: Europe/Paris}"))
	b := newBank(t, sim, use)
	b.pause()
	id := b.place(b.thales("dated"))
	if o := b.view(id); o.DueAt == nil || !o.DueAt.After(o.CreatedAt) || o.Late || o.DueDate != "" {
		t.Errorf("by the SLA: %+v", o)
	}
	b.resume()
	b.await(id, "SUBMITTED")
	tell := func(status, due string) {
		t.Helper()
		operation := body{
			"operationId": b.get(id).view.OperationID, "operation": "PRODUCE", "status": "PENDING", "cardId": "card-dated",
			"startTime": "2026-03-01T09:30:00Z", "details": body{"status": status, "dueDate": due},
		}
		if status := b.notify(mustJSON(t, body{"operations": []body{operation}})); status != http.StatusNoContent {
			t.Fatalf("notifying: %d", status)
		}
	}
	tell("DATA_PREPARED", "2020-02-28")
	b.eventually("it is late", func() bool { return b.view(id).Late })
	if o := b.view(id); o.DueDate != "2020-02-28" || o.DueAt == nil || o.DueAt.UTC().Format(time.RFC3339) != "2020-02-28T23:00:00Z" {
		t.Errorf("by D1's date: %+v", o)
	}
	tell("CARD_PROD_READY", "2099-01-01")
	b.await(id, "READY")
	if o := b.view(id); o.Late || o.DueAt.UTC().Format(time.RFC3339) != "2099-01-01T23:00:00Z" {
		t.Errorf("by another date: %+v", o)
	}
}

// Time goes on while D1 is away or its lane paused: schedules end, orders become late; and
// once D1 is back they are not any more.
func TestTimeGoesOnWithoutD1(t *testing.T) {
	t.Parallel()
	_, use := programsFile(t, withLimits("dispatchDelay: 500ms, stageBudgets: {ACCEPTED: 300ms}"))
	for name, away := range map[string]struct{ begin, end func(*bank) }{
		"paused": {(*bank).pause, (*bank).resume},
		"D1 down": {func(b *bank) {
			b.script(d1sim.Script{Kind: d1sim.KindToken, Action: d1sim.ActionAnswer, Status: 503, Times: 1000})
		}, (*bank).clearScripts},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBank(t, fast, use)
			away.begin(b)
			id := b.place(b.thales("a"))
			if o := b.view(id); o.Status != client.StatusHeld && o.Status != client.StatusAccepted || o.NotBefore == nil || o.NotBefore.Sub(o.CreatedAt) != 500*time.Millisecond {
				t.Errorf("it is %+v", o)
			}
			b.await(id, "ACCEPTED")
			b.eventually("it is late", func() bool { return b.view(id).Late })
			if calls := b.calls("card-a"); len(calls) > 0 {
				t.Errorf("D1 was called: %v", calls)
			}
			away.end(b)
			b.await(id, "SHIPPED")
			if b.view(id).Late || len(b.late()) > 0 {
				t.Error("it has arrived, and is late")
			}
			if query[int](b, `SELECT count(*) FROM order_state WHERE next_check_at IS NOT NULL`) != 0 {
				t.Error("an order that has ended is looked at")
			}
			b.noGaps(id)
		})
	}
}
